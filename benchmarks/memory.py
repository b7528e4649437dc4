"""How much memory a run takes, from 1 to 100 gigapixels, under `--memory 1GiB`.

Features (256-pixel patches side by side, the means of 16 squares of each) and maps (two classes at stride 16, patches overlapping by
64 pixels, blended) of an image that is made as it is read; by one model, and by four in one pass. Each run is a process of its own.
Peak is the kernel's own high-water mark (VmHWM); what a process has resident once everything is imported is stated beside it. Growth is
that of the whole peak; that of the part beyond the imports, which is small at 1 gigapixel, stands beside it.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from procedural import Procedural
from torch import Tensor
from torch.nn.functional import avg_pool2d

from patchdrive.models.digest import description_digest
from patchdrive.models.types import ModelSpec, OutputSpec, PatchModel
from patchdrive.pipeline import RunSettings, run

BUDGET = 2**30
_SIDE, _CELL, _STRIDE, _OVERLAP = 256, 64, 16, 64
_ALLOWED = 1.1  # of the budget
_GROWTH = 1.2  # from the smallest image to the largest
JOBS = {"features": 1, "maps": 1, "features x 4": 4, "maps x 4": 4}
"""What is run, and by how many models."""


class Means:
    """A PatchModel: the means of 16 squares of a patch."""

    def __init__(self, name: str) -> None:
        columns = tuple(f"mean_{index}" for index in range((_SIDE // _CELL) ** 2))
        self.spec = ModelSpec(
            name=name, channels=1, size=_SIDE, scale=1 / 255, outputs=(OutputSpec(name="means", kind="vector", channels=columns),)
        )
        self.digest = description_digest(self.spec.to_dict())

    def __call__(self, pixels: Tensor, /) -> Mapping[str, Tensor]:
        return {"means": avg_pool2d(pixels, _CELL).flatten(1)}

    def to(self, _device: torch.device, /) -> Means:
        return self


class Pool:
    """A PatchModel: how bright each square of 16 pixels is, as the probability of two classes."""

    def __init__(self, name: str) -> None:
        output = OutputSpec(name=f"{name}_light", kind="classes", channels=("dark", "bright"), stride=_STRIDE)
        self.spec = ModelSpec(name=name, channels=1, size=_SIDE, scale=1 / 255, outputs=(output,))
        self.digest = description_digest(self.spec.to_dict())

    def __call__(self, pixels: Tensor, /) -> Mapping[str, Tensor]:
        bright = avg_pool2d(pixels, _STRIDE)
        return {self.spec.outputs[0].name: torch.cat([1 - bright, bright], dim=1)}

    def to(self, _device: torch.device, /) -> Pool:
        return self


def model_of(job: str) -> PatchModel:
    """The model of a job, or several as one."""
    kind: type[Means | Pool] = Means if job.startswith("features") else Pool
    models: list[PatchModel] = [kind(f"{kind.__name__.lower()}{index}") for index in range(JOBS[job])]
    if len(models) == 1:
        return models[0]
    from patchdrive.models import together  # noqa: PLC0415 - only what needs it imports it

    made: PatchModel = together(models)
    return made


def resident(what: str) -> int:
    """A line of the kernel's account of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


def measure_here(job: str, gigapixels: float) -> dict[str, Any]:
    """Run a job in this process, which does nothing else."""
    model, side = model_of(job), math.isqrt(round(gigapixels * 1e9))
    imported = resident("VmRSS")
    image = Procedural(side, side)
    settings = RunSettings(saliency="valid", memory=BUDGET, device="cpu", overlap=0 if job.startswith("features") else _OVERLAP)
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        report = run(image, model, Path(folder) / "run.zarr", settings=settings)
        seconds = time.perf_counter() - begin
    if report.status != "done":
        raise RuntimeError(f"{job} of {gigapixels} gigapixels ended as {report.status}: {dict(report.reasons)}")
    return {
        "job": job,
        "gigapixels": side**2 / 1e9,
        "patches": report.done,
        "seconds": seconds,
        "imported": imported,
        "peak": resident("VmHWM"),
    }


def measure(job: str, gigapixels: float) -> dict[str, Any]:
    """Run a job in a fresh process."""
    command = [sys.executable, __file__, "--only", job, "--gigapixels", str(gigapixels)]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return found


def growth(found: list[dict[str, Any]], job: str, *, beyond: bool = False) -> float:
    """Peak at the largest image, or the part of it `beyond` the imports, over that at the smallest."""
    taken = [one["peak"] - beyond * one["imported"] for one in found if one["job"] == job]
    return float(taken[-1] / taken[0])


def show(found: list[dict[str, Any]]) -> None:
    mib = 2**20
    print(f"\nbudget {BUDGET // mib} MiB\n")
    print("| job | gigapixels | patches | seconds | imports, MiB | peak, MiB | peak - imports, MiB | / budget | growth | beyond imports |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for one in found:
        taken = one["peak"] - one["imported"]
        smaller = [other for other in found if other["gigapixels"] <= one["gigapixels"]]
        print(
            f"| {one['job']} | {one['gigapixels']:.3g} | {one['patches']:,} | {one['seconds']:.0f} | {one['imported'] / mib:.0f} "
            f"| {one['peak'] / mib:.0f} | {taken / mib:.0f} | {taken / BUDGET:.2f} "
            f"| {growth(smaller, one['job']):.2f} | {growth(smaller, one['job'], beyond=True):.2f} |"
        )


def misses(found: list[dict[str, Any]], *, quick: bool) -> list[str]:
    """Which promises are not kept; growth is promised from 1 gigapixel on."""
    over = [one for one in found if one["peak"] - one["imported"] > _ALLOWED * BUDGET]
    lines = [f"{one['job']} at {one['gigapixels']:.3g} gigapixels: more than {_ALLOWED} x the budget" for one in over]
    jobs = [] if quick else list(dict.fromkeys(one["job"] for one in found))
    return lines + [f"{job}: grows {growth(found, job):.2f} times" for job in jobs if growth(found, job) > _GROWTH]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="0.1 and 1 gigapixel")
    parser.add_argument("--jobs", nargs="*", choices=list(JOBS), default=list(JOBS))
    parser.add_argument("--only", choices=list(JOBS), help="one job in this process, told as JSON")
    parser.add_argument("--gigapixels", type=float, default=1.0, help="for --only")
    given = parser.parse_args()
    if given.only:
        print(json.dumps(measure_here(given.only, given.gigapixels)))
        return 0
    found = []
    for job in given.jobs:
        for gigapixels in (0.1, 1.0) if given.quick else (1.0, 10.0, 100.0):
            found.append(measure(job, gigapixels))
            print(f"  {job}, {gigapixels:g} gigapixels: {found[-1]['seconds']:.0f} s", file=sys.stderr, flush=True)
    show(found)
    missed = misses(found, quick=given.quick)
    kept = f"every peak is within {_ALLOWED} x the budget" + ("" if given.quick else f", and none grows {_GROWTH} times")
    print("\n" + ("\n".join(missed) or kept))
    out = Path(__file__).parent / "results" / ("memory-quick.json" if given.quick else "memory.json")
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps({"budget": BUDGET, "results": found}, indent=1))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
