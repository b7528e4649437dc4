"""PatchDriveNet in one .safetensors file: weights, and the config in its metadata. Opening one runs no code of the file."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model, save_file

from patchdrive.models.config import PatchDriveNetConfig
from patchdrive.models.model import PatchDrive, patchdrivenet
from patchdrive.readers.errors import ModelError

KEY = "patchdrive"
"""Metadata key of the config."""


def save_patchdrivenet(model: PatchDrive, path: Path) -> None:
    """Write `model` to `path`, whole or not at all."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    part = path.with_name(path.name + ".part")
    description = {"model": "patchdrivenet", "config": model.config.to_dict()}
    save_file(weights, part, metadata={KEY: json.dumps(description, sort_keys=True)})
    part.replace(path)


def load_patchdrivenet(path: Path) -> PatchDrive:
    """Read what `save_patchdrivenet` wrote; its digest is that of the model that was saved.

    Raises:
        ModelError: not such a file, or its weights are not those of its config.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be opened as .safetensors: {error}") from error
    if KEY not in metadata:
        raise ModelError(f"{path} has no {KEY!r} in its metadata: not a PatchDriveNet; save one with save_patchdrivenet")
    try:
        model = patchdrivenet(PatchDriveNetConfig.from_dict(json.loads(metadata[KEY])["config"]))
        load_model(model, path)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ModelError(f"{path} holds other weights than its config asks for: {error}") from error
    return model
