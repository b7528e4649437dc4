"""Patches that stay in their tiles until they are on the device: where patches overlap, each tile is sent there once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchdrive.pipeline.pool import TilePool

_BITS = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}
"""Unsigned numbers that torch can hardly move about, by what it can; nothing is computed with them here."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Uncut:
    """The patches of one batch, by the tiles they are in."""

    slab: NDArray[Any]
    """(slot, tile height, tile width, channel) the pool's tiles, stored dtype."""
    fresh: NDArray[np.int64]
    """Slots of this batch whose tile no batch before it has had."""
    slots: NDArray[np.int64]
    """(batch size, rows, columns) where the tiles of each patch lie in the slab; anything where it has fewer, or its place is empty."""
    corners: NDArray[np.int64]
    """(batch size, 2) first row and column of each patch, from the first pixel of its first tile; negative where it overhangs."""
    empty: NDArray[np.int64]
    """Places without a patch."""
    valid: NDArray[np.bool_] | None
    """(batch size, side, side) False for pixels that are invalid or outside; None: all are valid."""
    side: int
    """Of a patch."""
    fill: float
    """Stored value of pixels that are not valid, and of empty places."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(batch size, side, side, channel)."""
        return (len(self.slots), self.side, self.side, self.slab.shape[3])

    def send(self, device: torch.device) -> Cuts:
        """All of it but the slab, there."""
        fill, kept = np.asarray([self.fill]).astype(self.slab.dtype), np.ones(len(self.slots), np.bool_)
        kept[self.empty] = False
        return Cuts(
            slots=torch.from_numpy(self.slots).to(device, non_blocking=True),
            corners=torch.from_numpy(self.corners).to(device, non_blocking=True),
            kept=torch.from_numpy(kept).to(device, non_blocking=True) if len(self.empty) else None,
            valid=None if self.valid is None else torch.from_numpy(self.valid).to(device, non_blocking=True),
            fill=torch.from_numpy(fill).to(device, non_blocking=True),
            side=self.side,
        )

    def pixels(self) -> NDArray[Any]:
        """(batch size, side, side, channel), cut here."""
        cut: NDArray[Any] = self.send(torch.device("cpu")).cut(torch.from_numpy(self.slab)).numpy()
        return cut


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cuts:
    """What an `Uncut` says, as tensors of one device."""

    slots: Tensor
    """As there, int64."""
    corners: Tensor
    """As there, int64."""
    kept: Tensor | None
    """[batch size] bool, places that hold a patch; None: all do."""
    valid: Tensor | None
    """As there, bool."""
    fill: Tensor
    """[1], stored dtype."""
    side: int
    """Of a patch."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that lies on the device."""
        return tuple(tensor for tensor in (self.slots, self.corners, self.kept, self.valid, self.fill) if tensor is not None)

    def cut(self, slab: Tensor) -> Tensor:
        """Stored pixels [batch size, side, side, channel] out of the slab, which lies on the same device."""
        (count, down, across), (_, high, wide, channels) = self.slots.shape, slab.shape
        bits = _BITS.get(slab.dtype, slab.dtype)
        lines = torch.arange(self.side, device=slab.device)
        rows, columns = self.corners[:, :1] + lines, self.corners[:, 1:] + lines
        tile_rows = (rows // high).clamp_(0, down - 1)[:, :, None]
        tile_columns = (columns // wide).clamp_(0, across - 1)[:, None, :]
        found = self.slots[torch.arange(count, device=slab.device)[:, None, None], tile_rows, tile_columns]
        found = found.mul_(high).add_((rows % high)[:, :, None]).mul_(wide).add_((columns % wide)[:, None, :])
        pixels = slab.view(bits).view(-1, channels).index_select(0, found.flatten()).view(count, self.side, self.side, channels)
        fill = self.fill.view(bits)
        if self.valid is not None:
            pixels = torch.where(self.valid[..., None], pixels, fill)
        if self.kept is not None:
            pixels = torch.where(self.kept[:, None, None, None], pixels, fill)
        return pixels.view(slab.dtype)


def uncut_of(
    pool: TilePool,
    *,
    tiles: NDArray[np.int64],
    corners: NDArray[np.int64],
    places: NDArray[np.int64],
    batch_size: int,
    side: int,
    valid: NDArray[np.bool_] | None,
    fill: float,
) -> Uncut:
    """A batch whose n patches are left in the tiles of the pool; those are no longer fresh.

    Args:
        pool: which holds all these tiles until the batch is given back.
        tiles: (n, 4) first row and column, one past the last of each, as `tiles_of` gives them.
        corners: (n, 2) first row and column of each patch, level pixels.
        places: (n,) of the patches in the batch.
        batch_size: places, empty ones included.
        side: of a patch.
        valid: (batch size, side, side) of the batch.
        fill: of what is not valid.
    """
    high, wide = (tiles[:, 2:] - tiles[:, :2]).max(axis=0, initial=1)
    # A patch with fewer tiles than others names its last one again.
    rows = np.minimum(tiles[:, :1] + np.arange(high), tiles[:, 2:3] - 1)
    columns = np.minimum(tiles[:, 1:2] + np.arange(wide), tiles[:, 3:] - 1)
    slots, within = np.zeros((batch_size, high, wide), np.int64), np.zeros((batch_size, 2), np.int64)
    slots[places] = pool.slots[rows[:, :, None], columns[:, None, :]]
    within[places] = corners - tiles[:, :2] * pool.pixels.shape[1:3]
    used = np.unique(slots[places])
    fresh = used[pool.fresh[used]]
    pool.fresh[fresh] = False
    empty = np.setdiff1d(np.arange(batch_size), places)
    return Uncut(slab=pool.pixels, fresh=fresh, slots=slots, corners=within, empty=empty, valid=valid, side=side, fill=fill)
