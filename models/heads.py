"""What is made of the fused map and the task tokens: objects with their places, and answers about the whole image."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from patchdrive.models.types import Objects
from patchdrive.readers.geometry import Level

RARE = -4.0
"""Bias of a detection logit at the start: about one cell in fifty holds an object."""


class Centre(nn.Module):
    """Detection by centres (CenterNet, Zhou et al. 2019): a logit per cell, and where beside the cell's centre the object's is."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Conv2d(width, width, 1)
        self.detection = nn.Conv2d(width, 1, 1)
        self.offset = nn.Conv2d(width, 2, 1)
        assert self.detection.bias is not None
        nn.init.constant_(self.detection.bias, RARE)

    def forward(self, fused: Tensor) -> tuple[Tensor, Tensor]:
        """[B, D, gh, gw] to logits [B, 1, gh, gw] and offsets [B, 2, gh, gw] in cells, (y, x) from the cell's centre."""
        x = functional.relu(self.hidden(fused))
        return self.detection(x), self.offset(x)


class Classify(nn.Module):
    """One answer about the whole image from its task token."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.logits = nn.Linear(width, classes)

    def forward(self, token: Tensor) -> Tensor:
        """[B, D] to logits [B, C]."""
        logits: Tensor = self.logits(self.norm(token))
        return logits


def find_objects(probability: Tensor, offset: Tensor, cells: Level, threshold: float) -> Objects:
    """The peaks of one image's detection map: cells at or above `threshold` that no neighbour of their 3x3 exceeds.

    Args:
        probability: [gh, gw].
        offset: [2, gh, gw] in cells, (y, x) from the cell's centre.
        cells: the map's grid.
        threshold: least probability of an object.

    Returns:
        Highest first; of equals the one nearer the top, then the left. Centres are held inside the image.
    """
    highest = functional.max_pool2d(probability[None, None], kernel_size=3, stride=1, padding=1)[0, 0]
    y, x = torch.nonzero((probability >= threshold) & (probability >= highest), as_tuple=True)
    score, order = torch.sort(probability[y, x], descending=True, stable=True)
    y, x = y[order], x[order]
    place = torch.stack([y, x], dim=1) + 0.5 + offset[:, y, x].T
    size = place.new_tensor([cells.height, cells.width])
    place = torch.minimum(place.clamp_min(0), size)
    return Objects(yx=place * place.new_tensor([cells.downsample_y, cells.downsample_x]), score=score)
