"""Blocks of a plan to batches of pixels: each tile decoded once into a pool of slabs, patches cut from them.

Batches are made ahead of their consumer, by one thread that plans and a few that decode and cut. What a batch holds depends
on the plan and the pixels alone, never on threads or memory: short batches are padded to the one shape.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from patchdrive.pipeline.plan import Block, Plan
from patchdrive.pipeline.reads import ReadFrame, TilesTouched
from patchdrive.pipeline.resample import resample, taps
from patchdrive.pipeline.timings import Timings
from patchdrive.readers import Image, Window
from patchdrive.readers.errors import ReadError


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """A planned row that no model saw."""

    row: int
    """Of the plan."""
    state: Literal["skipped", "failed"]
    """Dropped by a rule, or could not be computed."""
    reason: str
    """In words for the user."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """Pixels of some rows of one block; `pixels` always has the one shape."""

    block: Block
    """Whose rows they are."""
    rows: NDArray[np.int64]
    """(n,) rows of the plan, n <= batch size."""
    pixels: NDArray[Any]
    """(batch size, side, side, channel), stored dtype, or float32 where resampled; rows past n hold the fill."""
    valid: NDArray[np.bool_] | None
    """(n, side, side) True where the source has valid data; None: everywhere inside the image."""
    dropped: tuple[Dropped, ...]
    """Rows dropped since the batch before."""
    last: bool
    """True for the last batch of its block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedSettings:
    """What the feed needs to know besides the plan."""

    frame: ReadFrame
    """How the plan lies on the level read."""
    channels: tuple[int, ...]
    """Of the image, in the model's order."""
    fill: float
    """Stored value for pixels that are invalid or outside."""
    batch_size: int
    """Patches per batch."""
    pool_bytes: int
    """Decoded pixels to keep."""
    workers: int
    """Decode threads."""


