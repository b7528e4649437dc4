"""What there is to learn: the model of a task, what is wrong with its answers in training, and how good they are on what was held out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from patchdrive.models.config import PatchDriveNetConfig
from patchdrive.models.heads import Centre
from patchdrive.models.model import PatchDrive, patchdrivenet
from patchdrive.models.segmenter import IGNORED, Segmenter, SegmenterConfig, save_segmenter, segmentation_loss
from patchdrive.models.step import LossWeights
from patchdrive.models.types import Selection
from patchdrive.models.weights import save_patchdrivenet
from patchdrive.pipeline.metrics import Hits, class_metrics, hits_of, object_metrics, pixel_metrics
from patchdrive.pipeline.train import DriveLearner, Learner, TrainingBatch, TrainSettings
from patchdrive.pipeline.train_config import TrainConfig
from patchdrive.pipeline.train_examples import ANSWER
from patchdrive.pipeline.train_slides import Slide, SlideLearner

Batch_contra = TypeVar("Batch_contra", contravariant=True)
_FAINT = 0.05
"""Objects from this probability on count for the average precision; nobody is told of them."""


class Task(Protocol[Batch_contra]):
    """A model, and what makes it better, on batches of one kind."""

    @property
    def learner(self) -> Learner[Batch_contra]:
        """For the loop."""
        ...

    def judge(self, batch: Batch_contra) -> Sequence[Any]:
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
    def learner(self) -> Learner[TrainingBatch]:
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
class ClassifySlides:
    """As `Classify`, of images too large to hold."""

    model: PatchDrive
    """With that answer."""
    settings: TrainSettings
    """Of the training."""

    @property
    def learner(self) -> Learner[Sequence[Slide]]:
        """See `Task.learner`."""
        return SlideLearner(model=self.model, settings=self.settings)

    def judge(self, batch: Sequence[Slide]) -> Sequence[tuple[NDArray[np.float32], int]]:
        """See `Classify.judge`."""
        with torch.inference_mode():
            return [(slide.answered(self.model).values[ANSWER][0].cpu().numpy(), int(slide.wanted.answers[ANSWER])) for slide in batch]

    def metrics(self, judged: Sequence[tuple[NDArray[np.float32], int]]) -> Mapping[str, float]:
        """See `Classify.metrics`."""
        return Classify(model=self.model, settings=self.settings).metrics(judged)

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
    def learner(self) -> Learner[TrainingBatch]:
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
                output = self.model(batch.pixels.to(_device(self.model)))
        finally:
            head.threshold = self.model.config.threshold
        assert output.attended is not None
        reads = _reads(output.attended.selection, batch.wanted.targets)
        return [
            hits_of(one.yx.cpu().double().numpy(), one.score.cpu().double().numpy(), targets.double().numpy(), near=self.near, read=read)
            for one, targets, read in zip(output.objects, batch.wanted.targets, reads, strict=True)
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
    def learner(self) -> Learner[TrainingBatch]:
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
    def learner(self) -> Learner[TrainingBatch]:
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


def _reads(selection: Selection, targets: Sequence[Tensor]) -> list[int]:
    """Per image, how many of its targets (n, 2) lie in a patch."""
    counts = []
    for yx, side, valid, places in zip(selection.yx.cpu(), selection.side.cpu(), selection.valid.cpu(), targets, strict=True):
        apart = (places[:, None] - yx[valid][None]).abs().amax(dim=2)
        counts.append(int((apart <= side[valid] / 2).any(dim=1).sum()))
    return counts


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


def make_task(config: TrainConfig, held: PatchDriveNetConfig | SegmenterConfig, device: torch.device, *, slides: bool) -> Task[Any]:
    """The task of a config, its model untrained and on `device`; of `slides` where images are too large to hold."""
    if isinstance(held, SegmenterConfig):
        return NamePixels(model=Segmenter(held, seed=config.seed).to(device))
    model, settings = patchdrivenet(held).to(device), train_settings(config)
    if config.task == "classify":
        return ClassifySlides(model=model, settings=settings) if slides else Classify(model=model, settings=settings)
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
