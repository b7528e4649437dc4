"""Hashes of everything that decides a model's answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

MATHEMATICS = 1
"""Goes up whenever the same weights would give other answers."""


def module_digest(module: nn.Module, description: Mapping[str, Any]) -> str:
    """Sha256 in hex of the version of the mathematics, `description` (plain JSON types) and every weight by name, dtype and shape."""
    digest = hashlib.sha256(json.dumps([MATHEMATICS, description], sort_keys=True).encode())
    for name, tensor in sorted(module.state_dict().items()):
        array = tensor.detach().cpu().contiguous().numpy()
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def description_digest(description: Mapping[str, Any]) -> str:
    """Sha256 in hex of `description` (plain JSON types), for models that have no weights: their spec and their version."""
    return hashlib.sha256(json.dumps([MATHEMATICS, description], sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Sha256 in hex of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
