"""Small models and slides that several tests share."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from patchdrive.models.types import ModelSpec, OutputSpec
from patchdrive.pipeline import RunSettings, run
from patchdrive.readers import MemoryImage


class Means:
    """A PatchModel: the mean of each channel."""

    digest = "means"
    spec = ModelSpec(
        name="means", channels=3, size=64, any_size=True, outputs=(OutputSpec(name="m", kind="vector", channels=("r", "g", "b")),)
    )

    def __call__(self, pixels):
        return {"m": pixels.mean(dim=(2, 3))}

    def to(self, device):
        return self


class Light:
    """A PatchModel: dark, or bright."""

    digest = "classes"
    spec = ModelSpec(
        name="light", channels=3, size=128, any_size=True, outputs=(OutputSpec(name="light", kind="classes", channels=("dark", "bright")),)
    )

    def __call__(self, pixels):
        bright = pixels[:, :1] / 255
        return {"light": torch.cat([1 - bright, bright], dim=1)}

    def to(self, device):
        return self


SMALL = ModelSpec(
    name="small", channels=3, size=16, any_size=True, outputs=(OutputSpec(name="maps", kind="probability", channels=("a", "b"), halo=1),)
)
"""What a `Small` eats and gives."""


class Small(nn.Module):
    """One convolution and a constant: weights and a tensor that is no weight."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.convolution = nn.Conv2d(3, 2, 3, padding=1)
        self.register_buffer("gain", torch.full((2, 1, 1), 1.5), persistent=False)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        return {"maps": torch.sigmoid(self.convolution(pixels) * self.gain)}


class Pooled(nn.Module):
    """A vector of normalised, strided features: the operators of a usual encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.GELU(), nn.Conv2d(8, 16, 3), nn.GroupNorm(4, 16))

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        return {"features": self.body(pixels).mean((2, 3))}


def everywhere(pixels, mask):
    """A saliency: all of it, rising from 0.1 to 1."""
    return np.linspace(0.1, 1, mask.size, dtype=np.float32).reshape(mask.shape)


def store_with_a_hole(folder, *, mpp, wanted, hole):
    """A store of `Means` over a slide of 1200 x 1000 pixels, with a hole that its coarse level knows nothing of: some patches are skipped.

    Args:
        folder: where `s.zarr` is left.
        mpp: of level 0, (y, x).
        wanted: mpp of the patches.
        hole: rows and columns without a valid pixel.
    """
    pixels = np.random.default_rng(0).integers(60, 180, (1200, 1000, 3)).astype(np.uint8)
    pixels[hole] = 0
    image = MemoryImage([pixels, np.full((150, 125, 3), 100, np.uint8)], nodata=0.0, mpp=mpp)
    report = run(image, Means(), folder / "s.zarr", settings=RunSettings(mpp=wanted, saliency="examples:everywhere"))
    assert report.skipped > 0
    return folder / "s.zarr"
