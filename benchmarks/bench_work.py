"""What is read: which patches of which file, the tiles they need, and the limit: those tiles decoded once and nothing else.

A workload draws other patches every round, so that no reader profits from what it kept of the round before.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import simplejpeg
import tifffile
from bench_files import CELL, HEIGHT, SCENE_SIDE, WIDTH, bench_file, tissue_map
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Corners = NDArray[np.int64]
"""(n, 2) first row and column of each patch, level-0 pixels."""
_CHUNK = 16  # tiles a thread takes at a time
_ADOBE_RGB = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"
_YCBCR = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One column of the table."""

    name: str
    file: str
    side: int
    draw: Callable[[np.random.Generator, int, int], Corners]
    """(randomness, round, how many patches or how wide a region) to patches."""
    size: int
    """How many patches, or how wide a region, px."""
    quick: int
    """The same for --quick."""

    def corners(self, number: int, *, quick: bool = False) -> Corners:
        """The patches of one round."""
        rng = np.random.default_rng([number, *self.name.encode()])
        return self.draw(rng, number, self.quick if quick else self.size)


@cache
def _tissue_before() -> NDArray[np.int64]:
    """(rows + 1, columns + 1): cells of tissue above and to the left."""
    return np.pad(tissue_map().cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))


def _tissue_share(y: NDArray[np.int64], x: NDArray[np.int64], side: int) -> NDArray[np.float64]:
    before = _tissue_before()
    y0, x0, y1, x1 = y // CELL, x // CELL, -(-(y + side) // CELL), -(-(x + side) // CELL)
    inside = before[y1, x1] - before[y0, x1] - before[y1, x0] + before[y0, x0]
    return np.asarray(inside / ((y1 - y0) * (x1 - x0)))


def _region(side: int, number: int) -> tuple[int, int]:
    """The corner of a square of tissue; no two of one side share a pixel until they come round."""
    y, x = np.meshgrid(np.arange(0, HEIGHT - side, side), np.arange(0, WIDTH - side, side), indexing="ij")
    share = _tissue_share(y.ravel(), x.ravel(), side)
    best = np.argsort(-share, kind="stable")[: max(2, np.count_nonzero(share > 0.9))]
    at = best[number % len(best)]
    return int(y.ravel()[at]), int(x.ravel()[at])


