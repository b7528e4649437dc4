"""Reading patches: patchdrive, nine other readers and the limit of the decoder, in interleaved rounds of one run; then the bars.

    make bench NAME=read                       all of it, about half an hour
    python benchmarks/read.py --quick          small rounds, three of them
    python benchmarks/read.py --only rand512   workloads whose name holds a word; likewise --readers
    python benchmarks/read.py --skip-bars      the table alone

The limit is simplejpeg (libdeflate, zstd) decoding each needed tile once, from memory, into a reused buffer, on one thread and on two.
A cell is the median over rounds of (limit on one core / reader) in the same round; in brackets the share of the same round's limit
on two threads. Every reader is given the same patches in the same order, the plan's. Files are in the page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import bench_peers as peers

os.environ.setdefault("GDAL_CACHEMAX", peers.GDAL_CACHE_MB)  # before anything asks GDAL

import numpy as np
from bench_readers import READERS, Read, Reader, in_plan_order
from bench_work import WORKLOADS, Corners, Limit, Workload, path_of, stored_level
from numpy.typing import NDArray
from read_bar import measure_bars

from patchdrive.pipeline.budget import cores

_PACKAGES = (
    "simplejpeg", "imagecodecs", "numpy", "openslide-python", "openslide-bin", "torch", "cucim-cu13", "pyvips", "pyvips-binary",
    "tiffslide", "tifffile", "zarr", "rasterio", "async-tiff",
)  # fmt: skip
_LOOKED_AT = 3  # patches of each workload that are compared


def machine() -> dict[str, Any]:
    """What the figures were measured on, and with."""
    cpu = next(
        (line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "unknown"
    )
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return {"cores": cores(), "cpu": cpu, "python": platform.python_version(), "system": platform.platform(), "packages": found}


def timed(work: Callable[[], object]) -> float:
    """Seconds `work` takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def differing(workload: Workload, reads: dict[str, Read], corners: Corners) -> list[str]:
    """Who does not give the pixels that the first of `reads` that is not ours gives, and by how much."""
    few = corners[np.linspace(0, len(corners) - 1, _LOOKED_AT).astype(int)]
    few = in_plan_order(few, workload.side, workload.file)
    seen: dict[str, dict[int, NDArray[Any]]] = {name: {} for name in reads}
    for name, read in reads.items():
        read(few, workload.side, lambda index, pixels, name=name: seen[name].__setitem__(index, np.array(pixels)))
    oracle = next(
        (name for name in ("openslide 1T", "rasterio 2T, dataset a thread", "tifffile-zarr 1T") if name in seen), next(iter(seen))
    )
    lines = []
    for name, patches in seen.items():
        if len(patches) != len(few):
            lines.append(f"{name} gave {len(patches)} patches of {len(few)}")
            continue
        gaps = [np.abs(patches[index].astype(np.int64) - seen[oracle][index].astype(np.int64)) for index in range(len(few))]
        if max(gap.max() for gap in gaps) > 0:
            lines.append(f"{name} differs from {oracle} by up to {max(gap.max() for gap in gaps)}, {np.mean(gaps):.2f} on average")
    return lines


def measure(workload: Workload, readers: Sequence[Reader], rounds: int, *, quick: bool) -> dict[str, Any]:
    """Every reader on one workload, `rounds` times in turn after a round that is not counted."""
    level = stored_level(workload.file)
    with ExitStack() as held:
        reads: dict[str, Read] = {reader.name: held.enter_context(reader.opened(path_of(workload))) for reader in readers}
        limits = {f"limit {threads}T": Limit(level, threads) for threads in (1, 2)}
        for limit in limits.values():
            held.callback(limit.close)

        def one_round(number: int) -> dict[str, Any]:
            corners = in_plan_order(workload.corners(number, quick=quick), workload.side, workload.file)
            streams = level.streams(level.needed(corners, workload.side))
            seconds = {name: timed(partial(limit.decode, streams)) for name, limit in limits.items()}
            seconds |= {name: timed(partial(read, corners, workload.side, peers.drop)) for name, read in reads.items()}
            return {"patches": len(corners), "tiles": len(streams), "seconds": seconds}

        differ = differing(workload, reads, workload.corners(0, quick=quick))
        one_round(0)
        found = [one_round(number) for number in range(1, rounds + 1)]
    return {"workload": workload.name, "file": workload.file, "side": workload.side, "differ": differ, "rounds": found}