def feed(image: Image, plan: Plan, blocks: Sequence[Block], settings: FeedSettings, timings: Timings) -> Iterator[Batch]:
    """Batches of every block in turn, made up to two ahead of the consumer.

    Raises:
        Whatever reading raises, except ReadError: its rows come back as failed, with the reason.
    """
    return _ahead(_Feed(image, plan, settings, timings).batches(blocks), depth=2)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Slab:
    """A decoded slot: pixels and, where the source has one, mask; and which of its tiles could not be decoded."""

    pixels: NDArray[Any]
    mask: NDArray[np.bool_] | None
    torn: tuple[tuple[Window, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Job:
    """One row on its way into a batch."""

    row: int
    source: Window
    inside: Window | None
    slots: tuple[tuple[int, int], ...]


class _Feed:
    def __init__(self, image: Image, plan: Plan, settings: FeedSettings, timings: Timings) -> None:
        self._image, self._plan, self._settings, self._timings = image, plan, settings, timings
        frame = settings.frame
        self._pool: OrderedDict[tuple[int, int], Future[_Slab]] = OrderedDict()
        self._pixel_bytes = image.dtype.itemsize * len(settings.channels)
        slot_bytes = frame.slot_height * frame.slot_width * (self._pixel_bytes + int(image.has_mask))
        self._capacity = max(1, settings.pool_bytes // slot_bytes)
        self._touched = TilesTouched(frame.level, self._pixel_bytes)
        exact_or_nearest = frame.exact or frame.resampling == "nearest"
        self._dtype = image.dtype if exact_or_nearest else np.dtype(np.float32)

    def batches(self, blocks: Iterable[Block]) -> Iterator[Batch]:
        with ThreadPoolExecutor(self._settings.workers, thread_name_prefix="patchdrive-read") as threads:
            for block in blocks:
                yield from self._block(block, threads)

    def _block(self, block: Block, threads: ThreadPoolExecutor) -> Iterator[Batch]:
        size = self._settings.batch_size
        kept: list[tuple[int, NDArray[Any], NDArray[np.bool_] | None]] = []
        dropped: list[Dropped] = []
        for start in range(0, len(block.rows), size):
            for jobs in self._fitting([self._job(row) for row in block.rows[start : start + size].tolist()]):
                with self._timings.stage("read"):
                    slabs = self._resident(jobs, threads)
                    done = list(threads.map(lambda job, have=slabs: self._cut(job, have), jobs))
                for job, cut in zip(jobs, done, strict=True):
                    if isinstance(cut, Dropped):
                        dropped.append(cut)
                    else:
                        kept.append((job.row, *cut))
            if len(kept) > size:
                yield self._batch(block, kept[:size], dropped, last=False)
                kept, dropped = kept[size:], []
        yield self._batch(block, kept, dropped, last=True)

    def _fitting(self, jobs: Sequence[_Job]) -> Iterator[list[_Job]]:
        """The same jobs in groups whose slots the pool can hold together; what is cut does not depend on the groups."""
        group: list[_Job] = []
        slots: set[tuple[int, int]] = set()
        for job in jobs:
            if group and len(slots.union(job.slots)) > self._capacity:
                yield group
                group, slots = [], set()
            group.append(job)
            slots.update(job.slots)
        yield group

    def _job(self, row: int) -> _Job:
        frame = self._settings.frame
        source = frame.source_window(int(self._plan.y[row]), int(self._plan.x[row]))
        inside = source.intersect(frame.level.window)
        slots = () if inside is None else tuple(frame.slots(inside))
        if inside is not None:
            self._timings.count("needed", self._touched.add(inside))
        return _Job(row=row, source=source, inside=inside, slots=slots)

    def _resident(self, jobs: Sequence[_Job], threads: ThreadPoolExecutor) -> dict[tuple[int, int], _Slab]:
        """Every slab the jobs need, decoded where it is not in the pool; the least recently used make room."""
        wanted = dict.fromkeys(slot for job in jobs for slot in job.slots)
        for slot in wanted:
            if slot in self._pool:
                self._pool.move_to_end(slot)
        missing = [slot for slot in wanted if slot not in self._pool]
        while self._pool and len(self._pool) + len(missing) > self._capacity and next(iter(self._pool)) not in wanted:
            self._pool.popitem(last=False)
        for slot in missing:
            self._pool[slot] = threads.submit(self._decode, slot)
        return {slot: self._pool[slot].result() for slot in wanted}

    def _decode(self, slot: tuple[int, int]) -> _Slab:
        window = self._settings.frame.slot(*slot)
        pixels = np.empty((window.height, window.width, len(self._settings.channels)), self._image.dtype)
        mask = np.empty((window.height, window.width), np.bool_) if self._image.has_mask else None
        try:
            self._read(window, pixels, mask)
        except ReadError:
            return _Slab(pixels=pixels, mask=mask, torn=tuple(self._tile_by_tile(window, pixels, mask)))
        return _Slab(pixels=pixels, mask=mask)

    def _read(self, window: Window, pixels: NDArray[Any], mask: NDArray[np.bool_] | None) -> None:
        level = self._settings.frame.level.index
        self._image.read(window, level=level, channels=self._settings.channels, out=pixels)
        if mask is not None:
            mask[...] = self._image.read_mask(window, level=level)
        self._timings.count("decoded", pixels.nbytes)

    def _tile_by_tile(self, slot: Window, pixels: NDArray[Any], mask: NDArray[np.bool_] | None) -> Iterator[tuple[Window, str]]:
        """Read what can be read of a slot, so that a torn tile costs only the patches that need it; gives the tiles that are torn."""
        level = self._settings.frame.level
        for y in range(slot.y, slot.y_end, level.tile_height):
            for x in range(slot.x, slot.x_end, level.tile_width):
                tile = Window(y=y, x=x, height=level.tile_height, width=level.tile_width).intersect(slot)
                assert tile is not None
                part = tile.within(slot)
                own = np.empty((tile.height, tile.width, pixels.shape[2]), pixels.dtype)
                own_mask = None if mask is None else np.empty((tile.height, tile.width), np.bool_)
                try:
                    self._read(tile, own, own_mask)
                except ReadError as error:
                    yield tile, str(error)
                    continue
                pixels[part] = own
                if mask is not None and own_mask is not None:
                    mask[part] = own_mask

    def _cut(self, job: _Job, slabs: dict[tuple[int, int], _Slab]) -> tuple[NDArray[Any], NDArray[np.bool_] | None] | Dropped:
        """One patch (side, side, channel) and its validity, or why there is none."""
        for slot in job.slots:
            for tile, reason in slabs[slot].torn:
                if job.inside is not None and tile.intersect(job.inside) is not None:
                    return Dropped(row=job.row, state="failed", reason=reason)
        frame, fill = self._settings.frame, self._settings.fill
        if job.inside is None:
            return Dropped(row=job.row, state="skipped", reason="no valid pixel")
        area = job.source if frame.exact else job.inside  # what overhangs is filled at the target's pixel size, never at the source's
        whole = job.inside == job.source and not self._image.has_mask
        pixels = np.empty((area.height, area.width, len(self._settings.channels)), self._image.dtype)
        valid = np.full((area.height, area.width), whole, np.bool_)
        for slot in job.slots:
            self._paste(slot, slabs[slot], area, pixels, valid)
        if not valid.any():
            return Dropped(row=job.row, state="skipped", reason="no valid pixel")
        if not frame.exact:
            y, x = int(self._plan.y[job.row]) * frame.step_y, int(self._plan.x[job.row]) * frame.step_x
            rows = taps(y, frame.step_y, frame.side, frame.resampling).cut(area.y, area.y_end)
            columns = taps(x, frame.step_x, frame.side, frame.resampling).cut(area.x, area.x_end)
            pixels, valid = resample(pixels, valid, rows, columns, fill=fill)
        elif not whole:
            pixels[~valid] = np.asarray(fill).astype(pixels.dtype)
        return pixels, None if whole else valid

    def _paste(self, slot: tuple[int, int], slab: _Slab, area: Window, pixels: NDArray[Any], valid: NDArray[np.bool_]) -> None:
        held = self._settings.frame.slot(*slot)
        shared = held.intersect(area)
        assert shared is not None, "a job names the slots its area touches"
        target = shared.within(area)
        pixels[target] = slab.pixels[shared.within(held)]
        valid[target] = True if slab.mask is None else slab.mask[shared.within(held)]

    def _batch(
        self, block: Block, kept: list[tuple[int, NDArray[Any], NDArray[np.bool_] | None]], dropped: list[Dropped], *, last: bool
    ) -> Batch:
        settings = self._settings
        side = settings.frame.side
        fill = np.asarray(settings.fill).astype(self._dtype)
        pixels = np.empty((settings.batch_size, side, side, len(settings.channels)), self._dtype)
        for place, (_, patch, _) in enumerate(kept):
            pixels[place] = patch
        pixels[len(kept) :] = fill
        masks = [mask for _, _, mask in kept]
        valid = None
        if any(mask is not None for mask in masks):
            valid = np.stack([np.ones((side, side), np.bool_) if mask is None else mask for mask in masks])
        rows = np.array([row for row, _, _ in kept], np.int64)
        return Batch(block=block, rows=rows, pixels=pixels, valid=valid, dropped=tuple(dropped), last=last)


def _ahead(batches: Iterator[Batch], *, depth: int) -> Iterator[Batch]:
    """The same batches, made by a thread of its own up to `depth` ahead of the consumer; its error is raised here."""
    with ThreadPoolExecutor(1, thread_name_prefix="patchdrive-feed") as thread:
        line = deque(thread.submit(next, batches, None) for _ in range(depth))
        try:
            while (batch := line.popleft().result()) is not None:
                line.append(thread.submit(next, batches, None))
                yield batch
        finally:
            for waiting in line:
                waiting.cancel()
