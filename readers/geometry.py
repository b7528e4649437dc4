"""The frames of an image and the only changes between them. Pure: no file, no array, no clock.

Order is (y, x) everywhere. Level-0 pixel centres are at i + 0.5, so pixel i covers [i, i + 1).
"""

from __future__ import annotations

from dataclasses import dataclass

from patchdrive.readers.errors import WindowError


def align_down(value: int, step: int) -> int:
    """The largest multiple of `step` that is <= `value`."""
    return value // step * step


def align_up(value: int, step: int) -> int:
    """The smallest multiple of `step` that is >= `value`."""
    return -(-value // step) * step


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A rectangle of whole pixels of one level. It may overhang the level; the level is always named beside it."""

    y: int
    """First row, level pixels."""
    x: int
    """First column, level pixels."""
    height: int
    """Rows, > 0."""
    width: int
    """Columns, > 0."""

    def __post_init__(self) -> None:
        if self.height <= 0 or self.width <= 0:
            raise WindowError(f"a window holds at least one pixel, got {self.height} x {self.width}")

    @property
    def y_end(self) -> int:
        """One past the last row."""
        return self.y + self.height

    @property
    def x_end(self) -> int:
        """One past the last column."""
        return self.x + self.width

    def intersect(self, other: Window) -> Window | None:
        """The pixels in both windows, or None where they share none."""
        y, x = max(self.y, other.y), max(self.x, other.x)
        height, width = min(self.y_end, other.y_end) - y, min(self.x_end, other.x_end) - x
        return Window(y=y, x=x, height=height, width=width) if height > 0 and width > 0 else None

    def contains(self, other: Window) -> bool:
        """True when every pixel of `other` is one of ours."""
        return self.y <= other.y and self.x <= other.x and other.y_end <= self.y_end and other.x_end <= self.x_end

    def within(self, outer: Window) -> tuple[slice, slice]:
        """The (rows, columns) slices that cut this window out of an array that holds `outer`."""
        return (
            slice(self.y - outer.y, self.y_end - outer.y),
            slice(self.x - outer.x, self.x_end - outer.x),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One resolution of an image; 0 is the finest."""

    index: int
    """Place in `Image.levels`."""
    height: int
    """Rows, level pixels."""
    width: int
    """Columns, level pixels."""
    downsample_y: float
    """Level-0 rows per row of this level, >= 1; 4.0003 stays 4.0003."""
    downsample_x: float
    """Level-0 columns per column of this level, >= 1."""
    tile_height: int
    """Rows of a stored tile, level pixels."""
    tile_width: int
    """Columns of a stored tile, level pixels."""

    @property
    def window(self) -> Window:
        """The whole level."""
        return Window(y=0, x=0, height=self.height, width=self.width)

    def to_base(self, y: float, x: float) -> tuple[float, float]:
        """Level coordinates to level-0 coordinates; edges map to edges."""
        return y * self.downsample_y, x * self.downsample_x

    def from_base(self, y: float, x: float) -> tuple[float, float]:
        """Level-0 coordinates to level coordinates; the inverse of `to_base`."""
        return y / self.downsample_y, x / self.downsample_x

    def check(self, window: Window, source: str) -> None:
        """Refuse a window that overhangs this level.

        Raises:
            WindowError: the window reaches outside; the caller clips and pads, a reader never does.
        """
        if not self.window.contains(window):
            raise WindowError(
                f"{source}: window rows {window.y}..{window.y_end}, columns {window.x}..{window.x_end} overhangs level "
                f"{self.index} of {self.height} x {self.width}; clip it with Window.intersect(level.window)"
            )


def pick_level(levels: tuple[Level, ...], downsample_y: float, downsample_x: float, *, tolerance: float = 0.0) -> Level:
    """The coarsest level that is no coarser than the wanted downsample (by more than `tolerance`), else level 0."""
    fits = [
        level
        for level in levels
        if level.downsample_y <= downsample_y * (1 + tolerance) and level.downsample_x <= downsample_x * (1 + tolerance)
    ]
    return max(fits, key=lambda level: level.downsample_y * level.downsample_x, default=levels[0])
