"""Budget: what fits. How much memory this process may have, and how a run shares it out before it starts."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from patchdrive.models.types import ModelSpec, OutputSpec
from patchdrive.pipeline.reads import ReadFrame
from patchdrive.pipeline.tables import ROWS
from patchdrive.readers.errors import BudgetError, SettingsError
from patchdrive.readers.tiles import TileGrid

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_EDGES = (4096, 2048, 1024, 512)
_BLOCK_SHARE = 6
"""A map block takes at most one part in so many of the memory: what else is held must not shrink for it."""
_WIDE, _WIDE_SHARE = 16384, 24
"""The same for a block of more target pixels a side than this: few patches lie across its edges, so a larger one saves next to nothing."""
_POOL_SHARE = 8
"""Decoded tiles likewise: across the edges of blocks they wait for long, and are few of all that are decoded."""
_BATCH_PIXELS = 2**16
"""Per patch of the largest batch: 32 patches of more than 2 Mpx together are no faster, and what a model makes of them is large."""
_POOL_CAP = 512 * 2**20
"""More decoded tiles than this are never used again: a 4096-pixel square needs three rows of them."""


def parse_bytes(text: str) -> int:
    """`8GiB`, `500MB` or a plain number, in bytes.

    Raises:
        SettingsError: not a size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?B?)\s*", text.upper())
    unit = match and (match[2] if match[2] in _UNITS else match[2] + "B")
    if match is None or unit not in _UNITS:
        raise SettingsError(f"{text!r} is not a size in bytes; write 8GiB, 500MB or a plain number")
    return int(float(match[1]) * _UNITS[unit])


