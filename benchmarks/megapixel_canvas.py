"""Megapixel MNIST: five digits among scribbles on a large black canvas, drawn by the very numbers of the papers that use it.

Katharopoulos & Fleuret 2019 (attention sampling) made it; Bergner et al. 2023 (IPS) ask four questions of it and draw the digits over
the scribbles, as is done here. One legacy stream of numpy (MT19937), seeded with 1 for training and with 0 for testing, gives in this
order: the digits of all images, their places, the shapes of the scribbles, their places. So the images are theirs, to the byte.

A canvas is drawn when it is looked at and never kept: 6000 of them are 13 GB.
"""

from __future__ import annotations

import gzip
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DATA = Path(os.environ.get("PATCHDRIVE_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
BOX = 28
"""Side of the box of a digit or a scribble, pixels."""
TASKS = ("majority", "max", "top", "multi")
"""Which digit is there three times; which is the largest; which the topmost; and exactly which ones are there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What the images of a benchmark are like."""

    side: int = 1500
    """Of a canvas, pixels."""
    scribbles: int = 50
    """In each image, and as many shapes of them."""
    train: int = 5000
    """Images to learn from."""
    test: int = 1000
    """Images to be judged by."""


PAPER = Scene()
"""What attention sampling and IPS are compared on."""
LOW_DATA = Scene(side=3000, scribbles=800, train=1000)
"""Larger, fuller and with fewer images: where IPS has not learned yet."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Canvases:
    """All images of one half of a scene, as what to draw where."""

    side: int
    """Of a canvas, pixels."""
    stamps: NDArray[np.uint8]
    """[M, 28, 28] the digits of MNIST."""
    chosen: NDArray[np.int64]
    """[N, 5] which of them are in an image."""
    digits: NDArray[np.int64]
    """[N, 5] what they are, 0 to 9; the first three are equal. Nobody is trained on these."""
    corners: NDArray[np.int64]
    """[N, 5, 2] (y, x) of their boxes, pixels."""
    scribbles: NDArray[np.uint8]
    """[S, 28, 28] the shapes of the scribbles."""
    scribbled: NDArray[np.int64]
    """[N, S] which of them are in an image."""
    scribble_corners: NDArray[np.int64]
    """[N, S, 2] (y, x) of their boxes, pixels."""

    def __len__(self) -> int:
        return len(self.digits)

    def draw(self, index: int) -> NDArray[np.uint8]:
        """One image [side, side]: what is drawn later covers the whole box of what was drawn before."""
        canvas = np.zeros((self.side, self.side), np.uint8)
        for (y, x), shape in zip(self.scribble_corners[index], self.scribbled[index], strict=True):
            canvas[y : y + BOX, x : x + BOX] = self.scribbles[shape]
        for (y, x), digit in zip(self.corners[index], self.chosen[index], strict=True):
            canvas[y : y + BOX, x : x + BOX] = self.stamps[digit]
        return canvas

    def labels(self) -> dict[str, NDArray[np.int64]]:
        """What is to be told of each image: [N] digits of the first three tasks, [N, 10] zeros and ones of `multi`."""
        present = np.zeros((len(self), 10), np.int64)
        np.put_along_axis(present, self.digits, 1, axis=1)
        topmost = self.corners[:, :, 0].argmin(axis=1)
        return {
            "majority": self.digits[:, 0],
            "max": self.digits.max(axis=1),
            "top": self.digits[np.arange(len(self)), topmost],
            "multi": present,
        }

    def ink_boxes(self) -> NDArray[np.int64]:
        """[N, 5, 4] (top, left, bottom, right), pixels, of what is not black of each digit; the last two are past its end."""
        spans = []
        for axis in (2, 1):
            inked = self.stamps.any(axis=axis)
            spans.append(np.stack([inked.argmax(axis=1), BOX - inked[:, ::-1].argmax(axis=1)], axis=1)[self.chosen])
        rows, columns = spans
        inside = np.stack([rows[..., 0], columns[..., 0], rows[..., 1], columns[..., 1]], axis=-1)
        return inside + np.tile(self.corners, 2)


def make_canvases(scene: Scene, *, train: bool, data: Path = DATA) -> Canvases:
    """The images of one half of a scene.

    Args:
        scene: what they are like.
        train: those to learn from.
        data: the folder that holds `labelled/mnist`.
    """
    stamps, classes = read_stamps(data, train=train)
    stream = np.random.RandomState(int(train))
    count = scene.train if train else scene.test
    chosen = _choose(stream, classes, count)
    corners = _place(stream, count, scene.side)
    shapes = _scribble(stream, scene.scribbles)
    free = [scene.side - 2 * BOX] * 2
    scribble_corners = (stream.rand(count, scene.scribbles, 2) * free + BOX).astype(np.int64)
    scribbled = (stream.rand(count, scene.scribbles) * scene.scribbles).astype(np.int64)
    return Canvases(
        side=scene.side,
        stamps=stamps,
        chosen=chosen,
        digits=classes[chosen].astype(np.int64),
        corners=corners,
        scribbles=_to_bytes(shapes),
        scribbled=scribbled,
        scribble_corners=scribble_corners,
    )


_PARTS = ("images-idx3-ubyte", "labels-idx1-ubyte")


def read_stamps(data: Path, *, train: bool) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """MNIST's digits [M, 28, 28], as the papers round them, and what they are [M]."""
    stamps, classes = (_read_idx(data / "labelled" / "mnist" / f"{'train' if train else 't10k'}-{part}.gz") for part in _PARTS)
    return _to_bytes(stamps.astype(np.float32) / np.float32(255)), classes


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """MNIST's own format: two zero bytes, the type (8: uint8), the number of axes, their lengths as big-endian uint32, the values."""
    stored = gzip.decompress(path.read_bytes())
    axes = stored[3]
    shape = np.frombuffer(stored, ">u4", axes, 4).astype(int)
    return np.frombuffer(stored, np.uint8, offset=4 + 4 * axes).reshape(shape)


def _to_bytes(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """As the papers do: cut off, not rounded, so that some digits lose one grey value."""
    return (np.float32(255) * values).astype(np.uint8)


def _choose(stream: np.random.RandomState, classes: NDArray[np.uint8], count: int) -> NDArray[np.int64]:
    """[count, 5]: three digits of one class and two of others, with replacement."""
    everything = np.arange(len(classes))
    of_class = [everything[classes == digit] for digit in range(10)]
    of_others = [everything[classes != digit] for digit in range(10)]
    chosen = []
    for _ in range(count):
        digit = int(stream.rand() * 10)
        chosen.append(np.concatenate([stream.choice(of_class[digit], 3), stream.choice(of_others[digit], 2)]))
    return np.array(chosen)


def _place(stream: np.random.RandomState, count: int, side: int) -> NDArray[np.int64]:
    """[count, 5, 2]: corners of boxes that do not overlap; a place is drawn again until it is free."""
    images = []
    for _ in range(count):
        taken: list[NDArray[np.int64]] = []
        while len(taken) < 5:
            corner = np.round(stream.rand(2) * [side - BOX, side - BOX]).astype(np.int64)
            if not any((np.abs(corner - other) < BOX).all() for other in taken):
                taken.append(corner)
        images.append(taken)
    return np.array(images)


def _scribble(stream: np.random.RandomState, count: int) -> NDArray[np.float32]:
    """[count, 28, 28]: two straight lines from corners of the box, each pixel as bright as chance wants.

    The papers mean to flip shapes along both axes and flip some of them twice along one, which is what is done here too.
    """
    slopes: NDArray[Any] = np.tan(stream.rand(count) * np.pi / 2.5)
    lines = np.zeros((count, BOX, BOX))
    for line, slope in zip(lines, slopes, strict=True):
        along = np.linspace(0, min(27.49, 27.49 / slope), 2 * BOX)
        line[np.round(along).astype(int), np.round(slope * along).astype(int)] = 1
    others = lines.copy()
    stream.shuffle(others)
    for _ in range(2):
        flipped = stream.rand(count) < 0.33
        others[flipped] = others[flipped][:, :, ::-1]
    return ((lines + others > 0) * (stream.rand(count, BOX, BOX) * 0.2 + 0.8)).astype(np.float32)
