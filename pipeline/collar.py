"""The frame of nothing around a scanned strip or a satellite's swath, where the file does not declare it. Pure."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label
from scipy.spatial import ConvexHull

_LEAST = 64  # coarse pixels; a smaller patch of zeros at the border is a shadow, not a collar
_CONVEX = 0.02  # of the hull may be missing: footprints are convex, clouds are not


def without_collar(pixels: NDArray[Any], mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """`mask` less what lies in a collar that nobody declared.

    A collar is a connected region that touches the border and in which every channel is exactly 0. Of integers the largest value counts
    too, but only around a convex footprint: saturated clouds at the border are data.

    Args:
        pixels: (height, width, channel).
        mask: (height, width) True where valid.
    """
    dark = _touching_border((pixels == 0).all(axis=2))
    inside = mask & ~dark
    if pixels.dtype.kind in "iu" and not dark.any():
        white = _touching_border((pixels == np.iinfo(pixels.dtype).max).all(axis=2))
        if white.any() and _is_convex(~white):
            inside &= ~white
    return inside


def _touching_border(region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The connected parts of `region` of at least 64 pixels that touch the border."""
    edge = np.concatenate([region[0], region[-1], region[:, 0], region[:, -1]])
    if not edge.any():
        return np.zeros_like(region)
    parts, count = label(region)
    taken = np.zeros(count + 1, np.bool_)
    taken[np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]])] = True
    taken &= np.bincount(parts.ravel(), minlength=count + 1) >= min(_LEAST, region.size)
    taken[0] = False
    touching: NDArray[np.bool_] = taken[parts]
    return touching


def _is_convex(region: NDArray[np.bool_]) -> bool:
    """True where `region` fills its convex hull but for 2 %; False for nothing."""
    rows = np.flatnonzero(region.any(axis=1))
    if not rows.size:
        return False
    first = region[rows].argmax(axis=1)
    last = region.shape[1] - region[rows, ::-1].argmax(axis=1)
    corners = [(row + below, column) for below in (0, 1) for ends in (first, last) for row, column in zip(rows, ends, strict=True)]
    return bool(region.sum() >= (1 - _CONVEX) * ConvexHull(corners).volume)
