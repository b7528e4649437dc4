"""What the XML of a Philips TIFF says of it: true pixel sizes of its levels, label and macro. Pure.

The directories of a Philips TIFF give sizes of whole tiles; what a level truly holds follows from its pixel spacing.
Source: https://openslide.org/formats/philips/
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from xml.etree import ElementTree as ET

from patchdrive.readers.errors import FormatError
from patchdrive.readers.pixel_size import Mpp, number
from patchdrive.readers.tiff_xml import parse_xml

_SCANNED_IMAGES, _IMAGE_TYPE, _IMAGE_DATA = "PIM_DP_SCANNED_IMAGES", "PIM_DP_IMAGE_TYPE", "PIM_DP_IMAGE_DATA"
_LEVELS, _SPACING, _DERIVATION = "PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE", "DICOM_PIXEL_SPACING", "DICOM_DERIVATION_DESCRIPTION"
_PICTURES = {"LABELIMAGE": "label", "MACROIMAGE": "macro"}
_LONGEST = 4096
"""Characters of a property; what is longer is a picture or a table."""
_BELIEVABLE = (1e-9, 1e3)
"""Millimetres: far beyond any pixel, and near enough for their ratios to be numbers."""
# The first number after "levels=" is the objective's, where it is a small one; a file name that may hold dashes comes last.
_MAGNIFICATION = re.compile(r"(?:^|-)levels=(\d{1,3})(?![0-9])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Base64Jpeg:
    """A picture that lies in the XML."""

    text: str
    """Base64 of a JPEG."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PhilipsSlide:
    """The one slide of a Philips TIFF."""

    spacings: tuple[Mpp, ...]
    """Per level, finest first, the distance of pixels, (y, x), in millimetres."""
    mpp: Mpp | None
    """Micrometres per level-0 pixel as written, (y, x)."""
    magnification: float | None
    """Of the objective, where it is said."""
    pictures: Mapping[str, Base64Jpeg]
    """Label and macro."""
    properties: Mapping[str, str]
    """What else it says, under "philips."."""


def is_philips(software: str, description: str) -> bool:
    """True for the Software and ImageDescription of a Philips export."""
    return software.startswith("Philips") and "DPUfsImport" in description


def parse_philips(description: str) -> PhilipsSlide:
    """The slide that an ImageDescription describes.

    Raises:
        FormatError: it is no such XML, or describes no slide, or several.
    """
    root = parse_xml(description, "XML of a Philips TIFF")
    if root.tag != "DataObject" or root.get("ObjectType") != "DPUfsImport":
        raise FormatError('the XML of a Philips TIFF begins with a DataObject "DPUfsImport", this one does not')
    scanned = [found for attribute in root if attribute.get("Name") == _SCANNED_IMAGES for found in _objects(attribute)]
    slides = [found for found in scanned if _text(found, _IMAGE_TYPE) == "WSI"]
    if len(slides) != 1:
        raise FormatError(f"the XML of the Philips TIFF describes {len(slides)} slides; one is read: export it again by itself")
    slide = slides[0]
    levels = [found for attribute in slide if attribute.get("Name") == _LEVELS for found in _objects(attribute)]
    spacings = tuple(_spacing(text) for level in levels if (text := _text(level, _SPACING)))
    own = _text(slide, _SPACING)
    spacing = _spacing(own) if own else next(iter(spacings), None)
    return PhilipsSlide(
        spacings=spacings,
        mpp=None if spacing is None else (1e3 * spacing[0], 1e3 * spacing[1]),
        magnification=_magnification(_text(slide, _DERIVATION) or _text(root, _DERIVATION)),
        pictures=_pictures(scanned),
        properties=MappingProxyType(dict(_properties(root, slide, levels))),
    )


def level_factors(spacings: tuple[Mpp, ...]) -> tuple[int, ...]:
    """Per level, how many level-0 pixels one of its pixels spans: whole numbers, as OpenSlide takes them.

    Raises:
        FormatError: a spacing is no length, or a level is finer than the one before.
    """
    low, high = _BELIEVABLE
    if any(not low <= side <= high for spacing in spacings for side in spacing):
        raise FormatError(f"the Philips TIFF gives pixel spacings of {spacings} mm: it is damaged")
    y0, x0 = spacings[0]
    factors = tuple(math.floor((y / y0 + x / x0) / 2 + 0.5) for y, x in spacings)
    if any(finer > coarser for finer, coarser in zip((1, *factors), factors, strict=False)):
        raise FormatError(f"the levels of the Philips TIFF shrink by {factors}: its pixel spacings are out of order")
    return factors


def _objects(attribute: ET.Element) -> list[ET.Element]:
    """The DataObjects in the Array of an Attribute."""
    return attribute.findall("Array/DataObject")


def _text(element: ET.Element, name: str) -> str:
    """The text of the first Attribute of this name; empty where there is none."""
    found = next((child for child in element if child.get("Name") == name), None)
    return "" if found is None else (found.text or "").strip()


def _spacing(text: str) -> Mpp:
    """Row and column spacing from a text such as "0.00025" "0.00025", each in its own quotation marks."""
    sides = [number(part) for part in text.replace('"', " ").split()]
    if len(sides) != 2 or sides[0] is None or sides[1] is None:
        raise FormatError(f"the Philips TIFF gives a pixel spacing of {text[:40]!r}, which is not two lengths")
    return sides[0], sides[1]


def _magnification(derivation: str) -> float | None:
    found = _MAGNIFICATION.search(derivation.split("sourceFilename", 1)[0])
    power = 0 if found is None else int(found[1])
    return power if 0 < power <= 200 else None


def _pictures(scanned: list[ET.Element]) -> Mapping[str, Base64Jpeg]:
    found: dict[str, Base64Jpeg] = {}
    for element in scanned:
        name, text = _PICTURES.get(_text(element, _IMAGE_TYPE)), _text(element, _IMAGE_DATA)
        if name is not None and text:
            found.setdefault(name, Base64Jpeg(text=text))
    return MappingProxyType(found)


def _properties(root: ET.Element, slide: ET.Element, levels: list[ET.Element]) -> Iterator[tuple[str, str]]:
    named = [("philips", root), ("philips", slide)]
    named += [(f"philips.{_LEVELS}[{index}]", level) for index, level in enumerate(levels)]
    for prefix, element in named:
        for attribute in element:
            name, text = attribute.get("Name"), attribute.text or ""
            if name and len(attribute) == 0 and len(text) <= _LONGEST:
                yield f"{prefix}.{name}", text
