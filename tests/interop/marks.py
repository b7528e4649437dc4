"""The mark, and what answers to it: a model of maps and a saliency, given to `patchdrive run` by name.

A mark is a rectangle in which every pixel is `mark_of` the dtype; no other pixel of an image has its first channel as high.
"""

from __future__ import annotations

import numpy as np
import torch

from patchdrive.models import ImageTraits, ModelSpec, OutputSpec

HIGH = {"uint8": 250, "uint16": 60000, "float32": 250.0}
"""First channel of a marked pixel, by dtype."""
LOW = 10
"""Its other channels; all other pixels of an image have more."""
STEPS = 254
"""Stored value of probability 1."""
ELSEWHERE = 190
"""Stored probability of the ground, and stored saliency, where there is no mark."""
STRIDE = 4
"""Pixels of a target grid per map pixel of `Found`."""


def mark_of(dtype, channels):
    """The values of a marked pixel, one per channel."""
    return [HIGH[dtype], *[LOW] * (channels - 1)]


class Found:
    """[n, C, S, S] to the classes ground and mark: (0, 1) on a mark, mostly ground elsewhere."""

    digest = "interop-found-1"

    def __init__(self, traits: ImageTraits) -> None:
        output = OutputSpec(name="found", kind="classes", channels=("ground", "mark"), stride=STRIDE)
        self.spec = ModelSpec(name="found", channels=len(traits.channels), size=512, any_size=True, resampling="nearest", outputs=(output,))
        self._least = 0.99 * HIGH[traits.dtype]

    def __call__(self, pixels):
        marked = pixels[:, :1, STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE] > self._least
        ground = (~marked).to(pixels.dtype) * (ELSEWHERE / STEPS)
        return {"found": torch.cat([ground, 1 - ground], dim=1)}

    def to(self, _device):
        return self


def salient(pixels, mask):
    """1 on the mark, less elsewhere."""
    return np.where(pixels[:, :, 0] > 0.99 * HIGH[pixels.dtype.name], 1.0, ELSEWHERE / STEPS).astype(np.float32)
