"""What `make chaos` runs: a picture, models, and the command lines that cut them into many blocks, a few seconds each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch

from patchdrive.models.config import PatchDriveNetConfig
from patchdrive.models.model import PatchDrive, patchdrivenet
from patchdrive.models.types import ModelSpec, OutputSpec

_MPP = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One way to use the program."""

    name: str
    """For people."""
    model: str
    """As `--model` takes it."""
    options: tuple[str, ...]
    """Of `patchdrive run`."""
    processes: int = 1
    """That share the image."""


_PLAIN = ("--workers", "1", "--batch-size", "16", "--device", "cpu", "--json")
JOBS = (
    Job(name="features", model="chaos_jobs:Means", options=(*_PLAIN, "--saliency", "valid")),
    Job(
        name="dense maps with overlap",
        model="chaos_jobs:Halves",
        options=(*_PLAIN, "--saliency", "valid", "--patch-size", "128", "--overlap", "32", "--memory", "48MiB"),
    ),
    Job(name="a recurrent drive", model="chaos_jobs:recurrent", options=_PLAIN),
    Job(name="a drill-down drive", model="chaos_jobs:drill_down", options=_PLAIN),
    Job(name="two processes, features", model="chaos_jobs:Means", options=(*_PLAIN, "--saliency", "valid"), processes=2),
    Job(name="two processes, a recurrent drive", model="chaos_jobs:recurrent", options=_PLAIN, processes=2),
)


def command(job: Job, source: Path, out: Path, index: int) -> list[str]:
    """Arguments of the `index`-th process of a job."""
    shared = ["--shard", f"{index}/{job.processes}", "--within-image"] if job.processes > 1 else []
    return ["run", str(source), "-o", str(out), "--model", job.model, *job.options, *shared]


def write_source(path: Path, seed: int = 7) -> None:
    """A slide of 2048 x 2304 pixels of noise with some darker discs, one coarser level, plain tiles."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(100, 255, (2048, 2304, 3)).astype(np.uint8)
    y, x = np.mgrid[:2048, :2304]
    for _ in range(60):
        middle = rng.integers(0, 2048, 2)
        pixels[np.hypot(y - middle[0], x - middle[1]) < 40] //= 2
    coarse = pixels.reshape(512, 4, 576, 4, 3).mean(axis=(1, 3)).astype(np.uint8)
    tiles: dict[str, Any] = {"tile": (256, 256), "photometric": "rgb", "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as file:
        for level, (values, downsample) in enumerate(((pixels, 1), (coarse, 4))):
            file.write(values, subfiletype=int(level > 0), resolution=(1e4 / _MPP / downsample,) * 2, **tiles)


class Means:
    """A PatchModel: the mean of each channel of 16 pixels a side; 1024 of them are a block."""

    spec = ModelSpec(
        name="means", channels=3, size=16, any_size=True, outputs=(OutputSpec(name="means", kind="vector", channels=("r", "g", "b")),)
    )
    digest = "chaos-means"

    def __call__(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"means": pixels.mean(dim=(2, 3))}

    def to(self, _device: torch.device) -> Means:
        return self


class Halves(Means):
    """A PatchModel: two classes by brightness, at stride 1."""

    spec = ModelSpec(
        name="halves", channels=3, size=128, any_size=True, outputs=(OutputSpec(name="half", kind="classes", channels=("dark", "light")),)
    )
    digest = "chaos-halves"

    def __call__(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        light = pixels.mean(dim=1, keepdim=True) / 255
        return {"half": torch.cat([1 - light, light], dim=1)}


def recurrent() -> PatchDrive:
    """A DriveModel of three rounds, each decided by what was read before."""
    return patchdrivenet(PatchDriveNetConfig(driver="recurrent", threshold=0.02, max_patches=300, per_step=100))


def drill_down() -> PatchDrive:
    """A DriveModel of two rounds: a middle level, then its best parts."""
    return patchdrivenet(
        PatchDriveNetConfig(driver="drill-down", threshold=0.02, max_patches=300, segments=("ground", "thing"), embedding=True)
    )


def names(jobs: Sequence[Job]) -> str:
    """Of jobs, for people."""
    return ", ".join(job.name for job in jobs)
