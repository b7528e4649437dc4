"""Which directories of a TIFF are the levels of one image, and what the image is. Pure: no file, no pixel."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from patchdrive.readers.errors import FormatError
from patchdrive.readers.geometry import Level
from patchdrive.readers.icc import profile_properties
from patchdrive.readers.tiff_dialects import (
    ASSOCIATED,
    ELSEWHERE,
    Dialect,
    associated_name,
    channel_names,
    color_profile_of,
    dialect_of,
    nodata_of,
    pixel_size_of,
    properties_of,
)
from patchdrive.readers.tiff_index import MAX_DIRECTORIES, Directory, sub_directories
from patchdrive.readers.tiff_ome import OmeImage, parse_ome
from patchdrive.readers.tiff_padding import crop, crop_all, unpadded, whole_tiles
from patchdrive.readers.tiff_philips import Base64Jpeg, PhilipsSlide, level_factors, parse_philips
from patchdrive.readers.tiff_tiles import TileLayout, tile_layout

_SUBFILE_TYPE, _SUB_IFDS, _DESCRIPTION = 254, 330, 270
_REDUCED, _MASK = 1, 4
_WHITE = 255
_TRANSPARENT = ("aperio", "philips")
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
    masks: tuple[TileLayout | None, ...]
    """Per level, the mask directory of its size, one sample a pixel, 0 where the pixel is invalid; None where it has none."""
    channels: tuple[str, ...]
    """Unique names."""
    mpp: tuple[float, float] | None
    """Micrometres per level-0 pixel, (y, x), where believable."""
    nodata: float | None
    """Stored value that means invalid."""
    fill: float
    """Value of pixels whose tile was left out: nodata, white on a slide that OpenSlide leaves transparent there, else 0."""
    gaps: bool
    """True where a tile that was left out shows nothing: its pixels are invalid, whatever `fill` is."""
    color_profile: bytes | None
    """ICC profile of the pixels."""
    associated: Mapping[str, Directory | Base64Jpeg]
    """Label, macro, thumbnail."""
    properties: Mapping[str, str]
    """What else the file says."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Parts:
    """What a chain of directories is made of."""

    base: tuple[Directory, ...]
    """The directories of the finest level, in channel order."""
    layouts: tuple[tuple[TileLayout, ...], ...]
    """Per level, the tiles of its directories."""
    nested: tuple[tuple[Directory, ...], ...] = ()
    """Per directory of the base, those its SubIFDs name."""
    ome: tuple[OmeImage, ...] = ()
    """The images that OME-XML names; the first is the one that is read."""
    philips: PhilipsSlide | None = None
    """What the XML of a Philips TIFF says."""


def read_pyramid(chain: Sequence[Directory]) -> TiffPyramid:
    """The image in a chain of directories.

    Raises:
        FormatError: one of them is damaged, or is stored in a way, or by a writer, that another reader is for.
    """
    dialect = dialect_of(chain[0])
    if dialect in ELSEWHERE:
        raise FormatError(f'{ELSEWHERE[dialect]}; open it with reader "slide"')
    parts = _philips_parts(chain) if dialect == "philips" else _parts(chain, dialect)
    base, ome = parts.base[0], parts.ome[0] if parts.ome else None
    first = parts.layouts[0][0]
    nodata = nodata_of(base, first.coding.dtype)
    pixel_size = pixel_size_of(base, dialect, ome, parts.philips)
    profile = color_profile_of(base)
    gaps = nodata is None and dialect in _TRANSPARENT
    return TiffPyramid(
        dialect=dialect,
        levels=tuple(_level(index, stored[0], first) for index, stored in enumerate(parts.layouts)),
        layouts=parts.layouts,
        masks=_masks(chain, parts),
        channels=channel_names(base, first, sum(layout.samples for layout in parts.layouts[0]), ome),
        mpp=pixel_size.mpp,
        nodata=nodata,
        fill=nodata if nodata is not None else _WHITE if gaps else 0,
        gaps=gaps,
        color_profile=profile,
        associated=_associated(chain, parts, dialect),
        properties=MappingProxyType(
            properties_of(chain[0], dialect, len(chain))
            | ({} if parts.philips is None else dict(parts.philips.properties))
            | ({"patchdrive.mpp": pixel_size.doubt} if pixel_size.doubt else {})
            | profile_properties(profile)
        ),
    )


