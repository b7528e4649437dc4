"""What synthetic slides and scenes share: smooth random fields on a coarse grid, and their values at the pixels of any window. Pure."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from patchdrive.readers.geometry import Window


def smooth_field(rng: np.random.Generator, shape: tuple[int, int], scale: float) -> NDArray[np.float32]:
    """Gaussian noise of zero mean and unit deviation, (height, width), correlated over about `scale` samples; it wraps around."""
    noise = gaussian_filter(rng.standard_normal(shape, dtype=np.float32), scale, mode="wrap", truncate=3.0)
    noise -= noise.mean()
    # A field much smoother than its grid is nearly constant; dividing by a rounding error would invent structure.
    field: NDArray[np.float32] = noise / np.float32(max(float(noise.std()), 1e-6))
    return field


def rough_field(rng: np.random.Generator, shape: tuple[int, int], scale: float, *, octaves: int = 3) -> NDArray[np.float32]:
    """A sum of smooth fields, each of half the scale and half the height of the last: the outline of islands, coasts and clouds."""
    field = np.zeros(shape, np.float32)
    for octave in range(octaves):
        field += smooth_field(rng, shape, max(scale / 2**octave, 0.5)) / np.float32(2**octave)
    return field


def at_pixels(field: NDArray[np.float32], cell: int, window: Window) -> NDArray[np.float32]:
    """A coarse field's value at the pixel centres of `window`, bilinear, (height, width); the border value holds outside.

    Args:
        field: (rows, columns); sample (i, j) sits at pixel ((i + 0.5) * cell, (j + 0.5) * cell).
        cell: pixels per sample.
        window: pixels of the finest level.
    """
    top, below, down = _steps(window.y, window.height, cell, field.shape[0])
    left, right, across = _steps(window.x, window.width, cell, field.shape[1])
    rows = field[top] + (field[below] - field[top]) * down[:, None]
    values: NDArray[np.float32] = rows[:, left] + (rows[:, right] - rows[:, left]) * across
    return values


def wrapped(bank: NDArray[Any], window: Window, *, shift: tuple[int, int] = (0, 0)) -> NDArray[Any]:
    """The pixels of `window` of an endlessly repeated `bank`, (height, width, ...)."""
    y = (np.arange(window.y, window.y_end) + shift[0]) % bank.shape[0]
    x = (np.arange(window.x, window.x_end) + shift[1]) % bank.shape[1]
    values: NDArray[Any] = bank.take(y, axis=0).take(x, axis=1)
    return values


def _steps(start: int, count: int, cell: int, samples: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """For each pixel: the sample before it, the sample after it, and how far between them it lies."""
    position = (np.arange(start, start + count) + 0.5) / cell - 0.5
    before = np.clip(np.floor(position).astype(np.intp), 0, samples - 1)
    after = np.minimum(before + 1, samples - 1)
    return before, after, np.clip(position - before, 0.0, 1.0).astype(np.float32)
