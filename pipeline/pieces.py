"""Objects of a class map that comes in parts: what touches across the edges of parts is one. Pure, in map pixels.

An object is a largest set of pixels of one class that hang together by their sides (4-connected), so that it is always one polygon whose
inside hangs together. Each part's share of an object, a *piece*, is held as its corners: where the mixed difference of its indicator,

    turn(y, x) = inside(y, x) - inside(y - 1, x) - inside(y, x - 1) + inside(y - 1, x - 1),

is not 0. This is linear: the corners of a union of pieces are the sum of theirs, and what the edge of a part added to them cancels.
So pieces are united by giving them one number, and the result cannot depend on how the map was cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from skimage import measure


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClassPart:
    """A window of a class map."""

    y: int
    """First row, map pixels."""
    x: int
    """First column, map pixels."""
    classes: NDArray[np.uint8]
    """(height, width) 0 where there is nothing to find."""
    weights: NDArray[np.uint8] | None = None
    """(height, width) what to sum over each object; None: nothing."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pieces:
    """Pieces 0 to n - 1, each whole or a share of an object, and their m corners in any order."""

    kind: NDArray[np.uint8]
    """(n,) class."""
    pixels: NDArray[np.int64]
    """(n,) how many."""
    weight: NDArray[np.int64]
    """(n,) sum of the weights."""
    last: NDArray[np.int64]
    """(n,) `y * (map width + 1) + x` of the last corner: the lower right one of the last pixel."""
    of: NDArray[np.int32]
    """(m,) which piece."""
    y: NDArray[np.int32]
    """(m,) row of the pixel to the lower right of the corner."""
    x: NDArray[np.int32]
    """(m,) its column."""
    turn: NDArray[np.int8]
    """(m,) -2 to 2; corners of a piece at one place add up."""

    def __len__(self) -> int:
        return len(self.kind)

    def kept(self, keep: NDArray[np.bool_]) -> Pieces:
        """Those that are True, in order."""
        number, of_kept = (np.cumsum(keep) - 1).astype(np.int32), keep[self.of]
        return Pieces(
            kind=self.kind[keep],
            pixels=self.pixels[keep],
            weight=self.weight[keep],
            last=self.last[keep],
            of=number[self.of[of_kept]],
            y=self.y[of_kept],
            x=self.x[of_kept],
            turn=self.turn[of_kept],
        )

    def united(self, number: NDArray[np.int32], count: int) -> Pieces:
        """Pieces of one number become one; there are `count` numbers, each of them given."""
        kind, last = np.zeros(count, np.uint8), np.zeros(count, np.int64)
        pixels, weight = np.zeros(count, np.int64), np.zeros(count, np.int64)
        kind[number] = self.kind
        np.maximum.at(last, number, self.last)
        np.add.at(pixels, number, self.pixels)
        np.add.at(weight, number, self.weight)
        return Pieces(kind=kind, pixels=pixels, weight=weight, last=last, of=number[self.of], y=self.y, x=self.x, turn=self.turn)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Edge:
    """A line of pixels along which two parts meet."""

    ids: NDArray[np.int32]
    """(length,) piece of each pixel, counted from 1; 0: none."""
    classes: NDArray[np.uint8]
    """(length,) class of each pixel."""

    def pairs(self, other: _Edge) -> NDArray[np.int32]:
        """(k, 2) pieces, counted from 0, that are one object, for they have pixels of one class side by side."""
        same = (self.classes == other.classes) & (self.ids > 0) & (other.ids > 0)
        return np.stack([self.ids[same], other.ids[same]], axis=1) - np.int32(1)


def whole_objects(parts: Iterable[ClassPart], *, width: int, least: int = 1) -> Iterator[Pieces]:
    """The objects of a map, each as one piece, in the order of their last pixels, row by row: the same however the map is cut.

    Held at a time: the pieces of one row of parts, and of the objects that reach into the next.

    Args:
        parts: they tile the map row by row, those of a row have one height.
        width: of the map.
        least: objects of fewer pixels are left out.
    """
    begun = _none()
    above = _Edge(ids=np.zeros(width, np.int32), classes=np.zeros(width, np.uint8))
    for _, row in groupby(parts, key=lambda part: part.y):
        pieces, pairs, below = _row(row, begun, above, least)
        number, count = _united(len(pieces), pairs)
        objects = pieces.united(number, count)
        open_ones = np.zeros(count, np.bool_)
        open_ones[number[below.ids[below.ids > 0] - 1]] = True
        yield _in_order(objects.kept(~open_ones & (objects.pixels >= least)))
        begun = objects.kept(open_ones)
        renumbered = np.concatenate([[0], np.cumsum(open_ones)[number]]).astype(np.int32)
        above = _Edge(ids=renumbered[below.ids], classes=below.classes)
    yield _in_order(begun.kept(begun.pixels >= least))