def cells(result: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Each reader's (multiple of the one-core limit, share of the two-thread limit), medians of the rounds' own ratios."""
    rounds = [one["seconds"] for one in result["rounds"]]
    return {
        name: (
            statistics.median(one["limit 1T"] / one[name] for one in rounds),
            statistics.median(one["limit 2T"] / one[name] for one in rounds),
        )
        for name in rounds[0]
    }


def show(results: Sequence[dict[str, Any]], readers: Sequence[Reader]) -> None:
    """The tables, slides and scenes apart."""
    for title, start in (("slides", "slide"), ("scenes, 4 x uint16", "scene")):
        columns = [result for result in results if result["file"].startswith(start)]
        if not columns:
            continue
        print(f"\n## {title}: multiples of the one-core limit (share of the two-thread limit of the same round)")
        print("| reader | " + " | ".join(result["workload"] for result in columns) + " |")
        print("|---|" + "---|" * len(columns))
        rates = [statistics.median(one["patches"] / one["seconds"]["limit 1T"] for one in result["rounds"]) for result in columns]
        print("| limit 1 core, patches/s | " + " | ".join(f"{rate:.0f}" for rate in rates) + " |")
        made = [cells(result) for result in columns]
        for name in ("limit 2T", *(reader.name for reader in readers)):
            row = [f"{cell[name][0]:.2f} ({cell[name][1]:.2f})" if name in cell else "" for cell in made]
            if any(row):  # else it reads no file of these
                print(f"| {name} | " + " | ".join(row) + " |")
    for reader in readers:
        if reader.but_not:
            print(f"{reader.name} cannot read {', '.join(reader.but_not)}")
    print("\n## pixels")
    for result in results:
        print(f"{result['workload']}: " + ("; ".join(result["differ"]) or "every reader gives the same, to the bit"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=[""], help="workloads whose name holds one of these")
    parser.add_argument("--readers", nargs="*", default=[""], help="readers whose name holds one of these")
    parser.add_argument("--quick", action="store_true", help="rounds of tens of milliseconds, three of them")
    parser.add_argument("--skip-bars", action="store_true")
    given = parser.parse_args()
    rounds = 3 if given.quick else given.rounds
    about = machine()
    print(f"{about['cores']} cores, {about['cpu']}, Python {about['python']}, {rounds} interleaved rounds")
    print(", ".join(f"{name} {found}" for name, found in about["packages"].items()))
    chosen = [reader for reader in READERS if any(word in reader.name for word in given.readers)]
    for reader in chosen:
        if not reader.installed:
            print(f"not installed, so not measured: {reader.name}")
    readers = [reader for reader in chosen if reader.installed]
    results = []
    for workload in WORKLOADS:
        if any(word in workload.name for word in given.only):
            begin = time.perf_counter()
            taking_part = [reader for reader in readers if reader.reads(workload.file)]
            results.append(measure(workload, taking_part, rounds, quick=given.quick))
            print(f"  {workload.name}: {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
    show(results, readers)
    bars = {} if given.skip_bars else measure_bars(rounds=rounds, quick=given.quick)
    whole = not given.quick and not given.skip_bars and given.only == given.readers == [""]
    out = Path(__file__).parent / "results" / ("read.json" if whole else "read-part.json")
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps({"machine": about, "results": results, "bars": bars}, indent=1))


if __name__ == "__main__":
    main()
