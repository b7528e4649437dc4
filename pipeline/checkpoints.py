"""Checkpoints: all that a training needs to go on, in one `.safetensors` file, there whole or not at all. Opening one runs no code."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from patchdrive.pipeline.drafts import draft_of
from patchdrive.pipeline.facts import differences
from patchdrive.readers.errors import StoreError

KEY = "patchdrive.training"
"""Metadata key of the facts and the state."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Checkpoint:
    """Where a training stands."""

    facts: Mapping[str, Any]
    """What decides the weights, plain JSON: a training that goes on must repeat them."""
    state: Mapping[str, Any]
    """What is known besides tensors, plain JSON."""
    tensors: Mapping[str, Tensor]
    """As `Training.state` gives them."""

    def save(self, path: Path) -> None:
        """Write it over the one that is there; a kill at any instant leaves one of the two."""
        with draft_of(path) as draft:
            metadata = {KEY: json.dumps({"facts": self.facts, "state": self.state})}
            save_file({name: tensor.contiguous() for name, tensor in self.tensors.items()}, draft, metadata=metadata)
            with draft.open("rb") as file:
                os.fsync(file.fileno())


def load_checkpoint(path: Path, facts: Mapping[str, Any]) -> Checkpoint | None:
    """The checkpoint at `path`; None where there is none.

    Args:
        path: of the file.
        facts: of the training that wants to go on from it.

    Raises:
        StoreError: it cannot be read, or is of another training; names what differs.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            held = json.loads((file.metadata() or {})[KEY])
        known, state = held["facts"], held["state"]
        tensors = load_file(path)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path} cannot be read as a checkpoint ({error!r}); move it away, or start anew with --overwrite") from error
    differing = differences(known, json.loads(json.dumps(facts)))
    if differing:
        raise StoreError(
            f"{path.parent} holds another training: {'; '.join(differing)}. Name another `out`, or start anew with --overwrite."
        )
    return Checkpoint(facts=known, state=state, tensors=tensors)
