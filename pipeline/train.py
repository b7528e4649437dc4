"""Train PatchDriveNet on pieces of images with the places of targets in them: a small loop, seeded, minutes on two cores."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from patchdrive.models.model import PatchDrive
from patchdrive.models.search import Sampling
from patchdrive.models.step import LossWeights, Wanted, step_losses
from patchdrive.readers.errors import SettingsError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingBatch:
    """Pieces of images."""

    pixels: Tensor
    """[B, C, H, W] stored values, at the model's pixel size."""
    wanted: Wanted
    """What is in them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """How long and how fast.

    Raises:
        SettingsError: there is no step to take.
    """

    steps: int = 350
    """Batches used; fewer when there are no more."""
    learning_rate: float = 2e-3
    """Of AdamW at its height."""
    weight_decay: float = 0.05
    """On matrices and kernels only."""
    warm_up: float = 0.05
    """Share of the steps in which the rate rises; then it falls along a cosine to 0.001 of its height."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    average: float | None = None
    """Decay of an exponential moving average of the weights, which then is what training leaves; None for none."""
    max_patches: int = 16
    """K while training; may be less than the model's own."""
    constant_memory: bool = False
    """Keep one chunk of patches in memory, not all K, at the price of encoding each twice; the same gradient."""
    losses: LossWeights = field(default_factory=LossWeights)
    """What each term counts."""
    seed: int = 0
    """Of every draw in training."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise SettingsError(f"training takes at least one step, got {self.steps}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainReport:
    """What training did."""

    steps: int
    """Batches used."""
    seconds: float
    """Of wall clock, waiting for batches included."""
    history: tuple[Mapping[str, float], ...]
    """Per step, each unweighted term of the loss, and `total`."""


def train(
    model: PatchDrive,
    batches: Iterable[TrainingBatch],
    settings: TrainSettings,
    progress: Callable[[int, Mapping[str, float]], None] | None = None,
) -> TrainReport:
    """Train `model` in place on `batches`, in the order they come.

    Args:
        model: on the device it shall train on.
        batches: as many as `settings.steps`, or the report says fewer.
        settings: of the training.
        progress: called after every step with its number and losses.

    Raises:
        SettingsError: there is no batch, or a loss is not finite.
    """
    start = time.monotonic()
    student = model.with_max_patches(settings.max_patches)  # a view: its weights are the model's
    optimiser = torch.optim.AdamW(_groups(student, settings.weight_decay), lr=settings.learning_rate)
    sampling = Sampling(generator=torch.Generator(student.fuse.gamma.device).manual_seed(settings.seed))
    average = {name: weight.detach().clone() for name, weight in student.named_parameters()} if settings.average is not None else {}
    history: list[dict[str, float]] = []
    for step, batch in enumerate(_first(batches, settings.steps)):
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * _schedule(step, settings)
        history.append(_step(student, batch, optimiser, sampling, settings))
        _follow(average, student, settings.average, step)
        if progress is not None:
            progress(step, history[-1])
    if not history:
        raise SettingsError("training needs at least one batch, got none")
    student.load_state_dict({**student.state_dict(), **average})
    model.eval()
    return TrainReport(steps=len(history), seconds=time.monotonic() - start, history=tuple(history))


def _step(
    model: PatchDrive, batch: TrainingBatch, optimiser: torch.optim.Optimizer, sampling: Sampling, settings: TrainSettings
) -> dict[str, float]:
    """One step; the terms of its loss before it."""
    device = model.fuse.gamma.device
    terms = step_losses(model, batch.pixels.to(device), batch.wanted.to(device), sampling, constant_memory=settings.constant_memory)
    total = torch.stack([getattr(settings.losses, name) * term for name, term in terms.items()]).sum()
    losses = {**{name: term.item() for name, term in terms.items()}, "total": total.item()}
    if not math.isfinite(losses["total"]):
        raise SettingsError(f"the loss is no longer finite ({losses}); lower learning_rate from {settings.learning_rate:.3g}")
    optimiser.zero_grad()
    torch.autograd.backward(total)
    nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
    optimiser.step()
    return losses


def _groups(model: nn.Module, decay: float) -> list[dict[str, object]]:
    """Matrices and kernels decay; biases, norms and gates do not."""
    weights = list(model.parameters())
    return [
        {"params": [weight for weight in weights if weight.ndim >= 2], "weight_decay": decay},
        {"params": [weight for weight in weights if weight.ndim < 2], "weight_decay": 0.0},
    ]


def _schedule(step: int, settings: TrainSettings) -> float:
    """Share of the learning rate at a step: a linear rise, then half a cosine."""
    rise = max(1, round(settings.warm_up * settings.steps))
    if step < rise:
        return (step + 1) / rise
    done = (step - rise) / max(1, settings.steps - rise)
    return 0.001 + 0.999 * (1 + math.cos(math.pi * done)) / 2


def _follow(average: dict[str, Tensor], model: nn.Module, decay: float | None, step: int) -> None:
    """Move the average towards the weights; it forgets faster in the first steps, so that it is of use in short runs."""
    if decay is None:
        return
    keep = min(decay, (1 + step) / (10 + step))
    for name, weight in model.named_parameters():
        average[name].lerp_(weight.detach(), 1 - keep)


def _first(batches: Iterable[TrainingBatch], count: int) -> Iterator[TrainingBatch]:
    for _, batch in zip(range(count), batches, strict=False):
        yield batch
