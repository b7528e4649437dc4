"""What there is to learn: the model of a task, what is wrong with its answers in training, and how good they are on what was held out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from patchdrive.models.answers import AnswerSpec
from patchdrive.models.config import PatchDriveNetConfig
from patchdrive.models.heads import Centre
from patchdrive.models.model import PatchDrive, patchdrivenet
from patchdrive.models.segmenter import IGNORED, Segmenter, SegmenterConfig, save_segmenter, segmentation_loss
from patchdrive.models.step import LossWeights
from patchdrive.models.types import ImageTraits, ModelSpec
from patchdrive.models.weights import save_patchdrivenet
from patchdrive.pipeline.metrics import Hits, class_metrics, hits_of, object_metrics, pixel_metrics
from patchdrive.pipeline.train import DriveLearner, Learner, TrainingBatch, TrainSettings
from patchdrive.pipeline.train_config import TrainConfig

ANSWER = "class"
"""What the answer about an image is called."""
_FAINT = 0.05
"""Objects from this probability on count for the average precision; nobody is told of them."""


class Task(Protocol):
    """A model, and what makes it better."""

    @property
    def learner(self) -> Learner:
        """For the loop."""
        ...

    def judge(self, batch: TrainingBatch) -> Sequence[Any]:
        """What comes of each image of a batch, for `metrics`; no gradient, no draw."""
        ...

    def metrics(self, judged: Sequence[Any]) -> Mapping[str, float]:
        """How good that was, by name; NaN where it cannot be said."""
        ...

    def save(self, path: Path) -> None:
        """Write the model, whole or not at all."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Classify:
    """The class of an image."""

    model: PatchDrive
    """With that answer."""
    settings: TrainSettings
    """Of the training."""

    @property
    def learner(self) -> Learner:
        """See `Task.learner`."""
        return DriveLearner(model=self.model, settings=self.settings)

    def judge(self, batch: TrainingBatch) -> Sequence[tuple[NDArray[np.float32], int]]:
        """Per image its probabilities, and its class."""
        with torch.inference_mode():
            probabilities = self.model(batch.pixels.to(_device(self.model))).values[ANSWER].cpu().numpy()
        return list(zip(probabilities, batch.wanted.answers[ANSWER].tolist(), strict=True))

    def metrics(self, judged: Sequence[tuple[NDArray[np.float32], int]]) -> Mapping[str, float]:
        """See `class_metrics`."""
        return class_metrics(np.stack([one for one, _ in judged]), np.array([label for _, label in judged], np.int64))

    def save(self, path: Path) -> None:
        """See `Task.save`."""
        save_patchdrivenet(self.model, path)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Detect:
    """Where objects are."""

    model: PatchDrive
    """That finds them."""
    settings: TrainSettings
    """Of the training."""
    near: float
    """Largest distance of what is found from what is there, pixels of the model."""

    @property
    def learner(self) -> Learner:
        """See `Task.learner`."""
        return DriveLearner(model=self.model, settings=self.settings)

    def judge(self, batch: TrainingBatch) -> Sequence[Hits]:
        """Per image what was found, down to faint ones."""
        head = self.model.heads["detection"]
        assert isinstance(head, Centre)
        assert batch.wanted.targets is not None
        head.threshold = min(_FAINT, self.model.config.threshold)
        try:
            with torch.inference_mode():
                found = self.model(batch.pixels.to(_device(self.model))).objects
        finally:
            head.threshold = self.model.config.threshold
        return [
            hits_of(one.yx.cpu().double().numpy(), one.score.cpu().double().numpy(), targets.double().numpy(), self.near)
            for one, targets in zip(found, batch.wanted.targets, strict=True)
        ]

    def metrics(self, judged: Sequence[Hits]) -> Mapping[str, float]:
        """See `object_metrics`."""
        return object_metrics(judged, self.model.config.threshold)

    def save(self, path: Path) -> None:
        """See `Task.save`."""
        save_patchdrivenet(self.model, path)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Segment:
    """The class of each pixel, by a PatchDriveNet: one for each pixel of its glance."""

    model: PatchDrive
    """With a segmentation map."""
    settings: TrainSettings
    """Of the training."""

    @property
    def learner(self) -> Learner:
        """See `Task.learner`."""
        return DriveLearner(model=self.model, settings=self.settings)

    def judge(self, batch: TrainingBatch) -> Sequence[NDArray[np.int64]]:
        """See `_confusion`; a pixel has the class of the glance pixel that it lies in."""
        with torch.inference_mode():
            given = self.model(batch.pixels.to(_device(self.model))).maps["segmentation"].argmax(dim=1).cpu()
        for axis in (1, 2):
            given = given.repeat_interleave(self.model.glance_downsample, dim=axis)
        return _confusion(given[:, : batch.pixels.shape[2], : batch.pixels.shape[3]], batch, len(self.model.config.segments))

    def metrics(self, judged: Sequence[NDArray[np.int64]]) -> Mapping[str, float]:
        """See `pixel_metrics`."""
        return pixel_metrics(np.sum(judged, axis=0))

    def save(self, path: Path) -> None:
        """See `Task.save`."""
        save_patchdrivenet(self.model, path)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NamePixels:
    """The class of each pixel, by a segmenter. It is its own learner."""

    model: Segmenter
    """That names them."""

    @property
    def learner(self) -> Learner:
        """See `Task.learner`."""
        return self

    @property
    def module(self) -> nn.Module:
        """See `Learner.module`."""
        return self.model

    @property
    def weights(self) -> Mapping[str, float]:
        """See `Learner.weights`."""
        return {"pixels": 1.0}

    def terms(self, batch: TrainingBatch, generator: Generator) -> Mapping[str, Tensor]:
        """See `Learner.terms`."""
        assert batch.wanted.mask is not None
        named = torch.where(batch.wanted.mask < 0, IGNORED, batch.wanted.mask)
        return {"pixels": segmentation_loss(self._logits(batch), named.to(generator.device))}

    def judge(self, batch: TrainingBatch) -> Sequence[NDArray[np.int64]]:
        """See `_confusion`."""
        with torch.inference_mode():
            return _confusion(self._logits(batch).argmax(dim=1).cpu(), batch, len(self.model.config.classes))

    def metrics(self, judged: Sequence[NDArray[np.int64]]) -> Mapping[str, float]:
        """See `pixel_metrics`."""
        return pixel_metrics(np.sum(judged, axis=0))

    def save(self, path: Path) -> None:
        """See `Task.save`."""
        save_segmenter(self.model, path)

    def _logits(self, batch: TrainingBatch) -> Tensor:
        return self.model.logits(self.model.spec.standardise(batch.pixels.to(_device(self.model))))


