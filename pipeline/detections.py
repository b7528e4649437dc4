"""From the boxes that a detection head gives of each patch to the things in the image, each once; a chunk of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from patchdrive.models.types import BOX, OutputSpec
from patchdrive.pipeline.boxes import Boxes, Rivalry, overlapping, suppress_parts
from patchdrive.pipeline.components import Table
from patchdrive.pipeline.plan import Plan

_ROWS = 1024
"""Patches read at once: a chunk of a table."""
_EDGE = 1.0
"""Target pixels: a box that comes this near to its patch's edge may be part of something larger."""


def things(plan: Plan, table: Table, output: OutputSpec) -> Iterator[Boxes]:
    """What was found, part by part, in level-0 pixels, however patches overlap: of boxes that mean one thing the best.

    A box that ends where its patch ends, inside the image, is the worse the sight of a thing: whole ones come first, and it goes where it
    lies in one of its class by more than the output's `iou` of itself.

    Args:
        plan: of the patches.
        table: (n, most * 6) boxes of each, in target pixels from the patch's corner; NaN where a patch was not computed.
        output: whose boxes they are.
    """
    for kept in suppress_parts(_parts(plan, table, output.most), _one_thing(output.iou)):
        yield replace(kept, score=np.where(kept.score <= 0, kept.score + 1, kept.score))


def _one_thing(iou: float) -> Rivalry:
    """Boxes above the IoU; or one that is cut, and lies in the other by more than that share."""
    whole = overlapping(iou)

    def rival(one: Boxes, other: Boxes) -> NDArray[np.bool_]:
        high = np.minimum(one.bottom, other.bottom) - np.maximum(one.y, other.y)
        wide = np.minimum(one.x + one.width, other.x + other.width) - np.maximum(one.x, other.x)
        shared = np.maximum(high, 0) * np.maximum(wide, 0)
        inside = (one.score <= 0) & (shared > iou * one.height * one.width)
        inside |= (other.score <= 0) & (shared > iou * other.height * other.width)
        return np.asarray(whole(one, other) | inside)

    return rival


def _parts(plan: Plan, table: Table, most: int) -> Iterator[tuple[Boxes, float]]:
    """Boxes of some rows after the other, and the upper edge of the uppermost patch that is still to come."""
    left = np.append(np.minimum.accumulate(plan.y[::-1])[::-1], np.iinfo(np.int64).max).astype(np.float64) * plan.grid.downsample_y
    for start in range(0, len(plan), _ROWS):
        rows = slice(start, min(start + _ROWS, len(plan)))
        given = np.asarray(table[rows], np.float64).reshape(-1, most, len(BOX))
        yield _placed(plan, rows, given), float(left[rows.stop])


def _placed(plan: Plan, rows: slice, given: NDArray[np.float64]) -> Boxes:
    """Boxes in level-0 pixels, cut to their patch and the image; those that are cut there have their score lowered by one."""
    grid, side = plan.grid, float(plan.side)
    corner_y, corner_x = (np.broadcast_to(column[rows, None], given.shape[:2]) for column in (plan.y, plan.x))
    y, x, high, wide, score, kind = (given[..., index] for index in range(len(BOX)))
    top, left, bottom, right = np.maximum(y, 0), np.maximum(x, 0), np.minimum(y + high, side), np.minimum(x + wide, side)
    cut = (top <= _EDGE) & (corner_y > 0) | (bottom >= side - _EDGE) & (corner_y + side < grid.height)
    cut |= (left <= _EDGE) & (corner_x > 0) | (right >= side - _EDGE) & (corner_x + side < grid.width)
    top, bottom = (np.clip(corner_y + edge, 0, grid.height) * grid.downsample_y for edge in (top, bottom))
    left, right = (np.clip(corner_x + edge, 0, grid.width) * grid.downsample_x for edge in (left, right))
    there = (score > 0) & (bottom > top) & (right > left)  # NaN is not there
    return Boxes(
        y=np.asarray(top[there], np.float64),
        x=np.asarray(left[there], np.float64),
        height=(bottom - top)[there],
        width=(right - left)[there],
        score=np.where(cut, score - 1, score)[there],
        kind=kind[there].astype(np.int64),
    )
