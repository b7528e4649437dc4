"""An image of any size that is nowhere stored: each pixel is made from its place when it is read, faster than any codec decodes.

For what must be tried at 100 gigapixels: memory, planning, resuming. Behind the Image protocol and with tiles of its own, like a file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchdrive.readers import Level, Window
from patchdrive.readers.errors import FormatError
from patchdrive.readers.pixels import check_out
from patchdrive.readers.tiles import TileGrid, Torn

TILE = 512
"""Side of a tile, level pixels."""
_NAMES = {1: ("grey",), 3: ("red", "green", "blue")}


class Procedural:
    """A pyramid of uint8, each level a quarter of the finer one.

    The pixel at (y, x) of level l is, modulo 256, the sum of what its row and its column say, channel by channel:

        row     y mod 241 + 37 * (row of its tile) + 5 * l
        column  (channel + 1) * (x mod 251) + 11 * (column of its tile)

    so that a shift, a swap of axes, another tile and another level each give other pixels.
    """

    reader = "procedural"
    codec = "none"
    dtype: np.dtype[Any] = np.dtype(np.uint8)
    transform = crs = nodata = None
    color_profile: bytes | None = None
    has_mask = False
    cache_bytes = 0

    def __init__(self, height: int, width: int, *, channels: int = 1, coarsest: int = 4096) -> None:
        """Describe it; nothing is made yet.

        Args:
            height: rows of level 0.
            width: columns of level 0.
            channels: 1 or 3.
            coarsest: levels are added until one has no longer side than this.

        Raises:
            FormatError: no pixel, or another number of channels.
        """
        if min(height, width) < 1 or channels not in _NAMES:
            raise FormatError(f"an image has pixels and 1 or 3 channels here, got {height} x {width} x {channels}")
        self._made_of = (height, width, channels, coarsest)
        self.channels = _NAMES[channels]
        self.levels = _pyramid(height, width, coarsest)
        self.mpp: tuple[float, float] | None = (0.5, 0.5)
        self.associated: Mapping[str, NDArray[np.uint8]] = {}
        self.properties: Mapping[str, str] = {}

    @property
    def identity(self) -> str:
        """SHA-256 of its size and of how it is made."""
        return hashlib.sha256(f"{self._made_of} {self.__doc__}".encode()).hexdigest()

    @property
    def source(self) -> str:
        """What it is made of."""
        height, width, channels, _ = self._made_of
        return f"procedural-{height}x{width}x{channels}"

    def __reduce__(self) -> tuple[Any, ...]:
        height, width, channels, coarsest = self._made_of
        return _again, (height, width, channels, coarsest)

    def read(
        self,
        window: Window,
        *,
        level: int = 0,
        channels: Sequence[int] | None = None,
        out: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        """See `Image.read`."""
        self.levels[level].check(window, self.source)
        taken = tuple(range(len(self.channels))) if channels is None else tuple(channels)
        shape = (window.height, window.width, len(taken))
        if out is None:
            out = np.empty(shape, self.dtype)
        check_out(out, shape, self.dtype)
        _paint(window, level, taken, out)
        return out

    def read_mask(self, window: Window, *, level: int = 0) -> NDArray[np.bool_]:
        """See `Image.read_mask`: valid everywhere."""
        self.levels[level].check(window, self.source)
        return np.ones((window.height, window.width), np.bool_)

    def grid(self, *, level: int) -> TileGrid:
        """See `DecodesTiles.grid`."""
        frame = self.levels[level]
        return TileGrid(height=frame.height, width=frame.width, tile_height=TILE, tile_width=TILE)

    def decode(
        self,
        tiles: Sequence[tuple[int, int]],
        *,
        level: int,
        channels: Sequence[int],
        out: Sequence[NDArray[Any]],
        valid: Sequence[NDArray[np.bool_]] | None,
    ) -> tuple[Torn, ...]:
        """See `DecodesTiles.decode`; no tile is ever torn."""
        for (row, column), slot in zip(tiles, out, strict=True):
            _paint(Window(y=row * TILE, x=column * TILE, height=TILE, width=TILE), level, tuple(channels), slot)
        for mask in valid or ():
            mask[...] = True
        return ()

    def close(self) -> None:
        """Nothing to release."""


def _again(height: int, width: int, channels: int, coarsest: int) -> Procedural:
    return Procedural(height, width, channels=channels, coarsest=coarsest)


def _pyramid(height: int, width: int, coarsest: int) -> tuple[Level, ...]:
    sizes = [(height, width)]
    while max(sizes[-1]) > coarsest:
        sizes.append((-(-sizes[-1][0] // 4), -(-sizes[-1][1] // 4)))
    return tuple(
        Level(
            index=index,
            height=rows,
            width=columns,
            downsample_y=height / rows,
            downsample_x=width / columns,
            tile_height=min(TILE, rows),
            tile_width=min(TILE, columns),
        )
        for index, (rows, columns) in enumerate(sizes)
    )


def _paint(window: Window, level: int, channels: tuple[int, ...], out: NDArray[np.uint8]) -> None:
    """Fill `out`, (height, width, channel): one addition of bytes for each value."""
    y, x = np.arange(window.y, window.y_end), np.arange(window.x, window.x_end)
    rows = (y % 241 + 37 * (y // TILE) + 5 * level).astype(np.uint8)
    columns = [(channel + 1) * (x % 251) + 11 * (x // TILE) for channel in channels]
    line = np.stack(columns, axis=1).astype(np.uint8)
    np.add(rows[:, None, None], line[None], out=out)
