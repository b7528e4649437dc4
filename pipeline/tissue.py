"""Tissue on a slide, from its coarse look: bright-field by optical density over the glass, fluorescence by signal over the dark.

Sizes are in coarse pixels and meant for about 8 micrometres each, which `coarse_look` gives wherever the slide says its pixel size.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, gaussian_filter, label
from skimage.filters import threshold_otsu

from patchdrive.pipeline.collar import without_collar

_BAND = 512  # rows turned into densities at once: float copies of three channels never hold the whole look
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
    sample = _sample(pixels, mask)
    scale = 255.0 if pixels.dtype == np.uint8 else max(float(np.percentile(sample, 99.9)), 1e-6)
    sample = sample / np.float32(scale)
    if pixels.shape[2] <= 4 and np.median(sample[:, :3].max(axis=1)) > 0.35:
        ratio = _bright_field(pixels[:, :, :3], mask, sample[:, :3], scale)
    else:
        ratio = _dark_field(pixels, mask, sample, scale)
    ratio[~mask] = 0.0
    scores = ratio / (ratio + 1)
    kept = _tidy(ratio >= 1.0) & mask
    below, above = np.float32(0.5 - 1e-3), np.float32(0.5)
    final: NDArray[np.float32] = np.where(kept, np.maximum(scores, above), np.minimum(scores, below)).astype(np.float32)
    return final


def _sample(pixels: NDArray[Any], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Valid pixels on a regular lattice, (n, channel), about a million at most."""
    step = max(1, int(np.sqrt(mask.size / _SAMPLE)))
    lattice = (slice(None, None, step), slice(None, None, step))
    seen = mask[lattice] if mask[lattice].any() else mask
    chosen = pixels[lattice] if seen is not mask else pixels
    values: NDArray[np.float32] = np.nan_to_num(chosen[seen].astype(np.float32))
    return values


def _bright_field(pixels: NDArray[Any], mask: NDArray[np.bool_], sample: NDArray[np.float32], scale: float) -> NDArray[np.float32]:
    """Optical density over the glass as a multiple of the threshold; 0 under pen."""
    glass, share = _glass(sample)
    density = np.empty(pixels.shape[:2], np.float32)
    ink = np.zeros(pixels.shape[:2], np.bool_)
    for row in range(0, len(pixels), _BAND):
        absorbed = _absorbance(_scaled(pixels[row : row + _BAND], scale), glass)
        # Shadows and dust are grey; stain has colour, so that the spread of the channels counts too.
        density[row : row + _BAND] = np.sqrt(np.square(absorbed).mean(axis=2)) + absorbed.std(axis=2)
        if share > 0.02 and absorbed.shape[2] == 3:  # without glass in sight nothing says that a dark pixel is ink
            ink[row : row + _BAND] = _is_ink(absorbed)
    smooth: NDArray[np.float32] = gaussian_filter(density * mask, 0.7)
    near = np.abs(_absorbance(sample, glass)).max(axis=1)
    noise = 1.4826 * float(np.median(near[near < 0.08])) if (near < 0.08).any() else 0.0
    floor = min(max(_FLOOR, 3.0 * noise), _CEILING)
    threshold = float(np.clip(_otsu(smooth[mask]), floor, _CEILING))
    smooth[binary_dilation(_without_small(ink, _SPECK), iterations=2)] = 0.0
    return smooth / np.float32(threshold)


def _glass(sample: NDArray[np.float32]) -> tuple[NDArray[np.float32], float]:
    """Colour of the glass (the brightest colourless mode), and its share of the sample; plain white where there is none.

    Pure white is left out where there is other glass: scanners fill with it what they did not scan.
    """
    filled = (sample >= 1.0).all(axis=1)
    seen = sample[~filled]
    bare = seen[(seen.mean(axis=1) > 0.7) & (np.ptp(seen, axis=1) < 0.12)] if len(seen) else seen
    if len(bare) < 0.005 * len(sample):
        share = float(filled.mean())
        return (_WHITE if share < 0.005 else np.ones(3, np.float32))[: sample.shape[1]], share
    brightness = bare.mean(axis=1)
    top = float(np.percentile(brightness, 99))
    counts, edges = np.histogram(brightness, bins=32, range=(top - 0.08, top + 0.02))
    mode = edges[int(np.argmax(gaussian_filter(counts.astype(np.float32), 1.0)))] + (edges[1] - edges[0]) / 2
    around = bare[np.abs(brightness - mode) < 0.015]
    return np.median(around, axis=0).astype(np.float32), len(around) / len(sample)


