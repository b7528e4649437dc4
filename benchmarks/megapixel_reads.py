"""What may be read of a megapixel canvas: the peaks of its thumbnail's complexity, each with its place, its cells and its pixels.

The thumbnail is 8 times smaller (area means). Its complexity is the negated Laplacian of Gaussian, sigma 1.6: system F's map as system
A's saliency prior. A read is centred on the ink around a peak, so that an object lies whole in it, which no fixed grid can promise.
The pixels around every peak are kept in a memory-mapped file: 885 MB for 6000 images, where the images would be 13 GB.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from megapixel_canvas import Canvases, Scene, make_canvases
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from scipy.ndimage import gaussian_laplace, maximum_filter

FACTOR = 8
"""Canvas pixels per thumbnail pixel."""
SIGMA = 1.6
"""Of the Laplacian of Gaussian, thumbnail pixels: a digit is 3."""
LEAST = 0.01
"""Complexity of the least peak, of grey values in [0, 1]; noise-free black has none."""
CUT = 48
"""Side of what is kept around a peak, pixels: a read of 32 shifted, turned and scaled still lies inside."""
LOOK = 9
"""Side of the square of thumbnail pixels kept around a peak, for a saliency to be learned from."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Peaks:
    """Where to look in one image, most complex first."""

    yx: NDArray[np.int64]
    """[n, 2] centres of reads, pixels: between the pixels yx - 1 and yx."""
    score: NDArray[np.float32]
    """[n] complexity."""
    cell: NDArray[np.int64]
    """[n, 2] (y, x) of the peak, thumbnail pixels."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reads:
    """The peaks of many images, K slots each, the best first; slots beyond `count` are zeros."""

    cuts: NDArray[np.uint8]
    """[N, K, 48, 48] pixels around the centres; zeros outside the canvas."""
    yx: NDArray[np.int64]
    """[N, K, 2] centres, pixels."""
    score: NDArray[np.float32]
    """[N, K] complexity, or what they were ordered by."""
    look: NDArray[np.float32]
    """[N, K, 9, 9] thumbnail around the peaks, in [0, 1]."""
    count: NDArray[np.int64]
    """[N] filled slots."""
    thumbnails: NDArray[np.uint8]
    """[N, h, w] rounded; for models that look at nothing else."""
    side: int
    """Of the canvas, pixels."""

    def __len__(self) -> int:
        return len(self.count)

    @property
    def valid(self) -> NDArray[np.bool_]:
        """[N, K] filled slots."""
        return np.arange(self.yx.shape[1])[None] < self.count[:, None]


def thumbnail(canvas: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Area means in [0, 1]; those at the border are of what there is of their pixels."""
    starts = [np.arange(0, side, FACTOR) for side in canvas.shape]
    total = np.add.reduceat(np.add.reduceat(canvas, starts[1], axis=1, dtype=np.float32), starts[0], axis=0)
    rows, columns = (np.minimum(FACTOR, side - start) for side, start in zip(canvas.shape, starts, strict=True))
    return total / (255 * np.outer(rows, columns)).astype(np.float32)


def find_peaks(small: NDArray[np.float32], side: int) -> Peaks:
    """The 5x5 maxima of a thumbnail's complexity, and the centres of the ink in their 5x5 pixels."""
    complexity = -gaussian_laplace(small, SIGMA, mode="constant")
    cell = np.argwhere((complexity >= maximum_filter(complexity, 5)) & (complexity > LEAST))
    score = complexity[cell[:, 0], cell[:, 1]]
    order = np.argsort(-score, kind="stable")
    cell, score = cell[order], score[order]
    ink = _around(small, cell, 5)
    offsets = np.arange(5) - 2
    total = ink.sum(axis=(1, 2))
    moment = np.stack([(ink * offsets[:, None]).sum(axis=(1, 2)), (ink * offsets).sum(axis=(1, 2))], axis=1)
    centre = (cell + 0.5 + moment / total[:, None]) * FACTOR
    return Peaks(yx=np.round(centre).astype(np.int64).clip(0, side), score=score.astype(np.float32), cell=cell)


