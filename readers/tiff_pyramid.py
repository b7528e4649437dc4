"""Which directories of a TIFF are the levels of one image, and what the image is. Pure: no file, no pixel."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from patchdrive.readers.errors import FormatError
from patchdrive.readers.geometry import Level
from patchdrive.readers.tiff_dialects import (
    ASSOCIATED,
    ELSEWHERE,
    Dialect,
    associated_name,
    channel_names,
    dialect_of,
    mpp_of,
    nodata_of,
    properties_of,
)
from patchdrive.readers.tiff_index import Directory, sub_directories
from patchdrive.readers.tiff_ome import OmeImage, parse_ome
from patchdrive.readers.tiff_tiles import TileLayout, tile_layout

_SUBFILE_TYPE, _SUB_IFDS, _DESCRIPTION = 254, 330, 270
_MASK = 4
_WHITE = 255
# Sizes of a level are rounded, down, up or to nearest, on each axis: a true one is never further off than this.
_ROUNDING = 1.5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TiffPyramid:
    """One image as a TIFF stores it."""

    dialect: Dialect
    """Who wrote it."""
    levels: tuple[Level, ...]
    """Finest first."""
    layouts: tuple[tuple[TileLayout, ...], ...]
    """Per level, the directories its channels lie in, in channel order; nearly always one."""
    channels: tuple[str, ...]
    """Unique names."""
    mpp: tuple[float, float] | None
    """Micrometres per level-0 pixel, (y, x), where believable."""
    nodata: float | None
    """Stored value that means invalid."""
    fill: float
    """Value of pixels whose tile was left out: nodata, white on an Aperio slide (OpenSlide leaves them transparent), else 0."""
    associated: Mapping[str, Directory]
    """Label, macro, thumbnail."""
    properties: Mapping[str, str]
    """What else the file says."""


def read_pyramid(chain: Sequence[Directory]) -> TiffPyramid:
    """The image in a chain of directories.

    Raises:
        FormatError: the finest one is not tiled, or is stored in a way, or by a writer, that another reader is for.
    """
    dialect = dialect_of(chain[0])
    if dialect in ELSEWHERE:
        raise FormatError(f'{ELSEWHERE[dialect]}; open it with reader "slide"')
    images = parse_ome(chain[0].text(_DESCRIPTION)) if dialect == "ome" else ()
    ome = images[0] if images else None
    base = _ome_base(chain, images[0]) if images else (_finest(chain),)
    layouts = tuple(tile_layout(directory) for directory in base)
    first = layouts[0]
    if not first.tiled:
        raise FormatError('its pixels lie in strips, not tiles; open it with reader "raster"')
    if len(layouts) > 1 and not all(_alike(first, other) and _size(first) == _size(other) for other in layouts):
        raise FormatError("the channels of the OME image differ in size or type: they are no one image")
    claimed = {index for image in images for index in image.directories}
    others = [directory for index, directory in enumerate(chain) if index not in claimed and directory not in base]
    pyramid = (layouts, *_reduced(layouts, base, others))
    count = sum(layout.samples for layout in layouts)
    nodata = nodata_of(base[0], first.coding.dtype)
    return TiffPyramid(
        dialect=dialect,
        levels=tuple(_level(index, stored[0], first) for index, stored in enumerate(pyramid)),
        layouts=pyramid,
        channels=channel_names(base[0], first, count, ome),
        mpp=mpp_of(base[0], dialect, ome),
        nodata=nodata,
        fill=nodata if nodata is not None else _WHITE if dialect == "aperio" else 0,
        associated=_associated(chain, images, dialect, base),
        properties=properties_of(chain[0], dialect, len(chain)),
    )


def _finest(chain: Sequence[Directory]) -> Directory:
    """The largest directory that is no mask; the first of equals, for a stack's other planes are not levels."""
    images = [directory for directory in chain if not directory.integer(_SUBFILE_TYPE, 0) & _MASK]
    if not images:
        raise FormatError("every directory is a mask: there is no image to read")
    return max(images, key=lambda directory: math.prod(_pixels(directory)))


