"""The coarse look at an image: one level, or its exact block means, read once through Dask and small enough to keep."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from patchdrive.readers.geometry import Level, align_up, pick_level
from patchdrive.readers.image import Image
from patchdrive.readers.lazy import lazy, lazy_mask

AT_ONCE = 1 << 16
"""Pixels whose float copies are held at once: three channels of them lie in the cache."""
_CLOSE = 0.05
"""A level up to 5 % coarser than wanted is as good."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Coarse:
    """An image, seen small."""

    pixels: NDArray[Any]
    """(height, width, channel) in the image's dtype: the stored level, or means over valid pixels, rounded as a stored level's are."""
    mask: NDArray[np.bool_]
    """(height, width) True where any pixel underneath is valid."""
    level: Level
    """Its frame: size, and level-0 pixels per pixel; `index` is the stored level it was made from."""


def coarse_look(image: Image, *, microns: float = 8.0, max_side: int = 4096, mpp: tuple[float, float] | None = None) -> Coarse:
    """`image` at about `microns` per pixel or, where its pixel size is unknown, at 2048 pixels and more on its longer side.

    The coarsest stored level that is no coarser than wanted is read; where that is still at least twice too fine, or longer than
    `max_side`, it is shrunk by a whole factor per axis, chunk by chunk, so that an image without a pyramid needs no more memory.

    Args:
        image: what to look at.
        microns: wanted micrometres per pixel.
        max_side: pixels at most on either side; goes before `microns`.
        mpp: (y, x) micrometres per level-0 pixel; None for the image's own.

    Raises:
        ReadError: the level cannot be decoded.
    """
    base = image.levels[0]
    size = mpp if mpp is not None else image.mpp
    unknown = max(1.0, 2 * max(base.height, base.width) / max_side)
    wanted_y, wanted_x = (unknown, unknown) if size is None else (max(1.0, microns / size[0]), max(1.0, microns / size[1]))
    least = max(base.height, base.width) / max_side
    level = pick_level(image.levels, max(wanted_y, least), max(wanted_x, least), tolerance=_CLOSE)
    by_y = _factor(wanted_y / level.downsample_y, level.height, max_side)
    by_x = _factor(wanted_x / level.downsample_x, level.width, max_side)
    if by_y == by_x == 1:
        pixels, mask = da.compute(lazy(image, level.index), _mask_array(image, level))  # type: ignore[no-untyped-call]
        return Coarse(pixels=pixels, mask=mask, level=level)
    return _shrink(image, level, by_y, by_x)


def bands(array: NDArray[Any]) -> Iterator[slice]:
    """The rows of `array`, about `AT_ONCE` pixels at a time."""
    rows = max(1, AT_ONCE // array.shape[1])
    return (slice(row, min(row + rows, len(array))) for row in range(0, len(array), rows))


def block_means(pixels: NDArray[Any], mask: NDArray[np.bool_], by_y: int, by_x: int) -> NDArray[np.float64]:
    """(height, width, channel) to (ceil(height / by_y), ceil(width / by_x), channel + 1): means over valid pixels, then the valid share.

    Blocks on the far edges are means of what is there. A channel without a valid, finite pixel is 0. Sums of integers are exact.
    """
    whole = pixels.dtype.kind in "biu"
    known = mask[:, :, None] if whole else mask[:, :, None] & np.isfinite(pixels)
    sums = _block_sums(pixels if whole and mask.all() else np.where(known, pixels, np.zeros((), pixels.dtype)), by_y, by_x)
    counts = _block_sums(known, by_y, by_x)
    rows, columns = (np.minimum(by, size - np.arange(0, size, by)) for by, size in ((by_y, mask.shape[0]), (by_x, mask.shape[1])))
    share = _block_sums(mask[:, :, None], by_y, by_x) / (rows[:, None] * columns)[:, :, None]
    return np.concatenate([sums / np.maximum(counts, 1), share], axis=2)


def _block_sums(values: NDArray[Any], by_y: int, by_x: int) -> NDArray[np.float64]:
    """Sums of blocks, always added in the same order: several times faster than reduceat, which casts in small buffers."""
    dtype = np.float64 if values.dtype.kind == "f" else np.int64
    rows = np.zeros((-(-values.shape[0] // by_y), *values.shape[1:]), dtype)
    for start in range(min(by_y, values.shape[0])):
        part = values[start::by_y]
        rows[: len(part)] += part
    sums = np.zeros((len(rows), -(-values.shape[1] // by_x), values.shape[2]), dtype)
    for start in range(min(by_x, values.shape[1])):
        part = rows[:, start::by_x]
        sums[:, : part.shape[1]] += part
    return sums.astype(np.float64)


def _factor(ratio: float, side: int, max_side: int) -> int:
    """The largest whole factor that is no coarser than wanted, unless `max_side` asks for more."""
    nearest = round(ratio)
    return max(1, nearest if nearest <= ratio * (1 + _CLOSE) else math.floor(ratio), -(-side // max_side))


def _mask_array(image: Image, level: Level) -> da.Array:
    """Validity of a level; nobody is asked where everything is valid by construction."""
    if image.has_mask:
        return lazy_mask(image, level.index)
    return da.ones((level.height, level.width), dtype=np.bool_)  # type: ignore[no-any-return]


def _shrink(image: Image, level: Level, by_y: int, by_x: int) -> Coarse:
    """Block means of a level, each chunk reduced where it is read."""
    stored = lazy(image, level.index)
    # Blocks must not straddle chunks; chunks are whole tiles, so that this changes nothing for the usual powers of two.
    rows, columns = (align_up(int(stored.chunksize[axis]), by) for axis, by in ((0, by_y), (1, by_x)))
    pixels = stored.rechunk((rows, columns, -1))  # type: ignore[no-untyped-call]
    mask = _mask_array(image, level).rechunk((rows, columns))  # type: ignore[no-untyped-call]
    chunks = tuple(tuple(-(-part // by) for part in parts) for parts, by in ((pixels.chunks[0], by_y), (pixels.chunks[1], by_x)))

    def reduced(part: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[Any]:
        """Means in the image's own dtype, and last a channel that is not 0 where something is valid: no more memory than the answer."""
        means = block_means(part, valid[:, :, 0], by_y, by_x)
        means[:, :, -1] = means[:, :, -1] > 0
        return (np.rint(means) if image.dtype.kind in "biu" else means).astype(image.dtype)

    means = da.map_blocks(  # type: ignore[no-untyped-call]
        reduced,
        pixels,
        mask[:, :, None],
        dtype=image.dtype,
        chunks=(*chunks, (pixels.shape[2] + 1,)),
        meta=np.empty((0, 0, 0), image.dtype),
    ).compute()
    values = means[:, :, :-1]
    frame = replace(
        level,
        height=values.shape[0],
        width=values.shape[1],
        downsample_y=level.downsample_y * by_y,
        downsample_x=level.downsample_x * by_x,
        tile_height=min(level.tile_height, values.shape[0]),
        tile_width=min(level.tile_width, values.shape[1]),
    )
    return Coarse(pixels=values, mask=means[:, :, -1] > 0, level=frame)
