"""Train a model on pieces of images: a loop that is seeded, can be stopped after any step and goes on from there to the same weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import torch
from torch import Generator, Tensor, nn

from patchdrive.models.model import PatchDrive
from patchdrive.models.search import Sampling
from patchdrive.models.step import LossWeights, Wanted, step_losses
from patchdrive.readers.errors import SettingsError

Batch_contra = TypeVar("Batch_contra", contravariant=True)
T = TypeVar("T")


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
    """Of a driving model: K while training; may be less than the model's own."""
    constant_memory: bool = False
    """Of a driving model: keep one chunk of patches in memory, not all K, at the price of encoding each twice; the same gradient."""
    losses: LossWeights = field(default_factory=LossWeights)
    """Of a driving model: what each term counts."""
    seed: int = 0
    """Of every draw in training."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise SettingsError(f"training takes at least one step, got {self.steps}")


class Learner(Protocol[Batch_contra]):
    """A model, and what is wrong with its answers about batches of one kind."""

    @property
    def module(self) -> nn.Module:
        """Whose weights are trained, in place."""
        ...

    @property
    def weights(self) -> Mapping[str, float]:
        """What each term of the loss counts."""
        ...

    def terms(self, batch: Batch_contra, generator: Generator) -> Mapping[str, Tensor]:
        """The terms of the loss, unweighted, by names of `weights`; draws come from `generator` alone."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DriveLearner:
    """PatchDriveNet: all that its heads say."""

    model: PatchDrive
    """On the device it shall train on."""
    settings: TrainSettings
    """Of the training."""

    @property
    def module(self) -> nn.Module:
        """See `Learner.module`."""
        return self.model

    @property
    def weights(self) -> Mapping[str, float]:
        """See `Learner.weights`."""
        return {name: getattr(self.settings.losses, name) for name in LossWeights.__slots__}

    def terms(self, batch: TrainingBatch, generator: Generator) -> Mapping[str, Tensor]:
        """See `Learner.terms`."""
        student = self.model.with_max_patches(self.settings.max_patches)  # a view: its weights are the model's
        pixels, wanted = batch.pixels.to(generator.device), batch.wanted.to(generator.device)
        sampling = Sampling(generator=generator)
        return step_losses(student, pixels, wanted, sampling, constant_memory=self.settings.constant_memory)


class Training(Generic[T]):
    """A model being trained: everything that decides the next step, and so all that a checkpoint keeps."""

    def __init__(self, learner: Learner[T], settings: TrainSettings) -> None:
        self._learner, self._settings, self._module = learner, settings, learner.module
        self.device = next(self._module.parameters()).device
        """Where it computes."""
        self.history: list[dict[str, float]] = []
        """Per step, each unweighted term of the loss, and `total`."""
        self._optimiser = torch.optim.AdamW(_groups(self._module, settings.weight_decay), lr=settings.learning_rate)
        self._generator = Generator(self.device).manual_seed(settings.seed)
        self._average = {} if settings.average is None else {name: one.detach().clone() for name, one in self._module.named_parameters()}

    @property
    def step(self) -> int:
        """Steps taken."""
        return len(self.history)

    def take(self, batch: T) -> Mapping[str, float]:
        """One step; the terms of its loss before it.

        Raises:
            SettingsError: the loss is not finite.
        """
        self._module.train()
        for group in self._optimiser.param_groups:
            group["lr"] = self._settings.learning_rate * _schedule(self.step, self._settings)
        terms, weights = self._learner.terms(batch, self._generator), self._learner.weights
        total = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        losses = {**{name: term.item() for name, term in terms.items()}, "total": total.item()}
        if not math.isfinite(losses["total"]):
            raise SettingsError(f"the loss is no longer finite ({losses}); lower learning_rate from {self._settings.learning_rate:.3g}")
        self._optimiser.zero_grad()
        torch.autograd.backward(total)
        nn.utils.clip_grad_norm_(self._module.parameters(), self._settings.clip)
        self._optimiser.step()
        self._follow()
        self.history.append(losses)
        return losses

    def _follow(self) -> None:
        """Move the average towards the weights; it forgets faster in the first steps, so that it is of use in short runs."""
        if self._settings.average is None:
            return
        keep = min(self._settings.average, (1 + self.step) / (10 + self.step))
        for name, weight in self._module.named_parameters():
            self._average[name].lerp_(weight.detach(), 1 - keep)

    @contextmanager
    def judged(self) -> Iterator[None]:
        """While the body lasts, the model is what training would leave now: averaged, in evaluation mode."""
        held = {name: weight.detach().clone() for name, weight in self._module.named_parameters()} if self._average else {}
        self._put(self._average)
        self._module.eval()
        try:
            yield
        finally:
            self._put(held)

    def finish(self) -> None:
        """Leave the model as `judged` has it."""
        self._put(self._average)
        self._module.eval()

    def _put(self, weights: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, weight in weights.items():
                self._module.get_parameter(name).copy_(weight)

    def state(self) -> dict[str, Tensor]:
        """All that decides the next step, and what the steps so far said; `restore` is the inverse."""
        tensors = {f"model.{name}": tensor for name, tensor in self._module.state_dict().items()}
        tensors |= {f"average.{name}": tensor for name, tensor in self._average.items()}
        for index, held in self._optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{index}.{name}": tensor for name, tensor in held.items()}
        tensors |= {"random.draws": self._generator.get_state(), "random.torch": torch.get_rng_state()}
        if self.device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(self.device)
        names = sorted({name for losses in self.history for name in losses})
        for name in names:
            tensors[f"history.{name}"] = torch.tensor([losses.get(name, math.nan) for losses in self.history], dtype=torch.float64)
        return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave, of the same learner and settings.

        Raises:
            KeyError: something is missing.
            RuntimeError: it is of another model.
        """
        self._module.load_state_dict(_part(tensors, "model"))
        self._average = {name: _part(tensors, "average")[name].to(self.device) for name in self._average}
        held: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _part(tensors, "optimiser").items():
            index, _, key = name.partition(".")
            held.setdefault(int(index), {})[key] = tensor
        self._optimiser.load_state_dict({"state": held, "param_groups": self._optimiser.state_dict()["param_groups"]})
        self._generator.set_state(tensors["random.draws"])
        torch.set_rng_state(tensors["random.torch"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random.cuda"], self.device)
        columns = {name: column.tolist() for name, column in _part(tensors, "history").items()}
        steps = len(columns["total"]) if columns else 0
        self.history = [{name: column[step] for name, column in columns.items()} for step in range(steps)]


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}."): tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}.")}


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
    training = Training(DriveLearner(model=model, settings=settings), settings)
    for step, batch in zip(range(settings.steps), batches, strict=False):
        losses = training.take(batch)
        if progress is not None:
            progress(step, losses)
    if not training.step:
        raise SettingsError("training needs at least one batch, got none")
    training.finish()
    return TrainReport(steps=training.step, seconds=time.monotonic() - start, history=tuple(training.history))


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
