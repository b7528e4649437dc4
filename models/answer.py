"""answer(): one model asked about one batch, alone or among others, in the precision that its spec names."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from patchdrive.models.types import ModelSpec, PatchModel


def answer(model: PatchModel, pixels: Tensor, *, in_place: bool = False) -> Mapping[str, Tensor]:
    """What `model` gives for pixels as `ModelSpec.arrange` leaves them; they are standardised here.

    Args:
        model: whose spec says how.
        pixels: [n, channels, size, size] float32 stored values. The model may be handed this very tensor.
        in_place: standardise there; nobody else needs the stored values.
    """
    eaten = model.spec.standardise(pixels, in_place=in_place)
    if model.spec.channels_last and pixels.device.type == "cuda":
        eaten = eaten.contiguous(memory_format=torch.channels_last)
    with precision(model.spec, pixels.device):
        return model(eaten)


def precision(spec: ModelSpec, device: torch.device) -> AbstractContextManager[object]:
    """The dtype that the spec asks for, on CUDA; the CPU computes in float32."""
    if spec.autocast is None or device.type != "cuda":
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, spec.autocast))
