"""What the vendors of TIFF slides write in their tags: who wrote a file, its pixel size, its names. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from patchdrive.readers.tiff_index import Directory
from patchdrive.readers.tiff_ome import OmeImage, is_ome
from patchdrive.readers.tiff_tiles import TileLayout

Dialect = Literal["generic", "aperio", "ome", "ndpi", "philips", "leica", "ventana", "trestle"]
# Their tiles overlap, their levels are padded, or their first directory is not the slide: OpenSlide knows how.
ELSEWHERE: Mapping[Dialect, str] = {
    "ndpi": "Hamamatsu NDPI keeps whole levels in single JPEGs",
    "philips": "Philips TIFF pads its levels and leaves tiles out",
    "leica": "Leica SCN places several scans on one slide",
    "ventana": "Ventana BIF overlaps its tiles",
    "trestle": "Trestle overlaps its tiles",
}
ASSOCIATED = ("label", "macro", "thumbnail")

_DESCRIPTION, _SOFTWARE, _XMP, _NDPI, _NODATA = 270, 305, 700, 65420, 42113
_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 282, 283, 296
_MICROMETRES = {2: 25400.0, 3: 10000.0}  # per ResolutionUnit: inch, centimetre
_TEXTS = {"ImageDescription": 270, "Make": 271, "Model": 272, "Software": 305, "DateTime": 306, "Artist": 315, "HostComputer": 316}
_MPP_RANGE = (0.01, 100.0)
# What programs write when they know nothing: print and screen resolutions, in dots per inch.
_DEFAULT_DPI = (72, 96, 100, 150, 200, 300, 600)
_ALPHA = (1, 2)
_PALETTE = 3
_COLORS = {2: ("red", "green", "blue"), 6: ("red", "green", "blue"), 0: ("gray",), 1: ("gray",), 3: ("palette",)}


def dialect_of(first: Directory) -> Dialect:
    """Who wrote a file, from its first directory."""
    description, software = first.text(_DESCRIPTION), first.text(_SOFTWARE)
    if _NDPI in first:
        return "ndpi"
    if description.startswith("Aperio"):
        return "aperio"
    if is_ome(description):
        return "ome"
    if software.startswith("Philips"):
        return "philips"
    if "http://www.leica-microsystems.com/scn/" in description:
        return "leica"
    if b"iScan" in first.raw(_XMP):
        return "ventana"
    return "trestle" if software.startswith("MedScan") else "generic"


def aperio_properties(description: str) -> dict[str, str]:
    """The "key = value" pairs of an Aperio ImageDescription."""
    pairs = (part.partition("=") for part in description.split("|")[1:])
    return {key.strip(): value.strip() for key, equals, value in pairs if equals}


def believable(y: float, x: float) -> tuple[float, float] | None:
    """(y, x) micrometres per pixel where microscopy can mean it, else None: 0.01 to 100, and finite."""
    low, high = _MPP_RANGE
    return (y, x) if low <= y <= high and low <= x <= high else None


def mpp_of(first: Directory, dialect: Dialect, ome: OmeImage | None) -> tuple[float, float] | None:
    """Micrometres per level-0 pixel, (y, x), from where the dialect keeps it; None where nothing believable is said."""
    if dialect == "aperio":
        try:
            mpp = float(aperio_properties(first.text(_DESCRIPTION)).get("MPP", "nan"))
        except ValueError:
            return None
        return believable(mpp, mpp)
    if ome is not None and ome.mpp is not None and not any(math.isnan(size) for size in ome.mpp):
        return believable(*ome.mpp)
    return _mpp_from_resolution(first)


def _mpp_from_resolution(first: Directory) -> tuple[float, float] | None:
    micrometres = _MICROMETRES.get(first.integer(_RESOLUTION_UNIT, 2))
    sizes = []
    for tag in (_Y_RESOLUTION, _X_RESOLUTION):
        ratio = first.rational(tag)
        if micrometres is None or ratio is None or min(ratio) <= 0:
            return None
        size = micrometres * ratio[1] / ratio[0]
        if any(math.isclose(25400 / size, dpi, rel_tol=1e-4) for dpi in _DEFAULT_DPI):
            return None
        sizes.append(size)
    return believable(sizes[0], sizes[1])


def nodata_of(first: Directory, dtype: np.dtype[Any]) -> float | None:
    """GDAL's nodata value; None where there is none, or none that a pixel of `dtype` can hold."""
    try:
        nodata = float(first.text(_NODATA))
    except ValueError:
        return None
    if dtype.kind == "f":
        return nodata
    limits = np.iinfo(dtype)
    return nodata if nodata.is_integer() and limits.min <= nodata <= limits.max else None


def channel_names(directory: Directory, layout: TileLayout, count: int, ome: OmeImage | None) -> tuple[str, ...]:
    """`count` names: OME's own where they are unique, else by colour, else by number."""
    names = () if ome is None else ome.channel_names
    if len(names) == count > 1 and all(names) and len(set(names)) == count:
        return names
    numbered = tuple(f"channel_{index}" for index in range(count))
    if count != layout.samples:
        return numbered
    colors = _COLORS.get(layout.coding.photometric, ())
    extra = directory.integers(338)
    if not colors or count < len(colors) or count - len(colors) != len(extra):
        return colors if count == len(colors) else numbered
    if len(extra) > 1 and len(colors) == 1:
        return numbered
    alpha = ("alpha",) if extra and extra[0] in _ALPHA else ()
    return colors + alpha + numbered[len(colors) + len(alpha) :]


def properties_of(first: Directory, dialect: Dialect, directories: int) -> Mapping[str, str]:
    """What the file says of itself, in its own words, under "tiff." and "aperio."."""
    found = {f"tiff.{name}": text for name, tag in _TEXTS.items() if (text := first.text(tag))}
    for name, tag in (("XResolution", _X_RESOLUTION), ("YResolution", _Y_RESOLUTION)):
        if (ratio := first.rational(tag)) is not None:
            found[f"tiff.{name}"] = f"{ratio[0]}/{ratio[1]}"
    if _RESOLUTION_UNIT in first:
        found["tiff.ResolutionUnit"] = str(first.integer(_RESOLUTION_UNIT, 2))
    if dialect == "aperio":
        found.update({f"aperio.{key}": value for key, value in aperio_properties(first.text(_DESCRIPTION)).items()})
    return MappingProxyType(found | {"tiff.dialect": dialect, "tiff.directories": str(directories)})


def associated_name(directory: Directory, index: int, dialect: Dialect) -> str | None:
    """What a directory that is not a level shows: label, macro or thumbnail; None where it does not say."""
    lines = directory.text(_DESCRIPTION).strip().splitlines()
    if dialect == "aperio":
        if index == 1:
            return "thumbnail"
        lines = lines[1:]
    words = lines[0].lower().split() if lines else []
    return next((name for name in ASSOCIATED if words and words[0].startswith(name)), None)
