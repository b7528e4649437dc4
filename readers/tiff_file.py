"""The bytes of a TIFF, mapped: nothing is read until it is used, and every thread sees the same.

Pages that a file lost after it was mapped end the process with SIGBUS and no word, and so do those that its disk cannot give. So tiles,
which are nearly all that is read while a run goes on, are read by the system, and its index only once the file is found as long as it was.
"""

from __future__ import annotations

import mmap
import os
import weakref
from pathlib import Path

from patchdrive.readers.errors import FormatError, ReadError, SourceChangedError


class MappedFile(mmap.mmap):
    """A mapped file that can be asked for bytes without its map."""

    handle: int
    """Of the open file."""


def map_file(path: Path) -> MappedFile:
    """The whole of a local file, read-only.

    Raises:
        FormatError: it cannot be opened, or is empty.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            mapped = MappedFile(handle, 0, access=mmap.ACCESS_READ)
        except BaseException:
            os.close(handle)
            raise
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise FormatError(f"it cannot be opened: {error}") from error
    mapped.handle = handle
    weakref.finalize(mapped, os.close, handle)
    return mapped


def require_whole(data: memoryview, name: str) -> None:
    """Look whether the mapped file is still as long as it was.

    Raises:
        SourceChangedError: it is not.
    """
    mapped = data.obj
    if isinstance(mapped, MappedFile) and mapped.size() < len(data):
        raise SourceChangedError(
            f"{name}: the file had {len(data)} bytes when it was opened and has {mapped.size()} now: it was cut short or written anew "
            "meanwhile; put it back as it was, and the same command goes on from the last block committed"
        )


def read_stored(data: memoryview, offset: int, count: int, name: str) -> memoryview | bytes:
    """`count` bytes of a mapped file.

    Raises:
        SourceChangedError: the file does not have them any more.
        ReadError: its disk does not give them.
    """
    mapped = data.obj
    if not isinstance(mapped, MappedFile):
        return data[offset : offset + count]
    try:
        stored = os.pread(mapped.handle, count, offset)
    except OSError as error:
        raise ReadError(f"{count} bytes at byte {offset}: {error.strerror}") from error
    if len(stored) < count:
        require_whole(data, name)
        raise ReadError(f"{count} bytes at byte {offset}: the disk gave {len(stored)}")
    return stored
