"""A tile's compressed bytes to its plain ones, and packed samples to whole values: the codecs that know nothing of pixels. Pure.

None writes or allocates more than the tile it is asked for, whatever its input says.
"""

from __future__ import annotations

import lzma
import struct
import sys
from collections.abc import Callable, Mapping, Sized
from typing import Any, Literal

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from patchdrive.readers.errors import ReadError

ByteCodec = Literal["none", "lzw", "deflate", "packbits", "zstd", "lzma"]
BYTE_CODECS: frozenset[str] = frozenset({"none", "lzw", "deflate", "packbits", "zstd", "lzma"})
FLOAT24 = 24
# xz at its highest preset needs 65 MiB to decode, however small the tile.
MAX_LZMA_BYTES = 128 * 2**20
# imagecodecs reads any buffer; its annotations name fewer.
_DECODERS: Mapping[str, Callable[..., Sized]] = {
    "deflate": imagecodecs.deflate_decode,
    "packbits": imagecodecs.packbits_decode,
    "zstd": imagecodecs.zstd_decode,
}
_unpack_float24: Callable[..., Any] = imagecodecs.float24_decode
_unpack_integers: Callable[..., NDArray[Any]] = imagecodecs.packints_decode
_mirror: Callable[..., Any] = imagecodecs.bitorder_decode
_STRIP_AT = 8 + 2 + 9 * 12 + 4  # after the header and a directory of nine tags


def decompress(data: memoryview | bytes, codec: str, rows: int, stored: NDArray[np.uint8]) -> int:
    """Fill the first bytes of a tile and say how many there were.

    Args:
        data: the compressed bytes, at least one.
        codec: how they are compressed, one of `BYTE_CODECS`.
        rows: rows that must be there.
        stored: (rows of the tile, bytes of a row), C-contiguous.

    Raises:
        ReadError: fewer than `rows` rows; what else the libraries raise (RuntimeError, ValueError) is the caller's to translate.
    """
    found = _fill(data, codec, rows, stored)
    if found < rows * stored.shape[1]:
        raise ReadError(f"the tile holds {found} bytes of pixels, it should hold {stored.size}")
    return found


def _fill(data: memoryview | bytes, codec: str, rows: int, stored: NDArray[np.uint8]) -> int:
    if codec == "lzw":
        wanted = stored[:rows]
        imagecodecs.tiff_decode(_lzw_strip(data, rows, stored.shape[1]), out=wanted)
        return wanted.nbytes
    flat = stored.reshape(-1)
    if codec == "none":
        found = min(len(data), flat.size)
        flat[:found] = np.frombuffer(data, np.uint8, found)
        return found
    if codec == "lzma":
        return _unpack_lzma(data, flat)
    return len(_DECODERS[codec](data, out=flat))


def _unpack_lzma(data: memoryview | bytes, flat: NDArray[np.uint8]) -> int:
    # imagecodecs makes room for whatever dictionary the stream asks for; this one has a limit.
    try:
        plain = lzma.LZMADecompressor(memlimit=MAX_LZMA_BYTES).decompress(data, flat.size)
    except lzma.LZMAError as error:
        raise ReadError(f"lzma says {error}") from error
    flat[: len(plain)] = np.frombuffer(plain, np.uint8)
    return len(plain)


def _lzw_strip(data: memoryview | bytes, rows: int, width: int) -> bytes:
    """LZW bytes as a TIFF of one strip of 8-bit pixels, for libtiff to decode.

    imagecodecs.lzw_decode (2026.3.6) follows wild pointers where a code after a clear code is not in the table yet:
    a damaged file ends the process. libtiff refuses such a code, and is twice as fast.
    """
    tags = ((256, width), (257, rows), (258, 8), (259, 5), (262, 1), (273, _STRIP_AT), (277, 1), (278, rows), (279, len(data)))
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"".join((head, bytes(4), data))


def packed_row(columns: int, samples: int, bits: int) -> int:
    """Bytes of a row of packed samples; each row begins a byte of its own."""
    return -(-columns * samples * bits // 8)


def unpack(stored: NDArray[np.uint8], bits: int, out: NDArray[Any], *, swapped: bool) -> None:
    """Packed samples to whole values: integers of 1 to 31 bits, most significant bit first, or floats of 24 bits.

    Args:
        stored: (rows, bytes of a row).
        bits: of one sample.
        out: (rows, columns, samples), C-contiguous: the smallest unsigned type that holds them, or float32.
        swapped: True where 24-bit floats have the other byte order; bits have none.
    """
    if out.dtype.kind == "f":
        order = "<" if (sys.byteorder == "little") != swapped else ">"
        _unpack_float24(stored.reshape(-1), byteorder=order, out=out)
    elif bits == 1:
        out[...] = np.unpackbits(stored, axis=1, count=out.shape[1] * out.shape[2]).reshape(out.shape)
    else:
        # Without out=: imagecodecs 2026.3.6 refuses every array that is given.
        values = _unpack_integers(stored.reshape(-1), out.dtype, bits, runlen=out.shape[1] * out.shape[2])
        out[...] = values.reshape(out.shape)


def mirror(data: memoryview) -> bytes:
    """The bytes with their bits in reverse order: TIFF's FillOrder 2."""
    mirrored: bytes = _mirror(data)
    return mirrored
