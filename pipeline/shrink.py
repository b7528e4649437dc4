"""A map of any size made small enough to look at, read once, chunk by chunk: memory does not grow with the map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchdrive.pipeline.map_view import MapAxis, MapView
from patchdrive.readers import Window


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SmallMap:
    """Block means of a probability map or an image, or the middle pixels' classes of a label map."""

    values: NDArray[np.float32]
    """(channel, height, width), NaN where there is none; of a label map (1, height, width) class ids."""
    peaks: NDArray[np.float32]
    """As `values`, the highest of each block: a thing of one pixel is not lost in a small picture. Of a label map, its `values`."""
    downsample: tuple[float, float]
    """Level-0 pixels per pixel, (y, x)."""
    counts: NDArray[np.int64]
    """(classes,) map pixels of each class of a label map, counted over all of it; empty for the others."""


def shrink(view: MapView, most: int) -> SmallMap:
    """`view` at no more than `most` pixels a side.

    Probabilities and images are means over what is there, and their highest values; a label map is sampled at the middle of each
    block, its classes are counted in full.
    """
    y, x = view.axes
    cell = max(1, -(-max(y.extent, x.extent) // most))
    downsample = y.downsample * cell, x.downsample * cell
    if view.kind == "label":
        values, counts = _shrink_labels(view, cell)
        return SmallMap(values=values, peaks=values, downsample=downsample, counts=counts)
    values, peaks = _shrink_numbers(view, cell)
    return SmallMap(values=values, peaks=peaks, downsample=downsample, counts=np.zeros(0, np.int64))


def _shrink_numbers(view: MapView, cell: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and highest value of each block."""
    y, x = view.axes
    shape = (len(view.channels), -(-y.extent // cell), -(-x.extent // cell))
    sums, weights = np.zeros(shape, np.float64), np.zeros(shape, np.float64)
    peaks = np.full(shape, -np.inf, np.float32)
    for window in view.windows(most=max(1, (1 << 22) // shape[0])):
        values = view.values(window)
        known = ~np.ma.getmaskarray(values) if isinstance(values, np.ma.MaskedArray) else ~np.isnan(values)
        known &= np.isfinite(np.ma.getdata(values))
        if known.any():
            there = np.ma.getdata(values)
            _by_blocks(np.add, sums, np.where(known, there, 0).astype(np.float64), window, cell)
            _by_blocks(np.add, weights, known.astype(np.float64), window, cell)
            _by_blocks(np.maximum, peaks, np.where(known, there, -np.inf).astype(np.float32), window, cell)
    with np.errstate(invalid="ignore"):
        means = np.asarray(sums / np.where(weights > 0, weights, np.nan), np.float32)
    return means, np.where(weights > 0, peaks, np.nan)


def _by_blocks(join: np.ufunc, into: NDArray[Any], values: NDArray[Any], window: Window, cell: int) -> None:
    """Join the pixels of `window` into the cells they lie in; a cell may be shared between windows."""
    first_y, first_x = window.y // cell, window.x // cell
    rows = np.maximum(np.arange(first_y, -(-window.y_end // cell)) * cell - window.y, 0)
    columns = np.maximum(np.arange(first_x, -(-window.x_end // cell)) * cell - window.x, 0)
    part = into[:, first_y : first_y + len(rows), first_x : first_x + len(columns)]
    join(part, join.reduceat(join.reduceat(values, rows, axis=1), columns, axis=2), out=part)


def _shrink_labels(view: MapView, cell: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    y, x = view.axes
    middles_y, middles_x = _middles(y, cell), _middles(x, cell)
    values = np.full((1, len(middles_y), len(middles_x)), np.nan, np.float32)
    counts = np.zeros(len(view.channels), np.int64)
    for window in view.windows():
        labels = view.values(window)
        known = ~np.ma.getmaskarray(labels)
        counts += np.bincount(np.ma.getdata(labels)[known].ravel(), minlength=len(counts))[: len(counts)]
        rows, columns = (np.searchsorted(middles_y, [window.y, window.y_end]), np.searchsorted(middles_x, [window.x, window.x_end]))
        at = np.ix_(middles_y[slice(*rows)] - window.y, middles_x[slice(*columns)] - window.x)
        values[0, slice(*rows), slice(*columns)] = np.where(known[at], np.ma.getdata(labels)[at], np.nan)
    return values, counts


def _middles(axis: MapAxis, cell: int) -> NDArray[np.int64]:
    """The middle pixel of each block of `cell` pixels; the last may be cut short."""
    first = np.arange(0, axis.extent, cell, dtype=np.int64)
    return np.asarray(first + np.minimum(cell, axis.extent - first) // 2, np.int64)
