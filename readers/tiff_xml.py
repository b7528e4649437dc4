"""XML that lies in a tag of a TIFF, parsed within limits. Pure."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from patchdrive.readers.errors import FormatError

MAX_XML = 64 * 2**20


def parse_xml(text: str, name: str) -> ET.Element:
    """The root element of `text`, which messages call `name`.

    Raises:
        FormatError: it is no XML, is too large, or defines entities.
    """
    # Entities are how a small text grows to gigabytes; no slide has a use for them.
    if len(text) > MAX_XML or "<!ENTITY" in text or "<!DOCTYPE" in text:
        raise FormatError(f"the {name} is too large or defines entities: it is damaged")
    try:
        return ET.fromstring(text)  # noqa: S314  entities are refused above
    except (ET.ParseError, ValueError) as error:
        raise FormatError(f"the ImageDescription is not {name}: {error}") from error