def show_bytes(count: int) -> str:
    """A size for people, in binary units."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def cores() -> int:
    """Cores this process may use: the affinity mask, which SLURM and containers set, not what the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def host_limit() -> int:
    """Bytes this process may have: the least of the machine's, its cgroup's and its SLURM allocation's."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    cgroups = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
    stated = [path.read_text().strip() for path in cgroups if path.is_file()]
    limits += [int(text) for text in stated if text.isdigit()]
    slurm = os.environ.get("SLURM_MEM_PER_NODE", "")
    if slurm.isdigit() and int(slurm):
        limits.append(int(slurm) * 2**20)
    return min(limits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Bytes that a model takes where it computes: its weights, and what it makes of a batch."""

    fixed: int = 0
    """Whatever the batch."""
    patch: int = 0
    """For each patch of it."""

    def of(self, batch_size: int) -> int:
        """Bytes while a batch is computed."""
        return self.fixed + batch_size * self.patch

    def most(self, room: int) -> int:
        """The largest batch within `room` bytes; 0 where not even one patch fits."""
        return max(0, (room - self.fixed) // max(1, self.patch))


@dataclass(frozen=True, slots=True, kw_only=True)
class Allotment:
    """How a run's memory is shared out."""

    batch_size: int
    """Patches per batch."""
    edge: int
    """Side of a map block, target pixels."""
    pool_bytes: int
    """Decoded tiles to keep, per lane."""
    workers: int
    """Threads that decode and cut, per lane."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What the buffers of a run depend on."""

    frame: ReadFrame
    """How the plan is read."""
    grid: TileGrid
    """The tiles that are decoded for it."""
    spec: ModelSpec
    """What the model eats and gives."""
    channels: int
    """Image channels read."""
    stored: int
    """Image channels there are: a tile is decoded whole where not all are wanted."""
    dtype: np.dtype[np.generic]
    """Of the stored pixels."""
    batches: int
    """Batches that a feed holds at once."""
    lanes: int
    """Devices, each with a feed of its own."""
    computing: Footprint
    """Of the model, where it computes in host memory."""
    fixed: int
    """Bytes held from beginning to end: saliency, plan, glance, caches of the libraries that read."""
    uncut: bool = False
    """Patches stay in their tiles, and are cut on the device."""

    def batch_bytes(self, batch_size: int) -> int:
        """A lane's batches in flight with their validity, one more as the model eats it, and its least pool."""
        stored = 4 if not self.frame.exact and self.frame.resampling == "area" else self.dtype.itemsize
        cut = 0 if self.uncut else self.channels * stored
        return (
            batch_size * self.frame.side**2 * self.batches * (cut + 1)
            + batch_size * self.frame.side**2 * (self.channels * 4 + 1)
            + self.least_pool(batch_size)
        )

    def least_pool(self, batch_size: int) -> int:
        """The tiles that two patches are cut from; or all of a batch, where they stay uncut."""
        return (batch_size if self.uncut else 2) * self.slot_bytes() * self.frame.tiles_per_patch(self.grid)

    def worker_bytes(self) -> int:
        """What one thread holds while it cuts a patch: source pixels, validity and, where they are resampled, two float32 copies."""
        frame = self.frame
        rows, columns = min(frame.side * frame.step_y + 2, frame.level.height), min(frame.side * frame.step_x + 2, frame.level.width)
        pixels = int(max(rows, frame.side)) * int(max(columns, frame.side))
        return pixels * (self.channels * (self.dtype.itemsize + (0 if frame.exact else 8)) + 2) + self.slot_bytes() + self.scratch_bytes()

    def scratch_bytes(self) -> int:
        """One tile of all channels, while it is decoded."""
        return self.grid.tile_height * self.grid.tile_width * self.stored * self.dtype.itemsize

    def slot_bytes(self) -> int:
        """One decoded tile."""
        return self.grid.tile_height * self.grid.tile_width * (self.channels * self.dtype.itemsize + 1)

    def block_bytes(self, edge: int) -> int:
        """Of every output: a block in the making in each lane, and one being written."""
        return sum(
            _table_bytes(output, self.lanes) if output.by_rows else (edge // output.stride) ** 2 * _cell_bytes(output, self.lanes)
            for output in self.spec.outputs
        )

    def least(self, batch_size: int, edge: int) -> int:
        """Bytes with one thread in each lane and the smallest pools."""
        lanes = self.lanes * (self.batch_bytes(batch_size) + self.worker_bytes())
        return self.fixed + self.block_bytes(edge) + lanes + self.computing.of(batch_size)


def _table_bytes(output: OutputSpec, lanes: int) -> int:
    """Rows of a block as they came, joined, and as they are stored, twice while they are written."""
    return ROWS * len(output.columns) * ((lanes + 1) * 8 + 3 * np.dtype(output.dtype).itemsize)


def _cell_bytes(output: OutputSpec, lanes: int) -> int:
    """Of one map cell: sums, weights and validity in each lane; what one block holds when it is made, is encoded and written."""
    channels, image = len(output.channels), output.kind == "image"
    wide, stored = (8, np.dtype(output.dtype).itemsize) if image else (4, 1)
    making = channels * wide + wide + 1 + (channels * 4 if image else 0)
    writing = channels * 4 + 1 + 3 * channels * stored
    return lanes * making + writing


def usual_pool(memory: int, lanes: int) -> int:
    """Bytes of decoded tiles that a lane keeps where there is room: a power of two, for page-locked memory comes in no other sizes."""
    most = max(1, min(_POOL_CAP, memory // _POOL_SHARE // lanes))
    return 1 << (most.bit_length() - 1)


def allot(needs: Needs, memory: int, *, batch_size: int | None, edge: int | None, workers: int, most: int = 32) -> Allotment:
    """Share `memory` bytes out: first the map block, then the batch, and decoded tiles get the rest.

    Args:
        needs: what the run's buffers depend on.
        memory: host bytes for them all.
        batch_size: asked for or recorded; None: the largest power of two up to `most` that fits, and that keeps a batch small enough.
        edge: recorded side of a map block, target pixels; None: 4096 cells of the finest map, or fewer where a block would be large.
        workers: threads wanted in each lane; fewer where the budget says so, which changes no answer.
        most: patches in a batch at most, where it is not said how many.

    Raises:
        BudgetError: the smallest that would do is more than `memory`.
    """
    sizes = [1 << power for power in reversed(range(most.bit_length()))]
    usual_sizes = [size for size in sizes if size == 1 or size * needs.frame.side**2 <= _BATCH_PIXELS * sizes[0]]
    batches = [batch_size] if batch_size is not None else usual_sizes
    finest = min(output.stride for output in needs.spec.outputs)
    usual_edges = [cells * finest for cells in _EDGES]
    small = [side for side in usual_edges if needs.block_bytes(side) <= memory // (_WIDE_SHARE if side > _WIDE else _BLOCK_SHARE)]
    edges = [edge] if edge is not None else small or usual_edges[-1:]
    for side in edges:
        for size in batches:
            left = (memory - needs.least(size, side)) // needs.lanes
            if left >= 0 and (size >= min(8, batches[0]) or side == edges[-1]):
                more = min(workers - 1, left // needs.worker_bytes())
                least_pool = needs.least_pool(size)
                pool = min(max(least_pool, usual_pool(memory, needs.lanes)), left - more * needs.worker_bytes() + least_pool)
                return Allotment(batch_size=size, edge=side, pool_bytes=pool, workers=1 + more)
    least = needs.least(batches[-1], edges[-1])
    model = needs.computing.of(batches[-1])
    raise BudgetError(
        f"a memory budget of {show_bytes(memory)} cannot hold one block and one batch of {batches[-1]}"
        f"{f' (the model alone takes {show_bytes(model)})' if 2 * model > least else ''}; "
        f"give --memory {-(-least // 2**20)}MiB or more, or a smaller --patch-size"
    )
