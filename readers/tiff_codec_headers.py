"""What a compressed tile says of itself, read and checked before a decoder makes room for it. Pure.

Decoders allocate by their input's own word: a few damaged bytes can ask for gigabytes. Every loop here ends with the tile's bytes.

Sources: ITU-T T.81 annex B (JPEG), ITU-T T.800 annexes A and I (JPEG 2000), RFC 9649 (WebP), Esri's LERC2 header.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from patchdrive.readers.errors import ReadError

SOI = b"\xff\xd8"
# A codestream in more tiles of its own than this is no tile: OpenJPEG keeps about 6 kB for each.
MAX_CODESTREAM_TILES = 1024
_SOC_SIZ, _JP2 = b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP  \r\n\x87\n"
_BASELINE, _EXTENDED, _PROGRESSIVE = 0xC0, 0xC1, 0xC2
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BARE = frozenset({0x01, 0xFF, *range(0xD0, 0xDA)})  # markers without a length: TEM, fill, restarts, begin and end
_WEBP_ANIMATED = 2
# Version 2 has no checksum, and libLerc (4.0.0) reads and writes out of bounds where a damaged blob passes for whole.
_LERC, _LERC_VERSIONS, _DEPTH_SINCE = b"Lerc2 ", (3, 4, 5, 6), 4


@dataclass(frozen=True, slots=True, kw_only=True)
class LercHeader:
    """The first blob of a LERC tile."""

    shape: tuple[int, int]
    """(rows, columns)."""
    depth: int
    """Values of one pixel."""
    valid: int
    """Pixels that are not masked."""
    size: int
    """Bytes of the blob; further ones may follow it, one for each sample."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Codestream:
    """The SIZ segment of a JPEG 2000 codestream."""

    data: memoryview
    """The codestream alone, without the boxes of a JP2 file around it."""
    shape: tuple[int, int, int]
    """(rows, columns, components)."""
    tiles: int
    """Tiles of its own."""
    subsampled: bool
    """Some component has fewer pixels than the image."""


def check_jpeg(data: bytes | memoryview, shape: tuple[int, ...], bits: int) -> None:
    """Refuse a JPEG of another size, depth or number of components than a tile's.

    Args:
        data: the JPEG.
        shape: (rows, columns, samples) of the tile.
        bits: of one sample.

    Raises:
        ReadError: it is another, is coded in an unusual way, or has no frame header.
    """
    kind, place = _frame(data)
    if kind not in {_BASELINE, _EXTENDED, _PROGRESSIVE} or place + 10 > len(data):
        raise ReadError(f"a JPEG with frame marker ff{kind:02x}; read are baseline, extended and progressive Huffman")
    precision, height, width, components = struct.unpack_from(">BHHB", data, place + 4)
    if ((height, width, components), precision) != (tuple(shape), bits):
        raise ReadError(
            f"a JPEG of {(height, width, components)} pixels of {precision} bits where the index says {tuple(shape)} of {bits} bits"
        )


def _frame(data: bytes | memoryview) -> tuple[int, int]:
    """(kind, place) of the frame header; kind 0 where there is none before the first scan."""
    place = 2 if bytes(data[:2]) == SOI else len(data)
    while place + 4 <= len(data) and data[place] == 0xFF:
        kind = data[place + 1]
        if kind in _FRAMES:
            return kind, place
        if kind == 0xDA:
            break
        place += (1 if kind == 0xFF else 2) if kind in _BARE else 2 + int.from_bytes(data[place + 2 : place + 4])
    return 0, place


