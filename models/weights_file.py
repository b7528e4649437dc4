"""Weights in one `.safetensors` file, with the model's name and config in its metadata. Opening one runs no code of the file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from patchdrive.readers.errors import ModelError

KEY = "patchdrive"
"""Metadata key that holds `{"model": name, "config": {...}}`."""


def write_weights(module: nn.Module, path: Path, *, model: str, config: Mapping[str, Any]) -> None:
    """Write the state dict of `module` to `path`, whole or not at all."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    part = path.with_name(f"{path.name}.part")
    save_file(tensors, part, metadata={KEY: json.dumps({"model": model, "config": config}, sort_keys=True)})
    part.replace(path)


def read_description(path: Path) -> tuple[str, Mapping[str, Any]]:
    """The model's name and config.

    Raises:
        ModelError: not a safetensors file, or one without our metadata.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(KEY)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be opened as .safetensors: {error}") from error
    if text is None:
        raise ModelError(f"{path} does not say which model its weights are for: its metadata has no {KEY!r}; save it with patchdrive")
    try:
        description = json.loads(text)
        return str(description["model"]), dict(description["config"])
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{path}: the {KEY!r} metadata is not a model's name and config: {error!r}") from error


def read_weights(module: nn.Module, path: Path) -> None:
    """Fill `module` with the weights of `path`, every one and no other.

    Raises:
        ModelError: names or shapes differ.
    """
    try:
        module.load_state_dict(load_file(path), strict=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ModelError(f"{path} holds other weights than its config asks for: {error}") from error
