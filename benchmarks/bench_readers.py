"""Ours and the others: each reads the same patches in the same order, the plan's, from a file it has opened before.

A reader hands every patch to a sink, as (height, width, channel) or however it makes them: nobody is charged for another layout.
What only we do, a batch in one array, we are charged for.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bench_peers as peers
import numpy as np
from bench_files import bench_file
from bench_work import Corners, StoredLevel, stored_level
from numpy.typing import NDArray

from patchdrive.pipeline.feed import FeedSettings, feed
from patchdrive.pipeline.plan import Plan, feature_blocks, ordered, target_grid
from patchdrive.pipeline.reads import read_frame
from patchdrive.pipeline.timings import Timings
from patchdrive.readers import Image, Window, open_image
from patchdrive.readers.tiles import tile_decoder

Read = Callable[[Corners, int, peers.Sink], None]
POOL_BYTES = 64 * 2**20
_UNIT = 32  # tiles decoded by one call
_BATCH_PIXELS = 2**21


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """One row of the table."""

    name: str
    package: str
    """What must be installed."""
    opened: Callable[[Path], Any]
    """A context manager that gives a `Read`."""
    slides: bool = True
    scenes: bool = True
    but_not: tuple[str, ...] = ()
    """Files it cannot read."""

    @property
    def installed(self) -> bool:
        """False where its package is missing."""
        return importlib.util.find_spec(self.package) is not None

    def reads(self, file: str) -> bool:
        """Whether it takes part on this file."""
        return file not in self.but_not and (self.scenes if file.startswith("scene") else self.slides)


def plan_of(image: Image, corners: Corners, side: int) -> Plan:
    """The patches as a plan at level 0."""
    grid = target_grid(image.levels[0], 1.0, 1.0)
    return ordered(corners[:, 0], corners[:, 1], np.ones(len(corners), np.float32), side, grid)


def in_plan_order(corners: Corners, side: int, file: str) -> Corners:
    """The same patches as every reader is given them."""
    image = open_image(bench_file(file))
    plan = plan_of(image, corners, side)
    image.close()
    return np.stack([plan.y, plan.x], axis=1)


def feed_settings(image: Image, plan: Plan, *, workers: int, pool_bytes: int = POOL_BYTES) -> FeedSettings:
    """As a run would choose them: batches of at most 32 patches and 2 Mpx."""
    return FeedSettings(
        frame=read_frame(image.levels, plan.grid, plan.side, "area"),
        channels=tuple(range(len(image.channels))),
        fill=255.0,
        batch_size=max(1, min(32, _BATCH_PIXELS // plan.side**2)),
        pool_bytes=pool_bytes,
        workers=workers,
    )


def by_feed(image: Image, corners: Corners, side: int, *, workers: int = 2, sink: peers.Sink = peers.drop) -> Timings:
    """Every patch, in batches; what a batch holds is looked at before the next is asked for."""
    plan, timings = plan_of(image, corners, side), Timings()
    for batch in feed(image, plan, feature_blocks(plan), feed_settings(image, plan, workers=workers), timings):
        for place, row in enumerate(batch.rows.tolist()):
            sink(row, batch.pixels[place])
    return timings


@contextmanager
def _feed(path: Path) -> Iterator[Read]:
    image = open_image(path)

    def read(corners: Corners, side: int, sink: peers.Sink) -> None:
        by_feed(image, corners, side, sink=sink)

    yield read
    image.close()


def decode_tiles(image: Image, tiles: list[tuple[int, int]], slabs: list[NDArray[Any]], pool: ThreadPoolExecutor) -> None:
    """Every tile once, into slabs that are used again: what a device would be given to cut patches from."""
    decoder = tile_decoder(image, 0)
    channels = tuple(range(len(image.channels)))
    free = list(slabs)

    def unit(start: int) -> None:
        part, slab = tiles[start : start + _UNIT], free.pop()
        torn = decoder.decode(part, level=0, channels=channels, out=list(slab[: len(part)]), valid=None)
        free.append(slab)
        if torn:
            raise ValueError(torn[0].reason)

    list(pool.map(unit, range(0, len(tiles), _UNIT)))


@contextmanager
def _tiles(path: Path) -> Iterator[Read]:
    image, level = open_image(path), stored_level(path.name)
    slabs = [np.empty((_UNIT, level.tile, level.tile, level.channels), level.dtype) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:

        def read(corners: Corners, side: int, sink: peers.Sink) -> None:
            if sink is peers.drop:
                decode_tiles(image, level.needed(corners, side), slabs, pool)
                return
            for index, (y, x) in enumerate(corners.tolist()):
                sink(index, _cut_from_tiles(image, level, Window(y=y, x=x, height=side, width=side)))

        yield read
    image.close()


def _cut_from_tiles(image: Image, level: StoredLevel, patch: Window) -> NDArray[Any]:
    """One patch by the same call, to look at."""
    tiles = level.needed(np.array([[patch.y, patch.x]]), patch.height)
    slab = np.empty((len(tiles), level.tile, level.tile, level.channels), level.dtype)
    tile_decoder(image, 0).decode(tiles, level=0, channels=tuple(range(level.channels)), out=list(slab), valid=None)
    out = np.empty((patch.height, patch.width, level.channels), level.dtype)
    for (row, column), pixels in zip(tiles, slab, strict=True):
        held = Window(y=row * level.tile, x=column * level.tile, height=level.tile, width=level.tile)
        shared = held.intersect(patch)
        assert shared is not None, "it is one of the tiles the patch touches"
        out[shared.within(patch)] = pixels[shared.within(held)]
    return out


READERS = (
    Reader(name="patchdrive feed, patches", package="patchdrive", opened=_feed),
    Reader(name="patchdrive tiles", package="patchdrive", opened=_tiles),
    Reader(name="openslide 1T", package="openslide", opened=lambda path: peers.by_openslide(path, 1), scenes=False),
    Reader(name="openslide 2T", package="openslide", opened=lambda path: peers.by_openslide(path, 2), scenes=False),
    Reader(name="DataLoader(2)+openslide", package="torch", opened=peers.by_dataloader, scenes=False),
    Reader(name="cucim 2T", package="cucim", opened=lambda path: peers.by_cucim(path, 2), scenes=False),
    # The libtiff of pyvips-binary 8.18 knows no zstd and gives zeros.
    Reader(name="pyvips region 2T", package="pyvips", opened=lambda path: peers.by_pyvips(path, 2), but_not=("scene-zstd.tif",)),
    Reader(name="tiffslide 1T", package="tiffslide", opened=peers.by_tiffslide, scenes=False),
    Reader(name="tifffile-zarr 1T", package="zarr", opened=peers.by_tifffile_zarr),
    Reader(name="rasterio 2T, dataset a thread", package="rasterio", opened=lambda path: peers.by_rasterio(path, 2)),
    Reader(name="async-tiff pool 2", package="async_tiff", opened=peers.by_async_tiff),
)
