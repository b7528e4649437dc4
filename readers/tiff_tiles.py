"""How one directory stores its pixels: the grid of its tiles, their places in the file, and what is needed to decode one.

A directory of strips is a grid too, one tile wide, whose last tile is cut short.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchdrive.readers.errors import FormatError, ReadError
from patchdrive.readers.geometry import Window
from patchdrive.readers.tiff_codec_bytes import BYTE_CODECS, FLOAT24, ByteCodec
from patchdrive.readers.tiff_codec_headers import read_codestream
from patchdrive.readers.tiff_codecs import APERIO_PHOTOMETRIC, CODECS, ELSEWHERE, LERC_INNER, YCBCR, Coding, jpeg_prefix
from patchdrive.readers.tiff_index import Directory
from patchdrive.readers.tiles import TileGrid

MAX_TILE_BYTES = 256 * 2**20
MAX_SAMPLES = 4096
_UNSIGNED, _SIGNED, _FLOAT, _VOID = 1, 2, 3, 4
_COMPLEX = (5, 6)
_KINDS = {_UNSIGNED: "u", _SIGNED: "i", _FLOAT: "f", _VOID: "u"}
_DTYPES = ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8")
_NATIVE = "<" if sys.byteorder == "little" else ">"
_WHOLE_BITS = (8, 16, 32, 64)
_FORWARD, _MIRRORED = 1, 2
_LOOKED_AT, _HEADER_BYTES = 4096, 4096  # tiles, and bytes of the first that is stored


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TileLayout:
    """The stored tiles of one directory."""

    height: int
    """Rows of the image."""
    width: int
    """Columns of the image."""
    tile_height: int
    """Rows of a stored tile; edge tiles are stored whole and cropped."""
    tile_width: int
    """Columns of a stored tile."""
    planes: int
    """1 where a tile holds all samples of its pixels; else the number of samples, each with a grid of its own."""
    tiled: bool
    """False for strips."""
    coding: Coding
    """What a tile's bytes mean."""
    offsets: NDArray[Any]
    """First byte of each tile: planes, then rows, then columns."""
    counts: NDArray[Any]
    """Stored bytes of each tile; 0 where a tile is left out."""

    @property
    def rows(self) -> int:
        """Tiles from top to bottom."""
        return -(-self.height // self.tile_height)

    @property
    def columns(self) -> int:
        """Tiles from left to right."""
        return -(-self.width // self.tile_width)

    @property
    def samples(self) -> int:
        """Samples of one pixel, over all planes."""
        return self.planes * self.coding.samples

    def place(self, row: int, column: int, plane: int) -> tuple[int, int]:
        """(first byte, stored bytes) of one tile."""
        index = (plane * self.rows + row) * self.columns + column
        return int(self.offsets[index]), int(self.counts[index])

    @property
    def grid(self) -> TileGrid:
        """Where its tiles lie."""
        return TileGrid(height=self.height, width=self.width, tile_height=self.tile_height, tile_width=self.tile_width)

    def window(self, row: int, column: int) -> Window:
        """The pixels one stored tile decodes to; a last strip is cut short, a last tile overhangs."""
        y = row * self.tile_height
        height = self.tile_height if self.tiled else min(self.tile_height, self.height - y)
        return Window(y=y, x=column * self.tile_width, height=height, width=self.tile_width)


def tile_layout(directory: Directory) -> TileLayout:
    """What `directory` says of its tiles, checked.

    Raises:
        FormatError: it contradicts itself or the file, or is stored in a way this reader does not decode; says which reader may.
    """
    height, width = directory.integer(257), directory.integer(256)
    if height <= 0 or width <= 0:
        raise FormatError(f"an image of {height} x {width} pixels holds nothing")
    tiled = 322 in directory and 323 in directory
    tile_height = directory.integer(323) if tiled else min(height, directory.integer(278, height))
    tile_width = directory.integer(322) if tiled else width
    coding, planes = _coding(directory)
    if tile_height <= 0 or tile_width <= 0:
        raise FormatError(f"tiles of {tile_height} x {tile_width} pixels hold nothing")
    size = tile_height * tile_width * coding.samples * coding.dtype.itemsize
    if size > MAX_TILE_BYTES:
        raise FormatError(
            f"tiles of {tile_height} x {tile_width} pixels are {size} bytes each, more than the {MAX_TILE_BYTES} read at once: "
            'the directory is damaged, or needs smaller tiles or strips; try reader "raster"'
        )
    # A few writers keep the tag names of strips for tiles; libtiff reads either.
    offsets, counts = _pair(directory, (324, 273)), _pair(directory, (325, 279))
    layout = TileLayout(
        height=height,
        width=width,
        tile_height=tile_height,
        tile_width=tile_width,
        planes=planes,
        tiled=tiled,
        coding=coding,
        offsets=offsets,
        counts=counts,
    )
    wanted = layout.rows * layout.columns * planes
    if min(len(offsets), len(counts)) < wanted:
        raise FormatError(
            f"{height} x {width} pixels in tiles of {tile_height} x {tile_width} are {wanted} tiles, "
            f"the index holds {len(offsets)} offsets and {len(counts)} byte counts: it is cut short or damaged"
        )
    _check_subsampling(directory, layout)
    return layout


def _pair(directory: Directory, tags: tuple[int, int]) -> NDArray[Any]:
    values = next((found for tag in tags if (found := directory.values(tag)) is not None), None)
    if values is None or values.dtype.kind not in "iu" or values.ndim != 1:
        raise FormatError(f"tag {tags[0]} (where the tiles lie, how long they are) is missing or holds no integers")
    return values


def _coding(directory: Directory) -> tuple[Coding, int]:
    """(coding of one tile, number of planes)."""
    samples, planar = directory.integer(277, 1), directory.integer(284, 1)
    if not 0 < samples <= MAX_SAMPLES or planar not in {1, 2}:
        raise FormatError(f"{samples} samples per pixel in planar configuration {planar}: the directory is damaged")
    compression, photometric = directory.integer(259, 1), directory.integer(262, 1)
    if compression not in CODECS:
        name = f" ({ELSEWHERE[compression]})" if compression in ELSEWHERE else ""
        raise FormatError(f'compression {compression}{name} is not one this reader decodes ({_known()}); try reader "raster" or "slide"')
    order = directory.integer(266, 1)
    if order not in {_FORWARD, _MIRRORED}:
        raise FormatError(f"FillOrder {order}: TIFF defines 1 and 2, the directory is damaged")
    codec = CODECS[compression]
    dtype, bits = _dtype(directory)
    separate = planar == 2 and samples > 1
    if codec == "jpeg" and separate and photometric == YCBCR:
        raise FormatError('YCbCr JPEG in separate planes, whose pixels are no colours; try reader "raster"')
    coding = Coding(
        codec=codec,
        photometric=APERIO_PHOTOMETRIC.get(compression, photometric),
        predictor=directory.integer(317, 1),
        dtype=dtype,
        swapped=dtype.itemsize > 1 and directory.order != _NATIVE,
        samples=1 if separate else samples,
        prefix=jpeg_prefix(directory.raw(347), photometric) if codec == "jpeg" else b"",
        bits=bits,
        mirrored=order == _MIRRORED and codec != "jpeg",  # libtiff and others never reverse a JPEG's bits
        inner=_inner(directory) if codec == "lerc" else "none",
    )
    coding.check()
    if bits == FLOAT24 and codec in BYTE_CODECS and dtype.kind == "u" and directory.order == ">":
        raise FormatError('integers of 24 bits in a big-endian file, where programs disagree about their byte order; try reader "raster"')
    return coding, samples if separate else 1


def _inner(directory: Directory) -> ByteCodec:
    """How the bytes of LERC are compressed once more: the second value of its parameters."""
    parameters = (*directory.integers(50674), 0, 0)
    if parameters[1] not in LERC_INNER:
        raise FormatError(f'LERC compressed once more by method {parameters[1]}; known are none, deflate and zstd; try reader "raster"')
    return LERC_INNER[parameters[1]]


def _dtype(directory: Directory) -> tuple[np.dtype[Any], int]:
    """(numpy type that holds a sample, bits of a stored sample where they do not fill it, else 0)."""
    bits, formats = set(directory.integers(258) or (1,)), set(directory.integers(339) or (_UNSIGNED,))
    if len(bits) > 1 or len(formats) > 1:
        raise FormatError(f'samples of different types (bits {sorted(bits)}, formats {sorted(formats)}); try reader "raster"')
    bit, kind = bits.pop(), formats.pop()
    if kind in _COMPLEX:
        raise FormatError('complex samples: models take real ones; read them with reader "raster" and take their magnitude first')
    letter = _KINDS.get(kind, "?")
    if bit in _WHOLE_BITS and f"{letter}{bit // 8}" in _DTYPES:
        return np.dtype(f"{letter}{bit // 8}"), 0
    if letter == "u" and 0 < bit < 32:
        return np.dtype(next(f"u{size}" for size in (1, 2, 4) if bit <= 8 * size)), bit
    if letter == "f" and bit == FLOAT24:
        return np.dtype("f4"), bit
    raise FormatError(
        f"samples of {bit} bits in format {kind}; read are unsigned integers of 1 to 32 and 64 bits, signed of 8, 16, 32 and 64, "
        'floats of 16, 24, 32 and 64; try reader "raster"'
    )


def _check_subsampling(directory: Directory, layout: TileLayout) -> None:
    """Refuse JPEG 2000 with fewer chroma pixels than luma at once, so that another reader is found for the whole image.

    Upsampling is OpenSlide's to define: another way to do it gives other pixels. A damaged tile is left to whoever reads it.
    """
    if layout.coding.codec != "jpeg2000":
        return
    stored = np.flatnonzero(layout.counts[:_LOOKED_AT])
    if not stored.size:
        return
    offset = int(layout.offsets[stored[0]])
    head = memoryview(directory.data)[offset : offset + min(int(layout.counts[stored[0]]), _HEADER_BYTES)]
    try:
        subsampled = read_codestream(head).subsampled
    except ReadError:
        return
    if subsampled:
        raise FormatError('JPEG 2000 tiles with fewer chroma than luma pixels; try reader "slide" or "raster"')


def _known() -> str:
    return ", ".join(f"{name} {number}" for number, name in sorted(CODECS.items()))
