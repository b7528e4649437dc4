"""One stored tile's bytes to pixels, written straight into an array of the caller's. Pure, and safe from any thread.

JPEG goes through libjpeg-turbo at full quality (bit for bit what OpenSlide gives), everything else through imagecodecs.
Both release the GIL, and neither can be made to write or allocate more than the tile that was asked for: what a tile
says of its size is checked before a decoder believes it (`tiff_codec_headers`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import imagecodecs
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from patchdrive.readers.errors import FormatError, ReadError
from patchdrive.readers.tiff_codec_bytes import BYTE_CODECS, ByteCodec, decompress, mirror, packed_row, unpack
from patchdrive.readers.tiff_codec_headers import SOI, LercHeader, check_codestream, check_jpeg, check_webp, read_codestream, read_lerc

Codec = ByteCodec | Literal["jpeg", "jpeg2000", "lerc", "webp", "jpegxl"]
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
    34887: "lerc",
    34925: "lzma",
    50000: "zstd",
    50001: "webp",
    50002: "jpegxl",
    52546: "jpegxl",
}
# Known, and left to other readers.
ELSEWHERE: Mapping[int, str] = {
    2: "CCITT run lengths",
    3: "CCITT Group 3",
    4: "CCITT Group 4",
    6: "old-style JPEG",
    33007: "ALT JPEG",
    34892: "lossy DNG JPEG",
    34933: "PNG",
}
# Aperio's compression number overrules its PhotometricInterpretation.
APERIO_PHOTOMETRIC: Mapping[int, int] = {33003: 6, 33005: 2}
# LERC's own bytes may be compressed once more: the second value of its LercParameters tag.
LERC_INNER: Mapping[int, ByteCodec] = {0: "none", 1: "deflate", 2: "zstd"}
# imagecodecs reads any buffer; its annotations name fewer.
_DECODERS: Mapping[Codec, Callable[..., Any]] = {
    "jpeg": imagecodecs.jpeg8_decode,
    "jpeg2000": imagecodecs.jpeg2k_decode,
    "lerc": imagecodecs.lerc_decode,
    "webp": imagecodecs.webp_decode,
    "jpegxl": imagecodecs.jpegxl_decode,
}
RGB, YCBCR = 2, 6
_NO_PREDICTOR, _HORIZONTAL, _FLOATING = 1, 2, 3
_PREDICTED = frozenset({"lzw", "deflate", "zstd", "lzma"})
_EOI = b"\xff\xd9"
# An Adobe segment that says "no colour transform". Standing first it yields to a JFIF or Adobe segment of the tile's own.
_PLAIN_RGB = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"
_JPEG_BITS = (8, 12)
_JPEG_SAMPLES = (1, 2, 3, 4)
# libjpeg's names of "leave the components as they are", by their number; one and two are never transformed.
_RAW_COLORS: Mapping[int, str] = {3: "RGB", 4: "CMYK"}
_JPEGXL_DTYPES, _JPEGXL_SAMPLES = ("u1", "u2", "f2", "f4"), (1, 3, 4)
_LERC_DTYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8")
_OPAQUE = 255


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
    bits: int = 0
    """Bits of a stored sample where they do not fill `dtype`; 0 where they do."""
    mirrored: bool = False
    """True where the bits of each stored byte are in reverse order."""
    inner: ByteCodec = "none"
    """For LERC, how its own bytes are compressed."""

    @property
    def fast_jpeg(self) -> bool:
        """True for the JPEG tiles that simplejpeg decodes: 8-bit grey, RGB and YCbCr."""
        return self.codec == "jpeg" and not self.bits and (self.samples == 1 or (self.samples == 3 and self.photometric in {RGB, YCBCR}))

    def check(self) -> None:
        """Refuse what cannot be decoded, before any tile is.

        Raises:
            FormatError: codec, photometric, predictor and dtype do not go together.
        """
        if self.codec in BYTE_CODECS:
            _check_bytes(self)
        elif self.mirrored:
            raise FormatError(f'{self.codec} tiles with their bits in reverse order (FillOrder 2); try reader "raster"')
        else:
            _CHECKS[self.codec](self)


def _check_bytes(coding: Coding) -> None:
    if coding.photometric == YCBCR:
        raise FormatError(f'YCbCr pixels stored as {coding.codec}, not as JPEG; try reader "slide" or "raster"')
    predictor, dtype = coding.predictor, coding.dtype
    if predictor not in {_NO_PREDICTOR, _HORIZONTAL, _FLOATING} or (predictor == _FLOATING and dtype.kind != "f"):
        raise FormatError(f"predictor {predictor} on {dtype} samples: TIFF defines 1, 2 and, for floats, 3")
    if predictor != _NO_PREDICTOR and coding.bits:
        raise FormatError(f'predictor {predictor} on samples of {coding.bits} bits, which no writer is known for; try reader "raster"')
    if predictor != _NO_PREDICTOR and coding.codec not in _PREDICTED:
        raise FormatError(
            f"predictor {predictor} on tiles stored as {coding.codec}: some programs undo it there and some do not; "
            "write them again without a predictor"
        )


def _check_jpeg(coding: Coding) -> None:
    bits = coding.bits or 8 * coding.dtype.itemsize
    ycbcr = coding.photometric == YCBCR
    if coding.dtype.kind != "u" or bits not in _JPEG_BITS or coding.samples not in _JPEG_SAMPLES or (ycbcr and coding.samples != 3):
        raise FormatError(
            f"JPEG tiles of {coding.samples} samples, {bits}-bit {coding.dtype}, photometric {coding.photometric}; "
            'read are 8 and 12 bits, grey, RGB, YCbCr and up to 4 plain samples; try reader "slide" or "raster"'
        )


def _check_jpeg2000(coding: Coding) -> None:
    ycbcr = coding.photometric == YCBCR and (coding.dtype != np.uint8 or coding.samples != 3)
    if coding.dtype.kind == "f" or coding.dtype.itemsize > 4 or ycbcr:
        raise FormatError(f"JPEG 2000 tiles of {coding.samples} samples, {coding.dtype}, photometric {coding.photometric} are not read")


def _check_lerc(coding: Coding) -> None:
    if coding.swapped and coding.dtype.kind == "f":  # GDAL swaps the bytes first, so that what is NaN, and left out, is another value
        raise FormatError('LERC floats in the other byte order, where values are lost for NaN; try reader "raster"')
    if coding.bits or coding.photometric == YCBCR or coding.dtype not in [np.dtype(name) for name in _LERC_DTYPES]:
        raise FormatError(f'LERC tiles of {coding.dtype}, photometric {coding.photometric}; try reader "raster"')


def _check_webp(coding: Coding) -> None:
    if coding.bits or coding.dtype != np.uint8 or coding.samples not in {3, 4} or coding.photometric == YCBCR:
        raise FormatError(f'WebP tiles of {coding.samples} {coding.dtype} samples; WebP has 3 or 4 of 8 bits; try reader "raster"')


def _check_jpegxl(coding: Coding) -> None:
    known = coding.dtype in [np.dtype(name) for name in _JPEGXL_DTYPES] and coding.samples in _JPEGXL_SAMPLES
    if not known or coding.bits or coding.swapped or coding.photometric == YCBCR:
        order = "other" if coding.swapped else "usual"
        raise FormatError(
            f"JPEG XL tiles of {coding.samples} {coding.dtype} samples in the {order} byte order; "
            'read are 1, 3 or 4 of uint8 and, in the usual order, uint16, float16 and float32; try reader "raster"'
        )


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
        return SOI + color if color else b""
    end = tables.rfind(_EOI)
    if not tables.startswith(SOI) or end < 2:
        raise FormatError("the JPEGTables tag holds no JPEG tables: the directory is damaged")
    return SOI + color + tables[2:end]


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
    if not data:
        raise ReadError("the tile is empty")
    try:
        if coding.codec == "jpeg":
            _decode_jpeg(data, coding, out)
        elif coding.codec in _PICTURES:
            _PICTURES[coding.codec](data, coding, out)
        else:
            _decode_bytes(data, coding, rows, out)
    except (ValueError, RuntimeError) as error:  # what simplejpeg and imagecodecs raise on bytes they cannot read
        raise ReadError(f"{coding.codec} says {error}") from error


def _decode_jpeg(data: memoryview, coding: Coding, out: NDArray[Any]) -> None:
    if data[:2] != SOI:
        raise ReadError(f"a JPEG tile begins with {SOI.hex()}, this one with {bytes(data[:2]).hex()}")
    whole = b"".join((coding.prefix, data[2:])) if coding.prefix else data
    if not coding.fast_jpeg:
        _decode_raw_jpeg(whole, coding, out)
        return
    pixels = simplejpeg.decode_jpeg(whole, "GRAY" if coding.samples == 1 else "RGB", buffer=out)
    if pixels.shape != out.shape:
        raise ReadError(f"a JPEG of {pixels.shape} pixels where the index says {out.shape}")


def _decode_raw_jpeg(whole: bytes | memoryview, coding: Coding, out: NDArray[Any]) -> None:
    """12 bits, or components that are no colours: as they are stored."""
    check_jpeg(whole, out.shape, coding.bits or 8)
    color = None if coding.photometric in {RGB, YCBCR} and coding.samples == 3 else _RAW_COLORS.get(coding.samples)
    _DECODERS["jpeg"](whole, colorspace=color, outcolorspace=color, out=_flat(out))


def _decode_jpeg2000(data: memoryview, coding: Coding, out: NDArray[Any]) -> None:
    stream = read_codestream(data)
    check_codestream(stream, out.shape)
    _DECODERS["jpeg2000"](stream.data, numthreads=1, out=_flat(out))
    if coding.photometric == YCBCR:
        ycbcr_to_rgb(out)


def _decode_webp(data: memoryview, coding: Coding, out: NDArray[Any]) -> None:
    check_webp(data)
    _DECODERS["webp"](data, 0, hasalpha=coding.samples == 4, out=out)


def _decode_jpegxl(data: memoryview, _coding: Coding, out: NDArray[Any]) -> None:
    _DECODERS["jpegxl"](data, 0, keeporientation=True, numthreads=1, out=_flat(out))


def _decode_lerc(data: memoryview, coding: Coding, out: NDArray[Any]) -> None:
    blob: memoryview = data
    if coding.inner != "none":
        # LERC falls back to plain values where it gains nothing: its bytes are never much more than the tile's.
        room = np.empty((1, 2 * out.nbytes + 4096), np.uint8)
        blob = room.data.cast("B")[: decompress(data, coding.inner, 0, room)]
    head = read_lerc(blob)
    if head.shape != out.shape[:2]:
        raise ReadError(f"a LERC tile of {head.shape} pixels where the index says {out.shape[:2]}")
    _fill_lerc(blob, head, out)
    if coding.swapped:  # GDAL and tifffile swap the values before they are compressed
        out.byteswap(inplace=True)


def _fill_lerc(blob: memoryview, head: LercHeader, out: NDArray[Any]) -> None:
    """Pixels of a LERC blob: all samples together, one blob for each, or all but an alpha that is kept as the blob's mask."""
    samples = out.shape[2]
    if head.depth == samples:
        _, valid = _DECODERS["lerc"](blob, masks=True, out=_flat(out))
        _mask_lerc(out, None if valid is None else valid[:, :, None])
    elif head.depth == 1 and len(blob) > head.size:
        planes = np.zeros((samples, *out.shape[:2]), out.dtype)
        _, valid = _DECODERS["lerc"](blob, masks=True, out=planes)
        out[...] = np.moveaxis(planes, 0, 2)
        if valid is not None:
            _mask_lerc(out, np.moveaxis(valid, 0, 2) if valid.ndim == 3 else valid[:, :, None])
    elif head.depth == samples - 1 and out.dtype == np.uint8:
        colors = np.zeros((*out.shape[:2], samples - 1), out.dtype)
        _, valid = _DECODERS["lerc"](blob, masks=True, out=_flat(colors))
        out[:, :, :-1] = colors
        out[:, :, -1] = _OPAQUE if valid is None else valid * np.uint8(_OPAQUE)
    else:
        raise ReadError(f"a LERC tile of {head.depth} samples where the index says {samples}")


