"""The directories (IFDs) of a TIFF, walked over its bytes: either byte order, classic or BigTIFF. Pure: no file, no pixel.

Every count and offset is checked against the bytes there are before anything is made from it, and arrays are views of
those bytes: a directory that lies about itself costs nothing, and an index of a million tiles is read when it is used.

Source: TIFF 6.0, section 2; BigTIFF, https://www.awaresystems.be/imaging/tiff/bigtiff.html
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchdrive.readers.errors import FormatError

Bytes = bytes | mmap.mmap

MAX_DIRECTORIES = 4096
MAX_SUB_DIRECTORIES = 64
MAX_ENTRIES = 1024
MAX_TEXT = 64 * 2**20
_CLASSIC, _BIG = 42, 43
_RATIONALS = (5, 10)
_SUB_IFDS = 330
# Field type to numpy type, from TIFF 6.0 and BigTIFF; rationals are two integers.
_TYPES: Mapping[int, str] = {
    1: "u1",
    2: "u1",
    3: "u2",
    4: "u4",
    5: "u4",
    6: "i1",
    7: "u1",
    8: "i2",
    9: "i4",
    10: "i4",
    11: "f4",
    12: "f8",
    13: "u4",
    16: "u8",
    17: "i8",
    18: "u8",
}


# Bytes of the unsigned integer types: BYTE, SHORT, LONG, IFD, LONG8, IFD8.
_SINGLE: Mapping[int, int] = {1: 1, 3: 2, 4: 4, 13: 4, 16: 8, 18: 8}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One tag's values: where they lie, not what they are."""

    type: int
    """TIFF field type."""
    count: int
    """How many values; a rational counts once."""
    offset: int
    """First byte of the values, from the start of the file."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Directory:
    """One IFD: its tags, read from the file's bytes when asked for."""

    data: Bytes
    """The whole file."""
    order: str
    """"<" or ">", numpy's and struct's name of the file's byte order."""
    offset: int
    """Where the directory begins."""
    entries: Mapping[int, Entry]
    """Tag number to its values' place."""

    def __contains__(self, tag: int) -> bool:
        return tag in self.entries

    def values(self, tag: int) -> NDArray[Any] | None:
        """A read-only view of a tag's values in the file's own byte order, (count,); rationals are (count, 2); None where absent.

        Raises:
            FormatError: the tag's type is unknown, or its values lie outside the file.
        """
        entry = self.entries.get(tag)
        if entry is None:
            return None
        if entry.type not in _TYPES:
            raise FormatError(f"tag {tag} has field type {entry.type}, which TIFF does not define")
        dtype = np.dtype(self.order + _TYPES[entry.type])
        numbers = entry.count * (2 if entry.type in _RATIONALS else 1)
        if numbers == 0:
            return np.empty(0, dtype)
        if entry.offset + numbers * dtype.itemsize > len(self.data):
            raise FormatError(
                f"tag {tag} says {entry.count} values at byte {entry.offset}, past the end of a file of {len(self.data)} bytes"
            )
        view = np.frombuffer(self.data, dtype, numbers, entry.offset)
        return view.reshape(-1, 2) if entry.type in _RATIONALS else view

    def integers(self, tag: int) -> tuple[int, ...]:
        """A short tag's values as Python integers; empty where absent.

        Raises:
            FormatError: the values are not integers, or more than a tag of this use can hold.
        """
        values = self.values(tag)
        if values is None:
            return ()
        if values.dtype.kind not in "iu" or values.ndim != 1 or len(values) > 2**16:
            raise FormatError(f"tag {tag} should hold a few integers, it holds {values.shape} {values.dtype.name}")
        return tuple(int(value) for value in values)

    def integer(self, tag: int, default: int | None = None) -> int:
        """A tag's only (or first) integer.

        Raises:
            FormatError: the tag is absent or empty and has no `default`, or see `integers`.
        """
        entry = self.entries.get(tag)
        if entry is not None and entry.count == 1 and entry.type in _SINGLE:  # nearly every one: an array of one costs ten times more
            end = entry.offset + _SINGLE[entry.type]
            if end <= len(self.data):
                return int.from_bytes(self.data[entry.offset : end], "little" if self.order == "<" else "big")
        values = self.integers(tag)
        if values:
            return values[0]
        if default is None:
            raise FormatError(f"tag {tag} is missing")
        return default

    def rational(self, tag: int) -> tuple[int, int] | None:
        """A rational tag's (numerator, denominator); None where it is absent or not a rational."""
        entry = self.entries.get(tag)
        if entry is None or entry.type not in _RATIONALS or entry.count < 1:
            return None
        values = self.values(tag)
        return None if values is None else (int(values[0, 0]), int(values[0, 1]))

    def raw(self, tag: int) -> bytes:
        """A tag's bytes as stored; empty where absent.

        Raises:
            FormatError: more than any text, table or profile has.
        """
        values = self.values(tag)
        if values is not None and values.nbytes > MAX_TEXT:
            raise FormatError(f"tag {tag} holds {values.nbytes} bytes, more than the {MAX_TEXT} that are read: the directory is damaged")
        return b"" if values is None else values.tobytes()

    def text(self, tag: int) -> str:
        """A text tag up to its first NUL; UTF-8, else Latin-1, which cannot fail; empty where absent."""
        raw = self.raw(tag).split(b"\0", 1)[0]
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return raw.decode("latin-1")