def _different(rng: np.random.Generator, rows: int, columns: int, count: int) -> Corners:
    """About `count` (row, column), no two the same, in random order."""
    flat = rng.permutation(np.unique(rng.integers(0, rows * columns, count)))
    return np.stack([flat // columns, flat % columns], axis=1)


def at_random(side: int, step: int) -> Callable[[np.random.Generator, int, int], Corners]:
    """Different patches of tissue, corners on multiples of `step`."""

    def draw(rng: np.random.Generator, _: int, count: int) -> Corners:
        y, x = _different(rng, (HEIGHT - side) // step, (WIDTH - side) // step, 8 * count).T * step
        return np.stack([y, x], axis=1)[_tissue_share(y, x, side) == 1.0][:count]

    return draw


def sweep(side: int, stride: int, offset: int) -> Callable[[np.random.Generator, int, int], Corners]:
    """Every patch of a square region."""

    def draw(_: np.random.Generator, number: int, wide: int) -> Corners:
        top, left = _region(wide, number)
        steps = np.arange(offset, wide - side + 1, stride)
        y, x = np.meshgrid(top // 512 * 512 + steps, left // 512 * 512 + steps, indexing="ij")
        return np.stack([y.ravel(), x.ravel()], axis=1)

    return draw


def salient(side: int) -> Callable[[np.random.Generator, int, int], Corners]:
    """The tenth of a region's patches that lies in the brightest spots of a smooth field."""

    def draw(rng: np.random.Generator, number: int, wide: int) -> Corners:
        every = sweep(side, side, 77)(rng, number, wide)
        across = int(len(every) ** 0.5)
        field = gaussian_filter(rng.standard_normal((across, across)), 3)
        return every[np.flatnonzero(field.ravel() >= np.quantile(field, 0.9))]

    return draw


def scene_at_random(side: int, step: int) -> Callable[[np.random.Generator, int, int], Corners]:
    """As `at_random`, anywhere in a scene."""

    def draw(rng: np.random.Generator, _: int, count: int) -> Corners:
        across = (SCENE_SIDE - side) // step
        return _different(rng, across, across, count) * step

    return draw


def scene_sweep(side: int, stride: int) -> Callable[[np.random.Generator, int, int], Corners]:
    """Every patch of a square region of a scene."""

    def draw(_: np.random.Generator, number: int, wide: int) -> Corners:
        across = SCENE_SIDE // wide
        steps = np.arange(0, wide - side + 1, stride)
        y, x = np.meshgrid(number // across % across * wide + steps, number % across * wide + steps, indexing="ij")
        return np.stack([y.ravel(), x.ravel()], axis=1)

    return draw


_SVS, _RGB, _GENERIC = "slide-256-422.svs", "slide-240-rgb.svs", "slide-512-420.tif"
_DEFLATE, _ZSTD = "scene-deflate.tif", "scene-zstd.tif"
WORKLOADS = (
    Workload(name="rand256 al", file=_SVS, side=256, draw=at_random(256, 256), size=1024, quick=256),
    Workload(name="rand256 un", file=_SVS, side=256, draw=at_random(256, 1), size=320, quick=96),
    Workload(name="rand512 un", file=_SVS, side=512, draw=at_random(512, 1), size=160, quick=48),
    Workload(name="rand1024 un", file=_SVS, side=1024, draw=at_random(1024, 1), size=64, quick=16),
    Workload(name="sweep256 al", file=_SVS, side=256, draw=sweep(256, 256, 0), size=8192, quick=4096),
    Workload(name="sweep256 st128", file=_SVS, side=256, draw=sweep(256, 128, 0), size=6144, quick=3072),
    Workload(name="sweep512 st256", file=_SVS, side=512, draw=sweep(512, 256, 0), size=6144, quick=3072),
    Workload(name="saliency256 un", file=_SVS, side=256, draw=salient(256), size=20480, quick=8192),
    Workload(name="GEN rand512 un", file=_GENERIC, side=512, draw=at_random(512, 1), size=96, quick=32),
    Workload(name="GEN sweep512 st256", file=_GENERIC, side=512, draw=sweep(512, 256, 0), size=6144, quick=3072),
    Workload(name="240RGB rand512 un", file=_RGB, side=512, draw=at_random(512, 1), size=96, quick=32),
    Workload(name="defl rand512 un", file=_DEFLATE, side=512, draw=scene_at_random(512, 1), size=24, quick=8),
    Workload(name="defl rand256 un", file=_DEFLATE, side=256, draw=scene_at_random(256, 1), size=40, quick=16),
    Workload(name="defl sweep512 st256", file=_DEFLATE, side=512, draw=scene_sweep(512, 256), size=5120, quick=2560),
    Workload(name="zstd rand512 al", file=_ZSTD, side=512, draw=scene_at_random(512, 512), size=120, quick=32),
    Workload(name="zstd rand512 un", file=_ZSTD, side=512, draw=scene_at_random(512, 1), size=32, quick=8),
    Workload(name="zstd rand256 un", file=_ZSTD, side=256, draw=scene_at_random(256, 1), size=64, quick=16),
    Workload(name="zstd sweep512 st256", file=_ZSTD, side=512, draw=scene_sweep(512, 256), size=5120, quick=2560),
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredLevel:
    """Level 0 of a file, as tifffile's index has it: an account of the file that is not ours."""

    data: NDArray[np.uint8]
    """The whole file, mapped."""
    offsets: tuple[int, ...]
    counts: tuple[int, ...]
    columns: int
    tile: int
    channels: int
    dtype: np.dtype[Any]
    compression: str
    tables: bytes
    """What stands in for a JPEG tile's first two bytes; empty where nothing is missing."""

    def needed(self, corners: Corners, side: int) -> list[tuple[int, int]]:
        """(row, column) of every tile that a patch touches, once, row-major."""
        first, last = corners // self.tile, (corners + side - 1) // self.tile
        return sorted(
            {
                (row, column)
                for (top, left), (bottom, right) in zip(first.tolist(), last.tolist(), strict=True)
                for row in range(top, bottom + 1)
                for column in range(left, right + 1)
            }
        )

    def streams(self, tiles: Sequence[tuple[int, int]]) -> list[bytes]:
        """The stored bytes of tiles, each complete in itself, in memory."""
        found = []
        for row, column in tiles:
            index = row * self.columns + column
            stream = self.data[self.offsets[index] : self.offsets[index] + self.counts[index]].tobytes()
            found.append(self.tables + stream[2:] if self.tables else stream)
        return found


@cache
def stored_level(file: str) -> StoredLevel:
    """Level 0 of one of the files."""
    path = bench_file(file)
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        assert isinstance(page, tifffile.TiffPage)
        assert page.tilewidth == page.tilelength
        tables = page.jpegtables or b""
        if tables:
            tables = tables[:2] + (_ADOBE_RGB if page.photometric != _YCBCR else b"") + tables[2:-2]
        return StoredLevel(
            data=np.memmap(path, np.uint8, "r"),
            offsets=page.dataoffsets,
            counts=page.databytecounts,
            columns=-(-page.imagewidth // page.tilewidth),
            tile=page.tilewidth,
            channels=page.samplesperpixel,
            dtype=np.dtype(page.dtype),
            compression=page.compression.name,
            tables=tables,
        )


class Limit:
    """Pure decoding on some threads: streams from memory, each into the one buffer its thread has."""

    def __init__(self, level: StoredLevel, threads: int) -> None:
        self._level, self._pool, self._buffers = level, ThreadPoolExecutor(threads), threading.local()

    def decode(self, streams: Sequence[bytes]) -> None:
        """Decode each stream once."""
        list(self._pool.map(self._chunk, _chunks(streams)))

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def _chunk(self, streams: Sequence[bytes]) -> None:
        level = self._level
        if not hasattr(self._buffers, "held"):
            self._buffers.held = np.empty((level.tile, level.tile, level.channels), level.dtype)
        buffer = self._buffers.held
        if level.compression == "JPEG":
            for stream in streams:
                simplejpeg.decode_jpeg(stream, "RGB", buffer=buffer)
            return
        decode = imagecodecs.zstd_decode if level.compression == "ZSTD" else imagecodecs.deflate_decode
        flat = buffer.reshape(-1).view(np.uint8)
        for stream in streams:
            decode(stream, out=flat)
            imagecodecs.delta_decode(buffer, axis=1, out=buffer)


def _chunks(streams: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(streams), _CHUNK):
        yield streams[start : start + _CHUNK]


def path_of(workload: Workload) -> Path:
    """The file a workload reads."""
    return bench_file(workload.file)
