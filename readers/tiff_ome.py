"""What OME-XML in a TIFF says of it: physical size, channel names, which directories hold which image. Pure.

Source: OME-TIFF specification, https://ome-model.readthedocs.io/en/stable/ome-tiff/specification.html
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from patchdrive.readers.errors import FormatError
from patchdrive.readers.tiff_xml import parse_xml

# Micrometres per unit; "pixel" and "reference frame" are no lengths.
_UNITS: Mapping[str, float] = {"nm": 1e-3, "µm": 1.0, "μm": 1.0, "um": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6, "Å": 1e-4, "pm": 1e-6}


@dataclass(frozen=True, slots=True, kw_only=True)
class OmeImage:
    """One Image element."""

    name: str
    """Its Name, or the empty string."""
    channels: int
    """SizeC: samples over all directories."""
    channel_names: tuple[str, ...]
    """One per Channel element, empty where it has none; an RGB channel is one element."""
    planes: int
    """SizeZ x SizeT: 1 for a flat image."""
    directories: tuple[int, ...]
    """Index of the directory of each channel, in channel order; the first only where nothing more is said."""
    mpp: tuple[float, float] | None
    """Micrometres per pixel as written, (y, x); None where it has no length."""


def is_ome(description: str) -> bool:
    """True for an ImageDescription that is OME-XML."""
    return description.rstrip().endswith("OME>")


def parse_ome(description: str) -> tuple[OmeImage, ...]:
    """The images an OME-XML description names, in its order.

    Raises:
        FormatError: it is not OME-XML, has no image, or spreads one over several files.
    """
    root = parse_xml(description, "OME-XML")
    images = tuple(_image(element) for element in root if _tag(element) == "Image")
    if not images:
        raise FormatError("the OME-XML names no image; an OME-TIFF companion without pixels cannot be read")
    return images


def _image(element: ET.Element) -> OmeImage:
    pixels = _first(element, "Pixels")
    if pixels is None:
        raise FormatError("an Image of the OME-XML has no Pixels: it is damaged")
    parts = [part for part in pixels if _tag(part) == "TiffData"]
    files = {uuid.get("FileName") for part in parts for uuid in part if _tag(uuid) == "UUID"}
    if len(files) > 1:
        raise FormatError(f"the OME-TIFF is spread over {len(files)} files; join them into one, for example with bfconvert")
    channels = [part for part in pixels if _tag(part) == "Channel"]
    return OmeImage(
        name=element.get("Name", ""),
        channels=_integer(pixels, "SizeC", 1),
        channel_names=tuple(part.get("Name", "") for part in channels),
        planes=_integer(pixels, "SizeZ", 1) * _integer(pixels, "SizeT", 1),
        directories=_directories(parts),
        mpp=_physical_size(pixels),
    )


def _directories(parts: Sequence[ET.Element]) -> tuple[int, ...]:
    """Directory of each channel of a flat image: FirstC to IFD, PlaneCount in a row."""
    found: dict[int, int] = {}
    for part in parts:
        first, ifd = _integer(part, "FirstC", 0), _integer(part, "IFD", 0)
        count = min(_integer(part, "PlaneCount", 1), 4096)
        found.update({first + step: ifd + step for step in range(count)})
    return tuple(found[key] for key in sorted(found)) or (0,)


def _physical_size(pixels: ET.Element) -> tuple[float, float] | None:
    sizes = []
    for axis in "YX":
        unit = _UNITS.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        try:
            value = float(pixels.get(f"PhysicalSize{axis}", "nan"))
        except ValueError:
            return None
        if unit is None:
            return None
        sizes.append(value * unit)
    return sizes[0], sizes[1]


def _integer(element: ET.Element, name: str, default: int) -> int:
    text = element.get(name)
    if text is None:
        return default
    if not text.isdecimal() or len(text) > 9:
        raise FormatError(f"the OME-XML says {name}={text[:20]!r}, which is no count")
    return int(text)


def _tag(element: ET.Element) -> str:
    """The element's name without its namespace."""
    return element.tag.rsplit("}", 1)[-1]


def _first(element: ET.Element, tag: str) -> ET.Element | None:
    return next((child for child in element if _tag(child) == tag), None)
