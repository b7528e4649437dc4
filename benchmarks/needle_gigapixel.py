"""Needles in gigapixels through the pipeline: what the drive finds and reads, how long, in how much memory, against a scan of everything.

Each run is a process of its own; its peak is the kernel's own (VmHWM). Its malloc gives arrays of a megabyte and more back to the system
once they are freed (MALLOC_MMAP_THRESHOLD_): by default glibc keeps up to 32 MiB of what each was, and peaks differ from run to run.
What was read is counted in three ways: pixels asked for (both looks at the 32x level, the run's own and the drive's, and every patch),
pixels decoded (whole tiles, each once), and bytes of the file (those tiles, compressed).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from megapixel_network import SIZE
from needle_model import APART, GLANCE, MOST, candidates_of, load_drive, load_scan
from needle_reads import STEP
from needle_slide import LEVELS, NEEDLES, Slide, Things, scatter
from needle_slide import __file__ as WRITER  # noqa: N812 - a path
from numpy.typing import NDArray

from patchdrive.pipeline import RunSettings, open_result, run
from patchdrive.readers import open_image

MEMORY = 512 * 2**20
"""Budget of a run, beyond what is imported."""
FIRST = (20, 40, 100)
"""Objects, surest first."""
READS = (20, 50, 100, 200, 500, 1000, 2000, 4000, 8000, 20_000)
"""Full-resolution reads, for the curve."""


def write(slide: Slide, path: Path) -> dict[str, Any]:
    """Write the file in a process of its own, unless it is there."""
    held = path.with_suffix(".json")
    if not held.exists():
        begin = time.perf_counter()
        subprocess.run([sys.executable, WRITER, str(path), "--side", str(slide.side), "--seed", str(slide.seed)], check=True)
        held.write_text(json.dumps({"seconds": time.perf_counter() - begin, "bytes": path.stat().st_size}))
    written: dict[str, Any] = json.loads(held.read_text())
    return written


def measure(job: str, image: Path, weights: Path, store: Path, *, reads: int = MOST) -> dict[str, Any]:
    """Run a job, `drive` or `scan`, in a fresh process."""
    command = [sys.executable, __file__, job, str(image), str(weights), str(store), "--reads", str(reads)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)})
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure_here(job: str, image: Path, weights: Path, store: Path, reads: int) -> dict[str, Any]:
    """Run a job in this process, which does nothing else."""
    torch.set_num_threads(1)
    model = load_drive(weights).with_max_patches(reads) if job == "drive" else load_scan(weights)
    imported = peak_here()
    settings = RunSettings(saliency="needle_model:everywhere", device="cpu", batch_size=64, memory=MEMORY)
    begin = time.perf_counter()
    report = run(open_image(image), model, store, settings=settings, overwrite=True)
    return {
        "seconds": time.perf_counter() - begin,
        "imported": imported,
        "peak": peak_here(),
        "patches": report.done,
        "status": report.status,
        "stages": dict(report.seconds),
    }


def peak_here() -> int:
    """Most that this process has held, bytes. Not ru_maxrss: Linux lets it begin with what the process that started this one held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def what_was_read(slide: Slide, image: Path, store: Path) -> dict[str, Any]:
    """Pixels and bytes of a drive's run, and their shares of level 0 and of the file."""
    small = (slide.side // GLANCE) ** 2
    asked, decoded, held = 2 * small, 0, 0
    touched = {LEVELS - 1: np.ones((slide.side // GLANCE // slide.tile,) * 2, np.bool_)}
    for one in open_result(store).rounds:
        level = round(np.log2(one.plan.grid.downsample_y))
        across = (slide.side >> level) // slide.tile
        tiles = touched.setdefault(level, np.zeros((across, across), np.bool_))
        for dy in (0, SIZE - 1):
            for dx in (0, SIZE - 1):
                tiles[(one.plan.y + dy) // slide.tile, (one.plan.x + dx) // slide.tile] = True
        asked += len(one.plan) * SIZE**2
    with tifffile.TiffFile(image) as tiff:
        for level, tiles in touched.items():
            held += int(np.array(tiff.pages[level].databytecounts)[tiles.ravel()].sum())
            decoded += int(tiles.sum()) * slide.tile**2
    total = slide.side**2
    return {
        "patches": [len(one.plan) for one in open_result(store).rounds],
        "pixels": asked,
        "pixels_share": asked / total,
        "decoded_share": decoded / total,
        "bytes": held,
        "bytes_share": held / image.stat().st_size,
        "tiles_share": {str(2**level): float(tiles.mean()) for level, tiles in sorted(touched.items())},
    }


def what_was_found(things: Things, store: Path) -> dict[str, Any]:
    """Share of the needles whose ink lies whole in a full-resolution read, and that are among the surest objects."""
    result = open_result(store)
    boxes = things.needles
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    plan = result.rounds[1].plan
    objects = next(iter(result.objects.values()))
    order = np.argsort(-objects.score, kind="stable")
    near = np.abs(objects.yx[order][:, None] - middle[None]).max(axis=2) <= APART
    return {
        "read": inside(np.stack([plan.y, plan.x], axis=1), boxes),
        **{f"first {count}": float(near[:count].any(axis=0).mean()) for count in FIRST},
    }


def inside(corners: NDArray[np.int64], boxes: NDArray[np.float64]) -> float:
    """Share of the boxes that lie whole in some read."""
    whole = (corners[:, None] <= boxes[None, :, :2]).all(axis=2) & (boxes[None, :, 2:] <= corners[:, None] + SIZE).all(axis=2)
    return float(whole.any(axis=0).mean())


def frontier(slide: Slide, things: Things, store: Path) -> list[dict[str, Any]]:
    """Recall after so many full-resolution reads, by what is seen before: shares of level 0's pixels that each way to look small costs.

    `4x`: the whole level, whose peaks are ranked. `16x` and `32x`: that level for ink, and patches of the 4x level on its peaks.
    """
    result = open_result(store)
    first = result.rounds[0].plan
    vectors = result.features
    assert vectors is not None
    logit, place = candidates_of(torch.from_numpy(vectors[: len(first)]).float(), torch.from_numpy(first.centres).float())
    corners = np.round(place[logit.argsort(descending=True, stable=True)].numpy() - SIZE / 2).astype(np.int64)
    total = slide.side**2
    cells = len(first) * SIZE**2 / total
    first_look = 1 / GLANCE**2  # of the run itself, at 32x
    rows = []
    for count in READS:
        cost = min(count, len(corners)) * SIZE**2 / total
        shares = {
            "4x": first_look + 1 / STEP**2 + cost,
            "16x": first_look + 1 / 16**2 + cells + cost,
            "32x": first_look + 1 / GLANCE**2 + cells + cost,
        }
        rows.append({"reads": min(count, len(corners)), "recall": inside(corners[:count], things.needles), "pixels_share": shares})
    rows.append(
        {
            "reads": len(corners),
            "recall": inside(corners, things.needles),
            "pixels_share": {"16x, no 4x": first_look + 1 / 16**2 + len(corners) * SIZE**2 / total},
        }
    )
    return rows


def scan_found(things: Things, store: Path) -> dict[str, float]:
    """Share of the needles whose middle lies in one of the patches of a scan that have most evidence."""
    result = open_result(store)
    evidence = result.features
    assert evidence is not None
    middle = (things.needles[:, :2] + things.needles[:, 2:]) / 2
    plan = result.rounds[0].plan
    best = np.argsort(-evidence[:, 0], kind="stable")[: max(FIRST)]
    corners = np.stack([plan.y[best], plan.x[best]], axis=1)
    held = ((corners[:, None] <= middle[None]) & (middle[None] < corners[:, None] + SIZE)).all(axis=2)
    return {f"first {count}": float(held[:count].any(axis=0).mean()) for count in FIRST}


def gigapixel(
    sides: Sequence[int], scanned: Sequence[int], weights: Path, work: Path, *, data: Path, reads: int, seeds: Sequence[int]
) -> dict[str, Any]:
    """All sizes driven, the largest once for each seed; some of them scanned too."""
    found: dict[str, Any] = {}
    slides = [Slide(side=side, seed=seed) for side in sides for seed in (seeds if side == max(sides) else seeds[:1])]
    for slide in slides:
        side, name = slide.side, f"{slide.side}-{slide.seed}"
        things, image, store = scatter(slide, data=data), work / f"haystack-{name}.tif", work / f"{name}.zarr"
        one: dict[str, Any] = {
            "side": side, "seed": slide.seed, "distractors": slide.distractors, "needles": NEEDLES, "written": write(slide, image)
        }  # fmt: skip
        most = max(100, round(reads * (side / Slide().side) ** 2))
        one["drive"] = measure("drive", image, weights, store, reads=most)
        one["drive"] |= {"read": what_was_read(slide, image, store), "recall": what_was_found(things, store)}
        one["frontier"] = frontier(slide, things, store)
        told = {key: one["drive"][key] for key in ("seconds", "peak", "recall", "read")}
        print(f"  {name}: {json.dumps(told)}", file=sys.stderr, flush=True)
        if side in scanned and slide.seed == seeds[0]:
            one["scan"] = measure("scan", image, weights, store)
            one["scan"]["recall"] = scan_found(things, store)
            print(f"  {name}, scanned: {json.dumps(one['scan'])}", file=sys.stderr, flush=True)
        for leftover in work.glob(f"{name}.*"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        found[name] = one
    return found


def growth(found: Mapping[str, Any]) -> float:
    """Highest peak of the drive at the largest size over that at the smallest."""
    sides = {one["side"] for one in found.values()}
    least, most = (max(one["drive"]["peak"] for one in found.values() if one["side"] == side) for side in (min(sides), max(sides)))
    return float(most / least)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=("drive", "scan"))
    parser.add_argument("image", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("store", type=Path)
    parser.add_argument("--reads", type=int, default=MOST)
    given = parser.parse_args()
    print(json.dumps(measure_here(given.job, given.image, given.weights, given.store, given.reads)))


if __name__ == "__main__":
    main()
