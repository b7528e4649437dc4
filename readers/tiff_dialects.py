"""What the vendors of TIFF slides write in their tags: who wrote a file, its pixel size, its names. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from patchdrive.readers.icc import MAX_PROFILE, is_profile
from patchdrive.readers.pixel_size import PixelSize, from_resolution, judge, number
from patchdrive.readers.tiff_index import Directory
from patchdrive.readers.tiff_ome import OmeImage, is_ome
from patchdrive.readers.tiff_philips import PhilipsSlide, is_philips
from patchdrive.readers.tiff_tiles import TileLayout

Dialect = Literal["generic", "aperio", "ome", "ndpi", "philips", "leica", "ventana", "trestle"]
# Their tiles overlap, their levels are no tiles, or their first directory is not the slide: OpenSlide knows how.
ELSEWHERE: Mapping[Dialect, str] = {
    "ndpi": "Hamamatsu NDPI keeps whole levels in single JPEGs",
    "leica": "Leica SCN places several scans on one slide",
    "ventana": "Ventana BIF overlaps its tiles",
    "trestle": "Trestle overlaps its tiles",
}
ASSOCIATED = ("label", "macro", "thumbnail")

_DESCRIPTION, _SOFTWARE, _XMP, _NDPI, _NODATA, _ICC_PROFILE = 270, 305, 700, 65420, 42113, 34675
_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 282, 283, 296
_SUBFILE_TYPE = 254
_APERIO_PICTURES = {1: "label", 9: "macro"}
_TEXTS = {"ImageDescription": 270, "Make": 271, "Model": 272, "Software": 305, "DateTime": 306, "Artist": 315, "HostComputer": 316}
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
    if is_philips(software, description):
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


def pixel_size_of(first: Directory, dialect: Dialect, ome: OmeImage | None, philips: PhilipsSlide | None) -> PixelSize:
    """Micrometres per level-0 pixel from where the dialect keeps it, and against what else the file says: see `judge`.

    Of OME-TIFF the objective is not asked: programs that export a smaller image set its size and keep its objective.
    """
    printed = from_resolution(first.rational(_Y_RESOLUTION), first.rational(_X_RESOLUTION), first.integer(_RESOLUTION_UNIT, 2))
    if dialect == "aperio":
        said = aperio_properties(first.text(_DESCRIPTION))
        mpp = number(said.get("MPP"))
        return judge(None if mpp is None else (mpp, mpp), magnification=number(said.get("AppMag")), second=printed.mpp)
    if philips is not None:
        return judge(philips.mpp, magnification=philips.magnification, second=printed.mpp)
    if ome is not None and ome.mpp is not None and not any(math.isnan(size) for size in ome.mpp):
        return judge(ome.mpp)
    return printed


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


def color_profile_of(first: Directory) -> bytes | None:
    """The ICC profile, where the tag holds one."""
    stored = first.values(_ICC_PROFILE)
    if stored is None or stored.nbytes > MAX_PROFILE:
        return None
    profile = stored.tobytes()
    return profile if is_profile(profile) else None


def properties_of(first: Directory, dialect: Dialect, directories: int) -> dict[str, str]:
    """What the file says of itself, in its own words, under "tiff." and "aperio."."""
    found = {f"tiff.{name}": text for name, tag in _TEXTS.items() if (text := first.text(tag))}
    for name, tag in (("XResolution", _X_RESOLUTION), ("YResolution", _Y_RESOLUTION)):
        if (ratio := first.rational(tag)) is not None:
            found[f"tiff.{name}"] = f"{ratio[0]}/{ratio[1]}"
    if _RESOLUTION_UNIT in first:
        found["tiff.ResolutionUnit"] = str(first.integer(_RESOLUTION_UNIT, 2))
    if dialect == "aperio":
        found.update({f"aperio.{key}": value for key, value in aperio_properties(first.text(_DESCRIPTION)).items()})
    if dialect == "philips":
        del found["tiff.ImageDescription"]  # it holds the label: a patient's name
    return found | {"tiff.dialect": dialect, "tiff.directories": str(directories)}


def associated_name(directory: Directory, index: int, dialect: Dialect) -> str | None:
    """What a directory that is not a level shows: label, macro or thumbnail; None where it does not say.

    Aperio says it by NewSubfileType, which is what OpenSlide goes by, or in the second line of the description, or in both.
    """
    lines = directory.text(_DESCRIPTION).strip().splitlines()
    if dialect == "aperio":
        marked = "thumbnail" if index == 1 else _APERIO_PICTURES.get(directory.integer(_SUBFILE_TYPE, 0))
        if marked is not None:
            return marked
        lines = lines[1:]
    words = lines[0].lower().split() if lines else []
    return next((name for name in ASSOCIATED if words and words[0].startswith(name)), None)
