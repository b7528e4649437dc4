"""Tissue on a slide, from its coarse look: bright-field by optical density over the glass, fluorescence by signal over the dark.

Sizes are in coarse pixels and meant for about 8 micrometres each, which `coarse_look` gives wherever the slide says its pixel size.
Channels are taken apart, (channel, pixel), and a few rows at a time: numpy joins three planes ten times faster than it joins triples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, label
from skimage.filters import threshold_otsu

from patchdrive.pipeline.coarse import AT_ONCE, bands
from patchdrive.pipeline.collar import label_sizes, without_collar

_SAMPLE = 1_000_000  # pixels that estimate background and noise
_SPECK = 32  # px, about (45 um)^2
_HOLE = 780  # px, about 0.05 mm2: a larger hole is a lumen, and stays open
_FLOOR, _CEILING = 0.03, 0.05  # optical density: below is shading of the glass, above is never doubtful
_WHITE = np.array([0.94, 0.94, 0.94], np.float32)  # glass, where the look shows none


def tissue(pixels: NDArray[Any], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """How surely there is tissue: 0.5 at the threshold, rising with stain or signal; all below 0.5 on an empty slide.

    Args:
        pixels: (height, width, channel) of any dtype.
        mask: (height, width) True where valid.
    """
    mask = without_collar(pixels, mask)
    if not mask.any():
        return np.zeros(mask.shape, np.float32)
    ratio = _ratio(pixels, mask)
    kept = _tidy(ratio >= 1.0)
    kept &= mask
    below, above = np.float32(0.5 - 1e-3), np.float32(0.5)
    for rows in bands(ratio):
        part = ratio[rows]
        part /= part + 1
        np.copyto(part, np.where(kept[rows], np.maximum(part, above), np.minimum(part, below)))
    return ratio


def _ratio(pixels: NDArray[Any], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Stain or signal as a multiple of its threshold; 0 where nothing is valid."""
    sample = _sample(pixels, mask)
    scale = 255.0 if pixels.dtype == np.uint8 else max(float(np.percentile(sample, 99.9)), 1e-6)
    if pixels.shape[2] <= 4 and np.median(sample[:3].max(axis=0)) / scale > 0.35:
        ratio = _bright_field(pixels[:, :, :3], mask, sample[:3], scale)
    else:
        ratio = _dark_field(pixels, mask, sample, scale)
    if not mask.all():
        ratio[~mask] = 0.0
    return ratio


def _planes(pixels: NDArray[Any], scale: float) -> NDArray[np.float32]:
    """(channel, height, width) copies of some rows, or (channel, n) of a sample that lies so already."""
    values: NDArray[np.float32] = np.array(np.moveaxis(pixels, -1, 0) if pixels.ndim == 3 else pixels, np.float32, order="C")
    if pixels.dtype.kind not in "biu":
        np.nan_to_num(values, copy=False)
    values /= np.float32(scale)
    return values


def _mean(planes: Sequence[NDArray[np.float32]] | NDArray[np.float32]) -> NDArray[np.float32]:
    """Over the channels."""
    total: NDArray[np.float32] = sum(planes[1:], start=planes[0])
    return total / np.float32(len(planes))


def _sample(pixels: NDArray[Any], mask: NDArray[np.bool_]) -> NDArray[Any]:
    """Valid pixels on a regular lattice, (channel, n), about a million at most; integers as they are, others as finite float32."""
    step = max(1, int(np.sqrt(mask.size / _SAMPLE)))
    lattice = (slice(None, None, step), slice(None, None, step))
    seen, chosen = (mask[lattice], pixels[lattice]) if mask[lattice].any() else (mask, pixels)
    integers = pixels.dtype.kind in "iu"
    values = np.empty((pixels.shape[2], np.count_nonzero(seen)), pixels.dtype if integers else np.float32)
    for channel, plane in enumerate(values):
        plane[:] = chosen[:, :, channel].ravel() if plane.size == seen.size else chosen[:, :, channel][seen]
    return values if integers else np.nan_to_num(values, copy=False)


