"""ICC colour profiles: what is one, and what it calls itself. Pure.

Source: ICC.1:2022, section 7 (header, tag table), 10.15 (multiLocalizedUnicodeType); ICC.1:2001, 6.5.17 (textDescriptionType).
"""

from __future__ import annotations

import base64
import binascii
import struct

MAX_PROFILE = 64 * 2**20
_HEADER = 128
_MOST_TAGS = 256
_LONGEST = 200


def is_profile(data: bytes) -> bool:
    """True for bytes that begin as an ICC profile does."""
    return _HEADER <= len(data) <= MAX_PROFILE and data[36:40] == b"acsp"


def profile_of(text: str) -> bytes | None:
    """The profile that a Base64 text holds; None where it holds none."""
    if not 0 < len(text) <= MAX_PROFILE:
        return None
    try:
        data = base64.b64decode(text)
    except (binascii.Error, ValueError):
        return None
    return data if is_profile(data) else None


def profile_properties(profile: bytes | None) -> dict[str, str]:
    """What an image's properties say of its profile: its description, where that is easily read, and its size."""
    if profile is None:
        return {}
    size, name = f"ICC, {len(profile)} bytes", _description(profile)
    return {"patchdrive.color_profile": f"{name} ({size})" if name else size}


def _description(data: bytes) -> str:
    if len(data) < _HEADER + 4:
        return ""
    (count,) = struct.unpack_from(">I", data, _HEADER)
    for index in range(min(count, _MOST_TAGS, (len(data) - _HEADER - 4) // 12)):
        tag, offset, size = struct.unpack_from(">4sII", data, _HEADER + 4 + 12 * index)
        if tag == b"desc":
            return _text(data[offset : offset + size])
    return ""


def _text(value: bytes) -> str:
    """The text of a `desc` tag of either kind; empty where it is neither."""
    if value[:4] == b"desc" and len(value) >= 12:
        (length,) = struct.unpack_from(">I", value, 8)
        return _clean(value[12 : 12 + length].decode("latin-1"))
    if value[:4] == b"mluc" and len(value) >= 28:
        length, offset = struct.unpack_from(">II", value, 20)
        return _clean(value[offset : offset + length].decode("utf-16-be", errors="replace"))
    return ""


def _clean(text: str) -> str:
    """One short printable line."""
    return "".join(mark for mark in text.split("\0", 1)[0] if mark.isprintable())[:_LONGEST].strip()
