"""What the directories of a TIFF say of who should read it: cheap, before anything is opened."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from patchdrive.readers.errors import FormatError
from patchdrive.readers.tiff_dialects import ELSEWHERE, Dialect, dialect_of
from patchdrive.readers.tiff_file import map_file
from patchdrive.readers.tiff_index import Directory, walk
from patchdrive.readers.tiff_pyramid import TiffPyramid, read_pyramid
from patchdrive.readers.tiff_tiles import TileLayout, tile_layout

_PIXEL_SCALE, _TIE_POINTS, _TRANSFORMATION, _GEO_KEYS, _RPC = 33550, 33922, 34264, 34735, 50844
_GEOREFERENCED = (_PIXEL_SCALE, _TIE_POINTS, _TRANSFORMATION, _GEO_KEYS, _RPC)
_GDAL_METADATA, _NODATA, _SUB_IFDS = 42112, 42113, 330
_SUBFILE_TYPE, _REDUCED, _MASK = 254, 1, 4
_COMPLEX = (5, 6)
_PHOTOMETRIC = 262
# What OpenSlide or GDAL may read where we refuse. A stack of OME planes is refused by us, and must not be opened as its first plane.
_LOOKED_THROUGH: tuple[Dialect, ...] = ("generic", "philips")
_CONVERTED = {5: "CMYK", 8: "CIELab", 9: "ICCLab", 10: "ITULab"}
_WHOLE_NUMBER = re.compile(r"\s*[+-]?\d{1,20}\s*", re.ASCII)
_NUMBER = re.compile(r"\s*([+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|nan|[+-]?inf)\s*", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OpenedTiff:
    """A mapped file and what its directories say."""

    data: memoryview
    """The whole file."""
    pyramid: TiffPyramid
    """What it holds."""
    first: Directory
    """The directory that GDAL takes for the image."""


def open_tiff(path: Path) -> OpenedTiff:
    """Map a TIFF and read its directories.

    Raises:
        FormatError: see `whole_pyramid`.
    """
    try:
        data = map_file(path)
        chain = tuple(walk(data))
        return OpenedTiff(data=memoryview(data), pyramid=whole_pyramid(chain), first=chain[0])
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class TiffSigns:
    """What a TIFF says of who should read it."""

    tiled: bool
    """False for strips."""
    georeferenced: bool
    """It has a pixel scale, tie points, a transformation, GeoTIFF keys or RPCs."""
    framed: bool
    """Its own tags hold an affine frame, which then wins over any file beside it."""
    dialect: Dialect
    """Who wrote it; "ndpi" for Hamamatsu."""
    compression: int
    """TIFF's number of the codec."""
    complex_samples: bool
    """Samples are complex numbers."""
    strip_bytes: int
    """Decoded bytes of one strip; 0 where the pixels lie in tiles, or where they cannot be read."""
    strip_rows: int
    """Rows of one strip; 0 for tiles."""
    opened: OpenedTiff | None
    """All its directories; None where nobody looked further than the first, or `TiffImage` would refuse it."""
    refusal: str
    """Why `TiffImage` would refuse it, and what to do; empty where it would not."""
    otherwise: str
    """Why GDAL would see other levels, colours, frame or validity than `TiffImage`; empty where it would not."""


def georeferenced(first: Directory) -> bool:
    """True with any tag that places the pixels in the world."""
    return any(tag in first for tag in _GEOREFERENCED)


def described(first: Directory) -> bool:
    """True where GDAL may know names of the channels that no other tag holds."""
    return georeferenced(first) or _GDAL_METADATA in first