def _bright_field(pixels: NDArray[Any], mask: NDArray[np.bool_], sample: NDArray[Any], scale: float) -> NDArray[np.float32]:
    """Optical density over the glass as a multiple of the threshold; 0 under pen."""
    glass, share = _glass(sample, scale)
    floor = min(max(_FLOOR, 3.0 * _noise(sample, scale, glass)), _CEILING)
    density = np.empty(pixels.shape[:2], np.float32)
    ink = np.zeros(pixels.shape[:2], np.bool_)
    for rows in bands(density):
        absorbed = _absorbance(_planes(pixels[rows], scale), glass)
        # Without glass in sight nothing says that a dark pixel is ink.
        if share > 0.02 and len(absorbed) == 3:
            ink[rows] = _is_ink(absorbed)
        density[rows] = _density(absorbed)
        density[rows] *= mask[rows]
    gaussian_filter(density, 0.7, output=density)
    threshold = float(np.clip(_otsu(density, mask), floor, _CEILING))
    if ink.any():
        density[_grown(_grown(_without_small(ink, _SPECK)))] = 0.0
    density /= np.float32(threshold)
    return density


def _density(absorbed: NDArray[np.float32]) -> NDArray[np.float32]:
    """Root mean square of the channels and their spread: shadows and dust are grey; stain has colour, so that the spread counts too."""
    spread = absorbed - _mean(absorbed)
    np.square(spread, out=spread)
    density: NDArray[np.float32] = np.sqrt(_mean(np.square(absorbed, out=absorbed)))
    density += np.sqrt(_mean(spread))
    return density


def _glass(sample: NDArray[Any], scale: float) -> tuple[NDArray[np.float32], float]:
    """Colour of the glass (the brightest colourless mode), and its share of the sample; plain white where there is none.

    Pure white is left out where there is other glass: scanners fill with it what they did not scan.
    """
    count, filled, means, stored = sample.shape[1], 0, [], []
    for part in _runs(count):
        values = _planes(sample[:, part], scale)
        least, most, mean = values.min(axis=0), values.max(axis=0), _mean(values)
        filled += int(np.count_nonzero(least >= 1.0))
        colorless = (least < 1.0) & (mean > 0.7) & (most - least < 0.12)
        means.append(mean[colorless])
        stored.append(np.stack([plane[colorless] for plane in sample[:, part]]))
    brightness = np.concatenate(means)
    if len(brightness) < 0.005 * count:
        share = filled / count
        return (_WHITE if share < 0.005 else np.ones(3, np.float32))[: len(sample)], share
    top = float(np.percentile(brightness, 99))
    counts, edges = np.histogram(brightness, bins=32, range=(top - 0.08, top + 0.02))
    mode = edges[int(np.argmax(gaussian_filter(counts.astype(np.float32), 1.0)))] + (edges[1] - edges[0]) / 2
    around = np.concatenate([plane[:, np.abs(mean - mode) < 0.015] for plane, mean in zip(stored, means, strict=True)], axis=1)
    if not around.size:  # a mode between two of very few pixels
        around = np.concatenate(stored, axis=1)
    glass = np.array([np.median(_planes(plane[None], scale)) for plane in around], np.float32)
    return glass, around.shape[1] / count


def _runs(count: int) -> Iterator[slice]:
    """[0, count), some at a time."""
    return (slice(start, start + AT_ONCE) for start in range(0, count, AT_ONCE))


def _noise(sample: NDArray[Any], scale: float, glass: NDArray[np.float32]) -> float:
    """How far glass strays from its colour, optical density; 0 where there is none."""
    parts = []
    for part in _runs(sample.shape[1]):
        most = _absorbance(_planes(sample[:, part], scale), glass).max(axis=0)
        parts.append(most[most < 0.08])
    near = np.concatenate(parts)
    return 1.4826 * float(np.median(near)) if near.size else 0.0


def _absorbance(values: NDArray[np.float32], glass: NDArray[np.float32]) -> NDArray[np.float32]:
    """Optical density (natural logarithm) over the glass of (channel, ...) values, in their place; brighter than glass is 0."""
    np.maximum(values, 0, out=values)
    values += np.float32(0.004)
    np.log(values, out=values)
    np.subtract(np.log(glass + np.float32(0.004)).reshape(-1, *(1,) * (values.ndim - 1)), values, out=values)
    return np.maximum(values, 0, out=values)


