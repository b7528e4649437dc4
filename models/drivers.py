"""System A's patch drive controller, in its parallel form: the K best peaks of the saliency, each read centred on its object."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from patchdrive.models.select import nms, topk_gumbel, topk_hard
from patchdrive.models.types import Glance, Selection
from patchdrive.readers.geometry import Level


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a training step strays from the K best."""

    generator: Generator
    """Of all its draws."""
    temperature: float = 0.3
    """Of the Gumbel draw among the peaks."""
    explore: float = 0.1
    """Share of the K spent on cells drawn uniformly."""
    drop: float = 0.15
    """Share of the patches read that fusion does not get, so that it knows what cells look like that nobody read."""
    jitter: float = 4.0
    """Patches are shifted by up to this many patch pixels."""


class SaliencyDriver(nn.Module):
    """Top-K of the 3x3 peaks of the score; a learned sub-cell offset centres each patch, and the image's border holds it inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.offset = nn.Linear(width, 2)
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)

    def offsets(self, features: Tensor) -> Tensor:
        """[..., D] features of cells to [..., 2] (y, x), where in or beside the cell the object's centre lies, in cells, within +-1."""
        return torch.tanh(self.offset(features))

    def forward(self, glance: Glance, cells: Level, grid: Level, *, size: int, max_patches: int, sampling: Sampling | None) -> Selection:
        """Choose patches.

        Args:
            glance: features, score and valid of the whole image.
            cells: the glance's grid.
            grid: the patches' grid.
            size: side of a patch, pixels of `grid`.
            max_patches: K, the slots of the Selection.
            sampling: draws of a training step; None for the K best.
        """
        score = glance.score.flatten(1)
        index, valid = _pick(glance, max_patches, sampling)
        at = index.clamp_min(0)
        features = glance.features.flatten(2).gather(2, at[:, None].expand(-1, glance.features.shape[1], -1)).transpose(1, 2)
        place = torch.stack([at // cells.width, at % cells.width], dim=2) + 0.5 + self.offsets(features).detach()
        steps = place.new_tensor([grid.downsample_y, grid.downsample_x])
        corner = place * place.new_tensor([cells.downsample_y, cells.downsample_x]) / steps - size / 2
        if sampling is not None:
            shift = torch.rand(corner.shape, generator=sampling.generator, device=corner.device)
            corner = corner + (2 * shift - 1) * sampling.jitter
        last = place.new_tensor([max(grid.height - size, 0), max(grid.width - size, 0)])
        corner = torch.minimum(corner.round().clamp_min(0), last)
        side = size * (grid.downsample_y + grid.downsample_x) / 2
        return Selection(
            yx=(corner + size / 2) * steps,
            side=corner.new_full(index.shape, side),
            cell=index,
            weight=torch.sigmoid(score.gather(1, at)).masked_fill(~valid, 1.0),
            valid=valid,
        )


def _pick(glance: Glance, count: int, sampling: Sampling | None) -> tuple[Tensor, Tensor]:
    """Flat cells [B, count] (-1 when empty) and which of them are filled."""
    peaks = glance.score.masked_fill(~nms(glance.score, glance.valid), -torch.inf).detach().flatten(1)
    if sampling is None:
        return topk_hard(peaks, count)
    roam = int(count * sampling.explore)
    index, valid = topk_gumbel(peaks, count - roam, sampling.generator, sampling.temperature)
    free = torch.zeros_like(peaks).masked_fill(~glance.valid.flatten(1), -torch.inf)
    spare = torch.cat([free, free[:, :1]], dim=1)  # one more cell at the end, where index -1 lands
    free = spare.scatter(1, index.where(valid, index.new_tensor(free.shape[1])), -torch.inf)[:, :-1]
    others, others_valid = topk_gumbel(free, roam, sampling.generator)
    return torch.cat([index, others], dim=1), torch.cat([valid, others_valid], dim=1)
