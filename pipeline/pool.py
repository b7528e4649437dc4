"""Decoded tiles, each in a slot of one slab, until the last patch that needs it is cut."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchdrive.readers.tiles import TileGrid, Torn

Unit = Future[None]
"""One call that decodes several tiles."""

TILE_BYTES = 12
"""Of bookkeeping for every tile of the level."""
_NONE = -1


class TilePool:
    """Which tile lies in which slot. A slot is free once every patch of the plan that needs its tile is cut; the freshest is given
    away first, while it is still in the processor's cache. Where none is free, the least recently used tile that nobody holds makes
    room, and is decoded again when it is needed again.

    A tile is named by row * columns + column. Every method may be called from any thread.
    """

    def __init__(
        self, grid: TileGrid, *, channels: int, dtype: np.dtype[Any], masked: bool, capacity: int, uses: NDArray[np.int32]
    ) -> None:
        """Make room; memory is taken as slots are first used.

        Args:
            grid: the tiles of the level.
            channels: of a decoded pixel.
            dtype: of a decoded pixel.
            masked: True to keep validity beside the pixels.
            capacity: slots.
            uses: (rows, columns) how many patches need each tile, all blocks counted.
        """
        capacity = min(capacity, max(1, int(np.count_nonzero(uses))))
        self.capacity = capacity
        self.pixels: NDArray[Any] = np.empty((capacity, grid.tile_height, grid.tile_width, channels), dtype)
        """(slot, tile height, tile width, channel)."""
        self.valid = np.empty(self.pixels.shape[:3], np.bool_) if masked else None
        """(slot, tile height, tile width), where the image has a mask."""
        self.whole = [True] * capacity
        """Per slot: every pixel inside the level is valid."""
        self.torn: dict[int, tuple[Torn, ...]] = {}
        """Per tile that is torn: what of it could not be decoded."""
        self.slots = np.full(uses.shape, _NONE, np.int32)
        """(rows, columns) slot of each tile; -1 where it has none."""
        self._lock = threading.Lock()
        self._slot = self.slots.reshape(-1)
        self._left = uses.reshape(-1).copy()
        self._holders = np.zeros(uses.size, np.int32)
        self._tile = np.full(capacity, _NONE, np.int64)
        self._used = np.zeros(capacity, np.int64)
        self._clock = 0
        self._free = list(range(capacity - 1, -1, -1))
        self._running: dict[int, Unit] = {}

    def claim(self, tiles: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """Hold different `tiles` until they are released.

        Returns:
            Those that nobody has decoded yet, for the caller to have decoded; None where there is no room for them now.
        """
        with self._lock:
            missing: NDArray[np.int64] = tiles[self._slot[tiles] == _NONE]
            self._holders[tiles] += 1
            if len(missing) > len(self._free) and not self._evict(len(missing) - len(self._free)):
                self._holders[tiles] -= 1
                return None
            slots = [self._free.pop() for _ in range(len(missing))]
            self._slot[missing], self._tile[slots] = slots, missing
            self._clock += 1
            self._used[self._slot[tiles]] = self._clock
            return missing

    def release(self, tiles: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
        """Give back what was claimed; `counts` patches were cut from each."""
        with self._lock:
            self._holders[tiles] -= 1
            self._left[tiles] -= counts
            self._forget(tiles[(self._left[tiles] == 0) & (self._holders[tiles] == 0)])

    def began(self, tiles: list[int], unit: Unit) -> None:
        """Remember which call decodes `tiles`."""
        self._running.update(dict.fromkeys(tiles, unit))

    def decoded(self, tiles: list[int]) -> None:
        """`tiles` are there: nobody need wait for them."""
        for tile in tiles:
            del self._running[tile]

    def waits_for(self, tiles: NDArray[np.int64]) -> set[Unit]:
        """The calls that still decode some of the claimed `tiles`."""
        running = self._running
        return {unit for tile in tiles.tolist() if (unit := running.get(tile)) is not None}

    def _evict(self, count: int) -> bool:
        """Make `count` slots free; False, and nothing done, where too few are not held."""
        idle = np.flatnonzero((self._tile != _NONE) & (self._holders[self._tile] == 0))
        if len(idle) < count:
            return False
        oldest = idle[np.argsort(self._used[idle], kind="stable")[:count]]
        self._forget(self._tile[oldest])
        return True

    def _forget(self, tiles: NDArray[np.int64]) -> None:
        if not len(tiles):
            return
        slots = self._slot[tiles]
        self._slot[tiles], self._tile[slots] = _NONE, _NONE
        self._free.extend(slots.tolist())
        if self.torn:
            for tile in tiles.tolist():
                self.torn.pop(tile, None)
