"""Pixels of one size from pixels of another, at their exact phase. Pure.

Output pixel i covers [start + i * step, start + (i + 1) * step) of the source axis; source pixel j covers [j, j + 1).
Weights are exact at every ratio: no snapping to whole source pixels, so nothing drifts across an image.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

_SNAP = 1e-6
"""Edges this near a source pixel's edge are on it: float noise, far below any visible phase."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Taps:
    """Which source pixels make each output pixel of one axis."""

    first: int
    """First source pixel touched; may be negative or past the end: the caller pads."""
    extent: int
    """Source pixels touched, from `first` on."""
    index: NDArray[np.int64]
    """(taps, n) source pixels, counted from `first`."""
    weight: NDArray[np.float32]
    """(taps, n); each output's weights sum to one, unless `whole` is False."""
    whole: bool = True
    """False where some taps were cut off: outputs are means over what is left."""

    def cut(self, begin: int, end: int) -> Taps:
        """The same outputs made of source pixels [begin, end) alone, which are counted from `begin`."""
        if begin <= self.first and self.first + self.extent <= end:
            return replace(self, first=begin, extent=end - begin, index=self.index + (self.first - begin))
        index = self.index + (self.first - begin)
        inside = (index >= 0) & (index < end - begin)
        weight = np.where(inside, self.weight, np.float32(0))
        used = np.asarray(weight.any(axis=1))
        used[0] |= not used.any()
        index = np.clip(index, 0, end - begin - 1)
        return Taps(first=begin, extent=end - begin, index=index[used], weight=weight[used], whole=False)


def taps(start: float, step: float, count: int, kind: Literal["area", "nearest"]) -> Taps:
    """Weights for `count` output pixels: `area` averages when shrinking and is linear when enlarging; `nearest` takes one pixel."""
    if kind == "nearest":
        return _nearest(start, step, count)
    return _area(start, step, count) if step >= 1 - _SNAP else _linear(start, step, count)


def _area(start: float, step: float, count: int) -> Taps:
    edges = start + np.arange(count + 1) * step
    whole = np.rint(edges)
    edges = np.where(np.abs(edges - whole) < _SNAP, whole, edges)
    low, high = edges[:-1], edges[1:]
    begin = np.floor(low).astype(np.int64)
    most = int((np.ceil(high).astype(np.int64) - begin).max())
    index = begin + np.arange(most)[:, None]
    overlap = np.clip(np.minimum(high, index + 1) - np.maximum(low, index), 0.0, None)
    return _taps(index, overlap / overlap.sum(axis=0))


def _linear(start: float, step: float, count: int) -> Taps:
    centre = start + (np.arange(count) + 0.5) * step - 0.5
    begin = np.floor(centre + _SNAP).astype(np.int64)
    part = np.clip(centre - begin, 0.0, 1.0)
    return _taps(begin + np.arange(2)[:, None], np.stack([1 - part, part]))


def _nearest(start: float, step: float, count: int) -> Taps:
    index = np.floor(start + (np.arange(count) + 0.5) * step + _SNAP).astype(np.int64)[None]
    return _taps(index, np.ones(index.shape))


def _taps(index: NDArray[np.int64], weight: NDArray[np.float64]) -> Taps:
    last = int(np.where(weight > 0, index, index.min()).max())
    first = int(index.min())
    return Taps(
        first=first,
        extent=last - first + 1,
        index=np.minimum(index, last) - first,
        weight=weight.astype(np.float32),
    )


def span(start: NDArray[np.floating[Any]], step: float, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """[begin, end) of the source pixels that `taps` may touch, for planning reads without computing weights."""
    margin = 1 if step < 1 - _SNAP else 0
    begin = np.floor(start + _SNAP).astype(np.int64) - margin
    return begin, np.ceil(start + count * step - _SNAP).astype(np.int64) + margin


def resample(
    pixels: NDArray[Any], valid: NDArray[np.bool_], rows: Taps, columns: Taps, *, fill: float
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Weighted means over the valid source pixels of each output pixel, and which outputs have any.

    Args:
        pixels: (rows.extent, columns.extent, channel), any dtype.
        valid: (rows.extent, columns.extent).
        rows: taps of the first axis.
        columns: taps of the second axis.
        fill: what an output without a valid pixel gets.

    Returns:
        (n_rows, n_columns, channel) of the source's dtype for one tap (`nearest`), else float32; (n_rows, n_columns) bool.
    """
    if len(rows.index) == len(columns.index) == 1:
        grid = np.ix_(rows.index[0], columns.index[0])
        there = valid[grid] & np.outer(rows.weight[0] > 0, columns.weight[0] > 0)
        return np.where(there[..., None], pixels[grid], np.asarray(fill).astype(pixels.dtype)), there
    if rows.whole and columns.whole and valid.all():
        means = _apply(_apply(pixels.astype(np.float32), rows, 0), columns, 1)
        return means, np.ones(means.shape[:2], np.bool_)
    known = valid.astype(np.float32)
    sums = _apply(_apply(np.where(valid[..., None], pixels, 0).astype(np.float32), rows, 0), columns, 1)
    weight = _apply(_apply(known, rows, 0), columns, 1)
    there = weight > 0
    means = np.full(sums.shape, fill, np.float32)
    np.divide(sums, weight[..., None], out=means, where=there[..., None])
    return means, there


def _apply(values: NDArray[np.float32], weights: Taps, axis: int) -> NDArray[np.float32]:
    shape = [1] * values.ndim
    shape[axis] = -1
    total: NDArray[np.float32] = values.take(weights.index[0], axis=axis) * weights.weight[0].reshape(shape)
    for index, weight in zip(weights.index[1:], weights.weight[1:], strict=True):
        total += values.take(index, axis=axis) * weight.reshape(shape)
    return total
