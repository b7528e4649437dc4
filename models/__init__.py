"""Models: torch, no file formats. "Here are tensors."."""

from patchdrive.models.load import load_model
from patchdrive.models.program import load_program, save_program
from patchdrive.models.segmenter import Segmenter, SegmenterConfig
from patchdrive.models.types import DriveModel, ImageTraits, ModelSpec, OutputSpec, PatchModel

__all__ = [
    "DriveModel",
    "ImageTraits",
    "ModelSpec",
    "OutputSpec",
    "PatchModel",
    "Segmenter",
    "SegmenterConfig",
    "load_model",
    "load_program",
    "save_program",
]
