"""Blocks of a plan to batches of pixels: each tile decoded once into a pool of slots, patches cut from them.

Each thread takes the next few patches of the plan, decodes those of their tiles that are missing, and cuts them while the tiles are
hot. What a batch holds depends on the plan and the pixels alone, never on threads or memory: a row has its place from the beginning,
and a row that is dropped leaves it empty.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from patchdrive.pipeline.batches import Batch, BufferRing, Buffers, Dropped, Holed
from patchdrive.pipeline.cutter import Cut, Cutter, OnError
from patchdrive.pipeline.plan import Block, Plan
from patchdrive.pipeline.pool import TilePool
from patchdrive.pipeline.reads import ReadFrame, tile_uses, tiles_of
from patchdrive.pipeline.timings import Timings
from patchdrive.pipeline.uncut import Uncut, uncut_of
from patchdrive.readers import Image
from patchdrive.readers.errors import StalledError
from patchdrive.readers.tiles import DecodesTiles, TileGrid, tile_decoder

_TILES = 8
"""Tiles that a thread decodes before it cuts: enough that taking work costs nothing, few enough to stay in the processor's cache."""
_PIXELS = 2**20
"""Level pixels of the patches that a thread cuts in a row."""
_LOOK_AGAIN = 0.5
"""Seconds after which a waiting consumer looks whether anybody still wants what it waits for, and whether the source answers."""
_PARTING = 2.0
"""Seconds that a thread has to end; one that hangs in a read is left behind, and ends with the process."""


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
    on_error: OnError = "fail"
    """What becomes of patches whose pixels cannot be decoded."""
    patience: float = 300.0
    """Seconds without a single tile after which the source is given up."""
    pinned: bool = False
    """What is sent to a device lies in page-locked memory, from which a CUDA device copies by itself."""
    uncut: bool = False
    """Patches stay in their tiles, to be cut where they are computed; for frames that are read as they are."""


def batches_ahead(workers: int) -> int:
    """Batches begun before the consumer gives back the one in hand."""
    return 2 + workers // 4


def feed(
    image: Image, plan: Plan, blocks: Sequence[Block], settings: FeedSettings, timings: Timings, *, stop: threading.Event | None = None
) -> Generator[Batch, None, None]:
    """Batches of every block in turn, made ahead of the consumer. A batch is the consumer's until it asks for the next.

    Its threads end with it: who may stop early, or fail, closes it (`contextlib.closing`). It ends early once `stop` is set.

    Raises:
        StalledError: nothing was decoded for as long as there is patience.
        Whatever reading raises, except ReadError: what becomes of its rows is said by `settings.on_error`.
    """
    work = _Feed(image, plan, blocks, settings, timings, stop=stop or threading.Event())
    threads = [threading.Thread(target=work.work, name=f"patchdrive-read-{index}", daemon=True) for index in range(settings.workers)]
    try:
        for thread in threads:
            thread.start()
        yield from work.batches()
    finally:
        work.stop()
        by = time.monotonic() + (0 if work.stalled else _PARTING)
        for thread in threads:
            thread.join(max(0.0, by - time.monotonic()))


@dataclass(slots=True, kw_only=True, eq=False)
class _Making:
    """A batch being made."""

    block: Block
    rows: NDArray[np.int64]
    last: bool
    says_valid: bool
    buffers: Buffers
    cuts: deque[Cut]  # not yet taken by any thread
    told: list[Dropped | Holed]
    sources: NDArray[np.int64]
    tiles: NDArray[np.int64]
    groups: int = 0  # taken, and not yet cut
    held: list[list[int]] = field(default_factory=list)  # tiles of patches that stay uncut

    @property
    def made(self) -> bool:
        return not self.cuts and not self.groups


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Group:
    """Some consecutive patches of a batch, cut by one thread, which first decodes what nobody else does."""

    batch: _Making
    cuts: tuple[Cut, ...]
    tiles: tuple[list[int], ...]  # of each patch
    missing: list[int]


