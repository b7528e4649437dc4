"""Whether the JPEG frames of a DICOM file hold YCbCr, whatever its PhotometricInterpretation says.

OpenSlide believes the tag: frames tagged RGB that hold YCbCr come out pink and green. libjpeg's own rule decides here.

Source: DICOM PS3.5, annex A.4 (encapsulated frames); JFIF 1.02; libjpeg's default_decompress_parms.
"""

from __future__ import annotations

import mmap
from pathlib import Path

from patchdrive.readers.tiff_file import map_file

_PIXELS = b"\xe0\x7f\x10\x00OB\x00\x00\xff\xff\xff\xff"
_ITEM = b"\xfe\xff\x00\xe0"
_HEADER_BYTES = 1 << 16
_MOST_BEFORE = 256 << 20
_SOI, _APP0, _APP14, _SOS = 0xD8, 0xE0, 0xEE, 0xDA
_FRAMES = (0xC0, 0xC1, 0xC2)
_COMPONENTS = 3


def frames_hold_ycbcr(path: Path) -> bool:
    """True where the first frame is a JPEG of three components that says, or shows by its chroma's size, that it is YCbCr.

    False where it is no JPEG, or leaves it open: then the tag is all there is.

    Raises:
        FormatError: the file cannot be opened.
    """
    data = map_file(path)
    try:
        return _is_ycbcr(_first_frame(data))
    finally:
        data.close()


def _first_frame(data: mmap.mmap) -> bytes:
    """The beginning of the first frame; empty where there is none. The item before it is the table of offsets."""
    start = data.find(_PIXELS, 0, _MOST_BEFORE)
    if start < 0:
        return b""
    table = start + len(_PIXELS)
    frame = table + 8 + int.from_bytes(data[table + 4 : table + 8], "little")
    if data[table : table + 4] != _ITEM or data[frame : frame + 4] != _ITEM:
        return b""
    return bytes(data[frame + 8 : frame + 8 + _HEADER_BYTES])


def _is_ycbcr(jpeg: bytes) -> bool:
    """By JFIF, then by Adobe's marker, then by components of different sizes, which red, green and blue never have."""
    if jpeg[:2] != bytes((0xFF, _SOI)):
        return False
    adobe: bool | None = None
    at = 2
    while at + 4 <= len(jpeg) and jpeg[at] == 0xFF and jpeg[at + 1] != _SOS:
        marker, length = jpeg[at + 1], int.from_bytes(jpeg[at + 2 : at + 4], "big")
        body = jpeg[at + 4 : at + 2 + length]
        if marker == _APP0 and body.startswith(b"JFIF\0"):
            return True
        if marker == _APP14 and body.startswith(b"Adobe") and len(body) >= 12:
            adobe = body[11] == 1
        if marker in _FRAMES:
            if adobe is not None or len(body) < 6 + 3 * _COMPONENTS or body[5] != _COMPONENTS:
                return bool(adobe)
            return len({body[7 + 3 * component] for component in range(_COMPONENTS)}) > 1
        at += 2 + max(length, 2)
    return False
