"""A PatchModel in one `.pt2` file: a graph of tensor operators and its weights (`torch.export`), with the ModelSpec inside.

The file needs none of the code that made it. Opening one runs none either: see `patchdrive.models.program_safety`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch._export.verifier import SpecViolationError
from torch.export.passes import move_to_device_pass

from patchdrive.models.digest import file_digest
from patchdrive.models.program_safety import SPEC_RECORD, safe_copy
from patchdrive.models.types import ModelSpec, OutputSpec
from patchdrive.readers.errors import ModelError

_EXAMPLES = 2


class Program:
    """A PatchModel read from a `.pt2` file."""

    def __init__(self, exported: torch.export.ExportedProgram, spec: ModelSpec, *, digest: str, batch_size: int | None = None) -> None:
        self.spec = spec
        self.digest = digest
        self._exported = exported
        self._module = exported.module()
        self._batch_size = batch_size

    def __call__(self, pixels: Tensor, /) -> Mapping[str, Tensor]:
        """[n, C, S, S] to one tensor per output of the spec; any n, also where the graph was made for one batch size."""
        if self._batch_size is None:
            return self._run(pixels)
        parts = [self._run_padded(part, self._batch_size) for part in torch.split(pixels, self._batch_size)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def to(self, device: torch.device, /) -> Self:
        """Weights, constants and tensors made on the way."""
        self._exported = move_to_device_pass(self._exported, device)
        self._module = self._exported.module()
        return self

    def _run(self, pixels: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            outputs = self._module(pixels)
        check_outputs(outputs, self.spec, pixels)
        return dict(outputs)

    def _run_padded(self, pixels: Tensor, batch_size: int) -> dict[str, Tensor]:
        count = len(pixels)
        padded = torch.cat([pixels, pixels.new_zeros(batch_size - count, *pixels.shape[1:])]) if count < batch_size else pixels
        return {name: values[:count] for name, values in self._run(padded).items()}


def save_program(model: nn.Module, spec: ModelSpec, path: Path, *, batch_size: int | None = None) -> None:
    """Write `model` and `spec` to a `.pt2` that `load_program` reads anywhere, without the code of `model`.

    Args:
        model: takes [n, C, S, S] float32 and gives a dict with one tensor per output of `spec`; exported as it is in evaluation mode.
        spec: any size of patch stays possible when `spec.any_size`.
        path: ends in `.pt2`; written whole or not at all.
        batch_size: None leaves n open; a number fixes it, for models whose graph depends on it.

    Raises:
        ModelError: its outputs are not those of the spec, torch cannot export it, or it needs more than tensor operators.
    """
    if path.suffix != ".pt2":
        raise ModelError(f"a program is saved as .pt2, got {path.name}")
    pixels = torch.zeros(batch_size or _EXAMPLES, spec.channels, spec.size, spec.size)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            check_outputs(model(pixels), spec, pixels)
        exported = _export(model, spec, pixels, batch_size)
    finally:
        for module, training in modes.items():
            module.training = training
    exported.example_inputs = None  # as large as a batch, and nobody needs them
    part = path.with_name(f"{path.stem}.part.pt2")
    extra = {SPEC_RECORD.removeprefix("extra/"): json.dumps({"spec": spec.to_dict(), "batch_size": batch_size}, sort_keys=True)}
    try:
        torch.export.save(exported, part, extra_files=extra)
        safe_copy(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def load_program(path: Path) -> Program:
    """Read a `.pt2` with a spec inside.

    Raises:
        ModelError: it could run code, is no such file, or holds no spec; the message says how to write one.
    """
    copy, text = safe_copy(path)
    if text is None:
        raise ModelError(f"{path} has no {SPEC_RECORD}: write it with patchdrive.models.program.save_program(model, spec, path)")
    try:
        fields = json.loads(text)
        spec, batch_size = ModelSpec.from_dict(fields["spec"]), fields["batch_size"]
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{path}: {SPEC_RECORD} is not a spec ({error!r}); write it with save_program") from error
    if batch_size is not None and (type(batch_size) is not int or batch_size < 1):
        raise ModelError(f"{path}: batch_size in {SPEC_RECORD} is a positive integer or null, got {batch_size!r}")
    try:
        exported = torch.export.load(copy)
        return Program(exported, spec, digest=file_digest(path), batch_size=batch_size)
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, SyntaxError, SpecViolationError) as error:
        raise ModelError(f"{path} cannot be read by torch {torch.__version__}: {error}") from error


def check_outputs(outputs: Any, spec: ModelSpec, pixels: Tensor) -> None:
    """Refuse a model whose answer to `pixels` is not what its spec says.

    Raises:
        ModelError: names or shapes differ.
    """
    if not isinstance(outputs, Mapping) or set(outputs) != {output.name for output in spec.outputs}:
        given = sorted(outputs) if isinstance(outputs, Mapping) else type(outputs).__name__
        raise ModelError(f"{spec.name} gives {given}; its spec promises {sorted(output.name for output in spec.outputs)}")
    for output in spec.outputs:
        expected, shape = output_shape(output, pixels), tuple(outputs[output.name].shape)
        if shape != expected:
            raise ModelError(f"{output.name!r} of {spec.name} is {shape} for pixels {tuple(pixels.shape)}; its spec promises {expected}")


def output_shape(output: OutputSpec, pixels: Tensor) -> tuple[int, ...]:
    """What shape `output` has for pixels [n, C, H, W]."""
    count, _, height, width = pixels.shape
    shape = (count, *output.shape)
    return shape if output.by_rows else (*shape, height // output.stride, width // output.stride)


def _export(model: nn.Module, spec: ModelSpec, pixels: Tensor, batch_size: int | None) -> torch.export.ExportedProgram:
    dynamic: dict[int, Any] = {} if batch_size is not None else {0: torch.export.Dim("count", min=1)}
    if spec.any_size:
        stride = max(output.stride for output in spec.outputs)
        side = torch.export.Dim("side", min=1)
        dynamic |= dict.fromkeys((2, 3), stride * side if stride > 1 else side)
    try:
        return torch.export.export(model, (pixels,), dynamic_shapes=(dynamic,))
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        hint = "give batch_size, or a spec without any_size, if it cannot be open in them"
        raise ModelError(f"torch.export cannot write {spec.name}: {error}; {hint}") from error