class _Feed:
    """Threads that take the next few patches each, decode those of their tiles that are missing, cut them, and come back."""

    def __init__(
        self, image: Image, plan: Plan, blocks: Sequence[Block], settings: FeedSettings, timings: Timings, *, stop: threading.Event
    ) -> None:
        if settings.uncut and not settings.frame.exact:
            raise ValueError("patches that are resampled are cut here")
        self._stop_asked = stop
        self._image, self._plan, self._settings, self._timings, self._frame = image, plan, settings, timings, settings.frame
        self._decoder: DecodesTiles = tile_decoder(image, settings.frame.level.index)
        self._grid: TileGrid = self._decoder.grid(level=settings.frame.level.index)
        self._pixel_bytes = image.dtype.itemsize * len(settings.channels)
        uses = tile_uses((tiles_of(self._sources(block), self._grid) for block in blocks), self._grid)
        needed: NDArray[np.bool_] = np.greater(uses, 0)
        self._fresh = bytearray(needed.tobytes())  # tiles that no patch has needed yet: what a perfect reader would still decode
        slot_bytes = self._grid.tile_height * self._grid.tile_width * (self._pixel_bytes + int(image.has_mask))
        self._per_patch = self._frame.tiles_per_patch(self._grid)
        self._pool = TilePool(
            self._grid,
            channels=len(settings.channels),
            dtype=image.dtype,
            masked=image.has_mask,
            # What stays uncut holds its tiles: those of one batch must find room whatever comes.
            capacity=max((settings.batch_size if settings.uncut else 1) * self._per_patch, settings.pool_bytes // slot_bytes),
            uses=uses,
            pinned=settings.pinned and settings.uncut,
        )
        self._cutter = Cutter(
            frame=self._frame,
            grid=self._grid,
            pool=self._pool,
            fill=settings.fill,
            on_error=settings.on_error,
            uncut=settings.uncut,
        )
        self._ring = BufferRing(
            batch_size=settings.batch_size,
            side=self._frame.side,
            channels=len(settings.channels),
            dtype=self._frame.made(image.dtype),
            count=1 + batches_ahead(settings.workers),
            uncut=settings.uncut,
            pinned=settings.pinned,
        )
        self._turn = threading.Lock()  # guards all that follows, the pool and the ring
        self._room = threading.Condition(self._turn)  # there is more to do, or what others decode is there
        self._made = threading.Condition(self._turn)  # the oldest batch is made
        self._coming = self._begin(blocks)
        self._line: deque[_Making] = deque()
        self._all_begun = self._stopped = False
        self._error: BaseException | None = None
        self._steps = 0  # of any thread: the source answers while this grows
        self.stalled = False
        """The source was given up; a thread may hang in it for ever."""

    def batches(self) -> Iterator[Batch]:
        """Batches in order; each is the consumer's until it comes back for the next."""
        while (making := self._next_made()) is not None:
            yield self._finish(making)
            with self._turn:
                self._ring.give_back(making.buffers)
                for names in making.held:
                    self._pool.release(names)
                self._room.notify_all()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Let no thread take more work."""
        with self._turn:
            self._stop()

    def work(self) -> None:
        """Take groups until there are none, in a thread of its own; an error is the consumer's to raise."""
        try:
            while (group := self._take()) is not None:
                for start in range(0, len(group.missing), _TILES):
                    self._decode(group.missing[start : start + _TILES])
                self._wait_for_others(group)
                told = list(self._cutter.cut(group.cuts, group.batch.buffers, says_valid=group.batch.says_valid))
                self._put_back(group, told)
        except BaseException as error:  # noqa: BLE001  raised where the batches are waited for
            with self._turn:
                self._error = self._error or error
                self._stop()

    def _stop(self) -> None:
        self._stopped = True
        self._room.notify_all()
        self._made.notify_all()

    def _sources(self, block: Block) -> NDArray[np.int64]:
        return self._frame.sources(self._plan.y[block.rows], self._plan.x[block.rows])

    def _begin(self, blocks: Sequence[Block]) -> Iterator[_Making]:
        """Every block's batches; asked for only while there is a free buffer."""
        size, edges = self._settings.batch_size, (0, 0, self._grid.height, self._grid.width)
        for block in blocks:
            sources = self._sources(block)
            tiles = tiles_of(sources, self._grid)
            outside, overhangs = tiles[:, 2] == 0, np.any((sources - edges) * (-1, -1, 1, 1) > 0, axis=1)
            places = np.arange(len(block.rows)) % size
            table = np.column_stack([places, block.rows, self._plan.y[block.rows], self._plan.x[block.rows], sources, tiles])
            for start in range(0, len(table), size):
                part = slice(start, start + size)
                empty = block.rows[part][outside[part]].tolist()
                yield _Making(
                    block=block,
                    rows=block.rows[part],
                    last=start + size >= len(table),
                    says_valid=self._image.has_mask or self._settings.on_error == "mask" or bool(overhangs[part].any()),
                    buffers=self._ring.lend(),
                    cuts=deque(Cut(*fields) for fields in table[part][~outside[part]].tolist()),
                    told=[Dropped(row=row, state="skipped", reason="no valid pixel") for row in empty],
                    sources=sources[part],
                    tiles=tiles[part],
                )

    def _take(self) -> _Group | None:
        """The next patches, their tiles claimed; waits while there is no room. None when there is nothing more to do."""
        with self._turn:
            while not self._stopped:
                if self._line and self._line[-1].cuts:
                    group = self._claim(self._line[-1])
                    if group is not None:
                        return group
                elif self._all_begun:
                    return None
                elif self._ring.free:
                    making = next(self._coming, None)
                    self._all_begun = making is None
                    if making is not None:
                        self._line.append(making)
                    self._tell()
                    continue
                with self._timings.waiting("read_for_room", of=self._settings.workers):
                    self._room.wait()
        return None

    def _claim(self, batch: _Making) -> _Group | None:
        """Patches until enough tiles are missing for one thread; None where not even one finds room."""
        cuts: list[Cut] = []
        tiles: list[list[int]] = []
        missing: list[int] = []
        pixels = 0
        while batch.cuts and len(missing) < _TILES and pixels < _PIXELS:
            cut = batch.cuts[0]
            names = cut.tiles(self._grid.columns)
            fresh = self._pool.claim(names)
            if fresh is None:
                break
            cuts.append(batch.cuts.popleft())
            tiles.append(names)
            missing += fresh
            pixels += (cut.bottom - cut.top) * (cut.right - cut.left)
        if not cuts:
            return None
        batch.groups += 1
        return _Group(batch=batch, cuts=tuple(cuts), tiles=tuple(tiles), missing=missing)

    def _wait_for_others(self, group: _Group) -> None:
        """What this thread had to decode is there; what it shares with others may not be."""
        decoding = self._pool.decoding
        with self._turn:
            decoding.difference_update(group.missing)
            self._room.notify_all()
            while not self._stopped and not all(decoding.isdisjoint(names) for names in group.tiles):
                self._room.wait()

    def _put_back(self, group: _Group, told: list[Dropped | Holed]) -> None:
        with self._turn:
            if self._settings.uncut:
                group.batch.held += group.tiles
            else:
                for names in group.tiles:
                    self._pool.release(names)
            group.batch.told += told
            group.batch.groups -= 1
            self._room.notify_all()
            self._tell()

    def _tell(self) -> None:
        """Wake the consumer where the next batch is made, or the others where there is none any more."""
        if self._all_begun:
            self._room.notify_all()
        if (self._line and self._line[0].made) or (self._all_begun and not self._line):
            self._made.notify_all()

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
        first = [tile for tile in tiles if self._fresh[tile]]
        for tile in first:
            self._fresh[tile] = False
        with self._turn:
            self._steps += 1
        self._timings.count("needed", self._bytes(first))
        self._timings.count("decoded", self._bytes(tiles))

    def _bytes(self, tiles: Sequence[int]) -> int:
        """Decoded, what of them lies in the level."""
        grid, pixels = self._grid, 0
        high, wide = grid.tile_height, grid.tile_width
        for tile in tiles:
            row, column = divmod(tile, grid.columns)
            pixels += min(high, grid.height - row * high) * min(wide, grid.width - column * wide)
        return pixels * self._pixel_bytes

    def _next_made(self) -> _Making | None:
        """The oldest batch once it is made; None after the last, or after an error."""
        with self._timings.stage("read"), self._turn:
            seen, since = self._steps, time.monotonic()
            while not self._stopped and not self._stop_asked.is_set():
                if self._line and self._line[0].made:
                    return self._line.popleft()
                if self._all_begun and not self._line:
                    return None
                self._made.wait(min(self._settings.patience, _LOOK_AGAIN))
                if self._steps != seen:
                    seen, since = self._steps, time.monotonic()
                elif self._pool.decoding and time.monotonic() - since >= self._settings.patience:
                    self.stalled = True
                    raise StalledError(self._stall())
        return None

    def _stall(self) -> str:
        tile = min(self._pool.decoding)
        return (
            f"{self._image.source} has not given a tile for {self._settings.patience:g} s (tile {divmod(tile, self._grid.columns)} "
            f"of level {self._frame.level.index} is awaited); look after its disk or network. The same command goes on from the last block "
            "committed; --patience says how long to wait"
        )

    def _finish(self, making: _Making) -> Batch:
        kept = np.ones(len(making.rows), np.bool_)
        told = sorted(making.told, key=lambda one: one.row)
        dropped = tuple(one for one in told if isinstance(one, Dropped))
        if dropped:
            kept = ~np.isin(making.rows, [drop.row for drop in dropped])
        places, valid = np.flatnonzero(kept), making.buffers.valid if making.says_valid else None
        if not self._settings.uncut:
            pixels = making.buffers.pixels
            fill = np.asarray(self._settings.fill).astype(pixels.dtype)
            pixels[: len(kept)][~kept] = fill
            pixels[len(kept) :] = fill
        return Batch(
            block=making.block,
            rows=making.rows[kept],
            places=places,
            held=self._uncut(making, places, valid) if self._settings.uncut else making.buffers.pixels,
            valid=valid,
            dropped=dropped,
            holed=tuple(one for one in told if isinstance(one, Holed)),
            last=making.last,
        )

    def _uncut(self, making: _Making, places: NDArray[np.int64], valid: NDArray[np.bool_] | None) -> Uncut:
        """The patches at `places`; their tiles are held until the batch is given back."""
        return uncut_of(
            self._pool,
            tiles=making.tiles[places],
            corners=making.sources[places, :2],
            places=places,
            batch_size=self._settings.batch_size,
            side=self._frame.side,
            valid=valid,
            fill=self._settings.fill,
        )
