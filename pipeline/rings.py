"""Polygons from their corners: the ring of each piece, then those of its holes. Pure, in map pixels.

Along each row of the pixel lattice the corners of a piece, from left to right, are the ends of its edges in turn; so they are along each
column. So the edges follow from sorting, and a ring from walking along them: across, down or up, across.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from patchdrive.pipeline.pieces import Pieces


@dataclass(frozen=True, slots=True, kw_only=True)
class Lattice:
    """Where the corners of map pixels lie on level 0."""

    downsample_y: float
    """Level-0 pixels per map pixel."""
    downsample_x: float
    """Level-0 pixels per map pixel."""
    top: float = 0.0
    """Edge of the map, level-0 pixels."""
    left: float = 0.0
    """Edge of the map, level-0 pixels."""


def polygons(pieces: Pieces, lattice: Lattice) -> NDArray[np.object_]:
    """(n,) shapely polygons of whole objects, (x, y) in level-0 pixels to a millionth.

    A ring begins at its upper left corner and has a vertex where it turns and nowhere else. The outer one goes to the right first, and
    those of holes, from the upper left one on, down: counterclockwise and clockwise in GeoJSON's sense. Pixels that touch by a corner
    alone are divided there: rings may touch at a corner, none crosses or touches itself, and the polygon is valid.
    """
    of, y, x, turn = _summed(pieces)
    again = np.repeat(np.arange(len(of)), np.abs(turn))  # where two pixels touch by a corner alone, two edges end along either axis
    second = np.diff(again, prepend=-1) == 0
    of, y, x, turn = of[again], y[again], x[again], turn[again]
    down = np.empty(len(of), np.int64)
    by_column = np.lexsort((second ^ (turn == 2), y, x, of))  # the background, not the piece, is divided from itself
    down[by_column[0::2]], down[by_column[1::2]] = by_column[1::2], by_column[0::2]
    path, starts = _walk(down, turn < 0)
    corners = np.stack([x[path] * lattice.downsample_x + lattice.left, y[path] * lattice.downsample_y + lattice.top], axis=1)
    lengths = np.diff(starts, append=len(path))
    rings = shapely.linearrings(np.round(corners, 6), indices=np.repeat(np.arange(len(starts)), lengths))
    found: NDArray[np.object_] = shapely.polygons(rings, indices=of[path[starts]])
    return found


def batches(pieces: Pieces, most: int) -> Iterator[Pieces]:
    """`most` pieces at a time, in order."""
    order = np.argsort(pieces.of, kind="stable")
    sorted_of = pieces.of[order]
    for start in range(0, len(pieces), most):
        part = slice(start, start + most)
        begin, end = np.searchsorted(sorted_of, (start, start + most))
        corners = order[begin:end]
        yield Pieces(
            kind=pieces.kind[part],
            pixels=pieces.pixels[part],
            weight=pieces.weight[part],
            last=pieces.last[part],
            of=pieces.of[corners] - np.int32(start),
            y=pieces.y[corners],
            x=pieces.x[corners],
            turn=pieces.turn[corners],
        )


def _summed(pieces: Pieces) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32], NDArray[np.int8]]:
    """(of, y, x, turn), sorted, one for each place where the piece turns."""
    order = np.lexsort((pieces.x, pieces.y, pieces.of))
    of, y, x = pieces.of[order], pieces.y[order], pieces.x[order]
    first = np.ones(len(of), np.bool_)
    first[1:] = (of[1:] != of[:-1]) | (y[1:] != y[:-1]) | (x[1:] != x[:-1])
    places = np.flatnonzero(first)
    turn = np.add.reduceat(pieces.turn[order], places) if len(places) else np.zeros(0, np.int8)
    kept = places[turn != 0]
    return of[kept], y[kept], x[kept], turn[turn != 0]


def _walk(down: NDArray[np.int64], hole: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All corners, ring after ring, and where in them each ring begins; 2k and 2k + 1 share an edge across, i and down[i] one down."""
    path, starts = array("q"), array("q")
    left, partner, holes = bytearray(b"\1") * len(down), down.data, hole.data
    start = left.find(1)
    while start >= 0:
        starts.append(len(path))
        here = start
        while left[here]:
            there = partner[here] if holes[start] else here ^ 1
            left[here] = left[there] = 0
            path.append(here)
            path.append(there)
            here = there ^ 1 if holes[start] else partner[there]
        start = left.find(1, start + 1)
    return np.frombuffer(path, np.int64), np.frombuffer(starts, np.int64)
