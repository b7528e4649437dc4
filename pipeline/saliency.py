"""Where an image is worth reading, judged from its coarse look: scorers by name, and the check of what they return.

A scorer takes the coarse pixels (height, width, channel), in the image's dtype, and their mask (height, width), True where valid, and
returns float32 (height, width) in [0, 1]; from 0.5 on a place is worth reading.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, laplace

from patchdrive.pipeline.coarse import Coarse, bands
from patchdrive.pipeline.collar import without_collar
from patchdrive.pipeline.plan import WORTH_READING
from patchdrive.pipeline.tissue import tissue
from patchdrive.readers.errors import SettingsError

Scorer = Callable[[NDArray[Any], NDArray[np.bool_]], NDArray[np.float32]]

_SIGMAS = (1.6, 3.2)
_HALF = 0.03  # Laplacian response that scores 0.5


def load_scorer(name: str) -> Scorer:
    """The scorer called `tissue`, `valid` or `complexity`, or your own as `module:function`.

    Raises:
        SettingsError: there is no such scorer.
    """
    built_in: dict[str, Scorer] = {"tissue": tissue, "valid": valid, "complexity": complexity}
    if name in built_in:
        return built_in[name]
    module_name, colon, function_name = name.partition(":")
    if not colon:
        raise SettingsError(f"no saliency is called {name!r}; take one of {', '.join(built_in)}, or your own as module:function")
    try:
        scorer = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SettingsError(f"the saliency {name!r} cannot be imported: {error}; is its folder on PYTHONPATH?") from error
    if not callable(scorer):
        raise SettingsError(f"the saliency {name!r} is a {type(scorer).__name__}; it must be a function of (pixels, mask)")
    found: Scorer = scorer
    return found


def score_look(coarse: Coarse, scorer: Scorer, name: str) -> NDArray[np.float32]:
    """What `scorer` says of `coarse`, (height, width) in [0, 1], 0 where nothing is valid.

    What could not be decoded is just worth reading, 0.5, unless its neighbourhood says more: nothing is left out because nobody saw it.

    Raises:
        SettingsError: the scorer returned something that is no saliency; names the rule.
    """
    scores = scorer(coarse.pixels, coarse.mask)
    rule = f"the saliency {name!r} must return a float32 array in [0, 1] of shape {coarse.mask.shape}"
    if not isinstance(scores, np.ndarray) or scores.shape != coarse.mask.shape or scores.dtype != np.float32:
        got = f"{scores.dtype} {scores.shape}" if isinstance(scores, np.ndarray) else type(scores).__name__
        raise SettingsError(f"{rule}, not {got}")
    everywhere = bool(coarse.mask.all())
    seen = True if everywhere else coarse.mask
    low, high = scores.min(initial=np.inf, where=seen), scores.max(initial=-np.inf, where=seen)
    if coarse.mask.any() and not (low >= 0.0 and high <= 1.0):  # neither holds of a NaN
        raise SettingsError(f"{rule}; its values reach from {low} to {high}")
    if everywhere and coarse.unknown is None:
        return scores
    scores = np.where(coarse.mask, scores, np.float32(0.0))
    if coarse.unknown is not None:
        np.maximum(scores, np.float32(WORTH_READING), out=scores, where=coarse.unknown)
    return scores


def valid(pixels: NDArray[Any], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """1 where there is data: valid by the mask, and not in a collar that nobody declared."""
    return without_collar(pixels, mask).astype(np.float32)


def complexity(pixels: NDArray[Any], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """How much detail there is, R / (R + 0.03), with R the larger of |sigma^2 * Laplacian of Gaussian| at sigma 1.6 and 3.2 pixels
    (the Laplacian by five points, which is exactly 0 where grey is level or a slope).

    The scale of grey is fixed by the dtype, never by the image: 1 is the largest value of 8 bits, 4096 for wider integers (what
    sensors and reflectances hold), 1.0 for floats.
    """
    inside = without_collar(pixels, mask)
    grey = _grey(pixels)
    if not inside.all():
        _continue(grey, inside)
    response = np.zeros_like(grey)
    for sigma in _SIGMAS:
        smooth = gaussian_filter(grey, sigma)
        for rows in bands(smooth):
            first = max(0, rows.start - 1)
            part = laplace(smooth[first : rows.stop + 1])[rows.start - first :][: rows.stop - rows.start]
            np.maximum(response[rows], np.abs(part) * np.float32(sigma**2), out=response[rows])
    for rows in bands(response):
        part = response[rows]
        part /= part + np.float32(_HALF)
        part *= inside[rows]
    return response


def _grey(pixels: NDArray[Any]) -> NDArray[np.float32]:
    """Mean of the channels, (height, width)."""
    grey = np.zeros(pixels.shape[:2], np.float32)
    whole = pixels.dtype.kind in "biu"
    for rows in bands(grey):
        for channel in range(pixels.shape[2]):
            plane = pixels[rows, :, channel]
            np.add(grey[rows], plane if whole else np.nan_to_num(plane), out=grey[rows], dtype=np.float32, casting="unsafe")
        grey[rows] /= np.float32(pixels.shape[2])
        if whole:
            grey[rows] /= np.float32(255.0 if pixels.dtype.itemsize == 1 else 4096.0)
    return grey


def _continue(grey: NDArray[np.float32], inside: NDArray[np.bool_]) -> None:
    """Let what lies outside continue what is inside: the edge of the data is no detail."""
    around, weight = grey * inside, inside.astype(np.float32)
    gaussian_filter(around, 4.0, output=around)
    gaussian_filter(weight, 4.0, output=weight)
    around /= np.maximum(weight, 1e-3, out=weight)
    np.copyto(grey, around, where=~inside)
