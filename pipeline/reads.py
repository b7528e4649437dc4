"""From a plan to what must be read: which level, which pixels of it, which tiles. Pure: needs no file to be tested."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from patchdrive.pipeline.resample import span
from patchdrive.readers import Level
from patchdrive.readers.geometry import pick_level
from patchdrive.readers.tiles import TileGrid

_SAME = 1e-9
"""Two pixel sizes that agree to this are one: no resampling."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadFrame:
    """How a target grid lies on the level that is read for it."""

    level: Level
    """The level read."""
    step_y: float
    """Level pixels per target pixel along y."""
    step_x: float
    """Level pixels per target pixel along x."""
    side: int
    """Of a patch, target pixels."""
    resampling: Literal["area", "nearest"]
    """How pixels are made where the steps are not 1."""

    @property
    def exact(self) -> bool:
        """True when target pixels are level pixels."""
        return self.step_y == self.step_x == 1.0

    def made(self, stored: np.dtype[Any]) -> np.dtype[Any]:
        """Dtype of the patches cut from pixels `stored` so: float32 where several make one."""
        return stored if self.exact or self.resampling == "nearest" else np.dtype(np.float32)

    def sources(self, y: NDArray[np.int64], x: NDArray[np.int64]) -> NDArray[np.int64]:
        """Level pixels that the patches at target pixels (y, x), each (n,), are made of.

        Returns:
            (n, 4): first row, first column, one past the last row, one past the last column; they may overhang.
        """
        top, bottom = span(y * self.step_y, self.step_y, self.side)
        left, right = span(x * self.step_x, self.step_x, self.side)
        return np.stack([top, left, bottom, right], axis=1)

    def tiles_per_patch(self, grid: TileGrid) -> int:
        """The most tiles of `grid` one patch can touch."""
        # Enlarged pixels are made of one source pixel more on each side, and float noise may touch another.
        rows = math.ceil((self.side * self.step_y + 3) / grid.tile_height) + 1
        columns = math.ceil((self.side * self.step_x + 3) / grid.tile_width) + 1
        return min(rows, grid.rows) * min(columns, grid.columns)


def read_frame(levels: tuple[Level, ...], grid: Level, side: int, resampling: Literal["area", "nearest"]) -> ReadFrame:
    """The cheapest level that still holds every detail of the target grid, and how the grid lies on it."""
    level = pick_level(levels, grid.downsample_y, grid.downsample_x, tolerance=_SAME)
    step_y, step_x = grid.downsample_y / level.downsample_y, grid.downsample_x / level.downsample_x
    if abs(step_y - 1) <= _SAME and abs(step_x - 1) <= _SAME:
        step_y = step_x = 1.0
    return ReadFrame(level=level, step_y=step_y, step_x=step_x, side=side, resampling=resampling)


def tiles_of(sources: NDArray[np.int64], grid: TileGrid) -> NDArray[np.int64]:
    """(n, 4): first tile row, first tile column, one past the last of each, of what `sources` hold of the level; empty outside it."""
    top, left = np.clip(sources[:, 0], 0, grid.height), np.clip(sources[:, 1], 0, grid.width)
    bottom, right = np.clip(sources[:, 2], 0, grid.height), np.clip(sources[:, 3], 0, grid.width)
    outside = (bottom <= top) | (right <= left)
    first = top // grid.tile_height, left // grid.tile_width
    tiles = np.stack([*first, -(-bottom // grid.tile_height), -(-right // grid.tile_width)], axis=1)
    tiles[outside] = 0
    return tiles


def tile_uses(tiles: Iterable[NDArray[np.int64]], grid: TileGrid) -> NDArray[np.int32]:
    """(rows, columns) how many of the patches, given as `tiles_of` gives them, need each tile."""
    change = np.zeros((grid.rows + 1, grid.columns + 1), np.int32)
    for top, left, bottom, right in (part.T for part in tiles):
        for rows, columns, step in ((top, left, 1), (top, right, -1), (bottom, left, -1), (bottom, right, 1)):
            np.add.at(change, (rows, columns), step)
    uses: NDArray[np.int32] = change.cumsum(axis=0).cumsum(axis=1)[:-1, :-1].astype(np.int32)
    return uses


def tile_pixels(used: NDArray[np.bool_], grid: TileGrid) -> int:
    """Level pixels in the tiles that are True in `used`, (rows, columns)."""
    heights = np.minimum(grid.tile_height, grid.height - np.arange(grid.rows) * grid.tile_height)
    widths = np.minimum(grid.tile_width, grid.width - np.arange(grid.columns) * grid.tile_width)
    total: Any = heights @ used.astype(np.int64) @ widths
    return int(total)
