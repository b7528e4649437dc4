"""The pictures of a report, each with its words and the meaning of its colours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray

from patchdrive.pipeline import pictures
from patchdrive.pipeline.components import Table, feature_colors
from patchdrive.pipeline.map_view import MapView
from patchdrive.pipeline.pictures import Canvas
from patchdrive.pipeline.plan import WORTH_READING
from patchdrive.pipeline.result import Result, ResultRound
from patchdrive.pipeline.shrink import SmallMap, shrink
from patchdrive.pipeline.tables import STATES, FoundObjects

SIDE = 1024
"""Longest side of a picture of the whole image."""
_MOST_CHANNELS = 6
"""More channels of one map are not drawn, and the page says so."""
_LABEL_STRENGTH = 0.65
_NOTHING = 236
"""Grey where an image map has no value."""
_UNREAD = {
    "planned": (np.array([96, 108, 124], np.uint8), "not yet computed"),
    "skipped": (np.array([150, 90, 190], np.uint8), "skipped"),
    "failed": (np.array([214, 39, 40], np.uint8), "failed"),
}
"""Tint of patches by their state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ramp:
    """Colours of a range."""

    colors: tuple[str, ...]
    """RRGGBB from low to high, evenly spaced, as they look in the picture."""
    low: str
    """Name of the low end."""
    high: str
    """Name of the high end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Swatches:
    """Colours of classes."""

    entries: tuple[tuple[str, str], ...]
    """(RRGGBB, meaning)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Figure:
    """One picture of a report."""

    name: str
    """Of its file, without suffix."""
    title: str
    """A few words."""
    caption: str
    """What is seen, in a sentence or two."""
    alt: str
    """The same for who cannot see it."""
    pixels: NDArray[np.uint8]
    """(height, width, 3)."""
    legend: Ramp | Swatches | None = None
    """What its colours mean."""


def canvas_of(result: Result) -> Canvas:
    """The thumbnail, large enough to draw on.

    Raises:
        StoreError: the store holds none.
    """
    held = Canvas(pixels=result.thumbnail, downsample=result.thumbnail_map.downsample)
    return pictures.enlarged(pictures.cropped(held, *result.size), SIDE)


def figures(result: Result, rounds: Sequence[ResultRound], canvas: Canvas) -> Iterator[Figure]:
    """Every picture of the page but the patches."""
    yield _thumbnail(result, canvas)
    yield _saliency(result, canvas)
    if rounds:
        yield _plan(rounds, canvas, finished=result.report is not None)
    for view in result.maps.values():
        if not _is_validity(view, result):
            yield from _map(view, canvas)
    for name, found in result.objects.items():
        yield _objects(name, found, canvas)
    for name, tables in result.tables.items():
        if rounds and tables:
            yield from _features(name if len(result.tables) > 1 else "", tables, rounds, canvas)


def _is_validity(view: MapView, result: Result) -> bool:
    base = result.maps.get(view.name.removesuffix("_valid"))
    return base is not None and base.validity is not None and base.validity.path == view.path


def _thumbnail(result: Result, canvas: Canvas) -> Figure:
    height, width = result.size
    return Figure(
        name="thumbnail",
        title="The image, seen small",
        caption=f"{height:,} x {width:,} pixels (rows x columns), {_times(canvas.downsample[0])}.",
        alt=f"Thumbnail of the whole image of {height} by {width} pixels",
        pixels=canvas.pixels,
    )


def _times(downsample: float) -> str:
    if downsample == 1:
        return "shown as large as it is"
    return f"shown {downsample:.3g} times smaller" if downsample > 1 else f"shown {1 / downsample:.3g} times larger"


def _saliency(result: Result, canvas: Canvas) -> Figure:
    small = shrink(result.saliency, SIDE)
    values, ramp = pictures.sampled(small.values[0], small.downsample, canvas, np.nan), _ramp("GnBu")
    known = small.values[0][np.isfinite(small.values[0])]
    share = float((known >= WORTH_READING).mean()) if known.size else 0.0
    name = result.facts["settings"]["saliency"] or ("valid" if result.facts["source"]["kind"] == "scene" else "tissue")
    return Figure(
        name="saliency",
        title="Where it was worth looking",
        caption=f"Saliency “{name}” from 0 to 1; from {WORTH_READING:g} on a place is read. That is {share:.1%} of the valid area.",
        alt=f"Saliency map over the thumbnail; {share:.1%} of the valid area is worth reading",
        pixels=pictures.ramp_overlay(pictures.muted(canvas), values, ramp),
        legend=_seen(ramp, "0", "1"),
    )


