"""The pixels of a window, or of whole tiles, out of the tiles of one directory, each decoded once. Safe from any thread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchdrive.readers.errors import ReadError
from patchdrive.readers.geometry import Window
from patchdrive.readers.tiff_codecs import decode_tile
from patchdrive.readers.tiff_file import read_stored, require_whole
from patchdrive.readers.tiff_tiles import TileLayout


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredPlane:
    """One grid of stored tiles and the bytes they lie in."""

    data: memoryview
    """The whole file."""
    layout: TileLayout
    """Where its tiles are and what they mean."""
    plane: int
    """Which of the layout's planes."""
    fill: float
    """Value of the pixels of a tile that was left out."""
    name: str
    """File and level, for messages."""
    wanted: tuple[tuple[int, int], ...]
    """(channel of the result, sample of a tile) pairs: what is taken of each tile."""

    def decode(self, row: int, column: int, out: NDArray[Any]) -> None:
        """One whole stored tile into `out`, (rows, columns, samples), C-contiguous.

        Raises:
            ReadError: the tile lies outside the file, or its bytes are no such tile; names file, level and tile.
            SourceChangedError: the file was cut short since it was opened.
        """
        layout = self.layout
        require_whole(self.data, self.name)
        offset, count = layout.place(row, column, self.plane)
        if count == 0:
            out[...] = self.fill
            return
        if offset <= 0 or count < 0 or offset + count > len(self.data):
            raise ReadError(
                f"{self.name}, tile row {row}, column {column}: {count} bytes at byte {offset} of a file of {len(self.data)}: "
                "the file is cut short or damaged, copy it again"
            )
        rows = min(out.shape[0], layout.height - row * layout.tile_height)
        try:
            decode_tile(memoryview(read_stored(self.data, offset, count, self.name)), layout.coding, rows, out)
        except ReadError as error:
            raise ReadError(f"{self.name}, tile row {row}, column {column} cannot be decoded: {error}") from error

    @cached_property
    def straight(self) -> bool:
        """True where the samples of a tile are the first channels of the result, in order."""
        return self.wanted == tuple((sample, sample) for sample in range(self.layout.coding.samples))

    def fills(self, out: NDArray[Any]) -> bool:
        """True where `out`, (rows, columns, channel), holds exactly what tiles hold: no scratch is needed."""
        return self.straight and out.shape[2] == len(self.wanted)

    def scratch(self, height: int) -> NDArray[Any]:
        """Room for one stored tile of `height` rows."""
        coding = self.layout.coding
        return np.empty((height, self.layout.tile_width, coding.samples), coding.dtype)

    def take(self, pixels: NDArray[Any], target: NDArray[Any]) -> None:
        """Copy what is wanted of decoded `pixels`, (rows, columns, samples), into `target`, (rows, columns, channel)."""
        if self.fills(target):
            target[...] = pixels
            return
        for place, sample in self.wanted:
            target[:, :, place] = pixels[:, :, sample]


def decode_stored(planes: Sequence[StoredPlane], row: int, column: int, out: NDArray[Any]) -> None:
    """One tile of every plane into `out`, (tile height, tile width, channel), C-contiguous; without a copy where `out` is as stored.

    Raises:
        ReadError: it cannot be decoded.
    """
    for stored in planes:
        layout = stored.layout
        if (layout.tile_height, layout.tile_width) != out.shape[:2]:  # another channel's tiles may have another shape
            high, wide = out.shape[:2]
            y, x = row * high, column * wide
            window = Window(y=y, x=x, height=min(high, layout.height - y), width=min(wide, layout.width - x))
            read_plane(stored, window, out[: window.height, : window.width])
            continue
        target = out if layout.tiled else out[: layout.window(row, column).height]
        if stored.fills(out):
            stored.decode(row, column, target)
            continue
        scratch = stored.scratch(len(target))
        stored.decode(row, column, scratch)
        stored.take(scratch, target)


def read_plane(stored: StoredPlane, window: Window, out: NDArray[Any]) -> None:
    """Fill `out`, (height, width, channel), with what is wanted of `stored` in `window`, which lies inside the level.

    A tile that fills a contiguous part of `out` is decoded there, without a copy.

    Raises:
        ReadError: a tile cannot be decoded.
    """
    whole = stored.fills(out)
    scratch: NDArray[Any] | None = None
    for row, column in stored.layout.grid.touched(window):
        tile = stored.layout.window(row, column)
        part = tile.intersect(window)
        assert part is not None
        target = out[part.within(window)]
        if whole and part == tile and target.flags.c_contiguous:
            stored.decode(row, column, target)
            continue
        if scratch is None or scratch.shape[0] != tile.height:
            scratch = stored.scratch(tile.height)
        stored.decode(row, column, scratch)
        stored.take(scratch[part.within(tile)], target)
