"""From a plan to what must be read: which level, which windows, which slots. Pure: needs no file to be tested."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from patchdrive.pipeline.resample import span
from patchdrive.readers import Level, Window
from patchdrive.readers.geometry import align_down, pick_level

_SMALLEST_SLOT = 128
"""Tiles shorter than this along an axis are read several at a time: a call costs more than their pixels."""
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
    slot_height: int
    """Rows of a slot, level pixels: whole tiles."""
    slot_width: int
    """Columns of a slot, level pixels: whole tiles."""

    @property
    def exact(self) -> bool:
        """True when target pixels are level pixels."""
        return self.step_y == self.step_x == 1.0

    def source_window(self, y: int, x: int) -> Window:
        """Level pixels that the patch at target pixel (y, x) is made of; it may overhang."""
        if self.exact:
            return Window(y=y, x=x, height=self.side, width=self.side)
        y_begin, y_end = span(y * self.step_y, self.step_y, self.side)
        x_begin, x_end = span(x * self.step_x, self.step_x, self.side)
        return Window(y=y_begin, x=x_begin, height=y_end - y_begin, width=x_end - x_begin)

    def slot(self, row: int, column: int) -> Window:
        """The pixels of one slot, clipped to the level."""
        whole = Window(y=row * self.slot_height, x=column * self.slot_width, height=self.slot_height, width=self.slot_width)
        inside = whole.intersect(self.level.window)
        assert inside is not None, "a slot is named by a pixel of the level"
        return inside

    def slots(self, window: Window) -> list[tuple[int, int]]:
        """(row, column) of the slots that a window inside the level touches, row-major."""
        return [
            (row, column)
            for row in range(window.y // self.slot_height, -(-window.y_end // self.slot_height))
            for column in range(window.x // self.slot_width, -(-window.x_end // self.slot_width))
        ]

    def slots_per_patch(self) -> int:
        """The most slots one patch can touch."""
        rows = math.ceil(self.side * self.step_y / self.slot_height) + 1
        columns = math.ceil(self.side * self.step_x / self.slot_width) + 1
        return min(rows, -(-self.level.height // self.slot_height)) * min(columns, -(-self.level.width // self.slot_width))


def read_frame(levels: tuple[Level, ...], grid: Level, side: int, resampling: Literal["area", "nearest"]) -> ReadFrame:
    """The cheapest level that still holds every detail of the target grid, and how the grid lies on it."""
    level = pick_level(levels, grid.downsample_y, grid.downsample_x, tolerance=_SAME)
    step_y, step_x = grid.downsample_y / level.downsample_y, grid.downsample_x / level.downsample_x
    if abs(step_y - 1) <= _SAME and abs(step_x - 1) <= _SAME:
        step_y = step_x = 1.0
    return ReadFrame(
        level=level,
        step_y=step_y,
        step_x=step_x,
        side=side,
        resampling=resampling,
        slot_height=_whole_tiles(level.tile_height, level.height),
        slot_width=_whole_tiles(level.tile_width, level.width),
    )


def _whole_tiles(tile: int, extent: int) -> int:
    return min(tile * max(1, -(-_SMALLEST_SLOT // tile)), -(-extent // tile) * tile)


class TilesTouched:
    """Counts the bytes of distinct tiles that patches need: what a perfect reader would decode."""

    def __init__(self, level: Level, pixel_bytes: int) -> None:
        self._level, self._pixel_bytes = level, pixel_bytes
        self._touched = np.zeros((-(-level.height // level.tile_height), -(-level.width // level.tile_width)), np.bool_)

    def add(self, window: Window) -> int:
        """Bytes of the tiles that `window` (inside the level) touches first."""
        level = self._level
        rows = slice(window.y // level.tile_height, -(-window.y_end // level.tile_height))
        columns = slice(window.x // level.tile_width, -(-window.x_end // level.tile_width))
        part = self._touched[rows, columns]
        if part.all():
            return 0
        pixels = 0
        for row, column in np.argwhere(~part).tolist():
            y, x = align_down(window.y, level.tile_height) + row * level.tile_height, align_down(window.x, level.tile_width)
            x += column * level.tile_width
            pixels += min(level.tile_height, level.height - y) * min(level.tile_width, level.width - x)
        part[...] = True
        return pixels * self._pixel_bytes
