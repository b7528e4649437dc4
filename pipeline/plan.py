"""Plan: which patches. Pure: arrays in, arrays out; no file, no thread, no clock.

A plan lies on the *target grid*: pixels of one size, whose (0, 0) corner is the image's. `downsample` carries them to level 0,
so a patch has an exact phase and no rounding drift.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from patchdrive.pipeline.ranks import AT_ONCE, best_first, ranks, steps
from patchdrive.pipeline.squares import Cores, Squares
from patchdrive.readers import Level, Window

SQUARE = 4096
"""Side of the squares that order a plan, target pixels."""
WORTH_READING = 0.5
"""Saliency from which a coarse pixel is worth reading."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """Patches of one size on one grid, ordered by the 4096-pixel square of their top-left corner, row-major inside."""

    y: NDArray[np.int64]
    """(n,) first rows, target pixels; negative where a patch overhangs."""
    x: NDArray[np.int64]
    """(n,) first columns, target pixels."""
    score: NDArray[np.float32]
    """(n,) mean saliency, or what the drive gave."""
    rank: NDArray[np.int64]
    """(n,) 0 for the patch chosen first."""
    side: int
    """Of every patch, target pixels."""
    grid: Level
    """The target grid: its size, and level-0 pixels per target pixel."""

    def __len__(self) -> int:
        return len(self.y)

    @property
    def centres(self) -> NDArray[np.float64]:
        """(n, 2) patch centres, level-0 pixels, (y, x)."""
        return self.centres_of(slice(None))

    def centres_of(self, rows: slice) -> NDArray[np.float64]:
        """`centres` of some rows."""
        half, grid = self.side / 2, self.grid
        return np.stack([(self.y[rows] + half) * grid.downsample_y, (self.x[rows] + half) * grid.downsample_x], axis=1)

    def edges_of(self, rows: slice | NDArray[np.int64]) -> NDArray[np.float64]:
        """(n, 4) edges of the patches of some rows, level-0 pixels, (y, x, y_end, x_end)."""
        corners, grid = np.stack([self.y[rows], self.x[rows]], axis=1), self.grid
        edges: NDArray[np.float64] = np.hstack([corners, corners + self.side]) * np.array([grid.downsample_y, grid.downsample_x] * 2)
        return edges

    @property
    def digest(self) -> str:
        """Hex SHA-256 of all of it: two plans with one digest read the same patches in the same order."""
        facts = (self.side, self.grid.height, self.grid.width, self.grid.downsample_y, self.grid.downsample_x)
        digest = hashlib.sha256(repr(facts).encode())
        for column in (self.y, self.x, self.score, self.rank):
            digest.update(np.ascontiguousarray(column).data)
        return digest.hexdigest()

    def take(self, rows: NDArray[np.int64]) -> Plan:
        """A plan of some of its rows, ranked anew."""
        return ordered(self.y[rows], self.x[rows], self.score[rows], self.side, self.grid)

    def save(self, path: Path) -> None:
        """Write it as an .npz that `load` reads."""
        grid = [self.grid.height, self.grid.width, self.grid.downsample_y, self.grid.downsample_x]
        with path.open("wb") as file:
            np.savez(file, y=self.y, x=self.x, score=self.score, rank=self.rank, side=self.side, grid=np.array(grid, np.float64))

    @staticmethod
    def load(path: Path) -> Plan:
        """Read what `save` wrote."""
        with np.load(path) as held:
            height, width, downsample_y, downsample_x = held["grid"].tolist()
            return Plan(
                y=held["y"],
                x=held["x"],
                score=held["score"],
                rank=held["rank"],
                side=int(held["side"]),
                grid=target_grid_of(int(height), int(width), downsample_y, downsample_x),
            )


def target_grid_of(height: int, width: int, downsample_y: float, downsample_x: float) -> Level:
    """A target grid as a Level (index -1: stored in no file)."""
    return Level(
        index=-1,
        height=height,
        width=width,
        downsample_y=downsample_y,
        downsample_x=downsample_x,
        tile_height=min(SQUARE, height),
        tile_width=min(SQUARE, width),
    )


def target_grid(base: Level, downsample_y: float, downsample_x: float) -> Level:
    """The grid of pixels `downsample` level-0 pixels wide that covers all of `base`; the last pixels may be partial."""
    return target_grid_of(_cells(base.height, downsample_y), _cells(base.width, downsample_x), downsample_y, downsample_x)


def _cells(extent: int, downsample: float) -> int:
    return max(1, math.ceil(extent / downsample - 1e-6))


@dataclass(frozen=True, slots=True, kw_only=True)
class Saliency:
    """Where to look: a coarse map with its frame."""

    map: NDArray[np.float32]
    """(height, width) in [0, 1]; >= 0.5 is worth reading; 0 where there is no valid data."""
    mask: NDArray[np.bool_]
    """(height, width) True where there is valid data."""
    level: Level
    """The map's frame: its size, and level-0 pixels per map pixel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How patches tile a target grid."""

    side: int
    """Of a patch, target pixels."""
    stride: int
    """From patch to patch, target pixels."""
    halo: int = 0
    """Context each patch sees and does not write; the first patch begins this far outside the image."""


