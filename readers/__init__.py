"""Readers: arrays out, never torch. "Give me these pixels."."""

from patchdrive.readers.errors import FormatError, PatchdriveError, ReadError, WindowError
from patchdrive.readers.geometry import Level, Window
from patchdrive.readers.image import Image
from patchdrive.readers.lazy import lazy
from patchdrive.readers.memory import MemoryImage
from patchdrive.readers.open import Choice, choose, open_image
from patchdrive.readers.tiles import read_level

__all__ = [
    "Choice",
    "FormatError",
    "Image",
    "Level",
    "MemoryImage",
    "PatchdriveError",
    "ReadError",
    "Window",
    "WindowError",
    "choose",
    "lazy",
    "open_image",
    "read_level",
]
