"""The global stream of an image, taken a part at a time: it may be larger than memory, as a file behind a tensor."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from patchdrive.models.types import Glance

_AT_ONCE = 2**22
"""Values of the stream that are worked on at once."""


def pool(glance: Glance, bins: int) -> Tensor:
    """The stream's mean over valid cells in bins x bins, [B, bins * bins, D]; zeros where a bin has none."""
    features, valid = glance.features, glance.valid[:, None].to(glance.features.dtype)
    step = max(1, _AT_ONCE // max(1, valid.numel()))
    parts = [functional.adaptive_avg_pool2d(some * valid, bins) for some in torch.split(features, step, dim=1)]
    share = functional.adaptive_avg_pool2d(valid, bins)
    return (torch.cat(parts, dim=1) / share.clamp_min(1e-6)).flatten(2).transpose(1, 2)


def match(glance: Glance, query: Tensor) -> Tensor:
    """[B, gh, gw] scalar product of the stream with a query [B, D] in every cell."""
    features = glance.features
    rows = max(1, _AT_ONCE // max(1, features[:, :, :1].numel()))
    return torch.cat([torch.einsum("bdyx,bd->byx", some, query) for some in torch.split(features, rows, dim=2)], dim=1)
