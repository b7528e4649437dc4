"""Many tiles in one call: what the feed needs of an image, and nothing more.

Readers with tiles of their own decode them straight into the caller's slots; every other reader offers the same through reads that
lie on its tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from patchdrive.readers.errors import ReadError
from patchdrive.readers.geometry import Level, Window
from patchdrive.readers.image import Image

_SMALLEST = 128
"""Tiles shorter than this along an axis are read several at a time: a call costs more than their pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TileGrid:
    """The tiles of one level, as they are decoded; those on the far edges overhang it."""

    height: int
    """Rows of the level, level pixels."""
    width: int
    """Columns of the level, level pixels."""
    tile_height: int
    """Rows of a tile, level pixels."""
    tile_width: int
    """Columns of a tile, level pixels."""

    @property
    def rows(self) -> int:
        """Tiles from top to bottom."""
        return -(-self.height // self.tile_height)

    @property
    def columns(self) -> int:
        """Tiles from left to right."""
        return -(-self.width // self.tile_width)

    def window(self, row: int, column: int) -> Window:
        """The pixels of the level that one tile holds."""
        y, x = row * self.tile_height, column * self.tile_width
        return Window(y=y, x=x, height=min(self.tile_height, self.height - y), width=min(self.tile_width, self.width - x))

    def touched(self, window: Window) -> list[tuple[int, int]]:
        """(row, column) of the tiles that a window inside the level touches, row-major."""
        return [
            (row, column)
            for row in range(window.y // self.tile_height, -(-window.y_end // self.tile_height))
            for column in range(window.x // self.tile_width, -(-window.x_end // self.tile_width))
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Torn:
    """Pixels that could not be decoded."""

    window: Window
    """Which, level pixels."""
    reason: str
    """In words for the user."""


@runtime_checkable
class DecodesTiles(Protocol):
    """What the feed needs of an image; everything else an image can do is none of its business. Safe from any thread."""

    def grid(self, *, level: int) -> TileGrid:
        """The tiles of `level`."""
        ...

    def decode(
        self,
        tiles: Sequence[tuple[int, int]],
        *,
        level: int,
        channels: Sequence[int],
        out: Sequence[NDArray[Any]],
        valid: Sequence[NDArray[np.bool_]] | None,
    ) -> tuple[Torn, ...]:
        """Decode each of `tiles` once.

        A tile that is torn costs no other: it is named in the answer, and its `out` holds anything.

        Args:
            tiles: (row, column) in the grid.
            level: index into `Image.levels`.
            channels: indices into `Image.channels`, in the order wanted.
            out: one C-contiguous (tile_height, tile_width, channel) array of the image's dtype for each tile; what lies past the
                level's edge holds anything.
            valid: likewise (tile_height, tile_width), receives `Image.read_mask`; None where nobody asks.
        """
        ...


def tile_decoder(image: Image, level: int) -> DecodesTiles:
    """`image` itself where its own tiles of `level` are worth a call each, else reads of several of them."""
    if isinstance(image, DecodesTiles):
        grid = image.grid(level=level)
        if grid.tile_height >= min(_SMALLEST, grid.height) and grid.tile_width >= min(_SMALLEST, grid.width):
            return image
    return AlignedReads(image)


class AlignedReads:
    """Any image's tiles by `Image.read`: whole ones, several at a time where they are small."""

    def __init__(self, image: Image) -> None:
        """Read from `image`."""
        self._image = image

    def grid(self, *, level: int) -> TileGrid:
        """See `DecodesTiles.grid`; tiles of at least 128 pixels a side, or the level."""
        frame = self._image.levels[level]
        return TileGrid(
            height=frame.height,
            width=frame.width,
            tile_height=_whole_tiles(frame.tile_height, frame.height),
            tile_width=_whole_tiles(frame.tile_width, frame.width),
        )

    def decode(
        self,
        tiles: Sequence[tuple[int, int]],
        *,
        level: int,
        channels: Sequence[int],
        out: Sequence[NDArray[Any]],
        valid: Sequence[NDArray[np.bool_]] | None,
    ) -> tuple[Torn, ...]:
        """See `DecodesTiles.decode`; of tiles read together only the stored one that is torn is named."""
        image, frame, grid = self._image, self._image.levels[level], self.grid(level=level)
        torn: list[Torn] = []
        for at, (row, column) in enumerate(tiles):
            tile = grid.window(row, column)

            def read(part: Window, tile: Window = tile, at: int = at) -> None:
                place = part.within(tile)
                image.read(part, level=level, channels=channels, out=out[at][place])
                if valid is not None:
                    valid[at][place] = image.read_mask(part, level=level)

            try:
                read(tile)
            except ReadError:
                torn.extend(_each(read, _stored_tiles(frame, tile)))
        return tuple(torn)


def _each(read: Callable[[Window], None], parts: Iterable[Window]) -> Iterator[Torn]:
    """Read each of `parts`, and name those that cannot be."""
    for part in parts:
        try:
            read(part)
        except ReadError as error:
            yield Torn(window=part, reason=str(error))


def _stored_tiles(frame: Level, window: Window) -> Iterator[Window]:
    """The stored tiles of a window that lies on them."""
    for y in range(window.y, window.y_end, frame.tile_height):
        for x in range(window.x, window.x_end, frame.tile_width):
            part = Window(y=y, x=x, height=frame.tile_height, width=frame.tile_width).intersect(window)
            assert part is not None, "a step inside the window"
            yield part


def _whole_tiles(tile: int, extent: int) -> int:
    return min(tile * max(1, -(-_SMALLEST // tile)), -(-extent // tile) * tile)


def read_level(image: Image, level: int, *, workers: int) -> NDArray[Any]:
    """A whole level, (height, width, channel), each tile decoded once, by `workers` threads. For coarse levels: nothing bounds its size.

    Raises:
        ReadError: a tile cannot be decoded.
    """
    frame = image.levels[level]
    out = np.empty((frame.height, frame.width, len(image.channels)), image.dtype)

    def strip(y: int) -> None:
        height = min(frame.tile_height, frame.height - y)
        image.read(Window(y=y, x=0, height=height, width=frame.width), level=level, out=out[y : y + height])

    with ThreadPoolExecutor(workers, thread_name_prefix="patchdrive-read") as threads:
        list(threads.map(strip, range(0, frame.height, frame.tile_height)))
    return out