def positions(extent: int, layout: Layout) -> NDArray[np.int64]:
    """First pixels of the patches along one axis: their cores (the patch without its halo) cover [0, extent)."""
    core = layout.side - 2 * layout.halo
    count = max(1, -(-(extent - core) // layout.stride) + 1)
    return np.arange(count, dtype=np.int64) * layout.stride - layout.halo


class _Lattice:
    """Every patch a layout could take of a grid, judged by a saliency some rows at a time: nothing here is as large as the lattice."""

    def __init__(self, grid: Level, saliency: Saliency, layout: Layout) -> None:
        core, level = layout.side - 2 * layout.halo, saliency.level
        self.ys, self.xs = positions(grid.height, layout), positions(grid.width, layout)
        self._map = saliency.map
        self._rows = _coarse_spans(self.ys + layout.halo, core, grid.downsample_y, level.downsample_y, level.height)
        self._columns = _coarse_spans(self.xs + layout.halo, core, grid.downsample_x, level.downsample_x, level.width)

    def worth(self, rows: slice) -> NDArray[np.bool_]:
        """(rows, columns of the lattice) True where the core touches at least one coarse pixel worth reading."""
        spans = self._rows[rows]
        seen = self._map[spans[0, 0] : spans[-1, 1]] >= WORTH_READING
        counts = np.zeros((len(spans), self._map.shape[1] + 1), np.int32)
        by_rows = np.stack([seen[begin:end].any(axis=0) for begin, end in (spans - spans[0, 0]).tolist()])
        np.cumsum(by_rows, axis=1, out=counts[:, 1:])
        return np.asarray(counts[:, self._columns[:, 1]] > counts[:, self._columns[:, 0]])

    def sums(self, rows: slice) -> NDArray[np.float64]:
        """(rows of the lattice, coarse columns) sums of the saliency over the coarse rows that each core touches."""
        return np.stack([self._map[begin:end].sum(axis=0, dtype=np.float64) for begin, end in self._rows[rows].tolist()])

    def scores(self, sums: NDArray[np.float64], rows: slice, columns: slice) -> NDArray[np.float32]:
        """(rows, columns) mean saliency of each core, from `sums` of the same rows."""
        spans = self._columns[columns]
        lengths = spans[:, 1] - spans[:, 0]
        totals = np.empty((len(sums), len(spans)))
        for length in np.unique(lengths).tolist():
            same = lengths == length
            totals[:, same] = np.take(sums, spans[same, 0][:, None] + np.arange(length), axis=1).sum(axis=2)
        return (totals / np.outer(self._rows[rows, 1] - self._rows[rows, 0], lengths)).astype(np.float32)


def plan_grid(grid: Level, saliency: Saliency, layout: Layout) -> Plan:
    """Every patch of the layout whose core touches at least one coarse pixel worth reading: nothing worth reading is left out.

    It is made square by square, in the order that every plan has; on the way it needs one byte for each place of the lattice.
    """
    lattice = _Lattice(grid, saliency, layout)
    worth = np.concatenate([lattice.worth(rows) for rows in steps(len(lattice.ys), 256)])
    count = int(np.count_nonzero(worth))
    y, x, score = np.empty(count, np.int64), np.empty(count, np.int64), np.empty(count, np.float32)
    at = 0
    for rows in _runs(lattice.ys // SQUARE):
        sums = lattice.sums(rows)
        for columns in _runs(lattice.xs // SQUARE):
            row, column = np.nonzero(worth[rows, columns])
            part = slice(at, at + len(row))
            y[part], x[part] = lattice.ys[rows][row], lattice.xs[columns][column]
            score[part] = lattice.scores(sums, rows, columns)[row, column]
            at = part.stop
    del worth
    return Plan(y=y, x=x, score=score, rank=ranks(score), side=layout.side, grid=grid)


def plan_topk(grid: Level, saliency: Saliency, layout: Layout, *, count: int, spacing: int, multiple: int = 1) -> Plan:
    """The `count` most salient patches, no two corners nearer than `spacing` along both axes.

    Candidates lie on a lattice of about a quarter patch whose steps are multiples of `multiple`, a map's stride. Taken greedily,
    best first; equal scores in reading order.
    """
    step = max(multiple, layout.side // 4 // multiple * multiple)
    step = min(step, layout.side - 2 * layout.halo)
    lattice = _Lattice(grid, saliency, Layout(side=layout.side, stride=step, halo=layout.halo))
    # A patch that is taken keeps at most this many candidates, itself among them, from being taken.
    around = (2 * -(-spacing // step) - 1) ** 2
    y, x, score = _best_candidates(lattice, count * around)
    taken: list[int] = []
    cells: dict[tuple[int, int], tuple[int, int]] = {}  # of `spacing` a side: no two fit in one
    for index, (top, left) in enumerate(zip(y.tolist(), x.tolist(), strict=True)):
        if len(taken) == count:
            break
        cell_y, cell_x = top // spacing, left // spacing
        near = (cells.get((cell_y + dy, cell_x + dx)) for dy in (-1, 0, 1) for dx in (-1, 0, 1))
        if all(other is None or max(abs(top - other[0]), abs(left - other[1])) >= spacing for other in near):
            taken.append(index)
            cells[cell_y, cell_x] = (top, left)
    rows = np.array(taken, dtype=np.int64)
    return ordered(y[rows], x[rows], score[rows], layout.side, grid)


def _best_candidates(lattice: _Lattice, most: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """(y, x, score) of the `most` best places of a lattice that are worth reading, best first, equal scores in reading order."""
    y, x, score = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
    parts, waiting = [(y, x, score)], 0
    for rows in steps(len(lattice.ys), max(1, AT_ONCE // len(lattice.xs))):
        row, column = np.nonzero(lattice.worth(rows))
        scores = lattice.scores(lattice.sums(rows), rows, slice(None))[row, column]
        better = scores > score[-1] if len(score) == most else np.ones(len(scores), np.bool_)  # who comes later loses a tie
        parts.append((lattice.ys[rows][row[better]], lattice.xs[column[better]], scores[better]))
        waiting += len(parts[-1][0])
        if waiting >= max(AT_ONCE, most) or rows.stop >= len(lattice.ys):
            y, x, score = (np.concatenate(columns) for columns in zip(*parts, strict=True))
            kept = best_first(score)[:most]
            y, x, score = y[kept], x[kept], score[kept]
            parts, waiting = [(y, x, score)], 0
    return y, x, score


def ordered(y: NDArray[np.int64], x: NDArray[np.int64], score: NDArray[np.float32], side: int, grid: Level) -> Plan:
    """A Plan of these patches in the order every plan has; rank by score, highest first, ties in that order."""
    order = np.lexsort((x, y, x // SQUARE, y // SQUARE))
    y, x, score = y[order], x[order], np.ascontiguousarray(score[order])
    return Plan(y=y, x=x, score=score, rank=ranks(score), side=side, grid=grid)


def _runs(values: NDArray[np.int64]) -> list[slice]:
    """Where each value of a rising array begins and ends."""
    edges = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    return [slice(begin, end) for begin, end in itertools.pairwise(edges)]


def coverage(plans: Sequence[Plan], saliency: Saliency) -> float:
    """Share of the valid area that lies inside planned patches, counted in coarse pixels."""
    level = saliency.level
    change = np.zeros((level.height + 1, level.width + 1), np.int32)
    for plan, part in ((each, part) for each in plans for part in steps(len(each), AT_ONCE)):
        rows = _coarse_spans(plan.y[part], plan.side, plan.grid.downsample_y, level.downsample_y, level.height)
        columns = _coarse_spans(plan.x[part], plan.side, plan.grid.downsample_x, level.downsample_x, level.width)
        for sign, y, x in ((1, 0, 0), (-1, 0, 1), (-1, 1, 0), (1, 1, 1)):
            np.add.at(change.reshape(-1), rows[:, y] * change.shape[1] + columns[:, x], sign)
    running, covered = np.zeros(level.width + 1, np.int32), 0
    for line, valid in zip(change[:-1], saliency.mask, strict=True):
        running += line
        covered += int(np.count_nonzero((np.cumsum(running)[:-1] > 0) & valid))
    total = int(np.count_nonzero(saliency.mask))
    return covered / total if total else 0.0


def _coarse_spans(first: NDArray[np.int64], side: int, fine: float, coarse: float, extent: int) -> NDArray[np.int64]:
    """(n, 2) [begin, end) coarse pixels that each [first, first + side) of a finer axis touches; never empty, inside the map."""
    begin = np.floor(first * fine / coarse + 1e-6).astype(np.int64)
    end = np.ceil((first + side) * fine / coarse - 1e-6).astype(np.int64)
    begin = np.clip(begin, 0, extent - 1)
    return np.stack([begin, np.clip(end, begin + 1, extent)], axis=1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Block:
    """The unit that is computed and committed at once."""

    index: int
    """Place among its round's blocks."""
    rows: NDArray[np.int64]
    """Rows of the plan that touch it, in plan order: all of them are computed for it."""
    owned: NDArray[np.int64]
    """Those of `rows` that are counted here and nowhere else."""
    window: Window | None
    """Its part of the target grid; None for a block of a feature table."""


class _Members(Protocol):
    """The rows of all blocks of a plan, each made when it is asked for."""

    def rows(self, index: int) -> NDArray[np.int64]: ...
    def owned(self, index: int) -> NDArray[np.int64]: ...
    def window(self, index: int) -> Window | None: ...


class _MadeBlock(Block):
    """A Block that holds no rows, only whom to ask: ten million rows cost 100 bytes a block, and nothing a row."""

    __slots__ = ("_of",)
    _of: _Members

    def __init__(self, index: int, of: _Members) -> None:
        object.__setattr__(self, "index", index)
        object.__setattr__(self, "_of", of)

    @property
    def rows(self) -> NDArray[np.int64]:
        return self._of.rows(self.index)

    @property
    def owned(self) -> NDArray[np.int64]:
        return self._of.owned(self.index)

    @property
    def window(self) -> Window | None:
        return self._of.window(self.index)

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(Block, index=self.index, rows=self.rows, owned=self.owned, window=self.window), ()


def feature_blocks(plan: Plan, *, rows: int = 1024) -> tuple[Block, ...]:
    """Blocks of consecutive rows of a feature table."""
    members = _Consecutive(total=len(plan), each=rows)
    return tuple(_MadeBlock(index, members) for index in range(-(-len(plan) // rows)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Consecutive:
    """`each` rows a block."""

    total: int
    each: int

    def rows(self, index: int) -> NDArray[np.int64]:
        return np.arange(index * self.each, min((index + 1) * self.each, self.total))

    owned = rows

    def window(self, _index: int) -> None:
        return None


def map_blocks(plan: Plan, *, edge: int, halo: int) -> tuple[Block, ...]:
    """Squares of `edge` target pixels that at least one patch's core touches, row-major; each with every patch that touches it."""
    cores = Cores(y=plan.y, x=plan.x, halo=halo, side=plan.side - 2 * halo, grid=plan.grid)
    squares = Squares(cores, edge)
    return tuple(_MadeBlock(index, squares) for index in range(len(squares)))