def sniff_tiff(path: Path) -> TiffSigns:
    """Look at the first directory of a TIFF and, where who should read it depends on them, at the others; at no pixel.

    Raises:
        FormatError: not a TIFF, or damaged before its first directory ends.
    """
    try:
        data = map_file(path)
        directories = walk(data)
        first = next(directories)
        dialect = dialect_of(first)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error
    layout, opened, refusal, otherwise = None, None, "", ""
    if dialect in ELSEWHERE:
        refusal = ELSEWHERE[dialect]
    else:
        try:
            layout = tile_layout(first)
            if dialect in _LOOKED_THROUGH or georeferenced(first):
                chain = (first, *directories)
                opened = OpenedTiff(data=memoryview(data), pyramid=whole_pyramid(chain), first=first)
                otherwise = _colours(first) or (_otherwise(chain, opened.pyramid) if georeferenced(first) else "")
        except FormatError as error:
            refusal = str(error)
    striped = layout is not None and not layout.tiled
    return TiffSigns(
        tiled=322 in first,
        georeferenced=georeferenced(first),
        framed=_TRANSFORMATION in first or (_PIXEL_SCALE in first and _TIE_POINTS in first),
        dialect=dialect,
        compression=first.integer(259, 1),
        complex_samples=any(kind in _COMPLEX for kind in first.integers(339)),
        strip_bytes=_tile_bytes(layout) if layout is not None and striped else 0,
        strip_rows=layout.tile_height if layout is not None and striped else 0,
        opened=opened,
        refusal=refusal,
        otherwise=otherwise,
    )


def whole_pyramid(chain: Sequence[Directory]) -> TiffPyramid:
    """The image in a chain of directories, refused where its frame is of another directory, or only some of its levels have a mask.

    Raises:
        FormatError: see `read_pyramid`; or the frame of level 0, or the validity of a level, is stored nowhere.
    """
    pyramid = read_pyramid(chain)
    first, base = chain[0], pyramid.levels[0]
    held = (first.integer(257, 0), first.integer(256, 0), first.integer(277, 1))
    if georeferenced(first) and held != (base.height, base.width, len(pyramid.channels)):
        raise FormatError('its first directory, which is placed in the world, is not its finest level; read it with reader "raster"')
    masked = [mask is not None for mask in pyramid.masks]
    if any(masked) and not all(masked):
        raise FormatError(
            f'level {masked.index(False)} has no mask of its size, level {masked.index(True)} has one; read it with reader "raster"'
        )
    return pyramid


def _colours(first: Directory) -> str:
    name = _CONVERTED.get(first.integer(_PHOTOMETRIC, 1))
    return "" if name is None else f"its colours are {name}, and GDAL turns them into red, green and blue"


def _otherwise(chain: Sequence[Directory], pyramid: TiffPyramid) -> str:
    """GDAL takes the first directory for the image, and of the others those marked as reduced for its overviews."""
    first, others = chain[0], chain[1:]
    kinds = [directory.integer(_SUBFILE_TYPE, 0) for directory in others]
    overviews = sum(bool(kind & _REDUCED) and not kind & _MASK for kind in kinds)
    masks = sum(bool(kind & _MASK) for kind in kinds)
    if _RPC in first and _TIE_POINTS not in first and _TRANSFORMATION not in first:
        return "it is placed by RPCs only"
    if _TIE_POINTS in first and _PIXEL_SCALE not in first and _TRANSFORMATION not in first:
        return "it is placed by control points only"
    if any(not kind & (_REDUCED | _MASK) for kind in kinds):
        return "it holds several pictures"
    if _SUB_IFDS not in first and overviews != len(pyramid.levels) - 1:
        return f"of its {overviews} overviews {len(pyramid.levels) - 1} are the image made smaller"
    if masks != sum(mask is not None for mask in pyramid.masks):
        return "it has a mask that fits no level"
    if _NODATA in first and not _plain(first.text(_NODATA), pyramid.layouts[0][0].coding.dtype):
        return f"its nodata value {first.text(_NODATA)[:20]!r} is no plain number"
    return ""


def _plain(number: str, dtype: np.dtype[Any]) -> bool:
    """True where GDAL reads `number` as Python does; of 64-bit integers it takes the digits that it finds, whatever follows."""
    if dtype.kind not in "iu" or dtype.itemsize < 8:
        return _NUMBER.fullmatch(number) is not None
    limits = np.iinfo(dtype)
    return _WHOLE_NUMBER.fullmatch(number) is not None and limits.min <= int(number) <= limits.max


def _tile_bytes(layout: TileLayout) -> int:
    return layout.tile_height * layout.tile_width * layout.coding.samples * layout.coding.dtype.itemsize
