"""Which bytes a source is: a digest that survives moving, renaming and staging."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

_ENDS = 65536
_SAMPLE_ENDS = 4096


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
    """Hex SHA-256 of a folder of files (a VMS or MRXS slide): every name and size, and small files whole."""
    digest = hashlib.sha256()
    for file in sorted(entry for entry in path.rglob("*") if entry.is_file()):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(path).as_posix()}:{size};".encode())
        if size <= _ENDS:
            digest.update(file.read_bytes())
    return digest.hexdigest()


def sampled_identity(root: Path, names: Iterable[str], *, index: bytes) -> str:
    """Hex SHA-256 of what a folder's metadata says (`index`) and of some of its files: name, size, first and last 4 KiB.

    For stores of a million chunks, where `folder_identity` would read every byte. The reader chooses `names`, always the same for
    the same metadata; a file that is not there is part of the answer.
    """
    digest = hashlib.sha256(index)
    for name in names:
        try:
            with (root / name).open("rb") as file:
                size = file.seek(0, 2)
                file.seek(0)
                ends = file.read(_SAMPLE_ENDS)
                file.seek(max(0, size - _SAMPLE_ENDS))
                ends += file.read(_SAMPLE_ENDS)
        except FileNotFoundError:
            size, ends = -1, b""
        digest.update(f"{name}:{size};".encode())
        digest.update(ends)
    return digest.hexdigest()
