"""Decoded tiles, each in a slot of one slab, until the last patch that needs it is cut."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchdrive.pipeline.pinned import host_array
from patchdrive.readers.tiles import TileGrid, Torn

TILE_BYTES = 9
"""Of bookkeeping for every tile of the level."""
_NONE = -1


class TilePool:
    """Which tile lies in which slot. A slot is free once every patch of the plan that needs its tile is cut; the freshest is given
    away first, while it is still in the processor's cache. Where none is free, the least recently used tile that nobody holds makes
    room, and is decoded again when it is needed again.

    A tile is named by row * columns + column. Whoever calls a method holds the caller's own lock.
    """

    def __init__(
        self,
        grid: TileGrid,
        *,
        channels: int,
        dtype: np.dtype[Any],
        masked: bool,
        capacity: int,
        uses: NDArray[np.int32],
        pinned: bool = False,
    ) -> None:
        """Make room; memory is taken as slots are first used.

        Args:
            grid: the tiles of the level.
            channels: of a decoded pixel.
            dtype: of a decoded pixel.
            masked: True to keep validity beside the pixels.
            capacity: slots.
            uses: (rows, columns) how many patches need each tile, all blocks counted.
            pinned: the pixels in page-locked memory.
        """
        capacity = min(capacity, max(1, int(np.count_nonzero(uses))))
        self.pixels = host_array((capacity, grid.tile_height, grid.tile_width, channels), dtype, pinned=pinned)
        """(slot, tile height, tile width, channel)."""
        self.valid = np.empty(self.pixels.shape[:3], np.bool_) if masked else None
        """(slot, tile height, tile width), where the image has a mask."""
        self.whole = [True] * capacity
        """Per slot: every pixel inside the level is valid."""
        self.fresh: NDArray[np.bool_] = np.ones(capacity, np.bool_)
        """Per slot: no batch has had its tile yet."""
        self.torn: dict[int, tuple[Torn, ...]] = {}
        """Per tile that is torn: what of it could not be decoded."""
        self.slots = np.full(uses.shape, _NONE, np.int32)
        """(rows, columns) slot of each tile; -1 where it has none."""
        self.decoding: set[int] = set()
        """Tiles that have a slot, and whose pixels are not there yet."""
        self._places = self.slots.reshape(-1)
        self._left = np.ascontiguousarray(uses).reshape(-1).copy().data
        self._slot: OrderedDict[int, int] = OrderedDict()  # least recently used first
        self._free = list(range(capacity - 1, -1, -1))
        self._holders: dict[int, int] = {}

    def claim(self, tiles: Sequence[int]) -> list[int] | None:
        """Hold the different `tiles` of one patch until they are released.

        Returns:
            Those that the caller has to decode: nobody else has, or will. None where there is no room for them now.

        Raises:
            ValueError: there never will be: one patch needs more tiles than there are slots.
        """
        if len(tiles) > len(self.pixels):
            raise ValueError(f"a patch needs {len(tiles)} tiles at once, the pool has {len(self.pixels)} slots")
        slot, holders = self._slot, self._holders
        missing = [tile for tile in tiles if tile not in slot]
        if len(missing) > len(self._free):
            idle = sum(tile in slot and tile not in holders for tile in tiles)
            if len(missing) > len(self._free) + len(slot) - len(holders) - idle:
                return None
        for tile in tiles:
            holders[tile] = holders.get(tile, 0) + 1
            if tile in slot:
                slot.move_to_end(tile)
        for tile in missing:
            if not self._free:
                self._forget(next(old for old in slot if old not in holders))
            slot[tile] = self._places[tile] = self._free.pop()
            self.fresh[slot[tile]] = True
        self.decoding.update(missing)
        return missing

    def release(self, tiles: Sequence[int]) -> None:
        """Give back what was claimed for one patch, which is cut."""
        holders, left = self._holders, self._left
        for tile in tiles:
            left[tile] -= 1
            if holders[tile] > 1:
                holders[tile] -= 1
                continue
            del holders[tile]
            if left[tile] == 0:
                self._forget(tile)

    def _forget(self, tile: int) -> None:
        self._free.append(self._slot.pop(tile))
        self._places[tile] = _NONE
        self.torn.pop(tile, None)
