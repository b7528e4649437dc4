"""What a GDAL virtual raster points at, read before GDAL follows it (https://gdal.org/drivers/raster/vrt.html)."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree as ET

from patchdrive.readers.errors import FormatError

_POINTERS = frozenset({"SourceFilename", "SourceDataset", "DEMPath"})
_MARKUP = re.compile(rb"(?:\xef\xbb\xbf)?\s*[<{]")
_VRT = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>)?\s*(?:<!--.*?-->\s*)*<VRTDataset", re.DOTALL)


def is_vrt(head: bytes) -> bool:
    """True where a file that begins with `head` is a VRT."""
    return _VRT.match(head) is not None


def refuse_descriptions(path: Path) -> None:
    """Refuse XML and JSON that make GDAL fetch from elsewhere, and a VRT of anything but local files that exist.

    Raises:
        FormatError: names what it points at.
    """
    head = _head(path)
    if _MARKUP.match(head) and not is_vrt(head):
        raise FormatError(f"{path}: is XML or JSON that describes an image; open the image file itself, or a VRT of local files")
    vrt_sources(path)


def vrt_sources(path: Path) -> tuple[Path, ...]:
    """The files a VRT is made of, through VRTs of VRTs, sorted; none for any other file.

    Raises:
        FormatError: it is not XML, or points at the network or at a file that is not there.
    """
    found: set[Path] = set()
    waiting = [path]
    while waiting:
        vrt = waiting.pop()
        if is_vrt(_head(vrt)):
            new = _pointed_at(vrt) - found - {path}
            found |= new
            waiting.extend(new)
    return tuple(sorted(found))


def _pointed_at(vrt: Path) -> set[Path]:
    try:
        root = ET.parse(vrt).getroot()  # noqa: S314 -- expat >= 2.4.1 bounds entity expansion, and loads nothing from outside
    except ET.ParseError as error:
        raise FormatError(f"{vrt}: a VRT is XML, this is not: {error}") from error
    files = set()
    for element in root.iter():
        name = (element.text or "").strip()
        if element.tag not in _POINTERS or not name:
            continue
        relative = element.get("relativeToVRT", element.get("relativetoVRT", "0")) == "1"
        file = vrt.parent / name if relative else Path(name)
        if not file.is_file():
            raise FormatError(f"{vrt}: points at {name}, and a VRT is read from local files that exist; fetch it, or mend the VRT")
        files.add(file.resolve())
    return files


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(4096)
    except OSError as error:
        raise FormatError(f"{path}: cannot be read: {error.strerror}") from error