def _absorbance(values: NDArray[np.float32], glass: NDArray[np.float32]) -> NDArray[np.float32]:
    """Optical density (natural logarithm) over the glass, per channel; brighter than glass is 0."""
    absorbed: NDArray[np.float32] = np.log(glass + np.float32(0.004)) - np.log(np.maximum(values, 0) + np.float32(0.004))
    return np.maximum(absorbed, 0, out=absorbed)


def _is_ink(absorbed: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Dense ink no stain looks like: green (green absorbed least), blue (red absorbed far more than green), black (everything)."""
    red, green, blue = np.moveaxis(absorbed, 2, 0)
    is_green = (red > 0.5) & (green < 0.75 * np.minimum(red, blue))
    is_blue = (red > 0.9) & (red > 1.35 * green) & (green > blue)
    is_black = (absorbed.min(axis=2) > 1.3) & (np.ptp(absorbed, axis=2) < 0.3 * absorbed.mean(axis=2))
    ink: NDArray[np.bool_] = is_green | is_blue | is_black
    return ink


def _dark_field(pixels: NDArray[Any], mask: NDArray[np.bool_], sample: NDArray[np.float32], scale: float) -> NDArray[np.float32]:
    """Signal over the dark in the strongest channel, as a multiple of the threshold."""
    dark, noise = np.empty(sample.shape[1], np.float32), np.empty(sample.shape[1], np.float32)
    for channel, values in enumerate(sample.T):
        low = float(np.percentile(values, 1))
        counts, edges = np.histogram(values, bins=256, range=(low, low + 0.15))
        dark[channel] = edges[int(np.argmax(gaussian_filter(counts.astype(np.float32), 2.0)))] + (edges[1] - edges[0]) / 2
        under = dark[channel] - values[values <= dark[channel]]
        noise[channel] = max(1.4826 * float(np.median(under)) if under.size else 0.0, 1.0 / 255)
    signal = np.empty(pixels.shape[:2], np.float32)
    for row in range(0, len(pixels), _BAND):
        signal[row : row + _BAND] = ((_scaled(pixels[row : row + _BAND], scale) - dark) / noise).max(axis=2)
    smooth: NDArray[np.float32] = np.maximum(gaussian_filter(signal * mask, 1.0), 0)
    return smooth / np.float32(np.clip(_otsu(smooth[mask]), 4.0, 10.0))


def _scaled(pixels: NDArray[Any], scale: float) -> NDArray[np.float32]:
    values: NDArray[np.float32] = np.nan_to_num(pixels.astype(np.float32)) / np.float32(scale)
    return values


def _otsu(values: NDArray[np.float32]) -> float:
    """Otsu's threshold; 0 for a constant."""
    return float(threshold_otsu(values)) if np.ptp(values) > 0 else 0.0  # type: ignore[no-untyped-call]


def _tidy(found: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Specks removed, small holes closed; in a look of few pixels both are smaller."""
    solid = _without_small(found, min(_SPECK, max(1, found.size // 500)))
    # A frame joins all that touches the border, which may be of any size outside.
    bare = _without_small(np.pad(~solid, 1, constant_values=True), min(_HOLE, max(1, found.size // 50)))
    return ~bare[1:-1, 1:-1]


def _without_small(region: NDArray[np.bool_], area: int) -> NDArray[np.bool_]:
    """The connected parts of at least `area` pixels."""
    parts, count = label(region)
    large = np.bincount(parts.ravel(), minlength=count + 1) >= area
    large[0] = False
    kept: NDArray[np.bool_] = large[parts]
    return kept
