"""What may be read of a haystack: wherever there is ink, with what the 4x thumbnail shows of it and the pixels themselves.

Thumbnails are made as a pyramid on disk is: halved again and again, each pixel the rounded mean of four. Candidates are the peaks of the
complexity of the 8x thumbnail (`megapixel_reads.find_peaks`); all of them: to tell which are worth a read is what is to be learned.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from megapixel_canvas import DATA, Canvases
from megapixel_reads import CUT, Peaks, Reads, cut, find_peaks
from needle_canvas import Haystack, make_haystacks
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

STEP = 4
"""Canvas pixels per pixel of the thumbnail that the saliency sees."""
CELL = 12
"""Side of what it sees around a candidate, thumbnail pixels: 48 of the canvas."""
WIDE = 16
"""Side of what is kept, so that it may be shifted."""


def halve(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Rounded means of 2x2 pixels; both sides even."""
    rows = pixels[0::2].astype(np.uint16) + pixels[1::2]
    return ((rows[:, 0::2] + rows[:, 1::2] + 2) >> 2).astype(np.uint8)


def candidates(quarter: NDArray[np.uint8], side: int) -> Peaks:
    """Peaks of the complexity of the 8x thumbnail, each centred by the ink around it on the 4x thumbnail."""
    small = halve(quarter)
    peaks = find_peaks(small.astype(np.float32) / 255, side)
    return Peaks(yx=centre(quarter, peaks.yx, side), score=peaks.score, cell=peaks.cell)


def centre(quarter: NDArray[np.uint8], yx: NDArray[np.int64], side: int) -> NDArray[np.int64]:
    """Centres [n, 2], pixels, moved to the centroid of the ink of 8x8 thumbnail pixels around them."""
    ink = around(quarter, yx, 8).astype(np.float64)
    offsets = (np.arange(8) - 3.5) * STEP
    total = np.maximum(ink.sum(axis=(1, 2)), 1e-9)
    moment = np.stack([(ink * offsets[:, None]).sum(axis=(1, 2)), (ink * offsets).sum(axis=(1, 2))], axis=1) / total[:, None]
    middle = np.round(yx / STEP) * STEP
    return np.round(middle + moment).astype(np.int64).clip(0, side)


def around(quarter: NDArray[np.uint8], yx: NDArray[np.int64], size: int) -> NDArray[np.uint8]:
    """[n, size, size] thumbnail pixels around centres [n, 2] of the canvas, to the nearest whole thumbnail pixel; zeros outside."""
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(quarter, size), (size, size))
    corner = np.round(yx / STEP).astype(np.int64) - size // 2 + size
    return windows[corner[:, 0], corner[:, 1]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Seen:
    """All candidates of some images."""

    canvases: Canvases
    """How they are drawn: for labels, and to judge."""
    reads: Reads
    """Most complex first; `look` and `thumbnails` are empty."""
    small: NDArray[np.uint8]
    """[N, K, 16, 16] the 4x thumbnail around them."""


def looked(canvases: Canvases) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8], Peaks]]:
    """Each image, its 4x thumbnail and its candidates."""
    for index in range(len(canvases)):
        canvas = canvases.draw(index)
        quarter = halve(halve(canvas))
        yield canvas, quarter, candidates(quarter, canvases.side)


def gather(haystack: Haystack, work: Path, *, data: Path = DATA) -> Seen:
    """The candidates of a haystack, kept in memory-mapped files under `work`; made once."""
    canvases = make_haystacks(haystack, data=data)
    slots = (haystack.distractors + 5) * 21 // 20 + 5
    folder = work / f"haystack-{hashlib.sha256(repr((_VERSION, asdict(haystack), slots)).encode()).hexdigest()[:12]}"
    if not (folder / "done").exists():
        folder.mkdir(parents=True, exist_ok=True)
        _make(canvases, folder, slots)
        (folder / "done").touch()
    cuts, yx, score, small, count = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS)
    nothing = np.zeros((len(canvases), 0, 0), np.uint8)
    reads = Reads(cuts=cuts, yx=yx, score=score, look=nothing.astype(np.float32), count=count, thumbnails=nothing, side=canvases.side)
    return Seen(canvases=canvases, reads=reads, small=small)


_ARRAYS = ("cuts", "yx", "score", "small", "count")
_VERSION = 1
"""To be raised when what is kept changes."""


def _make(canvases: Canvases, folder: Path, slots: int) -> None:
    images = len(canvases)
    shapes = {
        "cuts": ((images, slots, CUT, CUT), np.uint8),
        "yx": ((images, slots, 2), np.int64),
        "score": ((images, slots), np.float32),
        "small": ((images, slots, WIDE, WIDE), np.uint8),
        "count": ((images,), np.int64),
    }
    into = {name: open_memmap(folder / f"{name}.npy", "w+", dtype, shape) for name, (shape, dtype) in shapes.items()}
    for index, (canvas, quarter, peaks) in enumerate(looked(canvases)):
        found = min(slots, len(peaks.yx))
        yx = peaks.yx[:found]
        into["count"][index] = found
        into["yx"][index, :found] = yx
        into["score"][index, :found] = peaks.score[:found]
        into["small"][index, :found] = around(quarter, yx, WIDE)
        into["cuts"][index, :found] = cut(canvas, yx, CUT)
        if index % 500 == 0:
            print(f"  candidates of {images} images: {index}", file=sys.stderr, flush=True)
    for array in into.values():
        array.flush()
