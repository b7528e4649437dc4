"""with_halo(): a map model of whose patches another border is context only."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor

from patchdrive.models.types import PatchModel
from patchdrive.readers.errors import ModelError


class _WithHalo:
    """As `PatchModel`."""

    def __init__(self, model: PatchModel, halo: int) -> None:
        self._model = model
        self.spec = replace(model.spec, outputs=tuple(replace(output, halo=halo) for output in model.spec.outputs))
        self.digest = hashlib.sha256(f"{model.digest} halo {halo}".encode()).hexdigest()

    def __call__(self, pixels: Tensor) -> Mapping[str, Tensor]:
        return self._model(pixels)

    def to(self, device: torch.device) -> Self:
        self._model.to(device)
        return self


def with_halo(model: PatchModel, halo: int) -> PatchModel:
    """The same model; `halo` input pixels on each side of a patch are seen and not written, whatever its spec says.

    With the receptive field's reach as halo, a convolutional model without spatial normalisation gives what it would give for the
    whole image.

    Raises:
        ModelError: it has no maps, or the halo is not a multiple of their stride, or leaves nothing of a patch.
    """
    if halo == model.spec.halo:
        return model
    if model.spec.vectors:
        raise ModelError(f"{model.spec.name} gives a vector per patch and no map; leave --halo out")
    return _WithHalo(model, halo)
