"""The needles of the synthetic slide: spoked discs to find, and look-alikes that only full resolution tells from them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

DISC_RADIUS = 22.0
"""Level-0 pixels: 22 micrometres across at 0.5 mpp."""
STAMP_SIDE = 48
"""Pixels of a drawn disc with its soft edge."""
DISC_GAP = 64.0
"""Level-0 pixels at least between the edges of two discs, and to the border."""

_HUB = 6.0  # px; inside it the spokes would be finer than a pixel
_BAND = 4.0  # px; a look-alike's spokes are broken at every multiple of it
_PURPLE = np.array([118.0, 66.0, 138.0], np.float32)
_SWING = np.array([62.0, 54.0, 48.0], np.float32)


def draw_disc(rng: np.random.Generator, *, target: bool) -> NDArray[np.float32]:
    """One disc as (STAMP_SIDE, STAMP_SIDE, 4): red, green, blue in 0..255 and its opacity in 0..1; centred to the pixel edge.

    A target has unbroken spokes. A look-alike has the same spokes cut into rings of 4 pixels, each ring turned against its
    neighbours: every circle around the centre holds the same ink, so the radial profiles are equal. From both, what a coarser level
    could see of the spokes is taken out, so that at 1/8 both are the same plain disc.
    """
    half = STAMP_SIDE / 2
    y, x = np.mgrid[:STAMP_SIDE, :STAMP_SIDE].astype(np.float32) + np.float32(0.5 - half)
    radius, angle = np.hypot(y, x), np.arctan2(y, x)
    spokes = int(rng.integers(17, 22))
    bands = (radius / _BAND).astype(np.intp)
    turns = rng.uniform(0.6, 1.4, size=int(bands.max()) + 1).cumsum() * np.pi
    start = rng.uniform(0, 2 * np.pi)
    turn = np.zeros_like(radius) if target else turns[bands].astype(np.float32)
    ink = np.tanh(3.0 * np.sin(spokes * angle + start + turn))
    opacity = np.clip(DISC_RADIUS - radius + 0.5, 0.0, 1.0)
    ink *= np.clip(radius - _HUB, 0.0, 1.0) * opacity
    ink -= gaussian_filter(ink, 2.5)
    colour = _PURPLE * rng.uniform(0.92, 1.08, size=3).astype(np.float32) + _SWING * rng.uniform(0.85, 1.1) * ink[:, :, None]
    return np.concatenate([np.clip(colour, 0, 255), opacity[:, :, None] * 0.96], axis=2, dtype=np.float32)


def place_discs(rng: np.random.Generator, depth: NDArray[np.float32], cell: int, count: int) -> NDArray[np.int64]:
    """At most `count` top-left corners of stamps, (n, 2) level-0 pixels: inside tissue, apart from each other and from the border.

    Args:
        rng: decides.
        depth: (rows, columns) level-0 pixels from the edge of the tissue, positive inside, one sample per `cell` pixels.
        cell: level-0 pixels per sample.
        count: how many are wanted; fewer come back where the tissue has no room.
    """
    margin = DISC_RADIUS + DISC_GAP
    centre = [(np.arange(size) + 0.5) * cell for size in depth.shape]
    inner = [(axis >= margin + cell) & (axis <= size * cell - margin - cell) for axis, size in zip(centre, depth.shape, strict=True)]
    roomy = (depth > DISC_RADIUS + cell) & inner[0][:, None] & inner[1]
    candidates = rng.permutation(np.argwhere(roomy))[: 100 * count]
    corners = candidates * cell + rng.integers(0, cell, size=candidates.shape) - STAMP_SIDE // 2
    apart = 2 * DISC_RADIUS + DISC_GAP
    kept = np.empty((0, 2), np.int64)
    for corner in corners:
        if len(kept) == count:
            break
        if len(kept) == 0 or np.hypot(*(kept - corner).T).min() >= apart:
            kept = np.vstack([kept, corner])
    return kept


def paste_discs(pixels: NDArray[np.float32], stamps: NDArray[np.float32], corners: NDArray[np.int64]) -> None:
    """Paint `stamps` (n, STAMP_SIDE, STAMP_SIDE, 4) into `pixels` (height, width, 3) in place; a stamp may overhang.

    Args:
        pixels: float32 in 0..255.
        stamps: colour and opacity.
        corners: (n, 2) rows and columns of `pixels`; may be negative.
    """
    height, width = pixels.shape[:2]
    for stamp, (y, x) in zip(stamps, corners.tolist(), strict=True):
        top, left, bottom, right = max(0, y), max(0, x), min(height, y + STAMP_SIDE), min(width, x + STAMP_SIDE)
        if top >= bottom or left >= right:
            continue
        part = stamp[top - y : bottom - y, left - x : right - x]
        under = pixels[top:bottom, left:right]
        under += (part[:, :, :3] - under) * part[:, :, 3:]
