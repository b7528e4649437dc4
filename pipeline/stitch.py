"""Values to finished blocks: rows of a feature table, or a square of each map, blended where patches overlap."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from patchdrive.models.types import ModelSpec, OutputSpec
from patchdrive.pipeline.batches import Dropped, Holed
from patchdrive.pipeline.infer import Values
from patchdrive.pipeline.plan import Block, Plan
from patchdrive.pipeline.settings import Blend
from patchdrive.pipeline.timings import Timings
from patchdrive.readers import Window

_LEAST_WEIGHT = 1e-3
"""Every pixel of a patch's core gets weight, so that no border pixel is lost (MONAI and nnU-Net clamp likewise)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MapPart:
    """One block of one map, before it is put into stored numbers."""

    values: NDArray[Any]
    """(channel, height, width) float."""
    valid: NDArray[np.bool_]
    """(height, width) True where some valid source pixel was seen by a patch."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Finished:
    """A block, computed."""

    block: Block
    """Which."""
    dropped: tuple[Dropped, ...]
    """Its rows that no model saw; rows owned by another block are counted there."""
    holed: tuple[Holed, ...]
    """Its rows that were computed with holes; likewise."""
    batch_size: int
    """Of the batches it was computed in."""
    rows: NDArray[np.int64]
    """(n,) rows computed."""
    features: Mapping[str, NDArray[Any]]
    """Per vector output, (n, D) float32, one row per entry of `rows`; empty for maps."""
    maps: Mapping[str, MapPart]
    """Per map output."""


def window_weights(cells: int, blend: Blend) -> NDArray[np.float64]:
    """(cells, cells) weight of each cell of a patch's core; separable, symmetric, at least 1e-3.

    `gaussian` has sigma = cells / 8 (nnU-Net), `pyramid` falls linearly to the border, `hann` is the raised cosine.
    """
    centre = np.abs(np.arange(cells) + 0.5 - cells / 2)
    line = {
        "box": np.ones(cells),
        "gaussian": np.exp(-0.5 * (centre / (cells / 8)) ** 2),
        "hann": np.cos(np.pi * centre / cells) ** 2,
        "pyramid": 1 - centre / (cells / 2),
    }[blend]
    return np.maximum(np.outer(line, line), _LEAST_WEIGHT)


def stitch(values: Iterator[Values], plan: Plan, spec: ModelSpec, blend: Blend, timings: Timings) -> Iterator[Finished]:
    """Join the values of each block; blocks come out in the order they came in."""
    held: list[_Rows | _Square] = []
    for value in values:
        block = value.batch.block
        with timings.stage("stitch"):
            if not held:
                held.append(_Rows(block, spec) if block.window is None else _Square(block, plan, spec, blend))
            held[0].add(value)
        if value.batch.last:
            yield _finish(held, timings)  # and keep no name for it: a block is large


def _finish(held: list[_Rows | _Square], timings: Timings) -> Finished:
    with timings.stage("stitch"):
        return held.pop().finish()


class _Rows:
    """A block of every feature table in the making. Vectors are copied into arrays of the block's size: many small ones kept for long
    would tear the heap into pieces that nobody can use.
    """

    def __init__(self, block: Block, spec: ModelSpec) -> None:
        self._block = block
        self._dropped: list[Dropped] = []
        self._holed: list[Holed] = []
        self._batch_size = self._count = 0
        self._rows = np.empty(len(block.rows), np.int64)
        self._vectors = {output.name: np.empty((len(block.rows), len(output.columns)), np.float32) for output in spec.vectors}

    def add(self, value: Values) -> None:
        self._dropped.extend(value.batch.dropped)
        self._holed.extend(value.batch.holed)
        self._batch_size = value.batch.size
        if value.outputs:
            part = slice(self._count, self._count + len(value.batch.rows))
            self._count = part.stop
            self._rows[part] = value.batch.rows
            for name, vectors in value.outputs.items():
                self._vectors[name][part] = vectors

    def finish(self) -> Finished:
        return Finished(
            block=self._block,
            dropped=tuple(self._dropped),
            holed=tuple(self._holed),
            batch_size=self._batch_size,
            rows=self._rows[: self._count],
            features={name: vectors[: self._count] for name, vectors in self._vectors.items()},
            maps={},
        )


class _Square:
    """A block of maps in the making: weighted sums, weights and validity per output."""

    def __init__(self, block: Block, plan: Plan, spec: ModelSpec, blend: Blend) -> None:
        assert block.window is not None
        self._block, self._plan, self._spec = block, plan, spec
        self._dropped: list[Dropped] = []
        self._holed: list[Holed] = []
        self._batch_size = 0
        self._rows: list[NDArray[np.int64]] = []
        self._sums = {output.name: _Sums(output, block.window, plan.side, blend) for output in spec.outputs}

    def add(self, value: Values) -> None:
        self._dropped.extend(value.batch.dropped)
        self._holed.extend(value.batch.holed)
        self._batch_size = value.batch.size
        self._rows.append(value.batch.rows)
        for index, (row, place) in enumerate(zip(value.batch.rows.tolist(), value.batch.places.tolist(), strict=True)):
            y, x = int(self._plan.y[row]), int(self._plan.x[row])
            valid = None if value.batch.valid is None else value.batch.valid[place]
            for name, values in value.outputs.items():
                self._sums[name].add(y, x, values[index], valid)

    def finish(self) -> Finished:
        owned = set(self._block.owned.tolist())
        return Finished(
            block=self._block,
            dropped=tuple(drop for drop in self._dropped if drop.row in owned),
            holed=tuple(hole for hole in self._holed if hole.row in owned),
            batch_size=self._batch_size,
            rows=np.concatenate(self._rows),
            features={},
            maps={name: sums.finish() for name, sums in self._sums.items()},
        )


class _Sums:
    """Weighted sums of one output over one block, on the output's own cells."""

    def __init__(self, output: OutputSpec, window: Window, side: int, blend: Blend) -> None:
        stride = output.stride
        self._output = output
        self._cells = Window(
            y=window.y // stride,
            x=window.x // stride,
            height=-(-window.y_end // stride) - window.y // stride,
            width=-(-window.x_end // stride) - window.x // stride,
        )
        shape = (self._cells.height, self._cells.width)
        kind: type[np.float32 | np.float64] = np.float64 if output.kind == "image" else np.float32
        self._sums: NDArray[Any] = np.zeros((len(output.channels), *shape), kind)
        self._weights: NDArray[Any] = np.zeros(shape, kind)
        self._valid = np.zeros(shape, np.bool_)
        self._window: NDArray[Any] = window_weights((side - 2 * output.halo) // stride, blend).astype(kind)

    def add(self, y: int, x: int, values: NDArray[Any], valid: NDArray[np.bool_] | None) -> None:
        """Add the core of one patch whose corner is target pixel (y, x): values (channel, side/stride, side/stride)."""
        stride, halo = self._output.stride, self._output.halo
        edge = halo // stride
        core = Window(y=(y + halo) // stride, x=(x + halo) // stride, height=len(self._window), width=len(self._window))
        shared = core.intersect(self._cells)
        if shared is None:
            return
        ours, theirs = shared.within(self._cells), shared.within(core)
        weight = self._window[theirs]
        size = values.shape[1]
        self._sums[:, *ours] += weight * values[:, edge : size - edge, edge : size - edge][:, *theirs]
        self._weights[ours] += weight
        if valid is None:
            self._valid[ours] = True
        else:
            side = len(valid)
            cells: NDArray[Any] = valid[halo : side - halo, halo : side - halo]
            if stride > 1:
                cells = np.asarray(cells.reshape(core.height, stride, core.width, stride).any(axis=(1, 3)))
            self._valid[ours] |= cells[theirs]

    def finish(self) -> MapPart:
        there = self._weights > 0
        np.divide(self._sums, self._weights, out=self._sums, where=there)
        # Back to what the model gave: sums in float64 are right to the bit only once rounded to float32.
        return MapPart(values=self._sums.astype(np.float32, copy=False), valid=self._valid & there)


def default_blend(overlap: int, halo: int) -> Literal["box", "gaussian"]:
    """`box` where patches share their halo only: each pixel then has one patch, and its value is kept to the bit."""
    return "box" if overlap <= 2 * halo else "gaussian"
