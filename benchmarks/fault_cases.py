"""The faults of disks, sources and machines: each is done to the real program, and what it says, leaves and mends is noted in a row."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from fault_lab import BLOCKS, NOBODY, Gate, Lab, Row, disk, records, remount, store_of, tree, write_source

PAGE = 4096
_PATIENT = 15.0


def full_disk(lab: Lab, row: Row, *, step: int = 1) -> None:
    """The disk has room for so many pages, then for `step` more, ...: each run goes on where the one before was stopped."""
    out, pages, stopped, last = lab.folder("full"), 1, Counter[str](), {}
    with disk(out, f"size={PAGE}"):
        while (ended := lab.run(out)).code != 0:
            stage = _stage(out)
            stopped[stage] += 1
            if stage not in last:
                row.sees.append(f"{stage}: {' / '.join(ended.err)}")
                last[stage] = ended
            kept = len(row.sees)
            row.met(ended, codes=(75,), words="No space left on device")
            del row.sees[kept:]
            pages += step
            remount(out, f"size={pages * PAGE}")
            if pages > 600 or row.wrong:
                break
        row.store = f"stopped while it {', '.join(f'{stage} {count} times' for stage, count in stopped.items())}"
        row.require({"began", "computed", "finished"} <= stopped.keys() or step > 1, f"not every stage was met: {dict(stopped)}")
        same = ended.code == 0 and tree(store_of(out)) == lab.undisturbed
        row.again = f"{stopped.total()} runs later: exit {ended.code}; {'bytes equal' if same else 'BYTES DIFFER'}"
        row.require(same, row.again)
        row.require("verify: good" in lab.told(out), lab.told(out))


def _stage(out: Path) -> str:
    if not list(out.glob("*.patchdrive/plans/0.json")):
        return "began"
    return "computed" if records(out) < BLOCKS else "finished"


def full_disk_amid(lab: Lab, row: Row) -> None:
    """Another program fills the disk while blocks are computed."""
    out, gate = lab.folder("full-amid"), Gate(lab.root / "full-amid-gate")
    with disk(out, "size=2m"):
        process = lab.begin(lab.command(out), gate.environment)
        gate.reached(out)
        filler = out / "filler"
        with filler.open("wb") as file:
            left = os.statvfs(out)
            file.write(bytes(left.f_bavail * left.f_frsize))
        gate.open()
        row.met(process.wait(), codes=(75,), words="No space left on device")
        row.store = lab.told(out)
        filler.unlink()
        lab.resumed(row, out)


def read_only(lab: Lab, row: Row) -> None:
    """The disk is read-only from the beginning."""
    out = lab.folder("read-only")
    with disk(out, "size=2m"):
        remount(out, "ro")
        row.met(lab.run(out), codes=(2,), words="Read-only file system")
        row.store = lab.told(out)
        remount(out, "rw")
        lab.resumed(row, out)


def read_only_amid(lab: Lab, row: Row) -> None:
    """The disk becomes read-only while blocks are computed, as Linux does after an error of the drive."""
    out, gate = lab.folder("read-only-amid"), Gate(lab.root / "read-only-amid-gate")
    with disk(out, "size=2m"):
        process = lab.begin(lab.command(out), gate.environment)
        gate.reached(out)
        remount(out, "ro")
        gate.open()
        row.met(process.wait(), codes=(75,), words="Read-only file system")
        row.store = lab.told(out)
        row.met(lab.run(out), codes=(2, 75), words="Read-only file system")
        remount(out, "rw")
        lab.resumed(row, out)


def no_folder(lab: Lab, row: Row) -> None:
    """OUT lies in a folder that may not be written, below a file, and then in folders that are not there yet."""
    locked = lab.folder("locked")
    locked.chmod(0o555)
    row.met(lab.begin(lab.command(locked / "out"), user=NOBODY).wait(), codes=(2,), words="Permission denied")
    file = lab.root / "a-file"
    file.touch()
    row.met(lab.run(file / "out"), codes=(2,), words="choose another folder with -o")
    row.store = lab.told(locked / "out")
    lab.resumed(row, lab.root / "not" / "there" / "yet")


def few_files(lab: Lab, row: Row) -> None:
    """Fewer and fewer files may be open at once: `ulimit -n`. With less than fourteen asyncio, which zarr needs, does not come far."""
    for files in (64, 32, 16, 14):
        out = lab.folder(f"files-{files}")
        ended = lab.begin(lab.command(out), files=files).wait()
        if ended.code == 0:
            row.require(tree(store_of(out)) == lab.undisturbed, f"{files} files: other bytes")
            row.store = f"done with {files}"
            continue
        row.met(ended, codes=(2, 3, 75), words="Too many open files")
        lab.resumed(row, out)


def source_locked(lab: Lab, row: Row) -> None:
    """The source lies in a folder that may not be entered."""
    source, out = lab.copy("locked-source"), lab.folder("locked-source-out")
    out.chmod(0o777)
    source.parent.chmod(0o700)
    row.met(lab.begin(lab.command(out, source=source), user=NOBODY).wait(), codes=(3,), words="Permission denied")
    row.store = lab.told(out)
    source.parent.chmod(0o755)
    lab.resumed(row, out, source=source)


def source_cut(lab: Lab, row: Row) -> None:
    """The source is cut to a tenth while it is read."""
    source, out, gate = lab.copy("cut"), lab.folder("cut-out"), Gate(lab.root / "cut-gate")
    process = lab.begin(lab.command(out, source=source), gate.environment)
    gate.reached(out)
    os.truncate(source, source.stat().st_size // 10)
    gate.open()
    row.met(process.wait(), codes=(3, 75), words=str(source))
    row.store = lab.told(out)
    row.require("unfinished" in row.store, f"what could not be read counts as done: {row.store}")
    row.met(lab.run(out, source=source), codes=(3,), words=str(source))
    shutil.copyfile(lab.source, source)
    lab.resumed(row, out, source=source)


def source_overwritten(lab: Lab, row: Row) -> None:
    """Another picture of the same size is written over the source while it is read: what is computed is of neither."""
    source, out, gate = lab.copy("overwritten"), lab.folder("overwritten-out"), Gate(lab.root / "overwritten-gate")
    write_source(lab.root / "other.tif", seed=8)
    process = lab.begin(lab.command(out, source=source), gate.environment)
    gate.reached(out)
    with source.open("r+b") as file:
        file.write((lab.root / "other.tif").read_bytes())
    gate.open()
    ended = process.wait()
    row.met(ended, codes=(3, 75), words=str(source))
    row.store = lab.told(out)
    row.require("unfinished" in row.store, f"pixels of two pictures count as done: {row.store}")
    shutil.copyfile(lab.source, source)
    again = lab.run(out, source=source)
    row.again = f"exit {again.code}"


def source_gone_amid(lab: Lab, row: Row) -> None:
    """The source is deleted while it is read: the system keeps what is open."""
    source, out, gate = lab.copy("gone-amid"), lab.folder("gone-amid-out"), Gate(lab.root / "gone-amid-gate")
    process = lab.begin(lab.command(out, source=source), gate.environment)
    gate.reached(out)
    source.unlink()
    gate.open()
    row.met(process.wait(), codes=(0,))
    row.store = lab.told(out)
    row.require(tree(store_of(out)) == lab.undisturbed, "other bytes")
    row.met(lab.run(out, source=source), codes=(3,), words="no such file")
    shutil.copyfile(lab.source, source)
    lab.resumed(row, out, source=source)


def source_gone(lab: Lab, row: Row) -> None:
    """The source is deleted between two runs."""
    source, out = lab.copy("gone"), lab.folder("gone-out")
    _stopped(lab, row, out, source)
    source.unlink()
    row.met(lab.run(out, source=source), codes=(3,), words="no such file")
    row.store = lab.told(out)
    shutil.copyfile(lab.source, source)
    lab.resumed(row, out, source=source)


def source_replaced(lab: Lab, row: Row) -> None:
    """Between two runs another picture takes the place and the name of the source."""
    source, out = lab.copy("replaced"), lab.folder("replaced-out")
    _stopped(lab, row, out, source)
    first = store_of(out)
    before = tree(first)
    write_source(source, seed=8)
    row.met(lab.run(out, source=source), codes=(0,))
    others = set(out.glob("*.zarr")) - {first}
    row.store = lab.told(out)
    row.require(len(others) == 1 and tree(first) == before, f"the stores are {sorted(path.name for path in out.glob('*.zarr'))}")
    shutil.copyfile(lab.source, source)
    for other in others:
        for path in out.glob(f"{other.stem}.*"):
            shutil.rmtree(path, ignore_errors=True)
    lab.resumed(row, out, source=source)


def _stopped(lab: Lab, row: Row, out: Path, source: Path) -> None:
    """A run that is asked to stop in its third block, or as it records its second."""
    gate = Gate(out.with_name(f"{out.name}-gate"))
    process = lab.begin(lab.command(out, source=source), gate.environment)
    gate.reached(out)
    os.kill(process.pid, signal.SIGTERM)
    gate.open()
    ended = process.wait()
    row.require(ended.code == 75 and records(out) in {2, 3}, f"SIGTERM: exit {ended.code} with {records(out)} blocks, {ended.err}")


def torn_tile(lab: Lab, row: Row, *, coarser: bool = True) -> None:
    """The bytes of one tile are noise, under each `--on-error`; with a coarser level, or without one: then the glance reads that tile."""
    folder = lab.folder("torn" if coarser else "torn-alone")
    source = _torn(folder / "slide.tif", coarser=coarser)
    for how, code, status in (("fail", 3, "failed"), ("mask", 0, "done"), ("skip", 0, "done")):
        ended = lab.run(folder / how, None, "--on-error", how, source=source)
        row.met(ended, codes=(code,))
        report = ended.report
        counts = [report[name] for name in ("planned", "done", "skipped", "failed")]
        row.require(report["status"] == status, f"{how}: status {report['status']}")
        row.require(counts[0] == sum(counts[1:]), f"{how}: {counts}")
        row.require("tile row 2, column 3" in json.dumps([report["reasons"], report["masked"]]), f"{how}: the tile is not named")
        told = f"{counts[0]} planned = {counts[1]} done + {counts[2]} skipped + {counts[3]} failed"
        row.store += f"{how}: {told}, {sum(report['masked'].values())} with holes; {lab.told(folder / how).rpartition('; ')[2]}. "
        again = lab.run(folder / how, None, "--on-error", how, source=source)
        same = (again.code, again.report.get("done")) == (ended.code, report["done"])
        row.require(same, f"{how}: the next run says otherwise: {again}")
    row.again = "the same, from the store"
    row.status = "failed, done, done"


def _torn(path: Path, *, coarser: bool) -> Path:
    pixels = np.random.default_rng(3).integers(100, 255, (1024, 1024, 3)).astype(np.uint8)
    how: dict[str, Any] = {"tile": (256, 256), "photometric": "rgb", "compression": "zlib", "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as writer:
        writer.write(pixels, resolution=(2e4, 2e4), **how)
        if coarser:
            writer.write(np.ascontiguousarray(pixels[::4, ::4]), resolution=(5e3, 5e3), subfiletype=1, **how)
    with tifffile.TiffFile(path) as read:
        place = read.pages.first.dataoffsets[2 * 4 + 3]
    with path.open("r+b") as file:
        file.seek(place)
        file.write(bytes(range(256)) * 4)
    return path


def hung_tile(lab: Lab, row: Row) -> None:
    """From the sixth row of tiles on, the source does not answer."""
    out = lab.folder("hung")
    row.met(lab.run(out, {"FAULT_HANG": "0:5"}, "--patience", "2"), codes=(75,), words="has not given a tile for 2 s")
    row.store = lab.told(out)
    lab.resumed(row, out)


def hung_glance(lab: Lab, row: Row) -> None:
    """The coarsest level, at which the image is looked at first, does not answer."""
    out = lab.folder("hung-glance")
    row.met(lab.begin(lab.command(out, "--patience", "2"), {"FAULT_HANG": "1:0"}).wait(_PATIENT), codes=(75,), words="--patience")
    row.store = lab.told(out)
    lab.resumed(row, out)