def _ome_base(chain: Sequence[Directory], ome: OmeImage) -> tuple[Directory, ...]:
    """The directories of the first OME image's channels."""
    if ome.planes != 1:
        raise FormatError(f"a stack of {ome.planes} planes (SizeZ x SizeT): save the one plane you want as an image of its own")
    first = ome.directories[0]
    if first >= len(chain):
        raise FormatError(f"the OME-XML places its image in directory {first}, the file has {len(chain)}")
    samples = chain[first].integer(277, 1)
    wanted, left = divmod(ome.channels, max(samples, 1))
    if left or not wanted:
        raise FormatError(f"the OME-XML says {ome.channels} channels, its directory holds {samples} samples a pixel")
    indices = ome.directories if len(ome.directories) >= wanted else tuple(range(first, first + wanted))
    if max(indices[:wanted]) >= len(chain):
        raise FormatError(f"the OME-XML says {wanted} directories of channels, the file has {len(chain)} in all: it is cut short")
    return tuple(chain[index] for index in indices[:wanted])


def _reduced(layouts: tuple[TileLayout, ...], base: Sequence[Directory], others: Sequence[Directory]) -> tuple[tuple[TileLayout, ...], ...]:
    """The coarser levels, finest first: from the SubIFDs of the base, where it has any, and else from the chain."""
    if _SUB_IFDS in base[0]:
        subs = [sub_directories(directory) for directory in base]
        candidates: Iterable[tuple[Directory, ...]] = zip(*subs, strict=False)
    else:
        candidates = ((directory,) for directory in others) if len(base) == 1 else ()
    found = [stored for group in candidates if (stored := _reduced_level(base, group)) is not None]
    found.sort(key=lambda stored: (stored[0].height, stored[0].width), reverse=True)
    levels: list[tuple[TileLayout, ...]] = []
    for stored in found:
        finer = (levels[-1] if levels else layouts)[0]
        if stored[0].height <= finer.height and stored[0].width <= finer.width and _size(stored[0]) != _size(finer):
            levels.append(stored)
    return tuple(levels)


def _reduced_level(base: Sequence[Directory], group: Sequence[Directory]) -> tuple[TileLayout, ...] | None:
    """The layouts of directories that hold a smaller `base`, or None where they do not claim to.

    Raises:
        FormatError: they claim to, and are damaged or stored in a way that is not read.
    """
    if not all(_claims(whole, small) for whole, small in zip(base, group, strict=True)):
        return None
    return tuple(tile_layout(directory) for directory in group)


def _claims(whole: Directory, small: Directory) -> bool:
    """True where `small` is tiled, holds the same kind of pixels, and both its axes shrank by one factor, up to rounding."""
    if 322 not in small or small.integer(_SUBFILE_TYPE, 0) & _MASK:
        return False
    if _kind(whole) != _kind(small):
        return False
    (rows, columns), (height, width) = _pixels(whole), _pixels(small)
    if not 0 < height <= rows or not 0 < width <= columns or (height, width) == (rows, columns):
        return False
    if rows >= columns:
        return abs(width - columns * height / rows) <= _ROUNDING
    return abs(height - rows * width / columns) <= _ROUNDING


def _kind(directory: Directory) -> tuple[int, int, set[int], set[int]]:
    """(samples, planar configuration, bits, formats) of its pixels, with TIFF's defaults for what is left out."""
    bits, formats = directory.integers(258) or (1,), directory.integers(339) or (1,)
    return directory.integer(277, 1), directory.integer(284, 1), set(bits), set(formats)


def _pixels(directory: Directory) -> tuple[int, int]:
    """(height, width) as the directory says them, unchecked."""
    return directory.integer(257, 0), directory.integer(256, 0)


def _alike(one: TileLayout, other: TileLayout) -> bool:
    return one.samples == other.samples and one.coding.dtype == other.coding.dtype


def _size(layout: TileLayout) -> tuple[int, int]:
    return layout.height, layout.width


def _level(index: int, layout: TileLayout, base: TileLayout) -> Level:
    return Level(
        index=index,
        height=layout.height,
        width=layout.width,
        downsample_y=base.height / layout.height,
        downsample_x=base.width / layout.width,
        tile_height=min(layout.tile_height, layout.height),
        tile_width=min(layout.tile_width, layout.width),
    )


def _associated(
    chain: Sequence[Directory], images: Sequence[OmeImage], dialect: Dialect, base: Sequence[Directory]
) -> Mapping[str, Directory]:
    found: dict[str, Directory] = {}
    for image in images[1:]:
        name = next((known for known in ASSOCIATED if known in image.name.lower()), None)
        if name is not None and image.directories[0] < len(chain):
            found.setdefault(name, chain[image.directories[0]])
    if dialect != "ome":
        for index, directory in enumerate(chain):
            name = None if 322 in directory or directory in base else associated_name(directory, index, dialect)
            if name is not None:
                found.setdefault(name, directory)
    return found
