"""A picture of the mosaic with the patches that were read, one way beside the other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from cells_data import LABELLED, SIDE, Mosaic, core_of
from cells_ways import Reads
from skimage.io import imsave

_STEP = 4
"""Slide pixels per pixel of the picture."""
_READ, _PIECE = (255, 230, 0), (0, 200, 0)


def draw(path: Path, mosaic: Mosaic, ways: Mapping[str, Reads], *, share: float, side: int) -> None:
    """Patches that read `share` of the pixels in yellow, the labelled pieces in green; ways from left to right."""
    small = mosaic.pixels.reshape(SIDE // _STEP, _STEP, SIDE // _STEP, _STEP, 3).mean(axis=(1, 3)).astype(np.uint8)
    panels = []
    for reads in ways.values():
        panel = small.copy()
        for y, x in (reads.until(share) // _STEP).tolist():
            _frame(panel, slice(y, y + side // _STEP), slice(x, x + side // _STEP), _READ, 1)
        for row, column in np.argwhere(mosaic.source == LABELLED).tolist():
            rows, columns = (slice(part.start // _STEP, part.stop // _STEP) for part in core_of(row, column))
            _frame(panel, rows, columns, _PIECE, 2)
        panels.append(panel)
    imsave(path, np.concatenate(panels, axis=1), check_contrast=False)


def _frame(panel: np.ndarray, rows: slice, columns: slice, colour: tuple[int, int, int], width: int) -> None:
    part = panel[rows, columns]
    part[:width] = part[-width:] = colour
    part[:, :width] = part[:, -width:] = colour
