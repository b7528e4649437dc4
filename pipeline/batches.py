"""Batches of pixels: one shape each, in buffers that are used again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from patchdrive.pipeline.pinned import host_array
from patchdrive.pipeline.plan import Block
from patchdrive.pipeline.uncut import Uncut


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """A planned row that no model saw."""

    row: int
    """Of the plan."""
    state: Literal["skipped", "failed"]
    """Dropped by a rule, or could not be computed."""
    reason: str
    """In words for the user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holed:
    """A row whose patch was computed without some pixels, which could not be decoded and were taken for invalid."""

    row: int
    """Of the plan."""
    reason: str
    """In words for the user."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """Pixels of some rows of one block. The arrays are filled anew once the next batch is asked for: copy what is to be kept."""

    block: Block
    """Whose rows they are."""
    rows: NDArray[np.int64]
    """(n,) rows of the plan, n <= batch size."""
    places: NDArray[np.int64]
    """(n,) where each lies in `pixels` and `valid`; a dropped row leaves its place empty."""
    held: NDArray[Any] | Uncut
    """Its pixels: cut, (batch size, side, side, channel), or in their tiles; empty places hold the fill."""
    valid: NDArray[np.bool_] | None
    """(batch size, side, side) True where the source has valid data; None: everywhere."""
    dropped: tuple[Dropped, ...]
    """Rows of this batch that no model sees."""
    holed: tuple[Holed, ...]
    """Rows of this batch that are seen with holes."""
    last: bool
    """True for the last batch of its block."""

    @property
    def size(self) -> int:
        """Places, empty ones included."""
        size: int = self.held.shape[0]
        return size

    @property
    def side(self) -> int:
        """Of a patch."""
        side: int = self.held.shape[1]
        return side

    @property
    def pixels(self) -> NDArray[Any]:
        """(batch size, side, side, channel), stored dtype, or float32 where resampled; cut now where they are not yet."""
        return self.held.pixels() if isinstance(self.held, Uncut) else self.held


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Buffers:
    """What one batch is written into."""

    pixels: NDArray[Any]
    """(batch size, side, side, channel); of no place where patches stay uncut."""
    valid: NDArray[np.bool_]
    """(batch size, side, side)."""


class BufferRing:
    """Buffers of one shape, lent and given back: fresh pages cost a fifth of decoding. Whoever calls holds the caller's own lock."""

    def __init__(self, *, batch_size: int, side: int, channels: int, dtype: np.dtype[Any], count: int, uncut: bool, pinned: bool) -> None:
        """Remember the shape; the `count` buffers, `pinned` in memory for a CUDA device or not, are made when first lent."""
        self._shape, self._dtype = (batch_size, side, side), dtype
        self._pixels = (0 if uncut else batch_size, side, side, channels)
        self._pinned = pinned
        self._idle: list[Buffers] = []
        self.free = count
        """How many can be lent now."""

    def lend(self) -> Buffers:
        """One that nobody holds; what it contains is anything."""
        self.free -= 1
        if self._idle:
            return self._idle.pop()
        return Buffers(pixels=host_array(self._pixels, self._dtype, pinned=self._pinned), valid=np.empty(self._shape, np.bool_))

    def give_back(self, buffers: Buffers) -> None:
        """Nobody reads these any more."""
        self.free += 1
        self._idle.append(buffers)
