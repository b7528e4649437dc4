"""One training step of system A: look, draw patches, read them, answer, and what was wrong with the answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor
from torch.nn import functional

from patchdrive.models.fuse import Frame
from patchdrive.models.losses import (
    CentreTarget,
    attention_loss,
    budget_loss,
    centre_focal,
    centre_target,
    entropy_loss,
    evidence_loss,
    multi_instance_loss,
    offset_loss,
    segmentation_loss,
    selection_loss,
    size_loss,
)
from patchdrive.models.model import PatchDrive
from patchdrive.models.search import Gathered, Placing, Sampling
from patchdrive.models.types import Glance, Tokens
from patchdrive.readers.errors import ModelError
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
    size: float = 0.2
    """L1 of the logarithm of a thing's height and width."""
    answers: float = 0.5
    """Cross-entropy of each answer about the image."""
    instances: float = 0.5
    """Noisy-or of patches against the classes of answers of many: it points at the patches that show them."""
    segmentation: float = 1.0
    """Cross-entropy and Dice of the segmentation map."""
    attention: float = 0.0
    """The glance's score and the driver's wishes learn from the model's own attention: where no target's place is known."""
    ponder: float = 0.01
    """The price of a recurrent driver's steps."""
    selection: float = 0.01
    """The patch selection loss, lambda * mean |w|."""
    entropy: float = 0.0
    """Entropy of the saliency: above zero sharpens it, below spreads it."""
    budget: float = 0.0
    """(mean w - 1/2)^2: keeps gates from closing altogether."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is known of a batch of images; what is not is left out, and its terms too."""

    targets: list[Tensor] | None = None
    """Per image [n, 2] float32 (y, x) centres, pixels."""
    sizes: list[Tensor] | None = None
    """Per image [n, 2] float32 height and width of each target, pixels."""
    answers: Mapping[str, Tensor] = field(default_factory=dict)
    """By name, [B] int64, the class; or [B, C] 0 or 1, of an answer of many."""
    mask: Tensor | None = None
    """[B, H, W] int64, class of each pixel, -1 where it is not known."""

    def to(self, device: torch.device) -> Wanted:
        """The same there."""
        return Wanted(
            targets=None if self.targets is None else [yx.to(device) for yx in self.targets],
            sizes=None if self.sizes is None else [extent.to(device) for extent in self.sizes],
            answers={name: right.to(device) for name, right in self.answers.items()},
            mask=None if self.mask is None else self.mask.to(device),
        )


def step_losses(
    model: PatchDrive, image: Tensor, wanted: Wanted, sampling: Sampling, *, constant_memory: bool = False, chunk: int = 256
) -> dict[str, Tensor]:
    """The terms of the loss, unweighted, by the names of LossWeights.

    Args:
        model: in training.
        image: [B, C, H, W] stored values.
        wanted: what its answers should be.
        sampling: how patches are drawn.
        constant_memory: as `PatchDrive.read`.
        chunk: as there.

    Raises:
        ModelError: what is known names an answer or a head that the model does not have.
    """
    grid, cells = model.frames(image)
    glance = model.look(image)
    gathered = model.gather(image, glance, cells, grid, sampling=sampling, chunk=chunk, constant_memory=constant_memory)
    return gathered_losses(model, glance, gathered, cells, wanted=wanted, sampling=sampling)


def gathered_losses(
    model: PatchDrive, glance: Glance, gathered: Gathered, cells: Level, *, wanted: Wanted, sampling: Sampling
) -> dict[str, Tensor]:
    """As `step_losses`, of patches that were read from wherever the images are.

    Args:
        model: in training.
        glance: what was seen of the images.
        gathered: what its driver gathered of them.
        cells: the glance's grid.
        wanted: what its answers should be.
        sampling: how patches were drawn.

    Raises:
        ModelError: as there.
    """
    _check(model, wanted)
    tokens = gathered.tokens
    mixed: Tokens = model.mixer(_dropped(tokens, sampling))
    said = model.answer(glance, mixed, cells, frame=_frame(cells, sampling.generator))
    losses = {**gathered.losses, "selection": selection_loss(tokens.selection), "entropy": entropy_loss(glance.score, glance.valid)}
    losses["budget"] = budget_loss(tokens.selection.weight, tokens.selection.valid, 0.5)
    if wanted.targets is not None:
        centres = centre_target(wanted.targets, cells)
        losses["saliency"] = centre_focal(glance.score, centres.heat)
        losses["evidence"] = evidence_loss(model.evidence(tokens.x)[..., 0], tokens.selection, wanted.targets)
        losses["offset"] = _drive_offset(model, glance, centres)
        if "detection" in said:
            losses["detection"] = centre_focal(said["detection"][:, 0], centres.heat)
            losses["offset"] = losses["offset"] + offset_loss(said["offset"], centres)
        if wanted.sizes is not None:
            losses["size"] = size_loss(said["size"], centres, wanted.sizes, cells)
    else:
        losses["attention"] = attention_loss(tokens.selection, model.attention(glance, tokens, cells).detach())
    if wanted.answers:
        losses["answers"] = torch.stack([_wrong(said[name], right) for name, right in wanted.answers.items()]).mean()
    many = [name for name in wanted.answers if name in model.signs]
    if many:
        vouched = [multi_instance_loss(model.signs[name](tokens.x), wanted.answers[name], tokens.selection.valid) for name in many]
        losses["instances"] = torch.stack(vouched).mean()
    if wanted.mask is not None:
        losses["segmentation"] = segmentation_loss(said["segmentation"], wanted.mask, model.glance_downsample)
    return losses


def _check(model: PatchDrive, wanted: Wanted) -> None:
    unknown = wanted.answers.keys() - model.values.keys()
    if unknown:
        raise ModelError(f"the model answers {sorted(model.values)}, not {sorted(unknown)}")
    if wanted.mask is not None and not model.config.segments:
        raise ModelError("pixels have classes here, and the model no segmentation map: name its segments")
    if wanted.sizes is not None and not model.config.boxes:
        raise ModelError("targets have sizes here, and the model gives centres only: set boxes")


def _wrong(logits: Tensor, right: Tensor) -> Tensor:
    """Of an answer [B, C]: cross-entropy against classes [B], or of each class by itself against [B, C]."""
    if right.ndim == 2:
        return functional.binary_cross_entropy_with_logits(logits, right.to(logits.dtype))
    return functional.cross_entropy(logits, right)


def _drive_offset(model: PatchDrive, glance: Glance, wanted: CentreTarget) -> Tensor:
    """The corners of patches are whole pixels and carry no gradient, so the driver's offsets have a loss of their own."""
    places = [part for part in model.modules() if isinstance(part, Placing)]
    features = glance.features.movedim(1, -1)
    return torch.stack(
        [glance.score.new_zeros(()), *(offset_loss(place.offsets(features).movedim(-1, 1), wanted) for place in places)]
    ).sum()


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
