"""Readers: arrays out, never torch. "Give me these pixels."."""

from patchdrive.readers.errors import PatchdriveError
from patchdrive.readers.geometry import Level, Window
from patchdrive.readers.image import Image
from patchdrive.readers.memory import MemoryImage

__all__ = ["Image", "Level", "MemoryImage", "PatchdriveError", "Window"]
