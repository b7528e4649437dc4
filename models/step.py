"""One training step of system A: look, draw patches, read them, answer, and what was wrong with the answer."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional

from patchdrive.models.drivers import Sampling
from patchdrive.models.fuse import Frame
from patchdrive.models.losses import CentreTarget, centre_focal, centre_target, evidence_loss, offset_loss, selection_loss
from patchdrive.models.model import PatchDrive
from patchdrive.models.types import Glance, Tokens
from patchdrive.readers.geometry import Level


@dataclass(frozen=True, slots=True, kw_only=True)
class LossWeights:
    """What each term counts. The evidence of single patches carries the fine detail; the rest follows from it."""

    detection: float = 1.0
    """Focal loss of the fused map."""
    offset: float = 0.5
    """L1 of places in the fused map, and of the drive's own."""
    saliency: float = 0.5
    """Focal loss of the glance's score: where targets could be."""
    evidence: float = 1.0
    """BCE of each patch by itself."""
    label: float = 0.5
    """Cross-entropy of the image's class."""
    selection: float = 0.01
    """The patch selection loss, lambda * mean |w|."""


def step_losses(model: PatchDrive, image: Tensor, targets: list[Tensor], label: Tensor, sampling: Sampling) -> dict[str, Tensor]:
    """The terms of the loss, unweighted, by the names of LossWeights.

    Args:
        model: in training.
        image: [B, C, H, W] stored values.
        targets: per image [n, 2] (y, x) centres, pixels.
        label: [B] int64, the image's class.
        sampling: how patches are drawn.
    """
    grid, cells = model.frames(image)
    glance = model.look(image)
    selection = model.select(glance, cells, grid, sampling=sampling)
    tokens = model.read(image, selection, grid)
    answers = model.answer(glance, _dropped(tokens, sampling), cells, frame=_frame(cells, sampling.generator))
    wanted = centre_target(targets, cells)
    losses = {
        "detection": centre_focal(answers.detection[:, 0], wanted.heat),
        "offset": offset_loss(answers.offset, wanted) + _drive_offset(model, glance, wanted),
        "saliency": centre_focal(glance.score, wanted.heat),
        "evidence": evidence_loss(model.evidence(tokens.x)[..., 0], selection, targets),
        "selection": selection_loss(selection),
    }
    if answers.label is not None:
        losses["label"] = functional.cross_entropy(answers.label, label)
    return losses


def _drive_offset(model: PatchDrive, glance: Glance, wanted: CentreTarget) -> Tensor:
    """The corners of patches are whole pixels and carry no gradient, so the driver's offsets have a loss of their own."""
    return offset_loss(model.driver.offsets(glance.features.movedim(1, -1)).movedim(-1, 1), wanted)


def _dropped(tokens: Tokens, sampling: Sampling) -> Tokens:
    """The same tokens, a share of them as empty slots."""
    chosen = tokens.selection
    kept = torch.rand(chosen.valid.shape, generator=sampling.generator, device=chosen.valid.device) >= sampling.drop
    return Tokens(x=tokens.x, selection=dataclasses.replace(chosen, valid=chosen.valid & kept))


def _frame(cells: Level, generator: Generator) -> Frame:
    """A larger image that this one could be a part of: up to 64 times its side, so that no place means anything by itself."""
    height, width = cells.height * cells.downsample_y, cells.width * cells.downsample_x
    grow, down, across = torch.rand(3, generator=generator, device=generator.device).tolist()
    times = 64.0**grow
    return Frame(origin=(-down * (times - 1) * height, -across * (times - 1) * width), extent=(times * height, times * width))
