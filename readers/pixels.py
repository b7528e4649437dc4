"""What every reader does with an array of pixels once it has them. Pure."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchdrive.readers.geometry import Level, Window


def fill_out(pixels: NDArray[Any], out: NDArray[Any] | None) -> NDArray[Any]:
    """`pixels` copied into `out` where one is given, else a contiguous copy that shares nothing."""
    if out is None:
        return np.array(pixels, order="C")
    check_out(out, pixels.shape, pixels.dtype)
    out[...] = pixels
    return out


def check_out(out: NDArray[Any], shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Refuse an `out` that would make numpy cast or broadcast without saying so.

    Raises:
        ValueError: shape or dtype differ.
    """
    if out.shape != shape or out.dtype != dtype:
        raise ValueError(f"out is {out.shape} {out.dtype}, this read gives {shape} {dtype}")


def mask_of(pixels: NDArray[Any], nodata: float | None) -> NDArray[np.bool_]:
    """True where a pixel is valid, (height, width).

    A pixel is invalid where *every* channel is nodata or NaN: a single dark channel of a scene is data.
    """
    valid = np.ones(pixels.shape, dtype=np.bool_)
    if pixels.dtype.kind == "f":
        valid &= ~np.isnan(pixels)
    if nodata is not None and not np.isnan(nodata):
        # GDAL stores nodata as a double: compare in the pixels' own type, so that -3.4e38 meets its float32 twin.
        valid &= pixels != np.asarray(nodata).astype(pixels.dtype)
    return np.asarray(valid.any(axis=2), dtype=np.bool_)


def is_alpha(sample: NDArray[Any]) -> bool:
    """True where at least half of the values are zero or the largest there is: opacity is mostly all or nothing, light is not."""
    extremes = (sample == 0) | (sample == sample.max())
    return bool(extremes.mean() >= 0.5)


def spread_squares(level: Level) -> list[Window]:
    """16 squares of 64 pixels spread over a level, fewer where they would coincide: a sample that costs few tiles of any image."""
    height, width = min(64, level.height), min(64, level.width)
    rows = {round(y) for y in np.linspace(0, level.height - height, 4)}
    columns = {round(x) for x in np.linspace(0, level.width - width, 4)}
    return [Window(y=y, x=x, height=height, width=width) for y in sorted(rows) for x in sorted(columns)]
