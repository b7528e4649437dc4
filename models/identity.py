"""Identity: pixels in, pixels out.

The model that proves the road: run over an image it gives the image back, to the bit, wherever float32 holds the stored values
exactly (any 8- or 16-bit integer, integers up to 2^24, float32 itself).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from patchdrive.models.digest import description_digest
from patchdrive.models.types import ImageTraits, ModelSpec, OutputSpec

_VERSION = 1


class Identity:
    """A PatchModel whose only map, `image`, is its input."""

    def __init__(self, traits: ImageTraits) -> None:
        self.spec = ModelSpec(
            name="identity",
            channels=len(traits.channels),
            size=512,
            any_size=True,
            resampling="nearest",
            outputs=(OutputSpec(name="image", kind="image", channels=traits.channels, dtype=traits.dtype),),
        )

    @cached_property
    def digest(self) -> str:
        """See `PatchModel.digest`."""
        return description_digest({"version": _VERSION, **self.spec.to_dict()})

    def __call__(self, pixels: Tensor, /) -> Mapping[str, Tensor]:
        """[n, C, S, S] to {"image": [n, C, S, S]}, the same tensor."""
        return {"image": pixels}

    def to(self, _device: torch.device, /) -> Self:
        """Nothing to move."""
        return self
