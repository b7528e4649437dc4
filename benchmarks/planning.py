"""Planning ten million patches: seconds, and bytes per patch at the peak, of each step; and how long a store of as many takes to resume.

Steps are timed once and their memory is traced by a second call, since tracing slows them. The store is made by `run` itself, with
32-pixel patches of an image that is made as it is read and a model that takes their mean; it is stopped when one block is left, and run
again by a fresh process: seconds until it knows what is left (open, look, plan, compare, read what is committed), and until it is done.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from procedural import Procedural
from torch import Tensor

from patchdrive.models.digest import description_digest
from patchdrive.models.types import ModelSpec, OutputSpec
from patchdrive.pipeline import RunSettings, run
from patchdrive.pipeline.plan import Layout, Plan, Saliency, coverage, feature_blocks, map_blocks, plan_grid, plan_topk, target_grid
from patchdrive.pipeline.tables import ROWS
from patchdrive.readers import Level

SIDE = 32
"""Of a patch, pixels."""
SECONDS, BYTES = 3.0, 64
"""What a dense plan with its blocks may take; bytes per patch at the peak."""
_COARSE = 2471  # cells a side of the saliency: what a glance at 100 gigapixels gives
_SETTINGS = RunSettings(saliency="valid", memory=2**31, device="cpu", batch_size=512)
T = TypeVar("T")


class Mean:
    """A PatchModel: the mean of a patch."""

    spec = ModelSpec(name="mean", channels=1, size=SIDE, outputs=(OutputSpec(name="mean", kind="vector", channels=("mean",)),))
    digest = description_digest(spec.to_dict())

    def __call__(self, pixels: Tensor, /) -> Mapping[str, Tensor]:
        return {"mean": pixels.mean(dim=(2, 3))}

    def to(self, _device: torch.device, /) -> Mean:
        return self


class Clock:
    """A Watcher that notes when the work began, and wishes to stop when few blocks are left."""

    def __init__(self, stop_at: int) -> None:
        """Stop once no more than `stop_at` blocks are left; 0 for never."""
        self._stop_at, self._left = stop_at * ROWS, 0
        self.began_at = 0.0

    def began(self, rows: int, left: int) -> None:
        self.began_at, self._left = time.perf_counter(), left
        print(f"  {rows:,} rows, {left:,} to do", file=sys.stderr, flush=True)

    def committed(self, rows: int) -> None:
        self._left -= rows

    def wants_stop(self) -> bool:
        return self._left <= self._stop_at and self._stop_at > 0


def scene(patches: int) -> tuple[Level, Saliency]:
    """A square target grid that holds this many patches side by side, all of them worth reading, no two equally."""
    edge = math.isqrt(patches) * SIDE
    base = Level(index=0, height=edge, width=edge, downsample_y=1.0, downsample_x=1.0, tile_height=512, tile_width=512)
    cells = min(_COARSE, edge)
    values = 0.5 + np.random.default_rng(0).random((cells, cells), dtype=np.float32) / 2
    level = Level(index=0, height=cells, width=cells, downsample_y=edge / cells, downsample_x=edge / cells, tile_height=512, tile_width=512)
    return target_grid(base, 1.0, 1.0), Saliency(map=values, mask=np.ones_like(values, np.bool_), level=level)


def timed(work: Callable[[], T]) -> tuple[T, float, int]:
    """What `work` gives, the seconds it takes, and the bytes it holds at its peak, its result among them."""
    begin = time.perf_counter()
    made = work()
    seconds = time.perf_counter() - begin
    del made
    tracemalloc.start()
    made = work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return made, seconds, peak


def plan_steps(patches: int) -> list[dict[str, Any]]:
    """Every step of planning."""
    grid, saliency = scene(patches)
    found: list[dict[str, Any]] = []

    def step(name: str, work: Callable[[], T], count: int) -> T:
        made, seconds, peak = timed(work)
        found.append({"step": name, "patches": count, "seconds": seconds, "bytes_per_patch": peak / count})
        return made

    dense = Layout(side=SIDE, stride=SIDE)
    few = Layout(side=4 * SIDE, stride=4 * SIDE)  # on a lattice of SIDE: as many candidates

    def with_blocks() -> tuple[Plan, Any]:
        made = plan_grid(grid, saliency, dense)
        return made, feature_blocks(made, rows=ROWS)

    plan, _ = step("plan_grid, dense, and its feature blocks", with_blocks, patches)
    step("feature_blocks alone", lambda: feature_blocks(plan, rows=ROWS), len(plan))
    step("all their rows", lambda: sum(len(block.rows) for block in feature_blocks(plan, rows=ROWS)), len(plan))
    overlapping = Layout(side=SIDE + 8, stride=SIDE, halo=0)
    wide = plan_grid(grid, saliency, overlapping)
    step("map_blocks, overlapping", lambda: map_blocks(wide, edge=4096, halo=0), len(wide))
    step("plan_topk, 500 out of as many", lambda: plan_topk(grid, saliency, few, count=500, spacing=4 * SIDE), patches)
    step("digest", lambda: plan.digest, len(plan))
    step("coverage", lambda: coverage([plan], saliency), len(plan))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.npz"
        step("save", lambda: plan.save(path), len(plan))
        step("load", lambda: Plan.load(path), len(plan))
    return found


def part_of_a_run(store: Path, patches: int, left: int) -> dict[str, Any]:
    """Run, or go on with, until `left` blocks are left, in this process."""
    edge, clock = math.isqrt(patches) * SIDE, Clock(left)
    begin = time.perf_counter()
    report = run(Procedural(edge, edge), Mean(), store, settings=_SETTINGS, watcher=clock)
    end = time.perf_counter()
    peak = next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return {
        "status": report.status,
        "planned": report.planned,
        "done": report.done,
        "until_work": clock.began_at - begin,
        "seconds": end - begin,
        "peak": peak,
    }


def resume(patches: int) -> dict[str, Any]:
    """Make a store with one block left, and finish it, each in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--patches", str(patches), "--store", str(Path(folder) / "run.zarr"), "--left"]
        made, resumed = (
            json.loads(subprocess.run([*command, left], check=True, stdout=subprocess.PIPE, text=True).stdout) for left in ("1", "0")
        )
    if made["status"] != "partial" or resumed["status"] != "done" or resumed["done"] != resumed["planned"]:
        raise RuntimeError(f"the store was not resumed: {made}, {resumed}")
    return {"made": made, "resumed": resumed}


