"""Plan: which patches. Pure: arrays in, arrays out; no file, no thread, no clock.

A plan lies on the *target grid*: pixels of one size, whose (0, 0) corner is the image's. `downsample` carries them to level 0,
so a patch has an exact phase and no rounding drift.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
        half = self.side / 2
        return np.stack([(self.y + half) * self.grid.downsample_y, (self.x + half) * self.grid.downsample_x], axis=1)

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


def plan_grid(grid: Level, saliency: Saliency, layout: Layout) -> Plan:
    """Every patch of the layout whose core touches at least one coarse pixel worth reading: nothing worth reading is left out."""
    ys, xs = positions(grid.height, layout), positions(grid.width, layout)
    core = layout.side - 2 * layout.halo
    rows = _coarse_spans(ys + layout.halo, core, grid.downsample_y, saliency.level.downsample_y, saliency.level.height)
    columns = _coarse_spans(xs + layout.halo, core, grid.downsample_x, saliency.level.downsample_x, saliency.level.width)
    score = _span_sums(saliency.map, rows, columns) / np.outer(rows[:, 1] - rows[:, 0], columns[:, 1] - columns[:, 0])
    worth = _span_sums(saliency.map >= WORTH_READING, rows, columns) > 0
    row, column = np.nonzero(worth)
    return ordered(ys[row], xs[column], score[row, column].astype(np.float32), layout.side, grid)


def plan_topk(grid: Level, saliency: Saliency, layout: Layout, *, count: int, spacing: int, multiple: int = 1) -> Plan:
    """The `count` most salient patches, no two corners nearer than `spacing` along both axes.

    Candidates lie on a lattice of about a quarter patch whose steps are multiples of `multiple`, a map's stride. Taken greedily,
    best first; equal scores in reading order.
    """
    step = max(multiple, layout.side // 4 // multiple * multiple)
    step = min(step, layout.side - 2 * layout.halo)
    every = plan_grid(grid, saliency, Layout(side=layout.side, stride=step, halo=layout.halo))
    best_first = np.lexsort((every.x, every.y, -every.score))
    taken: list[int] = []
    cells: dict[tuple[int, int], list[int]] = {}
    for row in best_first.tolist():
        if len(taken) == count:
            break
        y, x = int(every.y[row]), int(every.x[row])
        cell_y, cell_x = y // spacing, x // spacing
        near = (other for dy in (-1, 0, 1) for dx in (-1, 0, 1) for other in cells.get((cell_y + dy, cell_x + dx), ()))
        if all(max(abs(y - int(every.y[other])), abs(x - int(every.x[other]))) >= spacing for other in near):
            taken.append(row)
            cells.setdefault((cell_y, cell_x), []).append(row)
    rows = np.array(taken, dtype=np.int64)
    return ordered(every.y[rows], every.x[rows], every.score[rows], layout.side, grid)


def ordered(y: NDArray[np.int64], x: NDArray[np.int64], score: NDArray[np.float32], side: int, grid: Level) -> Plan:
    """A Plan of these patches in the order every plan has; rank by score, highest first, ties in that order."""
    order = np.lexsort((x, y, x // SQUARE, y // SQUARE))
    y, x, score = y[order], x[order], np.ascontiguousarray(score[order])
    rank = np.empty(len(y), np.int64)
    rank[np.argsort(-score, kind="stable")] = np.arange(len(y))
    return Plan(y=y, x=x, score=score, rank=rank, side=side, grid=grid)


def coverage(plans: Sequence[Plan], saliency: Saliency) -> float:
    """Share of the valid area that lies inside planned patches, counted in coarse pixels."""
    level = saliency.level
    change = np.zeros((level.height + 1, level.width + 1), np.int32)
    for plan in plans:
        rows = _coarse_spans(plan.y, plan.side, plan.grid.downsample_y, level.downsample_y, level.height)
        columns = _coarse_spans(plan.x, plan.side, plan.grid.downsample_x, level.downsample_x, level.width)
        for sign, y, x in ((1, 0, 0), (-1, 0, 1), (-1, 1, 0), (1, 1, 1)):
            np.add.at(change, (rows[:, y], columns[:, x]), sign)
    covered = change.cumsum(axis=0).cumsum(axis=1)[:-1, :-1] > 0
    valid = np.count_nonzero(saliency.mask)
    return float(np.count_nonzero(covered & saliency.mask) / valid) if valid else 0.0


def _coarse_spans(first: NDArray[np.int64], side: int, fine: float, coarse: float, extent: int) -> NDArray[np.int64]:
    """(n, 2) [begin, end) coarse pixels that each [first, first + side) of a finer axis touches; never empty, inside the map."""
    begin = np.floor(first * fine / coarse + 1e-6).astype(np.int64)
    end = np.ceil((first + side) * fine / coarse - 1e-6).astype(np.int64)
    begin = np.clip(begin, 0, extent - 1)
    return np.stack([begin, np.clip(end, begin + 1, extent)], axis=1)


def _span_sums(values: NDArray[Any], rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.float64]:
    """(len(rows), len(columns)) sums of `values` over every pair of spans."""
    by_rows = np.stack([values[begin:end].sum(axis=0, dtype=np.float64) for begin, end in rows.tolist()])
    return np.stack([by_rows[:, begin:end].sum(axis=1) for begin, end in columns.tolist()], axis=1)


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


def feature_blocks(plan: Plan, *, rows: int = 1024) -> tuple[Block, ...]:
    """Blocks of consecutive rows of a feature table."""
    starts = range(0, len(plan), rows)
    spans = [np.arange(start, min(start + rows, len(plan))) for start in starts]
    return tuple(Block(index=index, rows=span, owned=span, window=None) for index, span in enumerate(spans))


def map_blocks(plan: Plan, *, edge: int, halo: int) -> tuple[Block, ...]:
    """Squares of `edge` target pixels that at least one patch's core touches, row-major; each with every patch that touches it."""
    if not len(plan):
        return ()
    grid, core = plan.grid, plan.side - 2 * halo
    across = -(-grid.width // edge)
    top, left = np.maximum(plan.y + halo, 0), np.maximum(plan.x + halo, 0)
    bottom = np.minimum(plan.y + halo + core, grid.height) - 1
    right = np.minimum(plan.x + halo + core, grid.width) - 1
    inside = (bottom >= top) & (right >= left)
    first_y, last_y, first_x, last_x = top // edge, bottom // edge, left // edge, right // edge
    rows, keys = [], []
    for dy in range(int((last_y - first_y).max(initial=0)) + 1):
        for dx in range(int((last_x - first_x).max(initial=0)) + 1):
            touched = np.nonzero(inside & (first_y + dy <= last_y) & (first_x + dx <= last_x))[0]
            rows.append(touched)
            keys.append((first_y[touched] + dy) * across + first_x[touched] + dx)
    row, key = np.concatenate(rows), np.concatenate(keys)
    order = np.lexsort((row, key))
    row, key = row[order], key[order]
    home = first_y * across + first_x
    if not len(key):
        return ()
    names, starts = np.unique(key, return_index=True)
    blocks = []
    for index, (name, members) in enumerate(zip(names.tolist(), np.split(row, starts[1:]), strict=True)):
        window = Window(y=name // across * edge, x=name % across * edge, height=edge, width=edge).intersect(grid.window)
        blocks.append(Block(index=index, rows=members, owned=members[home[members] == name], window=window))
    return tuple(blocks)
