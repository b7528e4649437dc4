"""Batches to values on the device: one batch shape, and answers checked against the spec before anything is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchdrive.models.types import ModelSpec, OutputSpec, PatchModel
from patchdrive.pipeline.batches import Batch
from patchdrive.pipeline.timings import Timings
from patchdrive.readers.errors import ModelError, SettingsError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Values:
    """What a model gave for one batch."""

    batch: Batch
    """Without its pixels' meaning: rows, validity, block."""
    outputs: Mapping[str, NDArray[Any]]
    """Per output, (n, channel) or (n, channel, side/stride, side/stride), float32."""


def pick_device(name: str) -> torch.device:
    """`auto` is the first CUDA device where there is one, else the CPU.

    Raises:
        SettingsError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SettingsError(f"--device {name}: not a device; say auto, cpu, cuda or cuda:1") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SettingsError(f"--device {name}: this machine shows {torch.cuda.device_count()} CUDA devices; say auto or cpu")
    return device


def infer(model: PatchModel, batches: Iterator[Batch], device: torch.device, timings: Timings) -> Iterator[Values]:
    """Run `model` on each batch.

    Raises:
        ModelError: an output is missing, has another shape than its spec says, or is not finite.
    """
    for batch in batches:
        outputs: dict[str, NDArray[Any]] = {}
        if len(batch.rows):
            with timings.stage("infer"):
                outputs = _run(model, batch, device)
        yield Values(batch=batch, outputs=outputs)


@torch.inference_mode()
def _run(model: PatchModel, batch: Batch, device: torch.device) -> dict[str, NDArray[Any]]:
    spec = model.spec
    given = model(spec.normalise(torch.from_numpy(batch.pixels).to(device)))
    missing = [output.name for output in spec.outputs if output.name not in given]
    if missing:
        raise ModelError(f"{spec.name} gave {sorted(given)} but its spec promises {missing} too")
    return {output.name: _checked(given[output.name], output, batch, spec) for output in spec.outputs}


def _checked(tensor: Tensor, output: OutputSpec, batch: Batch, spec: ModelSpec) -> NDArray[Any]:
    size, side = batch.pixels.shape[:2]
    cells = () if output.kind == "vector" else (side // output.stride, side // output.stride)
    wanted = (size, len(output.channels), *cells)
    if tuple(tensor.shape) != wanted:
        raise ModelError(f"{spec.name}: output {output.name!r} has shape {tuple(tensor.shape)}, its spec says {wanted}")
    values: NDArray[Any] = tensor.to("cpu", torch.float32).numpy()
    if len(batch.rows) < size:
        values = values[batch.places]
    elif np.may_share_memory(values, batch.pixels):  # a model that hands back its input: the feed writes there again
        values = values.copy()
    if output.kind == "vector" and not np.isfinite(values).all():
        raise ModelError(f"{spec.name}: output {output.name!r} is not finite for some patch of block {batch.block.index}")
    return values