def cut(canvas: NDArray[np.uint8], yx: NDArray[np.int64], size: int) -> NDArray[np.uint8]:
    """[n, size, size] pixels around centres [n, 2]; zeros outside the canvas."""
    padded = np.pad(canvas, size)
    corner = yx - size // 2 + size
    return np.stack([padded[y : y + size, x : x + size] for y, x in corner]) if len(yx) else np.zeros((0, size, size), np.uint8)


def recall(canvases: Canvases, centres: Sequence[NDArray[np.int64]], size: int) -> float:
    """Share of the digits of the first len(centres) images whose ink lies whole in one of the reads of that size around `centres`."""
    boxes = canvases.ink_boxes()[: len(centres)]
    seen = []
    for image, yx in zip(boxes, centres, strict=True):
        corner = yx[None] - size // 2
        seen.append(((corner <= image[:, None, :2]) & (image[:, None, 2:] <= corner + size)).all(axis=2).any(axis=1))
    return float(np.mean(seen))


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """Where images come from and where what is read of them is kept."""

    data: Path
    """Folder that holds `labelled/mnist`."""
    work: Path
    """Folder for the mapped files; each is made once."""
    slots: int = 64
    """Reads kept of an image."""

    def gather(self, scene: Scene, *, train: bool, order: Order | None = None) -> tuple[Canvases, Reads]:
        """The reads of one half of a scene: the most complex peaks, or the first in `order` of all peaks."""
        canvases = make_canvases(scene, train=train, data=self.data)
        what = (_VERSION, asdict(scene), train, self.slots, order.name if order else "")
        folder = self.work / f"{'train' if train else 'test'}-{hashlib.sha256(repr(what).encode()).hexdigest()[:12]}"
        if not (folder / "done").exists():
            folder.mkdir(parents=True, exist_ok=True)
            _make(canvases, folder, self.slots, order)
            (folder / "done").touch()
        arrays: dict[str, Any] = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}
        return canvases, Reads(side=canvases.side, **arrays)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Another order of an image's peaks than their complexity."""

    name: str
    """Of the files."""
    rank: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    """The thumbnail around peaks [n, 9, 9] to scores [n], the best first."""


_ARRAYS = ("cuts", "yx", "score", "look", "count", "thumbnails")
_VERSION = 1
"""To be raised when what is kept changes."""


def _make(canvases: Canvases, folder: Path, slots: int, order: Order | None) -> None:
    count, small = len(canvases), -(-canvases.side // FACTOR)
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "cuts": ((count, slots, CUT, CUT), np.uint8),
        "yx": ((count, slots, 2), np.int64),
        "score": ((count, slots), np.float32),
        "look": ((count, slots, LOOK, LOOK), np.float32),
        "count": ((count,), np.int64),
        "thumbnails": ((count, small, small), np.uint8),
    }
    into = {name: open_memmap(folder / f"{name}.npy", "w+", dtype, shape) for name, (shape, dtype) in shapes.items()}
    for index in range(count):
        canvas = canvases.draw(index)
        seen = thumbnail(canvas)
        peaks = find_peaks(seen, canvases.side)
        look = _around(seen, peaks.cell, LOOK)
        score = peaks.score if order is None else order.rank(look)
        first = np.argsort(-score, kind="stable")[:slots]
        found = len(first)
        into["count"][index] = found
        into["cuts"][index, :found] = cut(canvas, peaks.yx[first], CUT)
        into["yx"][index, :found] = peaks.yx[first]
        into["score"][index, :found] = score[first]
        into["look"][index, :found] = look[first]
        into["thumbnails"][index] = np.round(255 * seen).astype(np.uint8)
        if index % 1000 == 0:
            print(f"  reads of {count} images: {index}", file=sys.stderr, flush=True)
    for array in into.values():
        array.flush()


def _around(small: NDArray[np.float32], cell: NDArray[np.int64], size: int) -> NDArray[np.float32]:
    """[n, size, size] thumbnail pixels around `cell` [n, 2]; zeros outside."""
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(small, size // 2), (size, size))
    return windows[cell[:, 0], cell[:, 1]]
