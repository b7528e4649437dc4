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
    """`mask` less what lies in a collar that nobody declared; `mask` itself where there is none.

    A collar is a connected region that touches the border and in which every channel is exactly 0. Of integers the largest value counts
    too, but only around a convex footprint: saturated clouds at the border are data.

    Args:
        pixels: (height, width, channel).
        mask: (height, width) True where valid.
    """
    dark = _border_parts(pixels, 0)
    if dark is not None:
        return mask & ~dark
    if pixels.dtype.kind in "iu":
        white = _border_parts(pixels, np.iinfo(pixels.dtype).max)
        if white is not None and _is_convex(~white):
            return mask & ~white
    return mask


def _border_parts(pixels: NDArray[Any], value: int) -> NDArray[np.bool_] | None:
    """The connected parts of at least 64 pixels that touch the border and hold nothing but `value`; None where there are none."""
    if not any((edge == value).all(axis=1).any() for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1])):
        return None
    region = pixels[:, :, 0] == value
    for channel in range(1, pixels.shape[2]):
        region &= pixels[:, :, channel] == value
    parts, count = label(region)
    edges = np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]])
    taken = np.zeros(count + 1, np.bool_)
    taken[edges] = True
    taken &= label_sizes(parts, count) >= min(_LEAST, region.size)
    taken[0] = False
    return taken[parts] if taken.any() else None


def label_sizes(parts: NDArray[np.int32], count: int) -> NDArray[np.int64]:
    """(count + 1,) pixels of each label, counted some at a time: numpy makes wide copies of what it counts."""
    flat, sizes = parts.ravel(), np.zeros(count + 1, np.int64)
    step = max(1 << 17, count)
    for start in range(0, flat.size, step):
        sizes += np.bincount(flat[start : start + step], minlength=count + 1)
    return sizes


def _is_convex(region: NDArray[np.bool_]) -> bool:
    """True where `region` fills its convex hull but for 2 %; False for nothing."""
    rows = np.flatnonzero(region.any(axis=1))
    if not rows.size:
        return False
    first = region[rows].argmax(axis=1)
    last = region.shape[1] - region[rows, ::-1].argmax(axis=1)
    corners = [(row + below, column) for below in (0, 1) for ends in (first, last) for row, column in zip(rows, ends, strict=True)]
    return bool(region.sum() >= (1 - _CONVEX) * ConvexHull(corners).volume)
