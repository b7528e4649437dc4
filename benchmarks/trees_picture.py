"""A picture of the plots in the scene with the patches that were read and the boxes found, one way beside the other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from skimage.io import imsave
from trees_data import Scene
from trees_score import overlap, quality
from trees_ways import Reading

_PATCH, _CROWN, _BOX = (255, 230, 0), (255, 255, 255), (230, 0, 120)


def draw(path: Path, scene: Scene, ways: Mapping[str, Reading], *, side: int) -> None:
    """The largest plot, ways from left to right: patches in yellow, crowns in white, boxes as sure as the best balance asks in pink."""
    rows, columns = scene.places[0]
    panels = []
    for reading in ways.values():
        panel = scene.pixels[rows, columns].copy()
        found = reading.found.within(scene.places[0])
        sure = found.boxes[found.score >= quality([found], scene.boxes[:1], overlap).score]
        corner = reading.centres - side / 2
        for boxes, colour, width in (
            (np.concatenate([corner, corner + side], axis=1), _PATCH, 1),
            (scene.boxes[0], _CROWN, 1),
            (sure, _BOX, 2),
        ):
            for box in (boxes - (rows.start, columns.start) * 2).round().astype(int).tolist():
                _frame(panel, box, colour, width)
        panels.append(panel)
    imsave(path, np.concatenate(panels, axis=1), check_contrast=False)


def _frame(panel: NDArray[np.uint8], box: list[int], colour: tuple[int, int, int], width: int) -> None:
    height, breadth = panel.shape[:2]
    top, left, bottom, right = max(box[0], 0), max(box[1], 0), min(box[2], height), min(box[3], breadth)
    if top < bottom and left < right:
        part = panel[top:bottom, left:right]
        part[:width] = part[-width:] = colour
        part[:, :width] = part[:, -width:] = colour
