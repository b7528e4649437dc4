"""The terms of system A's training loss, as pure functions (MODELS 3.9). Maps are on the glance's grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from patchdrive.models.fuse import cell_centres
from patchdrive.models.types import Selection
from patchdrive.readers.geometry import Level

SIGMA = 0.5
"""Width of the Gaussian around a target in the detection map, cells."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CentreTarget:
    """What the detection head should say."""

    heat: Tensor
    """[B, gh, gw] in [0, 1]; exactly 1 in the cell that holds a target's centre."""
    offset: Tensor
    """[B, 2, gh, gw], cells, (y, x) from the cell's centre to the nearest target's."""
    near: Tensor
    """[B, gh, gw] bool, cells whose nearest target lies within one cell of theirs: there the offset counts."""


def centre_target(targets: Sequence[Tensor], cells: Level) -> CentreTarget:
    """Detection targets of a batch; `targets` are [n, 2] level-0 centres per image."""
    centres = cell_centres(cells, 0, cells.height * cells.width, targets[0].device)
    steps = centres.new_tensor([cells.downsample_y, cells.downsample_x])
    heats, offsets, nears = [], [], []
    for yx in targets:
        if len(yx) == 0:
            heats.append(centres.new_zeros(len(centres)))
            offsets.append(torch.zeros_like(centres))
            nears.append(torch.zeros(len(centres), dtype=torch.bool, device=centres.device))
            continue
        apart = (yx[None] - centres[:, None]) / steps
        nearest = apart.square().sum(dim=2).argmin(dim=1)
        offset = apart[torch.arange(len(centres), device=centres.device), nearest]
        heat = torch.exp(-offset.square().sum(dim=1) / (2 * SIGMA**2))
        home = (yx / steps).floor().long()
        heat[home[:, 0].clamp(0, cells.height - 1) * cells.width + home[:, 1].clamp(0, cells.width - 1)] = 1.0
        heats.append(heat)
        offsets.append(offset)
        nears.append(offset.abs().amax(dim=1) <= 1.0)
    shape = (len(targets), cells.height, cells.width)
    return CentreTarget(
        heat=torch.stack(heats).view(shape),
        offset=torch.stack(offsets).transpose(1, 2).reshape(shape[0], 2, *shape[1:]),
        near=torch.stack(nears).view(shape),
    )


def centre_focal(logits: Tensor, heat: Tensor) -> Tensor:
    """CenterNet's focal loss, alpha 2 and beta 4, over the number of targets (at least one).

    -(1 - p)^2 log p where heat is 1; -(1 - heat)^4 p^2 log(1 - p) elsewhere. `logits` and `heat` are [B, gh, gw].
    """
    p = torch.sigmoid(logits)
    hit = heat == 1
    positive = (1 - p).square() * functional.logsigmoid(logits)
    negative = (1 - heat).pow(4) * p.square() * functional.logsigmoid(-logits)
    return -positive.where(hit, negative).sum() / hit.sum().clamp_min(1)


def offset_loss(offset: Tensor, target: CentreTarget) -> Tensor:
    """Mean L1 of offsets [B, 2, gh, gw] over the cells near a target, cells."""
    wrong = (offset - target.offset).abs().sum(dim=1)
    return (wrong * target.near).sum() / target.near.sum().clamp_min(1)


def evidence_loss(logits: Tensor, selection: Selection, targets: Sequence[Tensor]) -> Tensor:
    """BCE of "a target is centred in this patch", [B, K]: yes within a quarter side, no beyond half a side, else not asked.

    A third of the weight is on the patches that say yes, so that many easy patches do not drown the few that teach.
    """
    apart = selection.side.new_full(selection.side.shape, torch.inf)
    for image, yx in enumerate(targets):
        if len(yx):
            distance = (selection.yx[image, :, None] - yx[None]).abs().amax(dim=2).amin(dim=1)
            apart[image] = distance / selection.side[image]
    centred = apart <= 1 / 4
    asked = selection.valid & (centred | (apart > 1 / 2))
    wrong = functional.binary_cross_entropy_with_logits(logits, centred.to(logits.dtype), reduction="none")
    yes, no = ((wrong * part).sum() / part.sum().clamp_min(1) for part in (centred & selection.valid, asked & ~centred))
    return (yes + 2 * no) / 3


def selection_loss(selection: Selection) -> Tensor:
    """Mean |w| over the patches read: attention has a price."""
    return (selection.weight * selection.valid).sum() / selection.valid.sum().clamp_min(1)