def read_codestream(data: memoryview) -> Codestream:
    """The JPEG 2000 codestream in a tile, bare or in a JP2 file.

    Raises:
        ReadError: there is none, or its header contradicts itself.
    """
    stream = data[_codestream_at(data) :]
    if len(stream) < 42 or bytes(stream[:4]) != _SOC_SIZ:
        raise ReadError("a JPEG 2000 tile without a codestream header")
    xsiz, ysiz, x0, y0, tile_width, tile_height, tile_x0, tile_y0 = struct.unpack_from(">8I", stream, 8)
    (components,) = struct.unpack_from(">H", stream, 40)
    if not (components > 0 and len(stream) >= 42 + 3 * components and xsiz > x0 >= tile_x0 and ysiz > y0 >= tile_y0):
        raise ReadError("a JPEG 2000 codestream whose header contradicts itself")
    parts = np.frombuffer(stream, np.uint8, 3 * components, 42).reshape(-1, 3)
    if not tile_width or not tile_height or (parts[:, 0] != parts[0, 0]).any():
        raise ReadError("a JPEG 2000 codestream with empty tiles, or components of different depths")
    tiles = -(-(xsiz - tile_x0) // tile_width) * -(-(ysiz - tile_y0) // tile_height)
    return Codestream(data=stream, shape=(ysiz - y0, xsiz - x0, components), tiles=tiles, subsampled=bool((parts[:, 1:] != 1).any()))


def check_codestream(stream: Codestream, shape: tuple[int, ...]) -> None:
    """Refuse a codestream of other pixels than a tile's, (rows, columns, samples).

    Raises:
        ReadError: it is another, or would cost far more memory than its pixels.
    """
    if stream.shape[:2] != tuple(shape[:2]):
        raise ReadError(
            f"a JPEG 2000 codestream of {stream.shape[0]} x {stream.shape[1]} pixels where the index says {shape[0]} x {shape[1]}"
        )
    if stream.shape != tuple(shape) or stream.subsampled:
        chroma = ", some with fewer pixels" if stream.subsampled else ""
        raise ReadError(f"a JPEG 2000 codestream of {stream.shape[2]} components{chroma} where the index says {shape[2]}")
    if stream.tiles > MAX_CODESTREAM_TILES:
        raise ReadError(f"a JPEG 2000 codestream of {stream.tiles} tiles of its own, more than {MAX_CODESTREAM_TILES}: it is damaged")


def _codestream_at(data: memoryview) -> int:
    """Where the codestream begins: past the boxes of a JP2 file, at 0 without them, at the end where there is none."""
    if bytes(data[: len(_JP2)]) != _JP2:
        return 0
    place = 0
    while place + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, place)
        if kind == b"jp2c":
            return place + (16 if size == 1 else 8)
        if size < 8:  # 0 and 1 say "to the end" and "64-bit": only a codestream may be that long
            break
        place += size
    return len(data)


def check_webp(data: memoryview) -> None:
    """Refuse a WebP that is no still picture; its decoder checks the size of one against the array it is given.

    Raises:
        ReadError: not a WebP, or an animation.
    """
    head = bytes(data[:21])
    if len(head) < 21 or head[:4] != b"RIFF" or head[8:12] != b"WEBP":
        raise ReadError(f"a WebP tile begins with RIFF....WEBP, this one with {head[:12]!r}")
    if head[12:16] == b"VP8X" and head[20] & _WEBP_ANIMATED:
        raise ReadError("a WebP animation where a tile should be")


def read_lerc(data: memoryview) -> LercHeader:
    """The header of a LERC2 blob. Its checksum, which libLerc verifies, is what keeps damage from the decoder.

    Raises:
        ReadError: not LERC2, of a version not read, or cut short.
    """
    version = int.from_bytes(data[6:10], "little")
    if bytes(data[:6]) != _LERC or version not in _LERC_VERSIONS or len(data) < 64:
        raise ReadError(f"a LERC tile begins with {_LERC!r} and a version of {_LERC_VERSIONS}, this one with {bytes(data[:10])!r}")
    deep = version >= _DEPTH_SINCE
    numbers = struct.unpack_from("<6i" if deep else "<5i", data, 14)
    rows, columns, depth = (*numbers[:2], numbers[2] if deep else 1)
    valid, _, size = numbers[-3:]
    if min(rows, columns, depth) <= 0 or not 0 <= valid <= rows * columns or not 0 < size <= len(data):
        raise ReadError(f"a LERC tile of {rows} x {columns} x {depth} values, {valid} valid, in {size} of {len(data)} bytes: it is damaged")
    return LercHeader(shape=(rows, columns), depth=depth, valid=valid, size=size)
