"""The terms of system A's training loss, as pure functions (MODELS 3.9). Maps are on the glance's grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

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
    """[B, gh, gw] bool, cells whose nearest target lies within one cell of theirs: there offset and size count."""
    nearest: Tensor
    """[B, gh, gw] int64, which of the image's targets is the nearest; 0 where there is none."""


def centre_target(targets: Sequence[Tensor], cells: Level) -> CentreTarget:
    """Detection targets of a batch; `targets` are [n, 2] level-0 centres per image."""
    centres = cell_centres(cells, 0, cells.height * cells.width, targets[0].device)
    steps = centres.new_tensor([cells.downsample_y, cells.downsample_x])
    heats, offsets, nears, which = [], [], [], []
    for yx in targets:
        if len(yx) == 0:
            heats.append(centres.new_zeros(len(centres)))
            offsets.append(torch.zeros_like(centres))
            nears.append(torch.zeros(len(centres), dtype=torch.bool, device=centres.device))
            which.append(torch.zeros(len(centres), dtype=torch.int64, device=centres.device))
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
        which.append(nearest)
    shape = (len(targets), cells.height, cells.width)
    return CentreTarget(
        heat=torch.stack(heats).view(shape),
        offset=torch.stack(offsets).transpose(1, 2).reshape(shape[0], 2, *shape[1:]),
        near=torch.stack(nears).view(shape),
        nearest=torch.stack(which).view(shape),
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


def selection_loss(selection: Selection, *, reduction: Literal["mean", "sum"] = "mean") -> Tensor:
    """The patch selection loss, (1/B) sum_b of mean_i |w_i| over the patches read: attention has a price.

    `sum` is the plain sum_i |w_i|, whose share of the loss goes with the number of patches. Alone, either makes all gates 0.
    """
    price = selection.weight.abs().where(selection.valid, 0.0).sum(dim=1)
    if reduction == "mean":
        price = price / selection.valid.sum(dim=1).clamp_min(1)
    return price.mean()


def size_loss(size: Tensor, target: CentreTarget, sizes: Sequence[Tensor], cells: Level) -> Tensor:
    """Mean L1 of log sizes [B, 2, gh, gw] (of cells) in the cells near a target, against its size: [n, 2] per image, level-0 pixels.

    A peak of the map may lie beside the cell that holds a target's centre, so its neighbours know the size too, as they know the place.
    """
    steps = size.new_tensor([cells.downsample_y, cells.downsample_x])
    wrong = [size.new_zeros(0)]
    for said, near, nearest, extent in zip(size, target.near, target.nearest, sizes, strict=True):
        if len(extent):
            wrong.append((said[:, near].T - (extent / steps).clamp_min(1e-3).log()[nearest[near]]).abs().flatten())
    every = torch.cat(wrong)
    return every.sum() / max(1, len(every))


def segmentation_loss(logits: Tensor, mask: Tensor, downsample: int) -> Tensor:
    """Cross-entropy, and one less the soft Dice of the classes that occur, of [B, C, h, w] logits.

    Args:
        logits: a pixel per `downsample` image pixels; may reach beyond the image.
        mask: [B, H, W] int64 classes of the image's pixels, -1 where not known: each logit is compared with the share of each class in
            its pixel.
        downsample: image pixels along a logit.
    """
    classes = logits.shape[1]
    known = functional.one_hot((mask + 1).clamp_min(0), classes + 1)[..., 1:].movedim(-1, 1).to(logits.dtype)
    share = functional.avg_pool2d(known, downsample, ceil_mode=True, count_include_pad=False)
    logits = logits[:, :, : share.shape[2], : share.shape[3]]
    there = share.sum(dim=1, keepdim=True)
    entropy = -(share * functional.log_softmax(logits, dim=1)).sum() / there.sum().clamp_min(1)
    p = torch.softmax(logits, dim=1) * there
    area = share.sum(dim=(0, 2, 3))
    dice = 2 * (p * share).sum(dim=(0, 2, 3)) / (p + share).sum(dim=(0, 2, 3)).clamp_min(1e-6)
    occurs = area > 0
    return entropy + (1 - dice[occurs]).mean() if bool(occurs.any()) else entropy


def attention_loss(selection: Selection, attention: Tensor) -> Tensor:
    """Saliency distilled from the model's own attention: BCE of each patch's gate against whether it got more than 1.5 times its share.

    Args:
        selection: of the patches; gradient goes through their gates.
        attention: [B, K], of the answers on each patch; a target, without gradient.
    """
    valid = selection.valid
    count = valid.sum(dim=1, keepdim=True).clamp_min(1)
    among = attention / (attention * valid).sum(dim=1, keepdim=True).clamp_min(1e-6)
    counts = (among * count > 1.5).to(attention.dtype)
    gate = selection.weight.clamp(1e-4, 1 - 1e-4)
    wrong = -(counts * gate.log() + (1 - counts) * (1 - gate).log())
    return (wrong * valid).sum() / valid.sum().clamp_min(1)


def budget_loss(weight: Tensor, valid: Tensor, target: float) -> Tensor:
    """(1/B) sum_b (mean_i w_i - target)^2 over what is valid: what keeps `selection_loss` from closing every gate.

    Args:
        weight: [B, N] gates in [0, 1].
        valid: [B, N] bool; an image without any does not count.
        target: share of N that gates should let through.
    """
    count = valid.sum(dim=1)
    mean = weight.where(valid, 0.0).sum(dim=1) / count.clamp_min(1)
    return _mean_of((mean - target).square(), count > 0)


def entropy_loss(score: Tensor, valid: Tensor) -> Tensor:
    """Entropy of softmax(score) over the valid cells of an image, nats, mean over images: H = -sum_i p_i log p_i.

    The logits are taken as they are, never brought to the image's own range: that would make them depend on the whole slide. Weighed
    positively it sharpens saliency, negatively it spreads it.

    Args:
        score: [B, N] or [B, gh, gw] logits.
        valid: of the same shape, bool; an image without any does not count.
    """
    valid = valid.flatten(1)
    log_p = torch.log_softmax(score.flatten(1).where(valid, -torch.inf), dim=1)
    surprise = log_p.exp() * log_p.where(valid, 0.0)
    return _mean_of(-surprise.sum(dim=1), valid.any(dim=1))


def multi_instance_loss(logits: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    """BCE of an image's labels where each patch may vouch for them: noisy-or, P = 1 - prod_k (1 - p_k), mean over images and classes.

    In log space throughout: log(1 - P) = -sum_k softplus(z_k) = -a, and log P = log(1 - e^-a) from log a, which stays finite and keeps
    its gradient, shared out by softmax(z), where every p_k is below what a float holds. Of K patches the logits want to start near -log K.

    Args:
        logits: [B, K, C], z of each patch for each class.
        labels: [B, C] in [0, 1].
        valid: [B, K] bool; an image without any patch vouches for nothing and does not count.
    """
    some = valid.any(dim=1)
    z = logits.where(valid[..., None], 0.0)
    heard = (valid | ~some[:, None])[..., None]
    absent = functional.softplus(z).where(heard, 0.0).sum(dim=1)
    log_absent = torch.logsumexp(_log_softplus(z).masked_fill(~heard, -torch.inf), dim=1)
    wrong = (1 - labels) * absent - labels * _log_present(log_absent)
    return _mean_of(wrong.mean(dim=1), some)


_TINY = -15.0
"""Below this log, e^x is so small that log(log1p(e^x)) and log(1 - e^-(e^x)) are x - e^x / 2 to rounding."""


def _log_softplus(z: Tensor) -> Tensor:
    """log(softplus(z)) for any z."""
    tiny = z < _TINY
    return (z - z.where(tiny, 0.0).exp() / 2).where(tiny, functional.softplus(z.where(~tiny, 0.0)).log())


def _log_present(log_a: Tensor) -> Tensor:
    """log(1 - exp(-a)) for any log a."""
    tiny = log_a < _TINY
    return (log_a - log_a.where(tiny, 0.0).exp() / 2).where(tiny, torch.log(-torch.expm1(-log_a.where(~tiny, 0.0).exp())))


def _mean_of(values: Tensor, counted: Tensor) -> Tensor:
    """Mean of those of [B] that count; 0 where none does."""
    return values.where(counted, 0.0).sum() / counted.sum().clamp_min(1)