def _plan(rounds: Sequence[ResultRound], canvas: Canvas, *, finished: bool) -> Figure:
    count = sum(len(held.plan) for held in rounds)
    many = "1 patch" if count == 1 else f"{count:,} patches"
    sides = sorted({round(held.plan.side * held.plan.grid.downsample_y) for held in rounds})
    several = f" in {len(rounds)} rounds" if len(rounds) > 1 else ""
    size = ", ".join(f"{side:,}" for side in sides)
    drawn = replace(canvas, pixels=pictures.draw_plans(canvas, [held.plan for held in rounds]))
    entries = [(pictures.FRAME, "patches")]
    for state, (color, told) in _UNREAD.items():
        rows = [np.nonzero(held.codes == STATES.index(state))[0] for held in rounds]
        if any(map(len, rows)):
            for held, those in zip(rounds, rows, strict=True):
                drawn = pictures.tint_patches(drawn, held.plan, color, those)
            entries.append((color, told))
    return Figure(
        name="plan",
        title="What was read" if finished else "What is being read",
        caption=f"{many}{several}, each {size} level-0 pixels a side; what is pale is not read at full resolution.",
        alt=f"Thumbnail with the outlines of {many}",
        pixels=drawn.pixels,
        legend=Swatches(entries=tuple((bytes(color).hex(), told) for color, told in entries)),
    )


def _map(view: MapView, canvas: Canvas) -> Iterator[Figure]:
    small = shrink(view, SIDE)
    if view.kind == "label":
        yield _label(view, small, canvas)
    elif view.kind == "probability":
        yield from (_probability(view, small, channel, canvas) for channel in range(min(len(view.channels), _MOST_CHANNELS)))
    else:
        yield from _image(view, small)


def _left_out(view: MapView) -> str:
    count = len(view.channels)
    return f" Its first {_MOST_CHANNELS} of {count} channels are drawn." if count > _MOST_CHANNELS else ""


def _scale_words(small: SmallMap, view: MapView, how: str = "is the mean") -> str:
    cell = round(small.downsample[0] / view.downsample[0])
    return "" if cell == 1 else f" Each pixel here {how} of {cell} x {cell} of the map's."


def _probability(view: MapView, small: SmallMap, channel: int, canvas: Canvas) -> Figure:
    peaks, ramp, name = small.peaks[channel], _ramp("viridis"), view.channels[channel]
    known = small.values[channel][np.isfinite(small.values[channel])]
    alone = len(view.channels) == 1
    told = f"Mean {known.mean():.3f}, highest {np.nanmax(peaks):.3f}." if known.size else "Nothing computed."
    return Figure(
        name=view.name if alone else f"{view.name}_{channel:02d}",
        title=view.name if alone else f"{view.name}: {name}",
        caption=f"Probability. {told}{_scale_words(small, view, 'shows the highest')}{_left_out(view)}",
        alt=f"Probability map {view.name}, channel {name}, over the pale thumbnail. {told}",
        pixels=pictures.ramp_overlay(pictures.muted(canvas), pictures.sampled(peaks, small.downsample, canvas, np.nan), ramp),
        legend=_seen(ramp, "0", "1"),
    )


def _label(view: MapView, small: SmallMap, canvas: Canvas) -> Figure:
    classes = pictures.sampled(small.values[0], small.downsample, canvas, np.nan)
    known = np.isfinite(classes)
    colors = np.array([list(bytes.fromhex(color)) for color in view.colors], np.uint8)
    ids = np.where(known, classes, 0).astype(np.int64)
    pale = pictures.muted(canvas)
    total = max(1, int(small.counts.sum()))
    told = [f"{name} {count / total:.1%}" for name, count in zip(view.channels, small.counts.tolist(), strict=True)]
    seen = _over_white(colors, np.full(len(colors), _LABEL_STRENGTH, np.float32))
    return Figure(
        name=view.name,
        title=view.name,
        caption=f"Classes; shares are of the {int(small.counts.sum()):,} map pixels that were named."
        + _scale_words(small, view, "is the middle"),
        alt=f"Label map {view.name} over the pale thumbnail: {', '.join(told)}",
        pixels=pictures.overlay(pale, colors[ids], np.where(known, np.float32(_LABEL_STRENGTH), np.float32(0))),
        legend=Swatches(entries=tuple(zip(seen, told, strict=True))),
    )


