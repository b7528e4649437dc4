"""One stored tile's bytes to pixels, written straight into an array of the caller's. Pure, and safe from any thread.

JPEG goes through libjpeg-turbo at full quality (bit for bit what OpenSlide gives), everything else through imagecodecs.
Both release the GIL, and neither can be made to write or allocate more than the tile that was asked for.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sized
from dataclasses import dataclass
from typing import Any, Literal

import imagecodecs
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from patchdrive.readers.errors import FormatError, ReadError

Codec = Literal["none", "lzw", "jpeg", "deflate", "packbits", "jpeg2000", "zstd"]
# TIFF's number of a compression to its codec. 33003 is Aperio's JPEG 2000 in YCbCr, 33005 its RGB.
CODECS: Mapping[int, Codec] = {
    1: "none",
    5: "lzw",
    7: "jpeg",
    8: "deflate",
    32773: "packbits",
    32946: "deflate",
    33003: "jpeg2000",
    33005: "jpeg2000",
    34712: "jpeg2000",
    50000: "zstd",
}
# Aperio's compression number overrules its PhotometricInterpretation.
APERIO_PHOTOMETRIC: Mapping[int, int] = {33003: 6, 33005: 2}
# imagecodecs reads any buffer; its annotations name fewer.
_DECODERS: Mapping[Codec, Callable[..., Sized]] = {
    "deflate": imagecodecs.deflate_decode,
    "packbits": imagecodecs.packbits_decode,
    "jpeg2000": imagecodecs.jpeg2k_decode,
    "zstd": imagecodecs.zstd_decode,
}
RGB, YCBCR = 2, 6
_STRIP_AT = 8 + 2 + 9 * 12 + 4  # after the header and a directory of nine tags
_NO_PREDICTOR, _HORIZONTAL, _FLOATING = 1, 2, 3
_SOI, _EOI, _SOC_SIZ = b"\xff\xd8", b"\xff\xd9", b"\xff\x4f\xff\x51"
# An Adobe segment that says "no colour transform". Standing first it yields to a JFIF or Adobe segment of the tile's own.
_PLAIN_RGB = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"


@dataclass(frozen=True, slots=True, kw_only=True)
class Coding:
    """What the bytes of a tile mean."""

    codec: Codec
    """How they are compressed."""
    photometric: int
    """TIFF's PhotometricInterpretation."""
    predictor: int
    """TIFF's Predictor: 1 none, 2 horizontal differences, 3 floating point."""
    dtype: np.dtype[Any]
    """Of one sample, in native byte order."""
    swapped: bool
    """True where the stored samples have the other byte order."""
    samples: int
    """Samples of a pixel that one tile holds."""
    prefix: bytes
    """For JPEG, what stands in for a tile's first two bytes: its tables and colour; empty where the tile is complete."""

    def check(self) -> None:
        """Refuse what cannot be decoded, before any tile is.

        Raises:
            FormatError: codec, photometric, predictor and dtype do not go together.
        """
        if self.codec == "jpeg":
            grey = self.samples == 1
            if self.dtype != np.uint8 or not (grey or (self.samples == 3 and self.photometric in {RGB, YCBCR})):
                raise FormatError(
                    f"JPEG tiles of {self.samples} samples, {self.dtype}, photometric {self.photometric}; read are 8-bit grey, RGB, YCbCr; "
                    'try reader "slide" or "raster"'
                )
            return
        if self.photometric == YCBCR and self.codec != "jpeg2000":
            raise FormatError(f'YCbCr pixels stored as {self.codec}, not as JPEG; try reader "slide" or "raster"')
        if self.codec == "jpeg2000":
            if self.dtype.kind == "f" or (self.photometric == YCBCR and (self.dtype != np.uint8 or self.samples != 3)):
                raise FormatError(f"JPEG 2000 tiles of {self.samples} samples, {self.dtype}, photometric {self.photometric} are not read")
            return
        if self.predictor not in {_NO_PREDICTOR, _HORIZONTAL, _FLOATING} or (self.predictor == _FLOATING and self.dtype.kind != "f"):
            raise FormatError(f"predictor {self.predictor} on {self.dtype} samples: TIFF defines 1, 2 and, for floats, 3")


def jpeg_prefix(tables: bytes, photometric: int) -> bytes:
    """What to put before a JPEG tile without its first two bytes, so that it decodes alone; empty where nothing is missing.

    Args:
        tables: the JPEGTables tag, a JPEG file of tables only; empty where absent.
        photometric: RGB says that the three components are red, green and blue, which the tile itself may leave open.

    Raises:
        FormatError: the tables are not a JPEG file.
    """
    color = _PLAIN_RGB if photometric == RGB else b""
    if not tables:
        return _SOI + color if color else b""
    end = tables.rfind(_EOI)
    if not tables.startswith(_SOI) or end < 2:
        raise FormatError("the JPEGTables tag holds no JPEG tables: the directory is damaged")
    return _SOI + color + tables[2:end]