def _parts(chain: Sequence[Directory], dialect: Dialect) -> _Parts:
    """Base and levels of everything but Philips; coarser levels lie in the SubIFDs of the base, where it has any, else in the chain."""
    images = parse_ome(chain[0].text(_DESCRIPTION)) if dialect == "ome" else ()
    base = _ome_base(chain, images[0]) if images else (_finest(chain),)
    layouts = tuple(tile_layout(directory) for directory in base)
    first = layouts[0]
    if len(layouts) > 1 and not all(_alike(first, other) and _size(first) == _size(other) for other in layouts):
        raise FormatError("the channels of the OME image differ in size or type: they are no one image")
    claimed = {index for image in images for index in image.directories}
    others = [directory for index, directory in enumerate(chain) if index not in claimed and directory not in base]
    if sum(len(directory.integers(_SUB_IFDS)) for directory in base) > MAX_DIRECTORIES:
        raise FormatError(f"more than {MAX_DIRECTORIES} SubIFDs: the file is damaged")
    nested = tuple(sub_directories(directory) for directory in base)
    in_chain = [(directory,) for directory in others] if len(base) == 1 else []
    groups = list(zip(*nested, strict=False)) if _SUB_IFDS in base[0] else in_chain
    return _Parts(base=base, layouts=(layouts, *_reduced(base, groups, dialect)), nested=nested, ome=images)


def _philips_parts(chain: Sequence[Directory]) -> _Parts:
    """Every tiled directory of a Philips TIFF is a level; its true size follows from the pixel spacing, rounded down, as OpenSlide does."""
    slide = parse_philips(chain[0].text(_DESCRIPTION))
    stored = [directory for directory in chain if 322 in directory and not _is(_MASK, directory)]
    if not stored or len(stored) != len(slide.spacings):
        raise FormatError(f"the Philips TIFF has {len(stored)} tiled directories, its XML describes {len(slide.spacings)} levels")
    height, width = _pixels(stored[0])
    layouts = []
    for directory, factor in zip(stored, level_factors(slide.spacings), strict=True):
        if _kind(directory) != _kind(stored[0]):
            raise FormatError("the levels of the Philips TIFF differ in the type of their pixels: it is damaged")
        size = height // factor, width // factor
        if 0 in size:
            raise FormatError(f"the XML of the Philips TIFF shrinks {height} x {width} pixels by {factor}: nothing is left")
        layouts.append((crop(tile_layout(directory), size),))
    return _Parts(base=(stored[0],), layouts=tuple(layouts), philips=slide)


def _finest(chain: Sequence[Directory]) -> Directory:
    """The largest directory that is no mask; the first of equals, for a stack's other planes are not levels."""
    images = [directory for directory in chain if not _is(_MASK, directory)]
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
    few = len(ome.directories) < wanted
    if (few and first + wanted > len(chain)) or max(ome.directories[:wanted]) >= len(chain):
        raise FormatError(f"the OME-XML says {wanted} directories of channels, the file has {len(chain)} in all: it is cut short")
    return tuple(chain[first : first + wanted]) if few else tuple(chain[index] for index in ome.directories[:wanted])


def _reduced(base: Sequence[Directory], groups: Sequence[tuple[Directory, ...]], dialect: Dialect) -> tuple[tuple[TileLayout, ...], ...]:
    """The coarser levels, finest first, of the `groups` of directories that may be one, each with a directory for each of the base.

    A level has one factor for both axes, up to rounding. Some programs pad every level to whole tiles: where that explains a level
    that has not, and every level is whole tiles and marked as reduced, what padding added is cut off (OpenSlide leaves it on, and
    so takes such a level for up to twice as fine as it is). A square image that is padded does not show it, and is left as stored.

    Raises:
        FormatError: a directory claims to be a level, and is damaged or stored in a way that is not read.
    """
    smaller = [group for group in groups if all(_resembles(whole, small) for whole, small in zip(base, group, strict=True))]
    smaller.sort(key=lambda group: _pixels(group[0]), reverse=True)
    full = _pixels(base[0])
    padded = dialect == "generic" and _padded(full, [group[0] for group in smaller])
    finer, factor, levels = full, 1.0, []
    for group in smaller:
        size = _pixels(group[0])
        true = unpadded(size, full, _tile(group[0]), factor) if padded else None
        if true is None and not _fits(full, size):
            continue
        factor, cut = true if true is not None else (full[0] / size[0], size)
        if cut != finer and cut[0] <= finer[0] and cut[1] <= finer[1]:
            levels.append(crop_all([tile_layout(directory) for directory in group], cut))
            finer = cut
    return tuple(levels)