def _row(row: Iterable[ClassPart], begun: Pieces, above: _Edge, least: int) -> tuple[Pieces, NDArray[np.int32], _Edge]:
    """What was begun above and the pieces of a row of parts, which of them touch, and the last line of the row."""
    held, pairs, count = [begun], [np.zeros((0, 2), np.int32)], len(begun)
    below = _Edge(ids=np.zeros_like(above.ids), classes=np.zeros_like(above.classes))
    left: _Edge | None = None
    for part in row:
        ids, pieces = _pieces(part, width=len(above.ids), least=least)
        ids[ids > 0] += count
        count += len(pieces)
        held.append(pieces)
        across = slice(part.x, part.x + part.classes.shape[1])
        pairs.append(_Edge(ids=above.ids[across], classes=above.classes[across]).pairs(_Edge(ids=ids[0], classes=part.classes[0])))
        if left is not None:
            pairs.append(left.pairs(_Edge(ids=ids[:, 0], classes=part.classes[:, 0])))
        left = _Edge(ids=ids[:, -1].copy(), classes=part.classes[:, -1].copy())
        below.ids[across], below.classes[across] = ids[-1], part.classes[-1]
    return _joined(held), np.concatenate(pairs), below


def _pieces(part: ClassPart, *, width: int, least: int) -> tuple[NDArray[np.int32], Pieces]:
    """Piece of each pixel, counted from 1, and the pieces; those that no neighbour can make larger, and are too small, are left out."""
    ids = measure.label(part.classes, background=0, connectivity=1).astype(np.int32)  # type: ignore[no-untyped-call]
    pixels = np.bincount(ids.ravel())
    if least > 1:
        keep = pixels >= least
        for line in (ids[0], ids[-1], ids[:, 0], ids[:, -1]):
            keep[line] = True
        keep[0] = False
        ids = np.where(keep, np.cumsum(keep), 0).astype(np.int32)[ids]
        pixels = np.bincount(ids.ravel(), minlength=1)
    count = len(pixels) - 1
    kind = np.zeros(count + 1, np.uint8)
    kind[ids] = part.classes
    weight = np.zeros(count + 1) if part.weights is None else np.bincount(ids.ravel(), part.weights.ravel(), minlength=count + 1)
    of, y, x, turn = _corners(ids)
    y, x = y + np.int32(part.y), x + np.int32(part.x)
    last = np.zeros(count, np.int64)
    np.maximum.at(last, of, y.astype(np.int64) * (width + 1) + x)
    return ids, Pieces(kind=kind[1:], pixels=pixels[1:], weight=weight[1:].astype(np.int64), last=last, of=of, y=y, x=x, turn=turn)


def _corners(ids: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32], NDArray[np.int8]]:
    """(of, y, x, turn) of the corners of all pieces, of which nothing goes on beyond the array."""
    around = np.pad(ids, 1)
    upper_left, upper_right, lower_left, lower_right = around[:-1, :-1], around[:-1, 1:], around[1:, :-1], around[1:, 1:]
    straight = ((upper_left == upper_right) & (lower_left == lower_right)) | ((upper_left == lower_left) & (upper_right == lower_right))
    y, x = np.nonzero(~straight)
    a, b, c, d = (quarter[y, x] for quarter in (upper_left, upper_right, lower_left, lower_right))
    # Each of the four pixels speaks for its piece, unless one before it has done so.
    said = (
        (a, 1 - (b == a) - (c == a).astype(np.int8) + (d == a), a > 0),
        (b, (d == b) - np.int8(1) - (c == b), (b > 0) & (b != a)),
        (c, (d == c) - np.int8(1), (c > 0) & (c != a) & (c != b)),
        (d, np.ones(len(d), np.int8), (d > 0) & (d != a) & (d != b) & (d != c)),
    )
    kept = [speaks & (turn != 0) for _, turn, speaks in said]
    of = np.concatenate([which[keep] for (which, _, _), keep in zip(said, kept, strict=True)]) - np.int32(1)
    turn = np.concatenate([turn[keep] for (_, turn, _), keep in zip(said, kept, strict=True)]).astype(np.int8)
    place = [np.concatenate([line[keep] for keep in kept]).astype(np.int32) for line in (y, x)]
    return of, place[0], place[1], turn


def _united(count: int, pairs: NDArray[np.int32]) -> tuple[NDArray[np.int32], int]:
    """(count,) the object of each piece, and how many objects there are."""
    graph = coo_array((np.ones(len(pairs), np.bool_), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    objects, number = connected_components(graph, directed=False)
    return number.astype(np.int32), int(objects)


def _in_order(objects: Pieces) -> Pieces:
    order = np.argsort(objects.last)
    number = np.empty(len(order), np.int32)
    number[order] = np.arange(len(order), dtype=np.int32)
    return objects.united(number, len(order))


def _joined(held: Sequence[Pieces]) -> Pieces:
    starts = np.cumsum([0, *(len(pieces) for pieces in held)])

    def column(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(pieces, name) for pieces in held])

    return Pieces(
        kind=column("kind"),
        pixels=column("pixels"),
        weight=column("weight"),
        last=column("last"),
        of=np.concatenate([pieces.of + np.int32(start) for pieces, start in zip(held, starts, strict=False)]),
        y=column("y"),
        x=column("x"),
        turn=column("turn"),
    )


def _none() -> Pieces:
    whole, corner = np.zeros(0, np.int64), np.zeros(0, np.int32)
    return Pieces(
        kind=np.zeros(0, np.uint8), pixels=whole, weight=whole, last=whole, of=corner, y=corner, x=corner, turn=np.zeros(0, np.int8)
    )