def decode_tile(data: memoryview, coding: Coding, rows: int, out: NDArray[Any]) -> None:
    """Decode one tile.

    Args:
        data: its stored bytes.
        coding: what they mean.
        rows: rows of the tile that lie in the image; some writers store no more than those.
        out: (rows, columns, samples) of the whole tile, C-contiguous, of the coding's dtype.

    Raises:
        ReadError: the bytes are not such a tile; `out` then holds anything.
    """
    try:
        if coding.codec == "jpeg":
            _decode_jpeg(data, coding, out)
        elif coding.codec == "jpeg2000":
            _decode_jpeg2000(data, coding, out)
        else:
            _decode_plain(data, coding, rows, out)
    except (ValueError, RuntimeError) as error:  # what simplejpeg and imagecodecs raise on bytes they cannot read
        raise ReadError(f"{coding.codec} says {error}") from error


def _decode_jpeg(data: memoryview, coding: Coding, out: NDArray[Any]) -> None:
    if data[:2] != _SOI:
        raise ReadError(f"a JPEG tile begins with {_SOI.hex()}, this one with {bytes(data[:2]).hex()}")
    whole = b"".join((coding.prefix, data[2:])) if coding.prefix else data
    pixels = simplejpeg.decode_jpeg(whole, "GRAY" if coding.samples == 1 else "RGB", buffer=out)
    if pixels.shape != out.shape:
        raise ReadError(f"a JPEG of {pixels.shape} pixels where the index says {out.shape}")


def _decode_jpeg2000(data: memoryview, coding: Coding, out: NDArray[Any]) -> None:
    _check_codestream(data, out)
    pixels = out[:, :, 0] if coding.samples == 1 else out
    _DECODERS["jpeg2000"](data, numthreads=1, out=pixels)
    if coding.photometric == YCBCR:
        ycbcr_to_rgb(out)


def _check_codestream(data: memoryview, out: NDArray[Any]) -> None:
    """Refuse a codestream of another size than the tile's before the decoder makes room for it."""
    head = bytes(data[:4096])
    start = head.find(_SOC_SIZ)
    fields = np.frombuffer(head, ">u4", 4, start + 8) if start >= 0 and start + 24 <= len(head) else None
    if fields is None:
        raise ReadError("a JPEG 2000 tile without a codestream header")
    width, height = int(fields[0]) - int(fields[2]), int(fields[1]) - int(fields[3])
    if (height, width) != out.shape[:2]:
        raise ReadError(f"a JPEG 2000 codestream of {height} x {width} pixels where the index says {out.shape[0]} x {out.shape[1]}")


def _decode_plain(data: memoryview, coding: Coding, rows: int, out: NDArray[Any]) -> None:
    # The floating-point predictor cannot be undone in place.
    room = np.empty_like(out) if coding.predictor == _FLOATING else out
    stored = room.reshape(out.shape[0], -1).view(np.uint8)
    found = _decompress(data, coding.codec, rows, stored)
    if found < rows * stored.shape[1]:
        raise ReadError(f"the tile holds {found} bytes of pixels, it should hold {stored.size}")
    stored.reshape(-1)[found:] = 0
    if coding.predictor == _FLOATING:
        imagecodecs.floatpred_decode(room, axis=1, out=out)
        return
    if coding.swapped:
        room.byteswap(inplace=True)
    if coding.predictor == _HORIZONTAL:
        # Differences wrap around as unsigned integers, whatever the samples are.
        differences = room.view(f"u{coding.dtype.itemsize}")
        imagecodecs.delta_decode(differences, axis=1, out=differences)


def _decompress(data: memoryview, codec: Codec, rows: int, stored: NDArray[np.uint8]) -> int:
    """Fill `stored`, (rows of the tile, bytes of a row), at least its first `rows`; says how many bytes there were."""
    if codec == "lzw":
        wanted = stored[:rows]
        imagecodecs.tiff_decode(_lzw_strip(data, rows, stored.shape[1]), out=wanted)
        return wanted.nbytes
    flat = stored.reshape(-1)
    if codec == "none":
        found = min(len(data), flat.size)
        flat[:found] = np.frombuffer(data, np.uint8, found)
        return found
    return len(_DECODERS[codec](data, out=flat))


def _lzw_strip(data: memoryview, rows: int, width: int) -> bytes:
    """LZW bytes as a TIFF of one strip of 8-bit pixels, for libtiff to decode.

    imagecodecs.lzw_decode (2026.3.6) follows wild pointers where a code after a clear code is not in the table yet:
    a damaged file ends the process. libtiff refuses such a code, and is twice as fast.
    """
    tags = ((256, width), (257, rows), (258, 8), (259, 5), (262, 1), (273, _STRIP_AT), (277, 1), (278, rows), (279, len(data)))
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"".join((head, bytes(4), data))


def ycbcr_to_rgb(pixels: NDArray[np.uint8]) -> None:
    """Full-range BT.601 YCbCr to RGB in place, (rows, columns, 3), in the 16-bit fixed point of libjpeg and OpenSlide."""
    luma = pixels[:, :, 0].astype(np.int32)
    blue, red = pixels[:, :, 1].astype(np.int32) - 128, pixels[:, :, 2].astype(np.int32) - 128
    half = 1 << 15
    pixels[:, :, 0] = np.clip(luma + ((91881 * red + half) >> 16), 0, 255)
    pixels[:, :, 1] = np.clip(luma + ((-22554 * blue - 46802 * red + half) >> 16), 0, 255)
    pixels[:, :, 2] = np.clip(luma + ((116130 * blue + half) >> 16), 0, 255)