def _padded(full: tuple[int, int], smaller: Sequence[Directory]) -> bool:
    """True where only padding to whole tiles explains the size of a level, and contradicts that of none."""
    marked = all(_is(_REDUCED, small) and whole_tiles(_pixels(small), _tile(small)) for small in smaller)
    odd = [small for small in smaller if not _fits(full, _pixels(small))]
    return marked and bool(odd) and all(unpadded(_pixels(small), full, _tile(small), 1) for small in odd)


def _resembles(whole: Directory, small: Directory) -> bool:
    """True where `small` holds the same kind of pixels, and fewer.

    As OpenSlide does, a tiled image takes tiled directories only, for the strips beside it are thumbnails, labels and macros;
    as GDAL does, an image of strips takes what is marked as reduced, for the rest are other pictures.
    """
    if (322 not in small if 322 in whole else not _is(_REDUCED, small)) or _is(_MASK, small):
        return False
    (rows, columns), (height, width) = _pixels(whole), _pixels(small)
    return _kind(whole) == _kind(small) and 0 < height <= rows and 0 < width <= columns and (height, width) != (rows, columns)


def _fits(full: tuple[int, int], size: tuple[int, int]) -> bool:
    """True where both axes shrank by one factor, up to rounding."""
    (rows, columns), (height, width) = full, size
    if rows >= columns:
        return abs(width - columns * height / rows) <= _ROUNDING
    return abs(height - rows * width / columns) <= _ROUNDING


def _masks(chain: Sequence[Directory], parts: _Parts) -> tuple[TileLayout | None, ...]:
    """Per level, the first mask directory of exactly its size, from the chain or the SubIFDs of the base.

    Raises:
        FormatError: such a mask is damaged, or has several samples a pixel.
    """
    found: dict[tuple[int, int], Directory] = {}
    for directory in (*chain, *(sub for subs in parts.nested for sub in subs)):
        if _is(_MASK, directory):
            found.setdefault(_pixels(directory), directory)
    return tuple(_mask(found.get(_size(stored[0]))) for stored in parts.layouts)


def _mask(directory: Directory | None) -> TileLayout | None:
    if directory is None:
        return None
    layout = tile_layout(directory)
    if layout.samples != 1:
        raise FormatError(f'a mask of {layout.samples} samples a pixel, one for each channel; try reader "raster"')
    return layout


def _is(bit: int, directory: Directory) -> bool:
    """True where the directory's NewSubfileType has `bit` set."""
    return bool(directory.integer(_SUBFILE_TYPE, 0) & bit)


def _kind(directory: Directory) -> tuple[int, int, set[int], set[int]]:
    """(samples, planar configuration, bits, formats) of its pixels, with TIFF's defaults for what is left out."""
    bits, formats = directory.integers(258) or (1,), directory.integers(339) or (1,)
    samples = directory.integer(277, 1)
    planar = directory.integer(284, 1) if samples > 1 else 1  # of one sample it says nothing, and GDAL's overviews say otherwise
    return samples, planar, set(bits), set(formats)


def _pixels(directory: Directory) -> tuple[int, int]:
    """(height, width) as the directory says them, unchecked."""
    return directory.integer(257, 0), directory.integer(256, 0)


def _tile(directory: Directory) -> tuple[int, int]:
    """(height, width) of its tiles as the directory says them, unchecked; zeros for strips."""
    return directory.integer(323, 0), directory.integer(322, 0)


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


def _associated(chain: Sequence[Directory], parts: _Parts, dialect: Dialect) -> Mapping[str, Directory | Base64Jpeg]:
    found: dict[str, Directory | Base64Jpeg] = {}
    for image in parts.ome[1:]:
        name = next((known for known in ASSOCIATED if known in image.name.lower()), None)
        if name is not None and image.directories[0] < len(chain):
            found.setdefault(name, chain[image.directories[0]])
    if dialect != "ome":
        for index, directory in enumerate(chain):
            known = directory in parts.base or 322 in directory or _is(_MASK, directory)
            name = None if known else associated_name(directory, index, dialect)
            if name is not None:
                found.setdefault(name, directory)
    return found if parts.philips is None else {**parts.philips.pictures, **found}
