"""The bytes of a TIFF, mapped: nothing is read until it is used, and every thread sees the same."""

from __future__ import annotations

import mmap
from pathlib import Path

from patchdrive.readers.errors import FormatError


def map_file(path: Path) -> mmap.mmap:
    """The whole of a local file, read-only.

    Raises:
        FormatError: it cannot be opened, or is empty.
    """
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise FormatError(f"it cannot be opened: {error}") from error