def show(steps: list[dict[str, Any]], stores: dict[str, Any] | None) -> None:
    print("\n| step | patches | seconds | bytes per patch at the peak |\n|---|---|---|---|")
    for one in steps:
        print(f"| {one['step']} | {one['patches']:,} | {one['seconds']:.2f} | {one['bytes_per_patch']:.1f} |")
    for name, one in (stores or {}).items():
        print(
            f"\nstore {name}: {one['done']:,} of {one['planned']:,} rows; {one['until_work']:.1f} s until the work begins, "
            f"{one['seconds']:.1f} s in all, peak {one['peak'] / 2**20:.0f} MiB"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=int, default=10_000_000)
    parser.add_argument("--quick", action="store_true", help="a hundredth of them")
    parser.add_argument("--skip-store", action="store_true", help="the plan only")
    parser.add_argument("--store", type=Path, help="run in this process until --left blocks are left, told as JSON")
    parser.add_argument("--left", type=int, default=0)
    given = parser.parse_args()
    if given.store:
        print(json.dumps(part_of_a_run(given.store, given.patches, given.left)))
        return 0
    patches = math.isqrt(given.patches // 100 if given.quick else given.patches) ** 2
    steps = plan_steps(patches)
    stores = None if given.skip_store else resume(patches)
    show(steps, stores)
    out = Path(__file__).parent / "results" / ("planning-quick.json" if given.quick else "planning.json")
    out.parent.mkdir(exist_ok=True)
    about = {"cores": len(os.sched_getaffinity(0)), "python": platform.python_version(), "numpy": np.__version__}
    out.write_text(json.dumps({"machine": about, "steps": steps, "stores": stores}, indent=1))
    dense = steps[0]
    kept = given.quick or (dense["seconds"] <= SECONDS and dense["bytes_per_patch"] <= BYTES)
    print(f"\n{'within' if kept else 'NOT WITHIN'} {SECONDS:g} s and {BYTES} bytes per patch for the dense plan and its blocks")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
