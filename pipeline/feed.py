"""Blocks of a plan to batches of pixels: each tile decoded once into a pool of slots, patches cut from them.

Whoever asks for batches plans them; threads decode and cut. What a batch holds depends on the plan and the pixels alone, never on
threads or memory: a row has its place from the beginning, and a row that is dropped leaves it empty.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from patchdrive.pipeline.batches import Batch, BufferRing, Buffers, Dropped
from patchdrive.pipeline.cutter import Cutter
from patchdrive.pipeline.plan import Block, Plan
from patchdrive.pipeline.pool import TilePool, Unit
from patchdrive.pipeline.reads import ReadFrame, tile_uses, tiles_of, touched
from patchdrive.pipeline.timings import Timings
from patchdrive.readers import Image
from patchdrive.readers.tiles import DecodesTiles, TileGrid, tile_decoder

_UNIT = 24
"""Tiles decoded by one call: enough that handing it over costs nothing, few enough that all threads end together."""
_STEP_PIXELS = 2**21
"""Level pixels that one call cuts."""
BATCHES_AHEAD = 2
"""Batches begun before the oldest of them is asked for."""


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
    """Batches of every block in turn, made ahead of the consumer. A batch is the consumer's until it asks for the next.

    Raises:
        Whatever reading raises, except ReadError: its rows come back as failed, with the reason.
    """
    with ThreadPoolExecutor(settings.workers, thread_name_prefix="patchdrive-read") as threads:
        try:
            yield from _Feed(image, plan, settings, timings, threads).batches(blocks)
        finally:
            threads.shutdown(wait=True, cancel_futures=True)


@dataclass(slots=True, kw_only=True, eq=False)
class _Making:
    """A batch being made."""

    block: Block
    rows: NDArray[np.int64]
    number: int
    last: bool
    says_valid: bool
    buffers: Buffers | None = None
    dropped: list[Dropped] = field(default_factory=list)


@dataclass(slots=True, kw_only=True, eq=False)
class _Step:
    """Some consecutive rows of a batch, cut by one call once their tiles are decoded."""

    batch: _Making
    table: NDArray[np.int64]  # (n, 12): the fields of each Cut
    tiles: NDArray[np.int64]
    counts: NDArray[np.int64]
    ends: bool = False
    done: Future[None] = field(default_factory=Future)


class _Feed:
    def __init__(self, image: Image, plan: Plan, settings: FeedSettings, timings: Timings, threads: ThreadPoolExecutor) -> None:
        self._plan, self._settings, self._timings, self._threads = plan, settings, timings, threads
        self._image, self._frame = image, settings.frame
        self._decoder: DecodesTiles = tile_decoder(image, settings.frame.level.index)
        self._grid: TileGrid = self._decoder.grid(level=settings.frame.level.index)
        self._pixel_bytes = image.dtype.itemsize * len(settings.channels)
        exact_or_nearest = self._frame.exact or self._frame.resampling == "nearest"
        self._ring = BufferRing(
            batch_size=settings.batch_size,
            side=self._frame.side,
            channels=len(settings.channels),
            dtype=image.dtype if exact_or_nearest else np.dtype(np.float32),
        )

    def batches(self, blocks: Sequence[Block]) -> Iterator[Batch]:
        """Batches in order: steps are begun while there is room, and waited for where there is none."""
        self._begin(blocks)
        flight: deque[_Step] = deque()
        for step in self._steps(blocks):
            while flight and step.batch.number >= flight[0].batch.number + BATCHES_AHEAD:
                yield from self._retire(flight.popleft())
            while (missing := self._pool.claim(step.tiles)) is None:
                yield from self._retire(flight.popleft())
            self._launch(step, missing.tolist())
            flight.append(step)
        while flight:
            yield from self._retire(flight.popleft())

    def _begin(self, blocks: Sequence[Block]) -> None:
        uses = tile_uses((self._tiles(block.rows) for block in blocks), self._grid)
        needed: NDArray[np.bool_] = np.greater(uses, 0)
        self._fresh = bytearray(needed.tobytes())  # tiles that no patch has needed yet: what a perfect reader would still decode
        slot_bytes = self._grid.tile_height * self._grid.tile_width * (self._pixel_bytes + int(self._image.has_mask))
        self._pool = TilePool(
            self._grid,
            channels=len(self._settings.channels),
            dtype=self._image.dtype,
            masked=self._image.has_mask,
            capacity=max(self._frame.tiles_per_patch(self._grid), self._settings.pool_bytes // slot_bytes),
            uses=uses,
        )
        self._cutter = Cutter(frame=self._frame, grid=self._grid, pool=self._pool, fill=self._settings.fill)

    def _tiles(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return tiles_of(self._frame.sources(self._plan.y[rows], self._plan.x[rows]), self._grid)

    def _steps(self, blocks: Sequence[Block]) -> Iterator[_Step]:
        """Every block's batches, in steps whose tiles take at most half the pool; what is cut does not depend on the steps."""
        size, number = self._settings.batch_size, 0
        for block in blocks:
            y, x = self._plan.y[block.rows], self._plan.x[block.rows]
            sources = self._frame.sources(y, x)
            edges = (0, 0, self._grid.height, self._grid.width)
            overhangs = np.any((sources - edges) * (-1, -1, 1, 1) > 0, axis=1)
            places = np.arange(len(block.rows)) % size
            table = np.column_stack([places, block.rows, y, x, sources, tiles_of(sources, self._grid)])
            for start in range(0, len(table), size):
                part = slice(start, start + size)
                batch = _Making(
                    block=block,
                    rows=block.rows[part],
                    number=number,
                    last=start + size >= len(table),
                    says_valid=self._image.has_mask or bool(overhangs[part].any()),
                )
                number += 1
                yield from self._steps_of(batch, table[part])

    def _steps_of(self, batch: _Making, table: NDArray[np.int64]) -> Iterator[_Step]:
        """A batch's steps; the last one ends it."""
        source, tiles = table[:, 4:8], table[:, 8:]
        outside = tiles[:, 2] == 0
        batch.dropped.extend(Dropped(row=row, state="skipped", reason="no valid pixel") for row in batch.rows[outside].tolist())
        table = table[~outside]
        pixels = int((source[0, 2] - source[0, 0]) * (source[0, 3] - source[0, 1]))
        most = max(1, _STEP_PIXELS // pixels)
        waiting = [table[start : start + most] for start in range(0, len(table), most)] or [table]
        waiting.reverse()
        while waiting:
            part = waiting.pop()
            names, counts = touched(part[:, 8:], self._grid.columns)
            if len(names) > self._pool.capacity // 2 and len(part) > 1:
                waiting += [part[len(part) // 2 :], part[: len(part) // 2]]
                continue
            yield _Step(batch=batch, table=part, tiles=names, counts=counts, ends=not waiting)

    def _launch(self, step: _Step, missing: list[int]) -> None:
        """Have the missing tiles decoded, and the patches cut when the last of them is there."""
        if step.batch.buffers is None:
            step.batch.buffers = self._ring.lend()
        count = -(-len(missing) // _UNIT)
        for index in range(count):
            part = missing[index * len(missing) // count : (index + 1) * len(missing) // count]
            unit: Unit = Future()
            self._pool.began(part, unit)
            self._threads.submit(_settle, unit, partial(self._decode, part))
        first = [tile for tile in missing if self._fresh[tile]]
        self._timings.count("needed", self._bytes(first))
        for tile in first:
            self._fresh[tile] = False
        cut = partial(_settle, step.done, partial(self._cut, step))
        units = self._pool.waits_for(step.tiles)
        if units:
            _after(units, cut, step.done)
        else:
            self._threads.submit(cut)

    def _bytes(self, tiles: Sequence[int]) -> int:
        """Decoded, what of them lies in the level."""
        grid, pixels = self._grid, 0
        high, wide = grid.tile_height, grid.tile_width
        for tile in tiles:
            row, column = divmod(tile, grid.columns)
            pixels += min(high, grid.height - row * high) * min(wide, grid.width - column * wide)
        return pixels * self._pixel_bytes

    def _decode(self, tiles: list[int]) -> None:
        pool, columns = self._pool, self._grid.columns
        places = [divmod(tile, columns) for tile in tiles]
        slots = [int(pool.slots[place]) for place in places]
        masks = None if pool.valid is None else [pool.valid[slot] for slot in slots]
        torn = self._decoder.decode(
            places,
            level=self._frame.level.index,
            channels=self._settings.channels,
            out=[pool.pixels[slot] for slot in slots],
            valid=masks,
        )
        for part in torn:
            tile = part.window.y // self._grid.tile_height * columns + part.window.x // self._grid.tile_width
            pool.torn[tile] = (*pool.torn.get(tile, ()), part)
        if masks is not None:
            for place, slot, mask in zip(places, slots, masks, strict=True):
                window = self._grid.window(*place)
                pool.whole[slot] = bool(mask[: window.height, : window.width].all())
        pool.decoded(tiles)
        self._timings.count("decoded", self._bytes(tiles))

    def _cut(self, step: _Step) -> None:
        batch = step.batch
        assert batch.buffers is not None
        batch.dropped.extend(self._cutter.cut(step.table, batch.buffers, says_valid=batch.says_valid))
        self._pool.release(step.tiles, step.counts)

    def _retire(self, step: _Step) -> Iterator[Batch]:
        """Wait for a step; the batch it ends is the consumer's until it comes back."""
        with self._timings.stage("read"):
            step.done.result()
        if not step.ends:
            return
        making, buffers = step.batch, step.batch.buffers
        assert buffers is not None
        fill = np.asarray(self._settings.fill).astype(buffers.pixels.dtype)
        kept = ~np.isin(making.rows, [drop.row for drop in making.dropped])
        buffers.pixels[: len(kept)][~kept] = fill
        buffers.pixels[len(kept) :] = fill
        yield Batch(
            block=making.block,
            rows=making.rows[kept],
            places=np.flatnonzero(kept),
            pixels=buffers.pixels,
            valid=buffers.valid if making.says_valid else None,
            dropped=tuple(sorted(making.dropped, key=lambda drop: drop.row)),
            last=making.last,
        )
        self._ring.give_back([buffers])


def _settle(done: Future[None], work: Callable[[], None]) -> None:
    """Do `work`, and tell whoever waits for `done` how it ended."""
    try:
        work()
    except BaseException as error:  # noqa: BLE001  raised where it is waited for
        done.set_exception(error)
    else:
        done.set_result(None)


def _after(units: set[Unit], then: Callable[[], None], failed: Future[None]) -> None:
    """When the last unit is done, its thread does `then` at once, its tiles being hot; `failed` gets the error of one that is not."""
    lock, left = threading.Lock(), len(units)

    def arrived(unit: Unit) -> None:
        nonlocal left
        error = unit.exception()
        with lock:
            left -= 1
            ready = left == 0
            if error is not None and not failed.done():
                failed.set_exception(error)
        if ready and not failed.done():
            then()

    for unit in units:
        unit.add_done_callback(arrived)
