"""A TIFF of one pixel with the tags of another: for asking GDAL of a file whose codec it lacks. Pure."""

from __future__ import annotations

import struct

from patchdrive.readers.errors import FormatError
from patchdrive.readers.tiff_index import Directory

# Bits, photometric, samples, planar configuration, colours, extra samples, sample format, then GeoTIFF's, GDAL's and the RPCs.
_COPIED = (258, 262, 277, 284, 320, 338, 339, 33550, 33922, 34264, 34735, 34736, 34737, 42112, 42113, 50844)
_PHOTOMETRIC, _RGB, _YCBCR = 262, 2, 6
_SHORT, _LONG = 3, 4
_MOST_BYTES = 1 << 20


def bare_tiff(first: Directory) -> bytes:
    """A classic TIFF, uncompressed, its one pixel left out, whose bands and georeferencing are those of `first`.

    Raises:
        FormatError: a tag to copy is larger than any real one.
    """
    order, samples = first.order, first.integer(277, 1)
    strips = samples if first.integer(284, 1) == 2 else 1
    tags: dict[int, tuple[int, int, bytes]] = {tag: (_SHORT, 1, struct.pack(order + "H", 1)) for tag in (256, 257, 259, 278)}
    tags |= {tag: (_LONG, strips, bytes(4 * strips)) for tag in (273, 279)}
    for tag in _COPIED:
        if tag in first:
            entry, raw = first.entries[tag], first.raw(tag)
            if len(raw) > _MOST_BYTES:
                raise FormatError(f"tag {tag} holds {len(raw)} bytes, more than {_MOST_BYTES}: the directory is damaged")
            tags[tag] = (entry.type, entry.count, raw)
    if first.integer(_PHOTOMETRIC, 1) == _YCBCR:  # which only JPEG may be
        tags[_PHOTOMETRIC] = (_SHORT, 1, struct.pack(order + "H", _RGB))
    entries, values = [], b""
    place = 8 + 2 + 12 * len(tags) + 4
    for tag, (kind, count, raw) in sorted(tags.items()):
        inline = raw.ljust(4, b"\0") if len(raw) <= 4 else struct.pack(order + "I", place + len(values))
        entries.append(struct.pack(order + "HHI", tag, kind, count) + inline)
        if len(raw) > 4:
            values += raw + b"\0" * (len(raw) % 2)
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
    return b"".join((head, struct.pack(order + "H", len(entries)), *entries, bytes(4), values))
