"""Any image network of timm as a PatchModel: its globally pooled features, one vector per patch.

`timm:NAME` takes timm's own weights from the Hugging Face cache (offline with HF_HUB_OFFLINE=1), `timm:NAME@REVISION` pins their commit,
`timm:NAME:FILE.safetensors` takes them from a file and needs no network. What a patch is comes from timm's configuration of NAME: size,
mean, standard deviation. The network is in evaluation mode for good, so batch normalisation is frozen.

`load_published` takes a network that somebody published on the Hugging Face hub: `config.json` and `.safetensors`.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from patchdrive.models.digest import module_digest
from patchdrive.models.types import ImageTraits, ModelSpec, OutputSpec
from patchdrive.readers.errors import ModelError

_VERSION = 1
_SETTINGS = ("input_size", "fixed_input_size", "mean", "std", "num_classes", "classifier", "first_conv", "pool_size")
"""What is taken of a published `pretrained_cfg`: numbers and names of layers, nothing that says where weights are to be had."""


class TimmEncoder:
    """A PatchModel: the vector `features`, stored as float16."""

    def __init__(self, network: nn.Module, spec: ModelSpec) -> None:
        self.spec = spec
        self._network = network.eval().requires_grad_(requires_grad=False)

    @cached_property
    def digest(self) -> str:
        """See `PatchModel.digest`."""
        return module_digest(self._network, {"version": _VERSION, **self.spec.to_dict()})

    def __call__(self, pixels: Tensor, /) -> Mapping[str, Tensor]:
        """[n, 3, S, S] normalised by the spec to {"features": [n, D]} float32."""
        with torch.no_grad():
            features: Tensor = self._network(pixels)
        return {"features": features.float()}

    def to(self, device: torch.device, /) -> Self:
        """Move the weights."""
        self._network.to(device)
        return self


def load_timm(name: str, traits: ImageTraits) -> TimmEncoder:
    """The network of `NAME`, `NAME@REVISION` or `NAME:FILE.safetensors`.

    Raises:
        ModelError: timm is not installed, knows no such network, or its weights cannot be had.
    """
    timm = _import_timm()
    architecture, _, file = name.partition(":")
    architecture, _, revision = architecture.partition("@")
    if file and revision:
        raise ModelError(f"timm:{name} names a revision and a file; give one of them")
    try:
        configuration = timm.models.get_pretrained_cfg(architecture, allow_unregistered=False)
        pinned = {"hf_hub_id": f"{configuration.hf_hub_id}@{revision}"} if revision else None
        network = timm.create_model(architecture, pretrained=not file, num_classes=0, pretrained_cfg_overlay=pinned)
        if file:
            network.load_state_dict(_without_classifier(load_file(Path(file)), network), strict=True)
        settings = timm.data.resolve_model_data_config(network)
    except (RuntimeError, OSError, ValueError, KeyError, SafetensorError) as error:
        raise ModelError(f"timm:{name} cannot be loaded: {error}") from error
    return TimmEncoder(network, _spec(architecture, network, settings, traits))


def load_published(name: str, config: Mapping[str, Any], weights: Path, traits: ImageTraits) -> TimmEncoder:
    """The network that a `config.json` of timm describes, with the weights beside it, every one of them and no other.

    Args:
        name: of its tables.
        config: as `timm.models.push_to_hf_hub` writes it: `architecture`, `model_args`, `pretrained_cfg`. It is not trusted.
        weights: a `.safetensors` file; with the classifier that `config` counts, which is dropped.
        traits: the image it is for.

    Raises:
        ModelError: timm is not installed or has no such architecture, or the weights are not those of `config`.
    """
    timm = _import_timm()
    architecture, arguments, held = config["architecture"], config.get("model_args") or {}, config.get("pretrained_cfg") or config
    # Not all that timm takes for a name is one of its own: "hf-hub:..." would load whatever lies there.
    if not isinstance(architecture, str) or ":" in architecture or not timm.is_model(architecture):
        raise ModelError(f"timm {timm.__version__} has no architecture {architecture!r}; a newer one may")
    if not isinstance(arguments, dict) or not isinstance(held, Mapping):
        raise ModelError(f"model_args and pretrained_cfg of a config are objects, got {arguments!r} and {held!r}")
    others = {*inspect.signature(timm.create_model).parameters, "features_only"}
    wrong = sorted(key for key in arguments if key in others or key.startswith("pretrained"))
    if wrong:
        raise ModelError(f"model_args may say how a network is built, not {', '.join(wrong)}")
    classes = arguments.get("num_classes", config.get("num_classes", held.get("num_classes", 0)))
    settings = {**{key: held[key] for key in _SETTINGS if held.get(key) is not None}, "num_classes": classes}
    try:
        whole = timm.create_model(
            architecture,
            pretrained=True,
            pretrained_cfg=settings,
            pretrained_cfg_overlay={"file": str(weights), "custom_load": False},
            **{**arguments, "num_classes": classes},
        )
        network = timm.create_model(architecture, pretrained=False, pretrained_cfg=settings, **{**arguments, "num_classes": 0})
        network.load_state_dict(_without_classifier(whole.state_dict(), whole), strict=True)
        found = timm.data.resolve_model_data_config(network)
        return TimmEncoder(network, _spec(name, network, found, traits))
    except (RuntimeError, OSError, ValueError, KeyError, TypeError, AssertionError, SafetensorError) as error:
        raise ModelError(f"timm {timm.__version__} cannot load it as {architecture}: {error}") from error


def _import_timm() -> Any:
    try:
        return importlib.import_module("timm")
    except (ImportError, RuntimeError) as error:
        raise ModelError(f"timm: models need timm and a torchvision that fits torch: pip install 'patchdrive[timm]' ({error})") from error


def _without_classifier(weights: Mapping[str, Tensor], network: Any) -> dict[str, Tensor]:
    """The weights less those of a classifier, which a network of features does not have."""
    classifier = network.pretrained_cfg.get("classifier")
    names = (classifier,) if isinstance(classifier, str) else tuple(classifier or ())
    return {key: value for key, value in weights.items() if not key.startswith(tuple(f"{name}." for name in names))}


def _spec(architecture: str, network: Any, settings: Mapping[str, Any], traits: ImageTraits) -> ModelSpec:
    channels, height, width = settings["input_size"]
    if height != width:
        raise ModelError(f"{architecture} of timm eats {height} x {width} pixels; patches are square")
    with torch.no_grad():
        length = network.eval()(torch.zeros(1, channels, height, width)).shape[-1]
    columns = tuple(f"feature_{index}" for index in range(length))
    return ModelSpec(
        name=re.sub(r"\W+", "_", architecture),
        channels=channels,
        size=height,
        scale=1.0 / traits.value_range,
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
        fill=traits.value_range if traits.kind == "slide" else 0.0,
        outputs=(OutputSpec(name="features", kind="vector", channels=columns, dtype="float16"),),
    )
