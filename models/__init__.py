"""Models: torch, no file formats. "Here are tensors."."""

from patchdrive.models.load import load_model, load_models
from patchdrive.models.onnx_model import load_onnx, save_onnx
from patchdrive.models.program import load_program, save_program
from patchdrive.models.segmenter import Segmenter, SegmenterConfig
from patchdrive.models.together import Together, together
from patchdrive.models.types import DriveModel, ImageTraits, ModelSpec, OutputSpec, PatchModel

__all__ = [
    "DriveModel",
    "ImageTraits",
    "ModelSpec",
    "OutputSpec",
    "PatchModel",
    "Segmenter",
    "SegmenterConfig",
    "Together",
    "load_model",
    "load_models",
    "load_onnx",
    "load_program",
    "save_onnx",
    "save_program",
    "together",
]