def _mask_lerc(out: NDArray[Any], valid: NDArray[np.bool_] | None) -> None:
    """What LERC leaves out is NaN where there is one, else 0."""
    if valid is not None and not valid.all():
        np.copyto(out, np.nan if out.dtype.kind == "f" else 0, where=~valid)


def _flat(out: NDArray[Any]) -> NDArray[Any]:
    """The tile as libraries want it: one sample a pixel has no axis."""
    return out[:, :, 0] if out.shape[2] == 1 else out


def _decode_bytes(data: memoryview, coding: Coding, rows: int, out: NDArray[Any]) -> None:
    if coding.bits:
        height, width, samples = out.shape
        room: NDArray[Any] = np.empty((height, packed_row(width, samples, coding.bits)), np.uint8)
    else:
        # The floating-point predictor cannot be undone in place.
        room = np.empty_like(out) if coding.predictor == _FLOATING else out
    stored = room.reshape(out.shape[0], -1).view(np.uint8)
    found = decompress(mirror(data) if coding.mirrored else data, coding.codec, rows, stored)
    stored.reshape(-1)[found:] = 0
    if coding.bits:
        unpack(stored, coding.bits, out, swapped=coding.swapped)
    elif coding.predictor == _FLOATING:
        imagecodecs.floatpred_decode(room, axis=1, out=out)
    else:
        _undo(coding, out)


