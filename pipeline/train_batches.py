"""Pieces of images as batches: read, changed, labels with them, and made ahead of the training by threads."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from patchdrive.models.segmenter import IGNORED
from patchdrive.models.step import Wanted
from patchdrive.models.types import ModelSpec
from patchdrive.pipeline.train import TrainingBatch
from patchdrive.pipeline.train_examples import Example
from patchdrive.pipeline.train_pieces import Change, Piece, inside, turned, turned_places
from patchdrive.pipeline.train_read import Shelf, read_window
from patchdrive.pipeline.train_tasks import ANSWER, Brightness


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Loader:
    """Makes batches of pieces."""

    examples: Sequence[Example]
    """The images."""
    spec: ModelSpec
    """Of the pixels that the model eats."""
    value_range: float
    """Largest stored value of integer images; infinite for floats."""
    shelf: Shelf
    """Where images are open."""

    def load(self, pieces: Sequence[Piece]) -> TrainingBatch:
        """A batch of those pieces; those smaller than the largest are filled up at the right and the bottom.

        Raises:
            ReadError: one cannot be decoded.
        """
        made = [self._load_one(piece) for piece in pieces]
        height, width = (max(one.pixels.shape[axis] for one in made) for axis in (0, 1))
        pixels = np.full((len(made), height, width, self.spec.channels), self.spec.fill, np.float32)
        mask = np.full((len(made), height, width), -1, np.int64)
        for place, one in enumerate(made):
            part = (place, slice(one.pixels.shape[0]), slice(one.pixels.shape[1]))
            pixels[part] = one.pixels
            if one.mask is not None:
                mask[part] = one.mask
        labels = [label for piece in pieces if (label := self.examples[piece.example].label) is not None]
        wanted = Wanted(
            targets=_tensors([one.targets for one in made]),
            sizes=_tensors([one.sizes for one in made]),
            answers={ANSWER: torch.tensor(labels)} if labels else {},
            mask=torch.from_numpy(mask) if any(one.mask is not None for one in made) else None,
        )
        return TrainingBatch(pixels=torch.from_numpy(pixels).permute(0, 3, 1, 2), wanted=wanted)

    def _load_one(self, piece: Piece) -> _Made:
        example, window, turn = self.examples[piece.example], piece.window, piece.change.turn
        with self.shelf.borrow(example.path) as image:
            stored, valid = read_window(image, example.frame, window, example.channels, self.spec.fill)
        pixels = self._recolored(stored.astype(np.float32), valid, piece.change)
        targets = sizes = mask = None
        if example.targets is not None:
            there = inside(example.targets, window)
            targets = turned_places(example.targets[there] - (window.y, window.x), window.height, window.width, turn)
            sizes = None if example.sizes is None else example.sizes[there][:, :: -1 if turn % 2 else 1]
        if example.pixels is not None:
            named = example.pixels.read(example.grid, window).astype(np.int64)
            mask = turned(np.where(valid & (named != IGNORED), named, -1), turn)
        return _Made(pixels=turned(pixels, turn), targets=targets, sizes=sizes, mask=mask)

    def _recolored(self, pixels: NDArray[np.float32], valid: NDArray[np.bool_], change: Change) -> NDArray[np.float32]:
        """Shifted in units of the model's input; invalid pixels stay the fill."""
        if not change.shift and change.contrast == 1.0:
            return pixels
        count = self.spec.channels
        mean = np.array(self.spec.mean or (0.0,) * count, np.float32) / np.float32(self.spec.scale)
        std = np.array(self.spec.std or (1.0,) * count, np.float32) / np.float32(self.spec.scale)
        moved = (pixels - mean) * np.float32(change.contrast) + mean + np.array(change.shift or (0.0,) * count, np.float32) * std
        if math.isfinite(self.value_range):
            moved = np.clip(moved, 0, self.value_range)
        return np.where(valid[..., None], moved, pixels).astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Made:
    """One piece."""

    pixels: NDArray[Any]
    targets: NDArray[np.float64] | None
    sizes: NDArray[np.float64] | None
    mask: NDArray[Any] | None


def _tensors(arrays: Sequence[NDArray[np.float64] | None]) -> list[torch.Tensor] | None:
    """float32, each of them; None where they are."""
    known = [torch.from_numpy(np.ascontiguousarray(array, np.float32)) for array in arrays if array is not None]
    return known or None


def measure(examples: Sequence[Example], pieces: Sequence[Piece], shelf: Shelf) -> Brightness:
    """Mean and standard deviation of the valid pixels of some pieces, per channel, in stored values."""
    count = len(examples[0].channels)
    total, squares, known = np.zeros(count), np.zeros(count), 0
    for piece in pieces:
        example = examples[piece.example]
        with shelf.borrow(example.path) as image:
            stored, valid = read_window(image, example.frame, piece.window, example.channels, 0.0)
        values = stored[valid].astype(np.float64)
        total, squares, known = total + values.sum(axis=0), squares + np.square(values).sum(axis=0), known + len(values)
    mean = total / max(known, 1)
    std = np.sqrt(np.maximum(squares / max(known, 1) - mean**2, 0.0))
    std[std == 0] = 1.0  # a channel that says nothing
    return Brightness(mean=tuple(mean.tolist()), std=tuple(std.tolist()))


def ahead(make: Callable[[int], TrainingBatch], steps: range, *, workers: int) -> Generator[TrainingBatch, None, None]:
    """`make` of every step, in their order, made by threads before they are asked for. Close it to end those.

    Raises:
        Whatever `make` raises, when its step is reached.
    """
    waiting: deque[Future[TrainingBatch]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="patchdrive-train")
    try:
        for step in steps:
            waiting.append(pool.submit(make, step))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
