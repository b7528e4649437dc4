"""What is known of patches, painted to maps of one pixel per patch: their scores, and their features as three colours, for looking."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchdrive.models.types import OutputSpec
from patchdrive.pipeline.components import FeatureColors, Table, feature_colors
from patchdrive.pipeline.maps import NONE, PROBABILITY_STEPS, StoredMap, stored_maps
from patchdrive.pipeline.metadata import Frame
from patchdrive.pipeline.plan import Plan

(SCORES,) = stored_maps(OutputSpec(name="scores", kind="probability", channels=("score",), colors=("FFFFFF",)), all_classes=False)


def painted_maps(tables: Sequence[str]) -> tuple[StoredMap, ...]:
    """The maps that are painted for feature tables of these names: the scores, and of each table an image with its validity."""
    colors = (OutputSpec(name=f"{table}_colors", kind="image", channels=("red", "green", "blue"), dtype="uint8") for table in tables)
    return (SCORES, *(stored for output in colors for stored in stored_maps(output, all_classes=False)))


@dataclass(frozen=True, kw_only=True, eq=False)
class Painting:
    """Patches of all rounds on a grid of cells. Of several in one cell those of the last round show, and of them the highest score."""

    plans: Sequence[Plan]
    """One per round."""
    tables: Mapping[str, Sequence[Table]]
    """Their features, by name of the table: one per round; rows of NaN were not computed."""
    strides: Sequence[tuple[float, float]]
    """Step from patch to patch of each round, level-0 pixels, (y, x)."""
    frame: Frame
    """How cells lie on the image: a cell's centre is that of the patch it is painted from, where patches lie on a grid."""

    @classmethod
    def of(cls, plans: Sequence[Plan], tables: Mapping[str, Sequence[Table]], frame: Frame, step: float) -> Painting:
        """
        Args:
            plans: one per round, with rows.
            tables: features, by name, one per round.
            frame: of the first round's target grid.
            step: share of a patch's side from one patch to the next.
        """
        strides = [(plan.side * step * plan.grid.downsample_y, plan.side * step * plan.grid.downsample_x) for plan in plans]
        finest = min(range(len(plans)), key=lambda index: strides[index])
        (y, x), side = strides[finest], plans[finest].side * (1 - step) / 2
        shift = (side * plans[finest].grid.downsample_y, side * plans[finest].grid.downsample_x)
        size = (frame.height * frame.downsample_y, frame.width * frame.downsample_x)
        height, width = (
            max(1, math.ceil((extent - 2 * away) / cell - 1e-6)) for extent, away, cell in zip(size, shift, (y, x), strict=True)
        )
        held = replace(frame, height=height, width=width, downsample_y=y, downsample_x=x, shift_y=shift[0], shift_x=shift[1])
        return cls(plans=plans, tables=tables, strides=strides, frame=held)

    def parts(self, stored: StoredMap, top: int, side: int) -> Iterator[tuple[tuple[slice, ...], NDArray[Any]]]:
        """`side` rows of cells of one of `painted_maps`, square by square: where each lies, and what it holds."""
        for left in range(0, self.frame.width, side):
            area = (slice(top, min(top + side, self.frame.height)), slice(left, min(left + side, self.frame.width)))
            if stored.name == SCORES.name:
                values = [np.rint(np.clip(plan.score, 0, 1) * PROBABILITY_STEPS).astype(np.uint8)[:, None] for plan in self.plans]
                every = [np.arange(len(plan)) for plan in self.plans]
                yield (slice(0, 1), *area), self._painted(every, values, area, NONE)
                continue
            found = self._colors[stored.name.removesuffix("_valid").removesuffix("_colors")]
            if stored.folder == "labels":
                there = [np.ones((len(rows), 1), np.uint8) for rows in found.rows]
                yield area, self._painted(found.rows, there, area, 0)[0]
            else:
                yield (slice(0, 3), *area), self._painted(found.rows, found.colors, area, 0)

    @cached_property
    def _colors(self) -> Mapping[str, FeatureColors]:
        return {name: feature_colors(tables) or _no_colors(len(tables)) for name, tables in self.tables.items()}

    @cached_property
    def _cells(self) -> Sequence[tuple[NDArray[np.int32], NDArray[np.int32], int, int]]:
        """Per round: the first cell of each patch, (y, x), and how many it spans."""
        frame, found = self.frame, []
        for plan, (stride_y, stride_x) in zip(self.plans, self.strides, strict=True):
            middles = plan.centres
            high, wide = max(1, round(stride_y / frame.downsample_y)), max(1, round(stride_x / frame.downsample_x))
            y = (middles[:, 0] - stride_y / 2 - frame.shift_y) / frame.downsample_y
            x = (middles[:, 1] - stride_x / 2 - frame.shift_x) / frame.downsample_x
            found.append((_nearest(y, frame.height - high), _nearest(x, frame.width - wide), high, wide))
        return found

    def _painted(
        self, rows: Sequence[NDArray[np.int64]], values: Sequence[NDArray[np.uint8]], area: tuple[slice, slice], none: int
    ) -> NDArray[np.uint8]:
        """(channel, height, width) of an area of cells, filled with the (n, channel) values of some rows of each round."""
        down, across = area
        painted = np.full((down.stop - down.start, across.stop - across.start, values[0].shape[1]), none, np.uint8)
        for plan, (y, x, high, wide), some, shown in zip(self.plans, self._cells, rows, values, strict=True):
            top, left = y[some], x[some]
            near = (top < down.stop) & (top + high > down.start) & (left < across.stop) & (left + wide > across.start)
            order = np.flatnonzero(near)
            order = order[np.argsort(plan.score[some[order]], kind="stable")]  # of two values for one cell the later stays
            step_y, step_x = np.divmod(np.arange(high * wide), wide)
            at_y, at_x = (top[order, None] + step_y - down.start).ravel(), (left[order, None] + step_x - across.start).ravel()
            inside = (at_y >= 0) & (at_y < painted.shape[0]) & (at_x >= 0) & (at_x < painted.shape[1])
            painted[at_y[inside], at_x[inside]] = np.repeat(shown[order], high * wide, axis=0)[inside]
        return np.ascontiguousarray(painted.transpose(2, 0, 1))


def _nearest(places: NDArray[np.float64], last: int) -> NDArray[np.int32]:
    """Cells nearest to places that may lie on no grid; halves all go one way, so that places a cell apart go to cells a cell apart."""
    return np.clip(np.floor(places + 0.5 + 1e-6), 0, max(0, last)).astype(np.int32)


def _no_colors(rounds: int) -> FeatureColors:
    """Of tables with too few rows to compare."""
    nothing, colorless = np.zeros(0, np.int64), np.zeros((0, 3), np.uint8)
    return FeatureColors(rows=(nothing,) * rounds, colors=(colorless,) * rounds, share=())
