"""Patches out of decoded tiles: copied where the level is read as it is, resampled where it is not, filled where nothing is valid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from patchdrive.pipeline.batches import Buffers, Dropped, Holed
from patchdrive.pipeline.pool import TilePool
from patchdrive.pipeline.reads import ReadFrame
from patchdrive.pipeline.resample import resample, taps
from patchdrive.readers import Window
from patchdrive.readers.tiles import TileGrid, Torn

OnError = Literal["fail", "mask", "skip"]
"""Pixels that cannot be decoded fail their patch, are taken for invalid pixels, or drop their patch by rule."""


class Cut(NamedTuple):
    """One patch to be cut, all in integers: `Window` checks itself, and there are millions of these."""

    place: int
    """In the batch."""
    row: int
    """Of the plan."""
    y: int
    """First row, target pixels."""
    x: int
    """First column, target pixels."""
    top: int
    """First row of what it is made of, level pixels; may overhang the level, and holds some of it."""
    left: int
    """First column."""
    bottom: int
    """One past the last row."""
    right: int
    """One past the last column."""
    tile_top: int
    """First row of the tiles that hold it."""
    tile_left: int
    """First column of those tiles."""
    tile_bottom: int
    """One past their last row."""
    tile_right: int
    """One past their last column."""

    def tiles(self, columns: int) -> list[int]:
        """Their names, row * `columns` + column."""
        starts = range(self.tile_top * columns, self.tile_bottom * columns, columns)
        return [tile for start in starts for tile in range(start + self.tile_left, start + self.tile_right)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cutter:
    """How patches are cut."""

    frame: ReadFrame
    """How the plan lies on the level."""
    grid: TileGrid
    """The tiles of the level."""
    pool: TilePool
    """Where they lie."""
    fill: float
    """Stored value for pixels that are invalid or outside."""
    on_error: OnError
    """What becomes of patches whose pixels cannot be decoded."""
    uncut: bool = False
    """Only validity is written, of patches that are read as they are; the pixels stay in their tiles."""

    def cut(self, cuts: Sequence[Cut], buffers: Buffers, *, says_valid: bool) -> Iterator[Dropped | Holed]:
        """Write patches to their places; those that cannot be, have no valid pixel, or have a hole, are named.

        Args:
            cuts: which.
            buffers: of their batch.
            says_valid: the batch has validity, which is to be written too.
        """
        for cut in cuts:
            torn = self._torn(cut)
            if torn and self.on_error != "mask":
                yield Dropped(row=cut.row, state="failed" if self.on_error == "fail" else "skipped", reason=torn[0].reason)
            elif not self._cut_one(cut, torn, buffers, says_valid=says_valid):
                yield Dropped(row=cut.row, state="skipped", reason=torn[0].reason if torn else "no valid pixel")
            elif torn:
                yield Holed(row=cut.row, reason=torn[0].reason)

    def _cut_one(self, cut: Cut, torn: Sequence[Torn], buffers: Buffers, *, says_valid: bool) -> bool:
        """Write one patch to its place; False where it has no valid pixel, and holds the fill."""
        pixels, valid = None if self.uncut else buffers.pixels[cut.place], buffers.valid[cut.place]
        whole = not torn and self._whole(cut)
        if pixels is not None and not self.frame.exact:
            return self._resample(cut, torn, pixels, valid, whole=whole)
        if whole:
            if pixels is not None:
                self._paste(cut, pixels, None)
            if says_valid:
                valid[...] = True
            return True
        valid[...] = False
        self._paste(cut, pixels, valid)
        _mask(cut, torn, valid)
        if pixels is not None:
            pixels[~valid] = np.asarray(self.fill).astype(pixels.dtype)
        return bool(valid.any())

    def _resample(self, cut: Cut, torn: Sequence[Torn], pixels: NDArray[Any], valid: NDArray[np.bool_], *, whole: bool) -> bool:
        frame, grid, pool = self.frame, self.grid, self.pool
        # What overhangs is filled at the target's pixel size, never at the source's.
        area = cut._replace(
            top=max(cut.top, 0), left=max(cut.left, 0), bottom=min(cut.bottom, grid.height), right=min(cut.right, grid.width)
        )
        shape = (area.bottom - area.top, area.right - area.left)
        found, known = np.empty((*shape, pool.pixels.shape[3]), pool.pixels.dtype), np.full(shape, whole, np.bool_)
        self._paste(area, found, None if whole else known)
        _mask(area, torn, known)
        if not known.any():
            pixels[...] = np.asarray(self.fill).astype(pixels.dtype)
            valid[...] = False
            return False
        rows = taps(cut.y * frame.step_y, frame.step_y, frame.side, frame.resampling).cut(area.top, area.bottom)
        columns = taps(cut.x * frame.step_x, frame.step_x, frame.side, frame.resampling).cut(area.left, area.right)
        pixels[...], valid[...] = resample(found, known, rows, columns, fill=self.fill)
        return True

    def _paste(self, cut: Cut, pixels: NDArray[Any] | None, valid: NDArray[np.bool_] | None) -> None:
        """Copy what the tiles hold of a patch's source to `pixels`, (height, width, channel), and to `valid`, (height, width)."""
        grid, slab, masks, slots = self.grid, self.pool.pixels, self.pool.valid, self._slots(cut)
        high, wide, bottom, right = grid.tile_height, grid.tile_width, min(cut.bottom, grid.height), min(cut.right, grid.width)
        across = []
        for begin in range(cut.tile_left * wide, cut.tile_right * wide, wide):
            x, x_end = max(cut.left, begin), min(right, begin + wide)
            across.append((slice(x - cut.left, x_end - cut.left), slice(x - begin, x_end - begin)))
        for begin, row in zip(range(cut.tile_top * high, cut.tile_bottom * high, high), slots, strict=True):
            y, y_end = max(cut.top, begin), min(bottom, begin + high)
            to_rows, from_rows = slice(y - cut.top, y_end - cut.top), slice(y - begin, y_end - begin)
            for slot, (to_columns, from_columns) in zip(row, across, strict=True):
                if pixels is not None:
                    pixels[to_rows, to_columns] = slab[slot, from_rows, from_columns]
                if valid is not None:
                    valid[to_rows, to_columns] = True if masks is None else masks[slot, from_rows, from_columns]

    def _whole(self, cut: Cut) -> bool:
        """True where every source pixel is inside the level and valid."""
        if cut.top < 0 or cut.left < 0 or cut.bottom > self.grid.height or cut.right > self.grid.width:
            return False
        return self.pool.valid is None or all(self.pool.whole[slot] for row in self._slots(cut) for slot in row)

    def _torn(self, cut: Cut) -> list[Torn]:
        """What of a patch's source could not be decoded."""
        if not self.pool.torn:
            return []
        tiles = (self.pool.torn.get(tile, ()) for tile in cut.tiles(self.grid.columns))
        source = Window(y=cut.top, x=cut.left, height=cut.bottom - cut.top, width=cut.right - cut.left)
        return [part for parts in tiles for part in parts if part.window.intersect(source) is not None]

    def _slots(self, cut: Cut) -> list[list[int]]:
        """Slots of a patch's tiles, row by row."""
        slots: list[list[int]] = self.pool.slots[cut.tile_top : cut.tile_bottom, cut.tile_left : cut.tile_right].tolist()
        return slots


def _mask(cut: Cut, torn: Sequence[Torn], valid: NDArray[np.bool_]) -> None:
    """Take what could not be decoded for invalid; `valid` begins at the cut's corner."""
    for part in torn:
        y, x = part.window.y - cut.top, part.window.x - cut.left
        valid[max(y, 0) : y + part.window.height, max(x, 0) : x + part.window.width] = False
