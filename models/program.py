"""A PatchModel in one `.pt2` file: a graph of tensor operators and its weights (`torch.export`), with the ModelSpec inside.

The file needs none of the code that made it. Opening one runs none either: see `patchdrive.models.program_safety`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch._export.verifier import SpecViolationError
from torch.export.passes import move_to_device_pass

from patchdrive.models.digest import file_digest
from patchdrive.models.program_safety import SPEC_RECORD, safe_copy
from patchdrive.models.types import ModelSpec, OutputSpec, PatchModel
from patchdrive.readers.errors import ModelError

_EXAMPLES = 2
_TRACES = {"stack_trace", "nn_module_stack", "torch_fn", "source_fn_stack", "from_node"}
"""What torch notes of each node: lines of the code that made it, and paths of this machine. A file that others get has none of it."""


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
        return in_batches(self._run, pixels, self._batch_size)

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


def save_program(model: nn.Module | PatchModel, spec: ModelSpec, path: Path, *, batch_size: int | None = None) -> None:
    """Write `model` and `spec` to a `.pt2` that `load_program` reads anywhere, without the code of `model`.

    Args:
        model: as `export` takes it.
        spec: any size of patch stays possible when `spec.any_size`.
        path: ends in `.pt2`; written whole or not at all.
        batch_size: None leaves n open; a number fixes it, for models whose graph depends on it.

    Raises:
        ModelError: its outputs are not those of the spec, torch cannot export it, or it needs more than tensor operators.
    """
    if path.suffix != ".pt2":
        raise ModelError(f"a program is saved as .pt2, got {path.name}")
    exported = export(model, spec, batch_size=batch_size)
    exported.example_inputs = None  # as large as a batch, and nobody needs them
    for node in exported.graph.nodes:
        for key in _TRACES & node.meta.keys():
            del node.meta[key]
    part = path.with_name(f"{path.stem}.part.pt2")
    extra = {SPEC_RECORD.removeprefix("extra/"): json.dumps({"spec": spec.to_dict(), "batch_size": batch_size}, sort_keys=True)}
    try:
        torch.export.save(exported, part, extra_files=extra)
        safe_copy(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def export(model: nn.Module | PatchModel, spec: ModelSpec, *, batch_size: int | None = None) -> torch.export.ExportedProgram:
    """The graph of `model`: pixels to a dict with one tensor per output of `spec`.

    Args:
        model: takes [n, C, S, S] float32 and gives such a dict; exported as it is in evaluation mode. What is no module must compute with
            operators of torch all the same.
        spec: any size of patch stays possible when `spec.any_size`.
        batch_size: None leaves n open; a number fixes it.

    Raises:
        ModelError: its outputs are not those of the spec, or torch cannot export it.
    """
    module = model if isinstance(model, nn.Module) else _Called(model)
    pixels = torch.zeros(batch_size or _EXAMPLES, spec.channels, spec.size, spec.size)
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad():  # around both: a model's own no_grad() then leaves no trace in the graph
            check_outputs(module(pixels), spec, pixels)
            return _graph(module, spec, pixels, batch_size)
    finally:
        for part, training in modes.items():
            part.training = training


class _Called(nn.Module):
    """A PatchModel that is no module, as one."""

    def __init__(self, model: PatchModel) -> None:
        super().__init__()
        self._model = model

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        return dict(self._model(pixels))


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


def in_batches(run: Callable[[Tensor], Mapping[str, Tensor]], pixels: Tensor, batch_size: int | None) -> Mapping[str, Tensor]:
    """What `run` gives for any number of patches, also where it takes `batch_size` and no other: the last part is filled up with zeros."""
    if batch_size is None:
        return run(pixels)
    parts: list[dict[str, Tensor]] = []
    for part in torch.split(pixels, batch_size):
        count = len(part)
        padded = torch.cat([part, part.new_zeros(batch_size - count, *part.shape[1:])]) if count < batch_size else part
        parts.append({name: values[:count] for name, values in run(padded).items()})
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


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


def _graph(module: nn.Module, spec: ModelSpec, pixels: Tensor, batch_size: int | None) -> torch.export.ExportedProgram:
    dynamic: dict[int, Any] = {} if batch_size is not None else {0: torch.export.Dim("count", min=1)}
    if spec.any_size:
        stride = max(output.stride for output in spec.outputs)
        side = torch.export.Dim("side", min=1)
        dynamic |= dict.fromkeys((2, 3), stride * side if stride > 1 else side)
    try:
        return torch.export.export(module, (pixels,), dynamic_shapes=(dynamic,))
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        hint = "give batch_size, or a spec without any_size, if it cannot be open in them"
        raise ModelError(f"torch.export cannot write {spec.name}: {error}; {hint}") from error
