"""A driver for cells: PatchDriveNet trained on pieces of the labelled train images, by the package's own loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from cells_data import MPP, Labelled
from numpy.typing import NDArray

from patchdrive.models.config import PatchDriveNetConfig
from patchdrive.models.model import PatchDrive, patchdrivenet
from patchdrive.models.step import LossWeights, Wanted
from patchdrive.pipeline.train import TrainingBatch, TrainSettings, train

PATCH, GLANCE = 32, 4
"""Side of a patch, 16 um or one to four cells; patch pixels per glance pixel, 2 um: a nucleus is four glance pixels wide."""
_CROP, _BATCH = 256, 4
_RATE, _LOSSES = 4e-3, LossWeights(saliency=2.0)  # what is measured is where the driver looks


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A model, and what it took."""

    model: PatchDrive
    seconds: float
    saliency_loss: tuple[float, float]
    """Mean of the first and of the last tenth of the steps."""


def config_of(seed: int) -> PatchDriveNetConfig:
    """A model of cells; nothing is asked of the whole image."""
    return PatchDriveNetConfig(
        pixel_size=MPP, unit="um", patch_size=PATCH, glance_downsample=GLANCE, width=32, answers=(), target="cell", seed=seed
    )


def train_driver(images: Sequence[Labelled], *, steps: int, seed: int) -> Trained:
    """Train on as many threads as torch has; the same on each machine for the same seed, but for rounding."""
    model = patchdrivenet(config_of(seed))
    settings = TrainSettings(steps=steps, learning_rate=_RATE, average=0.99, losses=_LOSSES, seed=seed)
    report = train(model, _batches(images, np.random.default_rng(seed)), settings)
    losses = [step["saliency"] for step in report.history]
    tenth = max(1, len(losses) // 10)
    first, last = (float(np.mean(part)) for part in (losses[:tenth], losses[-tenth:]))
    return Trained(model=model, seconds=report.seconds, saliency_loss=(first, last))


def _batches(images: Sequence[Labelled], rng: np.random.Generator) -> Iterator[TrainingBatch]:
    """Random pieces of the images, turned, mirrored and stained otherwise; their targets are all the cells in them."""
    while True:
        drawn = [_piece(images[int(rng.integers(len(images)))], rng) for _ in range(_BATCH)]
        pixels = np.stack([piece for piece, _ in drawn])
        yield TrainingBatch(
            pixels=torch.from_numpy(pixels).permute(0, 3, 1, 2),
            wanted=Wanted(targets=[torch.from_numpy(yx.astype(np.float32)) for _, yx in drawn]),
        )


def _piece(image: Labelled, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    y, x = (int(rng.integers(side - _CROP + 1)) for side in image.pixels.shape[:2])
    pixels, yx = image.pixels[y : y + _CROP, x : x + _CROP], image.yx - (y, x)
    yx = yx[((yx >= 0) & (yx < _CROP)).all(axis=1)]
    if rng.integers(2):
        pixels, yx = pixels[::-1], np.stack([_CROP - yx[:, 0], yx[:, 1]], axis=1)
    for _ in range(int(rng.integers(4))):
        pixels, yx = np.rot90(pixels), np.stack([_CROP - yx[:, 1], yx[:, 0]], axis=1)
    return _restained(pixels, rng), yx


def _restained(pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """The same tissue with 0.7 to 1.4 times the ink, and each channel with 0.8 to 1.25 of that: slides differ in their stain."""
    strength = np.exp(rng.uniform(np.log(0.7), np.log(1.4)) + rng.uniform(np.log(0.8), np.log(1.25), size=3))
    table = np.rint(255 * ((np.arange(256)[:, None] + 1) / 256) ** strength).astype(np.uint8)
    return np.stack([table[pixels[:, :, channel], channel] for channel in range(3)], axis=2)
