"""Which pieces of which images a step of training sees, and how they are changed: drawn from the seed and the step's number alone. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from patchdrive.readers import Window

_TRIES = 16
"""Draws of a piece without a target before one that has some is taken: in an image that is full of them there may be none."""
_TILE = 1024
"""Side of the pieces that a model is judged on, where an image is larger and the pieces of training are not."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ground:
    """What is known of one image, or of a part of it, when pieces are drawn; pixels of the model, (y, x)."""

    top: int
    """First row of the part."""
    bottom: int
    """One past its last row."""
    width: int
    """Columns of the image."""
    targets: tuple[NDArray[np.float64], ...]
    """Per kind of target (n, 2): places that a piece may be drawn around."""
    worth: NDArray[np.float64] | None = None
    """(n, 2) places worth looking at where there is no target; None: all of it."""
    only: bool = False
    """Nothing is known of what is far from `worth` and from targets."""

    @property
    def window(self) -> Window:
        """All of it."""
        return Window(y=self.top, x=0, height=self.bottom - self.top, width=self.width)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What is done to a piece before a model sees it."""

    turn: int = 0
    """Quarter turns, counter-clockwise; 4 more: mirrored left to right first."""
    shift: tuple[float, ...] = ()
    """Added to each channel, in standard deviations of the model's input; empty: nothing."""
    contrast: float = 1.0
    """Distances from the model's mean are multiplied by this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One square of one image, or all of a small one."""

    example: int
    """Index of the image."""
    window: Window
    """Pixels of the model; may overhang the image."""
    change: Change = field(default_factory=Change)
    """Done to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """How pieces are drawn."""

    seed: int
    """Of all draws."""
    batch_size: int
    """Pieces of a step."""
    side: int | None
    """Of a piece; None: images whole, each once before any comes again."""
    channels: int
    """Of the model."""
    with_targets: float = 0.5
    """Share of pieces drawn around a target, its kind drawn by lot."""
    flips: bool = True
    """Mirror half of them."""
    turns: bool = True
    """Turn them by a multiple of 90 degrees."""
    brightness: float = 0.0
    """Largest shift of all channels, standard deviations."""
    contrast: float = 0.0
    """Largest change of contrast, a share."""
    color: float = 0.0
    """Largest shift of each channel, standard deviations."""


def draw_pieces(grounds: Sequence[Ground], drawing: Drawing, step: int) -> tuple[Piece, ...]:
    """The pieces of one step."""
    rng = np.random.default_rng([drawing.seed, step])
    if drawing.side is None:
        first = step * drawing.batch_size
        windows = [_whole(grounds, drawing.seed, place) for place in range(first, first + drawing.batch_size)]
    else:
        windows = [_square(rng, grounds, drawing.side, drawing.with_targets) for _ in range(drawing.batch_size)]
    return tuple(Piece(example=index, window=window, change=_change(rng, drawing)) for index, window in windows)


def _whole(grounds: Sequence[Ground], seed: int, place: int) -> tuple[int, Window]:
    """The image at a place of the endless row of orders drawn anew each time all were seen."""
    epoch, within = divmod(place, len(grounds))
    index = int(np.random.default_rng([seed, epoch, 1]).permutation(len(grounds))[within])
    return index, grounds[index].window


def _square(rng: np.random.Generator, grounds: Sequence[Ground], side: int, with_targets: float) -> tuple[int, Window]:
    kinds = sorted({kind for ground in grounds for kind, held in enumerate(ground.targets) if len(held)})
    if kinds and rng.random() < with_targets:
        kind = kinds[int(rng.integers(len(kinds)))]
        having = [index for index, ground in enumerate(grounds) if kind < len(ground.targets) and len(ground.targets[kind])]
        index = having[int(rng.integers(len(having)))]
        targets = grounds[index].targets[kind]
        return index, _around(rng, grounds[index], side, targets[int(rng.integers(len(targets)))])
    for _ in range(_TRIES):
        index = int(rng.integers(len(grounds)))
        ground = grounds[index]
        worth = ground.worth
        window = _around(rng, ground, side, None if worth is None else worth[int(rng.integers(len(worth)))])
        if not any(inside(held, window).any() for held in ground.targets):
            break
    return index, window


def inside(yx: NDArray[np.float64], window: Window) -> NDArray[np.bool_]:
    """(n,) which of the places (n, 2) lie in a window."""
    corner, end = np.array([window.y, window.x]), np.array([window.y_end, window.x_end])
    return np.asarray(((yx >= corner) & (yx < end)).all(axis=1))


def _around(rng: np.random.Generator, ground: Ground, side: int, place: NDArray[np.float64] | None) -> Window:
    """A square somewhere around a place, inside the image where it fits into it."""
    y = _begin(rng, ground.top, ground.bottom, side, None if place is None else float(place[0]))
    x = _begin(rng, 0, ground.width, side, None if place is None else float(place[1]))
    return Window(y=y, x=x, height=side, width=side)


def _begin(rng: np.random.Generator, first: int, end: int, side: int, place: float | None) -> int:
    """Where a stretch of `side` pixels begins that holds `place`; inside [first, end), or around all of it where that is shorter."""
    low, high = (first, end - side) if end - first >= side else (end - side, first)
    if place is not None:
        low, high = min(max(low, math.floor(place) - side + 1), high), max(min(high, math.floor(place)), low)
    return int(rng.integers(low, high + 1))


def _change(rng: np.random.Generator, drawing: Drawing) -> Change:
    turn = int(rng.integers(4)) * drawing.turns + 4 * int(rng.integers(2)) * drawing.flips
    shift = drawing.brightness * rng.uniform(-1, 1) + drawing.color * rng.uniform(-1, 1, drawing.channels)
    contrast = 1 + drawing.contrast * rng.uniform(-1, 1)
    return Change(turn=turn, shift=tuple(shift.tolist()) if shift.any() else (), contrast=contrast)


def turned(values: NDArray[np.generic], turn: int) -> NDArray[np.generic]:
    """An array (height, width, ...) as a Change turns it."""
    mirrored = values[:, ::-1] if turn >= 4 else values
    return np.ascontiguousarray(np.rot90(mirrored, turn % 4))


def turned_places(yx: NDArray[np.float64], height: int, width: int, turn: int) -> NDArray[np.float64]:
    """Places (n, 2) in an array of `height` x `width` pixels, where a Change turns them to."""
    y, x = yx[:, 0], yx[:, 1]
    if turn >= 4:
        x = width - x
    for _ in range(turn % 4):  # counter-clockwise: what was at the right edge is at the top
        y, x, height, width = width - x, y, width, height
    return np.stack([y, x], axis=1)


def unturned_places(yx: NDArray[np.float64], height: int, width: int, turn: int) -> NDArray[np.float64]:
    """The inverse of `turned_places`: places (n, 2) in the turned array to those in the one of `height` x `width` pixels."""
    shape = (width, height) if turn % 2 else (height, width)
    mirrored = turned_places(yx, *shape, (4 - turn % 4) % 4)
    return np.stack([mirrored[:, 0], width - mirrored[:, 1]], axis=1) if turn >= 4 else mirrored


def judged_pieces(grounds: Sequence[Ground], *, side: int | None, most: int, seed: int) -> tuple[Piece, ...]:
    """What a model is judged on: all of the images in even parts or, where those are too many, a draw of them.

    Args:
        grounds: the images.
        side: of the pieces of training; None: images whole.
        most: parts; of more, half of those drawn hold targets where there are so many.
        seed: of the draw.
    """
    if side is None:
        return tuple(Piece(example=index, window=ground.window) for index, ground in enumerate(grounds))
    parts = [(index, window) for index, ground in enumerate(grounds) for window in _parts(ground, max(side, _TILE))]
    pieces = [Piece(example=index, window=window) for index, window in parts if not grounds[index].only or _known(grounds[index], window)]
    if len(pieces) <= most:
        return tuple(pieces)
    rng = np.random.default_rng([seed, 2])
    holds = [any(inside(held, piece.window).any() for held in grounds[piece.example].targets) for piece in pieces]
    full, empty = np.flatnonzero(holds), np.flatnonzero(~np.array(holds))
    wanted = min(len(full), max(most - most // 2, most - len(empty)))
    drawn = np.concatenate([rng.permutation(full)[:wanted], rng.permutation(empty)[: most - wanted]])
    return tuple(pieces[index] for index in np.sort(drawn).tolist())


def _known(ground: Ground, window: Window) -> bool:
    """Whether there is anything in a window that something is known of."""
    held = ground.targets if ground.worth is None else (*ground.targets, ground.worth)
    return any(bool(inside(places, window).any()) for places in held)


def _parts(ground: Ground, side: int) -> list[Window]:
    """The image cut into the fewest even parts of at most `side` pixels."""
    height = ground.bottom - ground.top
    rows = [ground.top + round(height * i / -(-height // side)) for i in range(-(-height // side) + 1)]
    columns = [round(ground.width * i / -(-ground.width // side)) for i in range(-(-ground.width // side) + 1)]
    return [Window(y=y, x=x, height=y_end - y, width=x_end - x) for y, y_end in pairwise(rows) for x, x_end in pairwise(columns)]
