"""Which bytes a source is: a digest that survives moving, renaming and staging."""

from __future__ import annotations

import hashlib
from pathlib import Path

_ENDS = 65536


def file_identity(path: Path, *, index: bytes = b"") -> str:
    """Hex SHA-256 of a file's size, first and last 64 KiB, and its tile index where the reader has one."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(_ENDS))
        file.seek(max(0, size - _ENDS))
        digest.update(file.read(_ENDS))
    digest.update(index)
    return digest.hexdigest()


def folder_identity(path: Path) -> str:
    """Hex SHA-256 of a folder of files (an OME-Zarr store, a VMS or MRXS slide): every name and size, and small files whole."""
    digest = hashlib.sha256()
    for file in sorted(entry for entry in path.rglob("*") if entry.is_file()):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(path).as_posix()}:{size};".encode())
        if size <= _ENDS:
            digest.update(file.read_bytes())
    return digest.hexdigest()
