"""export_model(): a model in one file, for those who have not its code, or not patchdrive."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from patchdrive.models import load_model, load_onnx, load_program, save_onnx, save_program
from patchdrive.models.onnx_model import OnnxModel
from patchdrive.models.types import DriveModel, ModelSpec, PatchModel
from patchdrive.readers.errors import ModelError

_SAVERS: Mapping[str, Callable[[PatchModel, ModelSpec, Path], None]] = {".onnx": save_onnx, ".pt2": save_program}
_LOADERS: Mapping[str, Callable[[Path], PatchModel]] = {".onnx": load_onnx, ".pt2": load_program}
_TOLERANCE = 1e-4
_PATCHES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedModel:
    """What was written."""

    path: Path
    """Where."""
    spec: ModelSpec
    """What it eats and gives."""
    encoder: bool
    """Whether it is only the patch encoder of a model that drives."""
    difference: float
    """Largest, of an answer of the file to the model's, relative to the largest answer or 1."""

    def __str__(self) -> str:
        spec = self.spec
        side = "any size" if spec.any_size else f"{spec.size} x {spec.size}"
        outputs = ", ".join(f"{output.name} ({output.kind}, {len(output.channels)})" for output in spec.outputs)
        what = f"the encoder of {spec.name}" if self.encoder else spec.name
        return f"{self.path}: {what}; {spec.channels} channels of {side} to {outputs}; the same as the model to {self.difference:.1e}"


def export_model(name: str, path: Path) -> ExportedModel:
    """Write a model to a `.pt2` or an `.onnx`, and see that the file gives what the model gives.

    Args:
        name: as `load_model` takes it, for 8-bit RGB slides where the model shapes itself to an image. Of a model that drives, its patch
            encoder is written: what drives is no graph.
        path: its suffix says which; written whole or not at all.

    Raises:
        ModelError: there is no such model, it cannot be said in that form, or the file would give something else.
    """
    if path.suffix not in _SAVERS:
        raise ModelError(f"a model is exported to FILE.pt2 or FILE.onnx, got {path.name}")
    model = load_model(name)
    encoder = model.encoder if isinstance(model, DriveModel) else model
    if isinstance(encoder, OnnxModel):
        raise ModelError(f"{name} is ONNX, which torch cannot take apart: copy the file, or export the model that it was made of")
    draft = path.with_name(f"{path.stem}.draft{path.suffix}")
    try:
        _SAVERS[path.suffix](encoder, encoder.spec, draft)
        difference = _difference(encoder, _LOADERS[path.suffix](draft))
        if not difference <= _TOLERANCE:
            raise ModelError(
                f"{encoder.spec.name} gives something else as {path.suffix}: {difference:.1e} off, at most {_TOLERANCE:g} is rounding"
            )
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return ExportedModel(path=path, spec=encoder.spec, encoder=encoder is not model, difference=difference)


@torch.inference_mode()
def _difference(model: PatchModel, other: PatchModel) -> float:
    """Of their answers to the same noise; as `ExportedModel.difference`."""
    spec = model.spec
    noise = torch.rand(_PATCHES, spec.channels, spec.size, spec.size, generator=torch.Generator().manual_seed(0)) / spec.scale
    pixels = spec.standardise(noise)
    if isinstance(model, torch.nn.Module):
        model.eval()
    given, wanted = other(pixels.clone()), model(pixels.clone())
    return max(float((given[name] - values).abs().max() / values.abs().max().clamp_min(1.0)) for name, values in wanted.items())
