"""The pixels of a window out of the tiles of one directory, each touched tile decoded once. Safe from any thread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchdrive.readers.errors import ReadError
from patchdrive.readers.geometry import Window
from patchdrive.readers.tiff_codecs import decode_tile
from patchdrive.readers.tiff_tiles import TileLayout


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
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

    def decode(self, row: int, column: int, out: NDArray[Any]) -> None:
        """One whole stored tile into `out`, (rows, columns, samples), C-contiguous.

        Raises:
            ReadError: the tile lies outside the file, or its bytes are no such tile; names file, level and tile.
        """
        offset, count = self.layout.place(row, column, self.plane)
        if count == 0:
            out[...] = self.fill
            return
        if offset <= 0 or count < 0 or offset + count > len(self.data):
            raise ReadError(
                f"{self.name}, tile row {row}, column {column}: {count} bytes at byte {offset} of a file of {len(self.data)}: "
                "the file is cut short or damaged, copy it again"
            )
        rows = min(out.shape[0], self.layout.height - row * self.layout.tile_height)
        try:
            decode_tile(self.data[offset : offset + count], self.layout.coding, rows, out)
        except ReadError as error:
            raise ReadError(f"{self.name}, tile row {row}, column {column} cannot be decoded: {error}") from error


def read_plane(stored: StoredPlane, window: Window, wanted: Sequence[tuple[int, int]], out: NDArray[Any]) -> None:
    """Fill `out`, (height, width, channel), with the samples of `stored` in `window`.

    Args:
        stored: the tiles.
        window: pixels of the level, inside it.
        wanted: (channel of `out`, sample of a tile) pairs; channels of `out` that are not named are left alone.
        out: receives the pixels; a tile that fills a contiguous part of it is decoded there, without a copy.

    Raises:
        ReadError: a tile cannot be decoded.
    """
    samples = stored.layout.coding.samples
    everything = out.shape[2] == samples and all(place == sample == index for index, (place, sample) in enumerate(wanted))
    scratch: NDArray[Any] | None = None
    for row, column in _touched(stored.layout, window):
        tile = stored.layout.window(row, column)
        part = tile.intersect(window)
        assert part is not None
        target = out[part.within(window)]
        if everything and part == tile and target.flags.c_contiguous:
            stored.decode(row, column, target)
            continue
        if scratch is None or scratch.shape[0] != tile.height:
            scratch = np.empty((tile.height, tile.width, samples), stored.layout.coding.dtype)
        stored.decode(row, column, scratch)
        pixels = scratch[part.within(tile)]
        if everything:
            target[...] = pixels
            continue
        for place, sample in wanted:
            target[:, :, place] = pixels[:, :, sample]


def _touched(layout: TileLayout, window: Window) -> Iterator[tuple[int, int]]:
    """(row, column) of the tiles that hold a pixel of `window`, row by row."""
    for row in range(window.y // layout.tile_height, -(-window.y_end // layout.tile_height)):
        for column in range(window.x // layout.tile_width, -(-window.x_end // layout.tile_width)):
            yield row, column
