"""Pictures of plans, maps, objects and patches. Pure: arrays in, arrays out; `save_picture` writes one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import zoom
from skimage.io import imsave

from patchdrive.pipeline.plan import Plan
from patchdrive.readers import Level

FRAME = np.array([255, 196, 0], np.uint8)
"""Colour of outlines."""
TINT = 0.5
"""How much of its colour a tinted patch shows."""
_LEAST_OUTLINE = 24
"""Canvas pixels; smaller patches are outlined together."""
_MOST_OUTLINES = 0.35
"""Of the area; where overlapping patches have more, they are outlined together too."""
_RINGS = ((9.0, 6.0), (8.0, 7.0))
"""Outer and inner radius of a ring's dark rim and of its bright line, canvas pixels."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Canvas:
    """A picture of the whole image to draw on."""

    pixels: NDArray[np.uint8]
    """(height, width, 3)."""
    downsample: tuple[float, float]
    """Level-0 pixels per canvas pixel, (y, x)."""

    @property
    def height(self) -> int:
        """Rows."""
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        """Columns."""
        return int(self.pixels.shape[1])


def save_picture(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write (height, width, 3) uint8 as PNG."""
    imsave(path, pixels, check_contrast=False)


def enlarged(canvas: Canvas, side: int) -> Canvas:
    """A canvas whose longer side has at least half of `side` pixels and no more than `side`, where it had fewer; by a whole factor."""
    factor = max(1, side // max(canvas.height, canvas.width))
    if factor == 1:
        return canvas
    bigger = zoom(canvas.pixels, (factor, factor, 1), order=1, mode="nearest", grid_mode=True)
    down = (canvas.downsample[0] / factor, canvas.downsample[1] / factor)
    return Canvas(pixels=bigger, downsample=down)


def cropped(canvas: Canvas, height: int, width: int) -> Canvas:
    """The part of a canvas that lies on an image of `height` x `width` level-0 pixels."""
    rows, columns = (max(1, round(extent / down)) for extent, down in zip((height, width), canvas.downsample, strict=True))
    return replace(canvas, pixels=canvas.pixels[:rows, :columns])


def muted(canvas: Canvas) -> Canvas:
    """The same in pale grey, so that colours laid over it are read as what they mean."""
    grey = canvas.pixels.astype(np.float32).mean(axis=2, keepdims=True) * 0.4 + 255 * 0.6
    return replace(canvas, pixels=np.repeat(grey, 3, axis=2).astype(np.uint8))


def draw_plan(thumbnail: NDArray[np.uint8], plan: Plan, base: Level) -> NDArray[np.uint8]:
    """The thumbnail, pale where nothing is read, with the outline of what is.

    Args:
        thumbnail: (height, width, 3), of all of `base`.
        plan: whose patches are drawn.
        base: level 0 of the image.
    """
    height, width = thumbnail.shape[:2]
    return draw_plans(Canvas(pixels=thumbnail, downsample=(base.height / height, base.width / width)), [plan])


def draw_plans(canvas: Canvas, plans: Sequence[Plan]) -> NDArray[np.uint8]:
    """The canvas, pale outside the patches of all plans; patches outlined one by one, or together where they are too small for that."""
    inside = np.zeros((canvas.height, canvas.width), np.bool_)
    edge = np.zeros_like(inside)
    for plan in plans:
        spans = patch_spans(plan, canvas)
        covered = _covered(spans, canvas)
        inside |= covered
        small = (
            plan.side * min(plan.grid.downsample_y / canvas.downsample[0], plan.grid.downsample_x / canvas.downsample[1]) < _LEAST_OUTLINE
        )
        lines = np.zeros_like(inside)
        if not small:
            _outline(lines, spans)
        edge |= covered & ~_eroded(covered) if small or lines.sum() > _MOST_OUTLINES * covered.sum() else lines
    faded = (canvas.pixels.astype(np.float32) * 0.35 + 255 * 0.65).astype(np.uint8)
    drawn = np.where(inside[..., None], canvas.pixels, faded)
    drawn[edge] = FRAME
    return drawn


def patch_spans(plan: Plan, canvas: Canvas) -> NDArray[np.int64]:
    """(n, 4) first row, end row, first column, end column of each patch on the canvas; at least one pixel, inside it."""
    spans = []
    sides = (
        (plan.y, plan.grid.downsample_y, canvas.downsample[0], canvas.height),
        (plan.x, plan.grid.downsample_x, canvas.downsample[1], canvas.width),
    )
    for first, fine, coarse, extent in sides:
        begin = np.clip(np.floor(first * fine / coarse + 1e-6).astype(np.int64), 0, extent - 1)
        end = np.ceil((first + plan.side) * fine / coarse - 1e-6).astype(np.int64)
        spans += [begin, np.clip(end, begin + 1, extent)]
    return np.stack(spans, axis=1)


def _covered(spans: NDArray[np.int64], canvas: Canvas) -> NDArray[np.bool_]:
    change = np.zeros((canvas.height + 1, canvas.width + 1), np.int32)
    y, y_end, x, x_end = spans.T
    for sign, rows, columns in ((1, y, x), (-1, y, x_end), (-1, y_end, x), (1, y_end, x_end)):
        np.add.at(change, (rows, columns), sign)
    return np.asarray(change.cumsum(axis=0).cumsum(axis=1)[:-1, :-1] > 0)


def _eroded(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    padded = np.pad(inside, 1)
    return padded[1:-1, 1:-1] & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]


def _outline(edge: NDArray[np.bool_], spans: NDArray[np.int64]) -> None:
    for y, y_end, x, x_end in spans.tolist():
        edge[y, x:x_end] = edge[y_end - 1, x:x_end] = True
        edge[y:y_end, x] = edge[y:y_end, x_end - 1] = True


def sampled(values: NDArray[Any], downsample: tuple[float, float], canvas: Canvas, none: float) -> NDArray[Any]:
    """(height, width) of the canvas: the pixel of `values` under the middle of each canvas pixel, `none` where there is none.

    Args:
        values: (h, w), its corner on the image's.
        downsample: level-0 pixels per pixel of `values`, (y, x).
        canvas: what it is wanted for.
        none: for canvas pixels beyond `values`.
    """
    rows, columns = (
        ((np.arange(extent) + 0.5) * coarse / fine).astype(np.int64)
        for extent, coarse, fine in zip((canvas.height, canvas.width), canvas.downsample, downsample, strict=True)
    )
    taken = values[np.ix_(np.minimum(rows, values.shape[0] - 1), np.minimum(columns, values.shape[1] - 1))]
    outside = (rows >= values.shape[0])[:, None] | (columns >= values.shape[1])[None]
    return np.where(outside, np.asarray(none, taken.dtype), taken)


def overlay(canvas: Canvas, colors: NDArray[np.uint8], strength: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Colours laid over the canvas.

    Args:
        canvas: what shows through.
        colors: (height, width, 3).
        strength: (height, width) in [0, 1], how much of the colour shows.
    """
    share = strength[..., None]
    return np.rint(canvas.pixels * (1 - share) + colors * share).astype(np.uint8)


def ramp_overlay(canvas: Canvas, values: NDArray[np.float32], ramp: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Probabilities laid over the canvas: the higher, the more of the colour shows; see `ramp_strength`.

    Args:
        canvas: what shows through.
        values: (height, width) in [0, 1]; NaN shows the canvas.
        ramp: (256, 3) colours of 0 to 1.
    """
    known = np.isfinite(values)
    steps = np.rint(np.where(known, values, 0) * 255).astype(np.int64)
    return overlay(canvas, ramp[steps], np.where(known, ramp_strength(steps / np.float32(255)), 0).astype(np.float32))


def ramp_strength(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """How much of its colour a probability shows: 0.1 at 0, 0.75 at 1."""
    return np.asarray(0.1 + 0.65 * values, np.float32)


def stretched(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(channel, height, width) to uint8, each channel from its 2nd to its 98th percentile; 0 where NaN."""
    out = np.zeros(values.shape, np.uint8)
    for channel, plane in enumerate(values):
        known = np.isfinite(plane)
        if known.any():
            low, high = np.percentile(plane[known], (2, 98)).tolist()
            out[channel] = np.clip((np.where(known, plane, low) - low) * (255 / max(high - low, 1e-12)), 0, 255).astype(np.uint8)
    return out


def paint_patches(canvas: Canvas, plan: Plan, colors: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The canvas with each of `rows` of the plan filled with its colour, (len(rows), 3); where patches overlap the later one shows."""
    drawn = canvas.pixels.copy()
    spans = patch_spans(plan, canvas)[rows]
    single = (spans[:, 1] - spans[:, 0] == 1) & (spans[:, 3] - spans[:, 2] == 1)
    drawn[spans[single, 0], spans[single, 2]] = colors[single]
    for (y, y_end, x, x_end), color in zip(spans[~single].tolist(), colors[~single], strict=True):
        drawn[y:y_end, x:x_end] = color
    return drawn


def tint_patches(canvas: Canvas, plan: Plan, color: NDArray[np.uint8], rows: NDArray[np.int64]) -> Canvas:
    """The canvas, half in `color`, (3,), where `rows` of the plan lie."""
    inside = _covered(patch_spans(plan, canvas)[rows], canvas)
    colors = np.broadcast_to(color, canvas.pixels.shape)
    return replace(canvas, pixels=overlay(canvas, colors, np.where(inside, np.float32(TINT), np.float32(0))))


def draw_rings(canvas: Canvas, centres: NDArray[np.float64], colors: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A ring around each of `centres`, (n, 2) level-0 pixels (y, x), in its colour, with a dark rim."""
    drawn = canvas.pixels.copy()
    middle = np.floor(centres / np.array(canvas.downsample)).astype(np.int64)
    reach = np.arange(-10, 11)
    distance = np.hypot(*np.meshgrid(reach, reach, indexing="ij"))
    for ring, (outer, inner) in enumerate(_RINGS):
        offsets = np.argwhere((distance < outer) & (distance >= inner)) - 10
        for offset in offsets:
            at = middle + offset
            inside = ((at >= 0) & (at < (canvas.height, canvas.width))).all(axis=1)
            drawn[at[inside, 0], at[inside, 1]] = 20 if ring == 0 else colors[inside]
    return drawn
