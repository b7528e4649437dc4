"""A model of tree crowns: PatchDriveNet with boxes, trained on pieces of the labelled plots by the package's own loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.transform import resize
from trees_data import GSD, Plot

from patchdrive.models.config import PatchDriveNetConfig
from patchdrive.models.model import PatchDrive, patchdrivenet
from patchdrive.models.step import LossWeights, Wanted
from patchdrive.pipeline.train import TrainingBatch, TrainSettings, train

PATCH, GLANCE = 64, 4
"""Side of a patch, 6.4 m or a crown with what is beside it; patch pixels per glance pixel where nothing else is asked: a crown is 5 to 25
of those wide."""
THRESHOLD = 0.02
"""Least probability of a crown that is kept; average precision wants the doubtful ones too."""
_CROP, _BATCH, _PATCHES = 320, 4, 16
_RATE, _LOSSES = 3e-3, LossWeights(size=0.5)  # a box half as high again as its crown is no hit


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A model, and what it took."""

    model: PatchDrive
    seconds: float
    losses: dict[str, tuple[float, float]]
    """By term, mean of the first and of the last tenth of the steps."""


def config_of(driver: str, seed: int, glance: int = GLANCE) -> PatchDriveNetConfig:
    """A model of crowns; nothing is asked of the whole image."""
    return PatchDriveNetConfig(
        pixel_size=GSD,
        unit="ground",
        patch_size=PATCH,
        glance_downsample=glance,
        answers=(),
        target="crown",
        boxes=True,
        threshold=THRESHOLD,
        driver=driver,
        fill=127.0,
        seed=seed,
    )


def train_crowns(plots: Sequence[Plot], *, driver: str, glance: int, steps: int, seed: int) -> Trained:
    """Train on as many threads as torch has."""
    model = patchdrivenet(config_of(driver, seed, glance))
    patches = _PATCHES if driver == "saliency" else (_CROP // PATCH) ** 2
    settings = TrainSettings(steps=steps, learning_rate=_RATE, average=0.99, max_patches=patches, losses=_LOSSES, seed=seed)
    report = train(model, _batches(plots, np.random.default_rng(seed)), settings)
    tenth = max(1, len(report.history) // 10)
    losses = {
        name: (
            float(np.mean([step[name] for step in report.history[:tenth]])),
            float(np.mean([step[name] for step in report.history[-tenth:]])),
        )
        for name in report.history[0]
    }
    return Trained(model=model, seconds=report.seconds, losses=losses)


def _batches(plots: Sequence[Plot], rng: np.random.Generator) -> Iterator[TrainingBatch]:
    """Random pieces of the plots; half of them are of four plots each, for what lies far off in a scene says little about a tree."""
    while True:
        drawn = [_four(plots, rng) if rng.integers(2) else _piece(plots, _CROP, rng) for _ in range(_BATCH)]
        pixels = np.stack([piece for piece, _ in drawn])
        boxes = [torch.from_numpy(boxes.astype(np.float32)) for _, boxes in drawn]
        yield TrainingBatch(
            pixels=torch.from_numpy(pixels).permute(0, 3, 1, 2),
            wanted=Wanted(
                targets=[(box[:, :2] + box[:, 2:]) / 2 for box in boxes],
                sizes=[box[:, 2:] - box[:, :2] for box in boxes],
            ),
        )


def _four(plots: Sequence[Plot], rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Four pieces side by side."""
    half = _CROP // 2
    pieces = [_piece(plots, half, rng) for _ in range(4)]
    rows = [np.concatenate([pixels for pixels, _ in pair], axis=1) for pair in (pieces[:2], pieces[2:])]
    corners = half * np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    boxes = [boxes + np.tile(corner, 2) for (_, boxes), corner in zip(pieces, corners, strict=True)]
    return np.concatenate(rows), np.concatenate(boxes)


def _piece(plots: Sequence[Plot], extent: int, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """A square of a plot, each site as often as another, larger or smaller, turned, mirrored and lit otherwise.

    Returns:
        (extent, extent, 3) pixels, and (n, 4) edges of the crowns centred in it, which may lie outside.
    """
    sites = sorted({plot.name[:4] for plot in plots})
    site = sites[int(rng.integers(len(sites)))]
    among = [plot for plot in plots if plot.name.startswith(site)]
    plot = among[int(rng.integers(len(among)))]
    side = int(extent / np.exp(rng.uniform(np.log(0.8), np.log(1.5))))
    y, x = (int(rng.integers(whole - side + 1)) for whole in plot.pixels.shape[:2])
    cut = plot.pixels[y : y + side, x : x + side]
    pixels = resize(cut, (extent, extent), order=1, anti_aliasing=side > extent, preserve_range=True)
    boxes = (plot.boxes - (y, x, y, x)) * (extent / side)
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    boxes = boxes[((centre >= 0) & (centre < extent)).all(axis=1)]
    if rng.integers(2):
        pixels, boxes = pixels[::-1], np.stack([extent - boxes[:, 2], boxes[:, 1], extent - boxes[:, 0], boxes[:, 3]], axis=1)
    for _ in range(int(rng.integers(4))):
        pixels, boxes = np.rot90(pixels), np.stack([extent - boxes[:, 3], boxes[:, 0], extent - boxes[:, 1], boxes[:, 2]], axis=1)
    return _relit(pixels, rng), boxes


def _relit(pixels: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.uint8]:
    """The same land with other contrast and light, and each channel a little brighter or darker: sites, hours and seasons differ."""
    contrast, light = rng.uniform(0.7, 1.3), rng.uniform(-30, 30) + rng.uniform(-15, 15, size=3)
    mean = pixels.mean(axis=(0, 1))
    return np.clip(np.rint((pixels - mean) * contrast + mean + light), 0, 255).astype(np.uint8)
