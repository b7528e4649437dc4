"""Pieces of images as batches: read, changed, labels with them, and made ahead of the training by threads."""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from patchdrive.models.segmenter import IGNORED
from patchdrive.models.step import Wanted
from patchdrive.models.types import ModelSpec
from patchdrive.pipeline.train import TrainingBatch
from patchdrive.pipeline.train_examples import ANSWER, Example
from patchdrive.pipeline.train_pieces import Change, Piece, inside, turned, turned_places
from patchdrive.pipeline.train_read import Shelf, read_window
from patchdrive.readers import Window

B = TypeVar("B")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Palette:
    """The pixels that a model eats."""

    spec: ModelSpec
    """Its channels, their scale, mean and standard deviation, the fill."""
    value_range: float
    """Largest stored value of integer images; infinite for floats."""

    def recolored(self, pixels: NDArray[np.float32], valid: NDArray[np.bool_], change: Change) -> NDArray[np.float32]:
        """Shifted in units of the model's input, (height, width, channel); invalid pixels stay the fill."""
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
class Loader:
    """Makes batches of pieces."""

    examples: Sequence[Example]
    """The images."""
    palette: Palette
    """Of the pixels that the model eats."""
    shelf: Shelf
    """Where images are open."""

    def load(self, pieces: Sequence[Piece]) -> TrainingBatch:
        """A batch of those pieces; those smaller than the largest are filled up at the right and the bottom.

        Raises:
            ReadError: one cannot be decoded.
        """
        spec, made = self.palette.spec, [self._load_one(piece) for piece in pieces]
        height, width = (max(pixels.shape[axis] for pixels, _ in made) for axis in (0, 1))
        pixels = np.full((len(made), height, width, spec.channels), spec.fill, np.float32)
        mask = np.full((len(made), height, width), -1, np.int64)
        for place, (held, named) in enumerate(made):
            part = (place, slice(held.shape[0]), slice(held.shape[1]))
            pixels[part] = held
            if named is not None:
                mask[part] = named
        wanted = together([wanted_of(self.examples[piece.example], piece.change, piece.window) for piece in pieces])
        if any(named is not None for _, named in made):
            wanted = dataclasses.replace(wanted, mask=torch.from_numpy(mask))
        return TrainingBatch(pixels=torch.from_numpy(pixels).permute(0, 3, 1, 2), wanted=wanted)

    def _load_one(self, piece: Piece) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Pixels (height, width, channel), and the class of each or -1, where they have classes."""
        example, window, turn = self.examples[piece.example], piece.window, piece.change.turn
        with self.shelf.borrow(example.path) as image:
            stored, valid = read_window(image, example.frame, window, example.channels, self.palette.spec.fill)
        if example.within is not None:
            valid &= example.within.read(example.grid, window) != IGNORED
            stored[~valid] = self.palette.spec.fill
        pixels = turned(self.palette.recolored(stored.astype(np.float32), valid, piece.change), turn)
        if example.pixels is None:
            return pixels, None
        named = example.pixels.read(example.grid, window).astype(np.int64)
        return pixels, turned(np.where(valid & (named != IGNORED), named, -1), turn)


def wanted_of(example: Example, change: Change, window: Window) -> Wanted:
    """What is known of a window of an image, changed: a batch of one, without the classes of its pixels."""
    targets = sizes = None
    if example.targets is not None:
        there = inside(example.targets, window)
        places = turned_places(example.targets[there] - (window.y, window.x), window.height, window.width, change.turn)
        targets = [torch.from_numpy(places).to(torch.float32)]
        if example.sizes is not None:
            sizes = [torch.from_numpy(example.sizes[there][:, :: -1 if change.turn % 2 else 1].astype(np.float32))]
    answers = {} if example.label is None else {ANSWER: torch.tensor([example.label])}
    return Wanted(targets=targets, sizes=sizes, answers=answers)


def together(each: Sequence[Wanted]) -> Wanted:
    """One batch of several, of which the same is known."""
    first = each[0]
    return Wanted(
        targets=None if first.targets is None else [yx for one in each for yx in one.targets or ()],
        sizes=None if first.sizes is None else [extent for one in each for extent in one.sizes or ()],
        answers={name: torch.cat([one.answers[name] for one in each]) for name in first.answers},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Brightness:
    """What pixels are like, in stored values."""

    mean: tuple[float, ...]
    """Per channel."""
    std: tuple[float, ...]
    """Per channel."""


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


def ahead(make: Callable[[int], B], steps: range, *, workers: int) -> Generator[B, None, None]:
    """`make` of every step, in their order, made by threads before they are asked for. Close it to end those.

    Raises:
        Whatever `make` raises, when its step is reached.
    """
    waiting: deque[Future[B]] = deque()
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
