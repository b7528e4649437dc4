"""Iso-ink haystacks: digits among distractors that no prior of ink, contrast or scale can tell from them.

A distractor is a digit of MNIST cut into four concentric bands, each turned by a multiple of 90 degrees, neighbours always differently:
the same pixels at the same distance from the centre of the box, so also the same ink and the same radial profile; what is gone is the way
strokes run on from band to band. Whoever ranks places by the Laplacian of Gaussian ranks these by chance.

Images and questions are else those of megapixel MNIST (`megapixel_canvas`): five digits, three of them of one class, four answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from megapixel_canvas import BOX, DATA, Canvases, read_stamps
from numpy.typing import NDArray

BANDS = (4.0, 7.0, 9.5)
"""Outer radii of all bands but the last, pixels from the centre of the box."""
DIGITS = 5
"""In an image; the first three are of one class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Haystack:
    """What images are like."""

    side: int = 3000
    """Of a canvas, pixels."""
    distractors: int = 200
    """In each image."""
    images: int = 1000
    train: bool = False
    """Whether stamps are MNIST's training digits or its test digits."""
    seed: int = 0
    """Of the draw."""


def turn_bands(stamps: NDArray[np.uint8], draw: np.random.Generator) -> NDArray[np.uint8]:
    """Distractors out of digits [n, 28, 28]: each band of each of them turned, neighbours differently."""
    middle = (BOX - 1) / 2
    y, x = np.mgrid[:BOX, :BOX] - middle
    band = np.searchsorted(BANDS, np.hypot(y, x), side="right")
    turns = draw.integers(4, size=(len(stamps), 1))
    steps = draw.integers(1, 4, size=(len(stamps), len(BANDS)))
    turns = np.concatenate([turns, turns + steps.cumsum(axis=1)], axis=1) % 4
    turned = np.stack([np.rot90(stamps, turn, axes=(1, 2)) for turn in range(4)])
    return np.ascontiguousarray(turned[turns[:, band], np.arange(len(stamps))[:, None, None], *np.ogrid[:BOX, :BOX]])


def place_apart(draw: np.random.Generator, count: int, side: int) -> NDArray[np.int64]:
    """[count, 2] corners of boxes that do not overlap: those that hit an earlier one are drawn again until none does."""
    corners = draw.integers(0, side - BOX + 1, size=(count, 2))
    while True:
        near = (np.abs(corners[:, None] - corners[None]) < BOX).all(axis=2)
        hits = np.tril(near, -1).any(axis=1)
        if not hits.any():
            return corners
        corners[hits] = draw.integers(0, side - BOX + 1, size=(int(hits.sum()), 2))


def make_haystacks(haystack: Haystack, *, data: Path = DATA) -> Canvases:
    """All images of a haystack, as what to draw where."""
    stamps, classes = read_stamps(data, train=haystack.train)
    draw = np.random.default_rng([haystack.seed, haystack.train, haystack.side, haystack.distractors])
    chosen = _choose(draw, classes, haystack.images)
    count = DIGITS + haystack.distractors
    corners = np.stack([place_apart(draw, count, haystack.side) for _ in range(haystack.images)])
    return Canvases(
        side=haystack.side,
        stamps=stamps,
        chosen=chosen,
        digits=classes[chosen].astype(np.int64),
        corners=corners[:, :DIGITS],
        scribbles=turn_bands(stamps, draw),
        scribbled=draw.integers(len(stamps), size=(haystack.images, haystack.distractors)),
        scribble_corners=corners[:, DIGITS:],
    )


def _choose(draw: np.random.Generator, classes: NDArray[np.uint8], count: int) -> NDArray[np.int64]:
    """[count, 5] digits: three of one class, two of others."""
    chosen = np.empty((count, DIGITS), np.int64)
    for image in range(count):
        own = classes == draw.integers(10)
        chosen[image] = *draw.choice(np.flatnonzero(own), 3), *draw.choice(np.flatnonzero(~own), 2)
    return chosen