def _image(view: MapView, small: SmallMap) -> Iterator[Figure]:
    bytes_of = pictures.stretched(small.values)
    names = [name.lower() for name in view.channels]
    known = np.isfinite(small.values)
    told = f"Contrast stretched from the 2nd to the 98th percentile, channel by channel.{_scale_words(small, view)}"
    colored = {"red", "green", "blue"} <= set(names)
    groups = (
        [[names.index(color) for color in ("red", "green", "blue")]]
        if colored
        else [[at] * 3 for at in range(min(len(names), _MOST_CHANNELS))]
    )
    for group in groups:
        pixels = np.where(known[group], bytes_of[group], np.uint8(_NOTHING)).transpose(1, 2, 0)
        which = "" if colored or len(names) == 1 else f": {view.channels[group[0]]}"
        yield Figure(
            name=view.name if not which else f"{view.name}_{group[0]:02d}",
            title=f"{view.name}{which}",
            caption=f"Image. {told}{'' if colored else _left_out(view)}",
            alt=f"Image map {view.name}{which}, contrast stretched",
            pixels=np.ascontiguousarray(pixels),
        )


def _objects(name: str, found: FoundObjects, canvas: Canvas) -> Figure:
    ramp = _ramp("plasma")
    order = np.argsort(found.score, kind="stable")
    colors = ramp[np.rint(np.clip(found.score[order], 0, 1) * 255).astype(np.int64)]
    told = f"{len(found):,} found" + (f", scores from {found.score.min():.3f} to {found.score.max():.3f}." if len(found) else ".")
    return Figure(
        name=f"found_{name}",
        title=name,
        caption=f"{told} Each ring is one, coloured by its score; the highest lie on top.",
        alt=f"Thumbnail with a ring around each of the {told}",
        pixels=pictures.draw_rings(canvas, found.yx[order], colors),
        legend=Ramp(colors=_hexes(ramp[:: 255 // 15]), low="score 0", high="1"),
    )


def _features(name: str, tables: Sequence[Table], rounds: Sequence[ResultRound], canvas: Canvas) -> Iterator[Figure]:
    """The features of one of several models; of the only one, `name` is empty."""
    found = feature_colors(tables)
    if found is None:
        return
    drawn = pictures.muted(canvas)
    for held, rows, colors in zip(rounds, found.rows, found.colors, strict=True):
        drawn = Canvas(pixels=pictures.paint_patches(drawn, held.plan, colors, rows), downsample=canvas.downsample)
    columns, of = tables[0].shape[1], f" of {name}" if name else ""
    yield Figure(
        name=f"features_{name}" if name else "features",
        title=f"Features{of} as colours",
        caption=(
            f"The {columns} features{of} of each patch as one colour: their first three principal components as red, green and blue "
            f"({sum(found.share):.0%} of the variance). Alike colours are alike to the model; the colours themselves mean nothing."
        ),
        alt=f"Patches coloured by the first three principal components of their {columns} features{of}",
        pixels=drawn.pixels,
    )


def _ramp(name: str) -> NDArray[np.uint8]:
    """(256, 3) colours of one of matplotlib's colour maps."""
    return np.asarray(np.rint(colormaps[name](np.linspace(0, 1, 256))[:, :3] * 255), np.uint8)


def _seen(ramp: NDArray[np.uint8], low: str, high: str) -> Ramp:
    """The legend of `ramp_overlay`, over white."""
    values = np.linspace(0, 1, 16, dtype=np.float32)
    return Ramp(colors=_over_white(ramp[np.rint(values * 255).astype(np.int64)], pictures.ramp_strength(values)), low=low, high=high)


def _over_white(colors: NDArray[np.uint8], strength: NDArray[np.float32]) -> tuple[str, ...]:
    share = strength[:, None]
    return _hexes(np.rint(255 * (1 - share) + colors * share).astype(np.uint8))


def _hexes(colors: NDArray[np.uint8]) -> tuple[str, ...]:
    return tuple(bytes(color).hex() for color in colors)