def _is_ink(absorbed: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Dense ink no stain looks like: green (green absorbed least), blue (red absorbed far more than green), black (everything)."""
    ink: NDArray[np.bool_] = absorbed[0] > 0.5
    # Each of the three absorbs red: few pixels are left to ask.
    dense = red, green, blue = [plane[ink] for plane in absorbed]
    least, most = np.minimum(np.minimum(red, green), blue), np.maximum(np.maximum(red, green), blue)
    is_green = green < 0.75 * np.minimum(red, blue)
    is_blue = (red > 0.9) & (red > 1.35 * green) & (green > blue)
    is_black = (least > 1.3) & (most - least < 0.3 * _mean(dense))
    ink[ink] = is_green | is_blue | is_black
    return ink


def _grown(region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """`region` and every pixel that shares a side with it."""
    grown = region.copy()
    grown[1:] |= region[:-1]
    grown[:-1] |= region[1:]
    grown[:, 1:] |= region[:, :-1]
    grown[:, :-1] |= region[:, 1:]
    return grown


def _dark_field(pixels: NDArray[Any], mask: NDArray[np.bool_], sample: NDArray[Any], scale: float) -> NDArray[np.float32]:
    """Signal over the dark in the strongest channel, as a multiple of the threshold."""
    dark, noise = np.transpose([_dark(_planes(plane[None], scale)[0]) for plane in sample])[:, :, None, None]
    signal = np.empty(pixels.shape[:2], np.float32)
    for rows in bands(signal):
        values = _planes(pixels[rows], scale)
        values -= dark
        values /= noise
        np.multiply(values.max(axis=0), mask[rows], out=signal[rows])
    gaussian_filter(signal, 1.0, output=signal)
    np.maximum(signal, 0, out=signal)
    signal /= np.float32(np.clip(_otsu(signal, mask), 4.0, 10.0))
    return signal


def _dark(values: NDArray[np.float32]) -> tuple[np.float32, np.float32]:
    """Where one channel is dark, and the noise there."""
    low = float(np.percentile(values, 1))
    counts, edges = np.histogram(values, bins=256, range=(low, low + 0.15))
    dark = np.float32(edges[int(np.argmax(gaussian_filter(counts.astype(np.float32), 2.0)))] + (edges[1] - edges[0]) / 2)
    under = dark - values[values <= dark]
    return dark, np.float32(max(1.4826 * float(np.median(under)) if under.size else 0.0, 1.0 / 255))


def _otsu(values: NDArray[np.float32], mask: NDArray[np.bool_]) -> float:
    """Otsu's threshold of what is valid; 0 for a constant."""
    everywhere = bool(mask.all())
    low = values.min(initial=np.inf, where=True if everywhere else mask)
    high = values.max(initial=-np.inf, where=True if everywhere else mask)
    if not high > low:
        return 0.0
    counts = np.zeros(256, np.int64)
    for rows in bands(values):
        seen = values[rows].ravel() if everywhere else values[rows][mask[rows]]
        found, edges = np.histogram(seen, bins=256, range=(low, high))
        counts += found
    return float(threshold_otsu(hist=(counts, (edges[:-1] + edges[1:]) / 2)))  # type: ignore[no-untyped-call]


def _tidy(found: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Specks removed, small holes closed; in a look of few pixels both are smaller."""
    solid = _without_small(found, min(_SPECK, max(1, found.size // 500)))
    # A frame joins all that touches the border, which may be of any size outside.
    bare = _without_small(np.pad(~solid, 1, constant_values=True), min(_HOLE, max(1, found.size // 50)))
    return ~bare[1:-1, 1:-1]


def _without_small(region: NDArray[np.bool_], area: int) -> NDArray[np.bool_]:
    """The connected parts of at least `area` pixels."""
    parts, count = label(region)
    large = label_sizes(parts, count) >= area
    large[0] = False
    kept: NDArray[np.bool_] = large[parts]
    return kept