def walk(data: Bytes) -> Iterator[Directory]:
    """The chain of directories that the header begins, in file order; at least one.

    Raises:
        FormatError: not a TIFF, a directory outside the file, a cycle, or more directories or tags than any real file has.
    """
    order, big, offset = _header(data)
    if offset == 0:
        raise FormatError("a TIFF without any directory: the file was never finished, write it again")
    seen: set[int] = set()
    while offset:
        if offset in seen:
            raise FormatError(f"the directory at byte {offset} follows itself: the chain of directories is a cycle")
        if len(seen) >= MAX_DIRECTORIES:
            raise FormatError(f"more than {MAX_DIRECTORIES} directories: this is a stack or damaged, not a pyramid")
        seen.add(offset)
        directory, offset = _directory(data, order, offset, big=big)
        yield directory


def sub_directories(directory: Directory) -> tuple[Directory, ...]:
    """The directories a SubIFDs tag names, in its order; nested ones are left alone.

    Raises:
        FormatError: one lies outside the file, or there are too many.
    """
    offsets = directory.integers(_SUB_IFDS)
    if len(offsets) > MAX_SUB_DIRECTORIES or len(set(offsets)) < len(offsets):
        raise FormatError(f"{len(offsets)} SubIFDs, more than {MAX_SUB_DIRECTORIES} or some twice: the directory is damaged")
    _, big, _ = _header(directory.data)
    return tuple(_directory(directory.data, directory.order, offset, big=big)[0] for offset in offsets if offset)


def _header(data: Bytes) -> tuple[str, bool, int]:
    """(byte order, is BigTIFF, offset of the first directory)."""
    mark = bytes(data[:16])
    order = {b"II": "<", b"MM": ">"}.get(mark[:2])
    if order is None or len(mark) < 8:
        raise FormatError(f"not a TIFF: it begins with {mark[:4]!r}, a TIFF with b'II' or b'MM'")
    version: int = struct.unpack_from(order + "H", mark, 2)[0]
    if version == _CLASSIC:
        return order, False, struct.unpack_from(order + "I", mark, 4)[0]
    if version == _BIG and len(mark) == 16 and struct.unpack_from(order + "HH", mark, 4) == (8, 0):
        return order, True, struct.unpack_from(order + "Q", mark, 8)[0]
    raise FormatError(f"not a TIFF: version {version}, which is neither 42 (classic) nor 43 (BigTIFF)")


def _directory(data: Bytes, order: str, offset: int, *, big: bool) -> tuple[Directory, int]:
    """The directory at `offset`, and the offset of the next (0 for the last)."""
    count_format, entry_format, next_format = ("Q", "HHQ8s", "Q") if big else ("H", "HHI4s", "I")
    counter, record = struct.Struct(order + count_format), struct.Struct(order + entry_format)
    if offset < 8 or offset + counter.size > len(data):
        raise FormatError(f"a directory at byte {offset} lies outside a file of {len(data)} bytes: the file is cut short or damaged")
    (count,) = counter.unpack_from(data, offset)
    first = offset + counter.size
    end = first + count * record.size
    if count > MAX_ENTRIES or end + struct.calcsize(next_format) > len(data):
        raise FormatError(f"the directory at byte {offset} says {count} tags in a file of {len(data)} bytes: it is cut short or damaged")
    inline = record.size - (12 if big else 8)  # the bytes of a value that lies in the entry itself
    entries: dict[int, Entry] = {}
    for index, (tag, kind, number, value) in enumerate(record.iter_unpack(data[first:end])):
        size = number * np.dtype(_TYPES[kind]).itemsize * (2 if kind in _RATIONALS else 1) if kind in _TYPES else 0
        here = first + (index + 1) * record.size - inline
        place = here if size <= inline else struct.unpack(order + next_format, value)[0]
        entries[tag] = Entry(type=kind, count=number, offset=place)
    directory = Directory(data=data, order=order, offset=offset, entries=entries)
    return directory, struct.unpack_from(order + next_format, data, end)[0]
