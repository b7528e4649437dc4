"""The model that a config asks for, as far as it can be said: its own fields, and those that images and labels decide."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from patchdrive.models.answers import AnswerSpec
from patchdrive.models.config import PatchDriveNetConfig
from patchdrive.models.segmenter import SegmenterConfig
from patchdrive.models.types import ImageTraits, ModelSpec
from patchdrive.pipeline.train_batches import Brightness
from patchdrive.pipeline.train_config import TrainConfig
from patchdrive.pipeline.train_examples import ANSWER


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
    if not config.drives:
        return _segmenter_config(config, traits, classes, seen)
    usual = PatchDriveNetConfig.for_traits(traits)
    usual = usual.modular() if config.model_name == "patchdrivenet-modular" else usual
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
    return not config.drives or (traits.dtype != "uint8" and not {"mean", "std"} & config.model.keys())


def pixel_spec(held: PatchDriveNetConfig | SegmenterConfig) -> ModelSpec:
    """Of the pixels that a model of this config eats."""
    return held.spec if isinstance(held, SegmenterConfig) else held.encoder_spec
