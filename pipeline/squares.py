"""Which patches touch which square of the target grid. Pure; some rows at a time, so that only the answer takes memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from patchdrive.pipeline.ranks import AT_ONCE, steps
from patchdrive.readers import Level, Window


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cores:
    """The part of each patch that it writes: all of it but its halo."""

    y: NDArray[np.int64]
    """(n,) first rows of the patches, target pixels."""
    x: NDArray[np.int64]
    """(n,) first columns of the patches, target pixels."""
    halo: int
    """From a patch's edge to its core's, target pixels."""
    side: int
    """Of every core, target pixels."""
    grid: Level
    """The target grid."""

    def spans(self, rows: slice | NDArray[np.int64]) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """First and last pixel inside the grid along y, then along x; the last comes before the first where there is none."""
        axes = ((self.y[rows] + self.halo, self.grid.height), (self.x[rows] + self.halo, self.grid.width))
        return [(np.maximum(first, 0), np.minimum(first + self.side, extent) - 1) for first, extent in axes]


class Squares:
    """Squares of a grid that at least one core touches, row-major, each with the rows of those that do: four bytes for each pair."""

    def __init__(self, cores: Cores, edge: int) -> None:
        """Sort every core into the squares of `edge` target pixels that it touches."""
        self._cores, self._edge, self._across = cores, edge, -(-cores.grid.width // edge)
        total = len(cores.y)
        counts = np.zeros(-(-cores.grid.height // edge) * self._across, np.int64)
        for part in steps(total, AT_ONCE):
            counts += np.bincount(self._pairs(part)[1], minlength=len(counts))
        self.names = np.flatnonzero(counts)
        """(blocks,) flat index of each square that a patch touches."""
        self._starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts[self.names])])
        self._rows = np.empty(self._starts[-1], np.int32 if total <= np.iinfo(np.int32).max else np.int64)
        places = np.zeros(len(counts), np.int64)  # where each square's next row goes
        places[self.names] = self._starts[:-1]
        for part in steps(total, AT_ONCE):
            row, name = self._pairs(part)
            order = np.lexsort((row, name))
            row, name = row[order], name[order]
            for_each = np.bincount(name, minlength=len(places))
            before = np.cumsum(for_each) - for_each
            self._rows[places[name] + np.arange(len(name)) - before[name]] = row
            places += for_each

    def __len__(self) -> int:
        return len(self.names)

    def rows(self, index: int) -> NDArray[np.int64]:
        """Those that touch a square, in plan order."""
        rows: NDArray[np.int64] = self._rows[self._starts[index] : self._starts[index + 1]].astype(np.int64)
        return rows

    def owned(self, index: int) -> NDArray[np.int64]:
        """Those of them whose first pixel inside the grid lies in it: each row is one square's own."""
        rows = self.rows(index)
        (top, _), (left, _) = self._cores.spans(rows)
        home = top // self._edge * self._across + left // self._edge
        return np.asarray(rows[home == self.names[index]])

    def window(self, index: int) -> Window | None:
        """A square, clipped to the grid."""
        row, column = divmod(int(self.names[index]), self._across)
        square = Window(y=row * self._edge, x=column * self._edge, height=self._edge, width=self._edge)
        return square.intersect(self._cores.grid.window)

    def _pairs(self, part: slice) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(row, flat index of a square) of all pairs that touch, among these rows of the plan."""
        (top, bottom), (left, right) = self._cores.spans(part)
        inside = (bottom >= top) & (right >= left)
        first_y, last_y, first_x, last_x = (pixel // self._edge for pixel in (top, bottom, left, right))
        rows, names = [], []
        for dy in range(int((last_y - first_y).max(initial=0)) + 1):
            for dx in range(int((last_x - first_x).max(initial=0)) + 1):
                touched = np.flatnonzero(inside & (first_y + dy <= last_y) & (first_x + dx <= last_x))
                rows.append(touched + part.start)
                names.append((first_y[touched] + dy) * self._across + first_x[touched] + dx)
        return np.concatenate(rows), np.concatenate(names)
