"""Coarser levels of a map, each half the finer one. Pure, but for `built`, which keeps them in files while it works."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from patchdrive.pipeline.map_view import MapView
from patchdrive.pipeline.maps import NONE

_ROWS = 512
"""Rows of the finer level that are held at once."""


def level_sizes(height: int, width: int, *, least: int = 512) -> list[tuple[int, int]]:
    """(rows, columns) of every level, the finest first, until no side is longer than `least`."""
    sizes = [(height, width)]
    while max(sizes[-1]) > least:
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    return sizes


def halve(values: NDArray[Any], kind: Literal["probability", "label", "image"]) -> NDArray[Any]:
    """A level from the finer one, as stored.

    A probability is the mean of those of its four pixels that have one, an image the mean of its four, both rounded to stored numbers; a
    label is that of the first of its four. What an odd edge lacks is taken for the edge itself, which a mean then counts twice.

    Args:
        values: (..., height, width).
        kind: of the map.

    Returns:
        (..., height / 2, width / 2), rounded up, of the same dtype.
    """
    if kind == "label":
        return np.ascontiguousarray(values[..., ::2, ::2])
    odd = [(0, 0)] * (values.ndim - 2) + [(0, values.shape[-2] % 2), (0, values.shape[-1] % 2)]
    even = np.pad(values, odd, mode="edge") if any(after for _, after in odd) else values
    quarters = [even[..., row::2, column::2] for row in (0, 1) for column in (0, 1)]
    if kind == "probability":
        there = [quarter != NONE for quarter in quarters]
        count = np.sum(there, axis=0)
        total = np.sum(quarters, axis=0, where=there, dtype=np.float64)
        mean = np.divide(total, count, out=np.full(total.shape, float(NONE)), where=count > 0)
    else:
        mean = np.mean(quarters, axis=0, dtype=np.float64)
    halved: NDArray[Any] = (np.rint(mean) if values.dtype.kind in "iu" else mean).astype(values.dtype)
    return halved


def built(view: MapView, folder: Path, *, least: int = 512) -> Sequence[NDArray[Any]]:
    """Every level of a map but the finest, in files in `folder` of a third of its size: memory holds some rows at a time."""
    finer: Any = view.array
    levels: list[NDArray[Any]] = []
    for index, size in enumerate(level_sizes(view.height, view.width, least=least)[1:], start=1):
        level = np.memmap(folder / f"{index}.raw", view.array.dtype, "w+", shape=(*view.array.shape[:-2], *size))
        for top in range(0, finer.shape[-2], _ROWS):
            rows = np.asarray(finer[..., top : top + _ROWS, :])
            level[..., top // 2 : top // 2 + -(-rows.shape[-2] // 2), :] = halve(rows, view.kind)
        levels.append(level)
        finer = level
    return levels