def _undo(coding: Coding, out: NDArray[Any]) -> None:
    """Byte order and horizontal differences, in place."""
    if coding.swapped:
        out.byteswap(inplace=True)
    if coding.predictor == _HORIZONTAL:
        # Differences wrap around as unsigned integers, whatever the samples are.
        differences = out.view(f"u{coding.dtype.itemsize}")
        imagecodecs.delta_decode(differences, axis=1, out=differences)


def ycbcr_to_rgb(pixels: NDArray[np.uint8]) -> None:
    """Full-range BT.601 YCbCr to RGB in place, (rows, columns, 3), in the 16-bit fixed point of libjpeg and OpenSlide."""
    luma = pixels[:, :, 0].astype(np.int32)
    blue, red = pixels[:, :, 1].astype(np.int32) - 128, pixels[:, :, 2].astype(np.int32) - 128
    half = 1 << 15
    pixels[:, :, 0] = np.clip(luma + ((91881 * red + half) >> 16), 0, 255)
    pixels[:, :, 1] = np.clip(luma + ((-22554 * blue - 46802 * red + half) >> 16), 0, 255)
    pixels[:, :, 2] = np.clip(luma + ((116130 * blue + half) >> 16), 0, 255)


_CHECKS: Mapping[str, Callable[[Coding], None]] = {
    "jpeg": _check_jpeg,
    "jpeg2000": _check_jpeg2000,
    "lerc": _check_lerc,
    "webp": _check_webp,
    "jpegxl": _check_jpegxl,
}
_PICTURES: Mapping[str, Callable[[memoryview, Coding, NDArray[Any]], None]] = {
    "jpeg2000": _decode_jpeg2000,
    "lerc": _decode_lerc,
    "webp": _decode_webp,
    "jpegxl": _decode_jpegxl,
}