def _confusion(given: Tensor, batch: TrainingBatch, classes: int) -> list[NDArray[np.int64]]:
    """Per image (classes, classes), pixels of the true class (row) that were `given`, [B, H, W], a class (column)."""
    assert batch.wanted.mask is not None
    counted = []
    for named, true in zip(given, batch.wanted.mask, strict=True):
        known = true >= 0
        pairs = torch.bincount(true[known] * classes + named[known], minlength=classes**2)
        counted.append(pairs.view(classes, classes).numpy())
    return counted


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


@dataclass(frozen=True, slots=True, kw_only=True)
class Brightness:
    """What pixels are like, in stored values."""

    mean: tuple[float, ...]
    """Per channel."""
    std: tuple[float, ...]
    """Per channel."""


def model_config(
    config: TrainConfig, traits: ImageTraits, classes: Sequence[str], seen: Brightness | None
) -> PatchDriveNetConfig | SegmenterConfig:
    """The config of the model that is to be trained.

    Args:
        config: what is asked for.
        traits: of the images.
        classes: of images or pixels.
        seen: what they are like; None: not yet known, and the answer is good for its sizes only.

    Raises:
        ModelError: its fields contradict each other.
    """
    if config.model_name == "segmenter":
        return _segmenter_config(config, traits, classes, seen)
    usual = PatchDriveNetConfig.for_traits(traits)
    finds = config.labels.targets[0] if len(config.labels.targets) == 1 else usual.target
    given: dict[str, Any] = {
        "answers": (AnswerSpec(name=ANSWER, classes=tuple(classes)),) if config.task == "classify" else (),
        "segments": tuple(classes) if config.task == "segment" else (),
        "target": finds if config.task == "detect" or config.labels.objects is not None else "",
        "seed": config.seed,
    }
    if seen is not None:
        scale = config.model.get("scale", usual.scale)
        given["mean"] = scale * sum(seen.mean) / len(seen.mean)
        given["std"] = scale * (sum(value**2 for value in seen.std) / len(seen.std)) ** 0.5
    return dataclasses.replace(usual, **{**given, **_own(config)})


def _segmenter_config(config: TrainConfig, traits: ImageTraits, classes: Sequence[str], seen: Brightness | None) -> SegmenterConfig:
    scale = 1 / traits.value_range
    held = seen or Brightness(mean=(0.0,) * len(traits.channels), std=(1.0,) * len(traits.channels))
    given: dict[str, Any] = {
        "channels": len(traits.channels),
        "classes": tuple(classes),
        "scale": scale,
        "mean": tuple(value * scale for value in held.mean),
        "std": tuple(value * scale for value in held.std),
        "fill": traits.value_range if traits.kind == "slide" else 0.0,
    }
    return SegmenterConfig(**{**given, **_own(config)})


def _own(config: TrainConfig) -> dict[str, Any]:
    """What the config says of the model."""
    return {name: value for name, value in config.model.items() if name != "name"}


def measures_brightness(config: TrainConfig, traits: ImageTraits) -> bool:
    """Whether mean and standard deviation are measured: for a driving model neither of bytes nor where somebody says them."""
    return config.model_name == "segmenter" or (traits.dtype != "uint8" and not {"mean", "std"} & config.model.keys())


def pixel_spec(held: PatchDriveNetConfig | SegmenterConfig) -> ModelSpec:
    """Of the pixels that a model of this config eats."""
    return held.spec if isinstance(held, SegmenterConfig) else held.encoder_spec


def make_task(config: TrainConfig, held: PatchDriveNetConfig | SegmenterConfig, device: torch.device) -> Task:
    """The task of a config, its model untrained and on `device`."""
    if isinstance(held, SegmenterConfig):
        return NamePixels(model=Segmenter(held, seed=config.seed).to(device))
    model, settings = patchdrivenet(held).to(device), train_settings(config)
    if config.task == "classify":
        return Classify(model=model, settings=settings)
    if config.task == "segment":
        return Segment(model=model, settings=settings)
    near = config.validation.near or held.patch_size / 4
    return Detect(model=model, settings=settings, near=near)


def train_settings(config: TrainConfig) -> TrainSettings:
    """Of the loop."""
    asked = config.training
    blind = config.task == "classify" and config.labels.objects is None  # where to look is learned from the class alone
    losses = LossWeights(answers=1.0) if blind else LossWeights()
    return TrainSettings(
        steps=asked.steps,
        learning_rate=asked.learning_rate,
        weight_decay=asked.weight_decay,
        warm_up=asked.warm_up,
        clip=asked.clip,
        average=asked.average,
        max_patches=asked.max_patches,
        constant_memory=asked.constant_memory,
        losses=dataclasses.replace(losses, **asked.losses),
        seed=config.seed,
    )
