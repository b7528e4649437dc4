"""Small fields that look like the synthetic slide, drawn quickly enough to train on while they are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchdrive.pipeline.synthetic_disc import STAMP_SIDE, draw_disc, paste_discs, place_discs
from patchdrive.pipeline.synthetic_slide import CELL, draw_tissue, render, through_jpeg
from patchdrive.readers.errors import SettingsError
from patchdrive.readers.geometry import Window


@dataclass(frozen=True, slots=True, kw_only=True)
class Canvas:
    """Tissue without discs, drawn once, that training fields are cut from."""

    pixels: NDArray[np.uint8]
    """(side, side, 3), not yet compressed."""
    depth: NDArray[np.float32]
    """(side/16, side/16) level-0 pixels from the edge of the tissue, positive inside."""


def draw_canvas(seed: int, *, side: int = 4096, share: float = 0.75) -> Canvas:
    """A canvas of `side` pixels of which `share` is tissue; take another seed than the slide's.

    Raises:
        SettingsError: `side` is no multiple of 16.
    """
    tissue = draw_tissue(seed, side, share=share)
    bands = [render(tissue, Window(y=y, x=0, height=min(512, side - y), width=side)) for y in range(0, side, 512)]
    return Canvas(pixels=np.concatenate(bands), depth=tissue.depth)


def training_field(
    canvas: Canvas, rng: np.random.Generator, *, side: int = 1024, targets: int = 6, lookalikes: int = 12
) -> tuple[NDArray[np.uint8], NDArray[np.float64], NDArray[np.float64]]:
    """A random piece of `canvas`, turned and mirrored, with fresh discs, compressed once as the slide is.

    Args:
        canvas: where the tissue comes from.
        rng: decides.
        side: pixels; a multiple of 16, at most the canvas's.
        targets: discs to find; fewer where the tissue has no room.
        lookalikes: as many again that only full resolution tells from targets.

    Returns:
        Pixels (side, side, 3) uint8; centres of targets (n, 2) and of look-alikes (m, 2), pixels.

    Raises:
        SettingsError: `side` does not fit the canvas.
    """
    cells = side // CELL
    if side % CELL or not 0 < cells <= len(canvas.depth):
        raise SettingsError(f"a field's side is a multiple of {CELL} and at most the canvas's {len(canvas.depth) * CELL}, got {side}")
    y, x = rng.integers(0, len(canvas.depth) - cells + 1, size=2).tolist()
    turns, mirrored = int(rng.integers(0, 4)), bool(rng.integers(0, 2))
    depth = _turn(canvas.depth[y : y + cells, x : x + cells], turns, mirrored)
    pixels = _turn(canvas.pixels[y * CELL : y * CELL + side, x * CELL : x * CELL + side], turns, mirrored)
    corners = rng.permutation(place_discs(rng, depth, CELL, targets + lookalikes))
    first = round(len(corners) * targets / max(1, targets + lookalikes))
    pixels = np.ascontiguousarray(pixels)
    for index, corner in enumerate(corners):
        place = (slice(corner[0], corner[0] + STAMP_SIDE), slice(corner[1], corner[1] + STAMP_SIDE))
        under = pixels[place].astype(np.float32)
        paste_discs(under, draw_disc(rng, target=index < first)[None], np.zeros((1, 2), np.int64))
        pixels[place] = np.rint(under)
    centres = corners + STAMP_SIDE / 2
    return through_jpeg(pixels), centres[:first], centres[first:]


def _turn(values: NDArray[Any], turns: int, mirrored: bool) -> NDArray[Any]:
    turned = np.rot90(values, turns)
    return turned[::-1] if mirrored else turned
