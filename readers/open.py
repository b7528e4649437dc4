"""open_image(): one table from signature (bytes first, then suffix) to reader; plug-ins by entry point."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol

from openslide import OpenSlide

from patchdrive.readers.errors import FormatError
from patchdrive.readers.image import Image
from patchdrive.readers.multiscale import MultiscaleImage
from patchdrive.readers.raster import RasterImage, driver_of
from patchdrive.readers.sidecars import changed_by
from patchdrive.readers.slide import SlideImage
from patchdrive.readers.tiff import TiffImage
from patchdrive.readers.tiff_signs import OpenedTiff, TiffSigns, sniff_tiff
from patchdrive.readers.vrt import is_vrt

PLUGINS = "patchdrive.readers"
"""Entry point group; each loads to a `Plugin`, and its name is what `reader=` takes."""

_READERS: dict[str, Callable[[Path], Image]] = {
    "tiff": TiffImage,
    "slide": SlideImage,
    "raster": RasterImage,
    "multiscale": MultiscaleImage,
}
_STRIP_ROWS = 8
_STRIP_BYTES = 4 << 20
_NO_CODEC, _JPEG = 1, 7
_TIFFS = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
_RASTERS = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\x00\x00\x00\x0cjP  ", "JPEG2000"),
    (b"\xff\x4f\xff\x51", "a JPEG2000 codestream"),
)
_VIRTUAL_SLIDES = (b"[Virtual Microscope Specimen]", b"[Uncompressed Virtual Microscope Specimen]")
_ZARR = ("zarr.json", ".zgroup", ".zattrs")
_NO_IMAGES = (
    (b"", "nothing: the file is empty"),
    (b"PK\x03\x04", "a ZIP archive; unpack it first"),
    (b"\x1f\x8b", "gzip; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "zstd; unpack it first"),
    (b"%PDF", "PDF"),
    (b"\x89HDF\r\n\x1a\n", "HDF5"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which reader a source gets."""

    reader: str
    """Name of the reader."""
    why: str
    """The reason, for people."""
    path: Path
    """What it opens: the source, or the file of a slide's folder that stands for it."""
    opened: OpenedTiff | None = field(default=None, repr=False, compare=False)
    """What was read of a TIFF to choose, so that nobody reads it twice."""


class Plugin(Protocol):
    """What an entry point of the group "patchdrive.readers" loads to."""

    def claim(self, path: Path, head: bytes, /) -> str:
        """Why this is ours, "" where it is not; `head` is the first 512 bytes of a file, empty for a folder."""
        ...

    def open(self, path: Path, /) -> Image:
        """Open what was claimed, or what the user said is ours.

        Raises:
            FormatError: it cannot be opened.
        """
        ...


def open_image(source: str | Path, *, reader: str | None = None) -> Image:
    """Open a slide, a scene or an OME-Zarr image.

    Args:
        source: a local path. A slide's folder (MRXS, VMS) stands for the file that names it.
        reader: tiff, slide, raster, multiscale or the name of a plug-in, where the choice of `choose` is not wanted.

    Raises:
        FormatError: nothing we know reads it, or it is broken; says what its first bytes are.
    """
    if reader is None:
        choice = choose(source)
        if choice.opened is not None:
            return TiffImage(choice.path, opened=choice.opened)
        return _reader(choice.reader)(choice.path)
    return _reader(reader)(_local(source))


def choose(source: str | Path) -> Choice:
    """Which reader `source` gets, and why: built-in signatures, plug-ins, then whatever OpenSlide or GDAL recognise.

    Raises:
        FormatError: none; says what its first bytes are.
    """
    path = _local(source)
    if path.is_dir():
        return _choose_folder(path)
    head = _head(path)
    if head.startswith(_TIFFS):
        return _choose_tiff(path)
    found = _by_signature(path, head) or _by_plugin(path, head) or _by_library(path)
    if found is None:
        raise FormatError(f"{path}: no reader knows it; it begins with {_describe(head)}")
    name, why = found
    return Choice(reader=name, why=why, path=path)


def _local(source: str | Path) -> Path:
    if "://" in str(source):
        raise FormatError(f"{source}: images are read from local files; fetch it first")
    path = Path(source)
    try:
        path.stat()
    except FileNotFoundError as error:
        raise FormatError(f"{path}: no such file or folder") from error
    except OSError as error:
        raise FormatError(f"{path}: cannot be read: {error.strerror}") from error
    return path


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(512)
    except OSError as error:
        raise FormatError(f"{path}: cannot be read: {error.strerror}") from error


def _reader(name: str) -> Callable[[Path], Image]:
    if name in _READERS:
        return _READERS[name]
    plugins = dict(_plugins())
    if name not in plugins:
        raise FormatError(f"no reader is named {name!r}; there are {', '.join([*_READERS, *plugins])}")
    return plugins[name].open


def _plugins() -> Iterator[tuple[str, Plugin]]:
    for entry in sorted(entry_points(group=PLUGINS), key=lambda entry: entry.name):
        yield entry.name, entry.load()


def _choose_folder(path: Path) -> Choice:
    marker = next((name for name in _ZARR if (path / name).is_file()), None)
    if marker is not None:
        return Choice(reader="multiscale", why=f"is a Zarr group ({marker})", path=path)
    beside = path.with_name(path.name + ".mrxs")
    if (path / "Slidedat.ini").is_file() and beside.is_file():
        return Choice(reader="slide", why=f"is the folder of the MRXS slide {beside.name}", path=beside)
    virtual = sorted(path.glob("*.vms"))
    if len(virtual) == 1:
        return Choice(reader="slide", why=f"is the folder of the VMS slide {virtual[0].name}", path=virtual[0])
    claimed = _by_plugin(path, b"")
    if claimed is not None:
        return Choice(reader=claimed[0], why=claimed[1], path=path)
    if (path / ".zarray").is_file():
        raise FormatError(f"{path}: a Zarr array says nothing of axes or pixel size; open the OME-Zarr group that holds it")
    raise FormatError(f"{path}: a folder, but no Zarr group; give the file inside it (any one .dcm of a DICOM series, the .vms or .mrxs)")


def _by_signature(path: Path, head: bytes) -> tuple[str, str] | None:
    """(reader, why) by what the first bytes say; the suffix only tells an MRXS from the JPEG that it is by its bytes."""
    if head[128:132] == b"DICM":
        return "slide", "is DICOM: OpenSlide finds the levels in the other files of the series"
    if path.suffix.lower() == ".mrxs":
        return "slide", "is named .mrxs: the JPEG that it is by its bytes is only a preview of the slide"
    if head.startswith(_VIRTUAL_SLIDES):
        return "slide", "is a Hamamatsu VMS or VMU"
    if is_vrt(head):
        return "raster", "is a GDAL virtual raster"
    return next((("raster", f"is {name}") for magic, name in _RASTERS if head.startswith(magic)), None)


def _choose_tiff(path: Path) -> Choice:
    try:
        signs = sniff_tiff(path)
    except FormatError as error:
        raise FormatError(f"{path}: a damaged TIFF: {error}") from error
    name, why = _by_signs(path, signs)
    return Choice(reader=name, why=why, path=path, opened=signs.opened if name == "tiff" else None)


def _by_signs(path: Path, signs: TiffSigns) -> tuple[str, str]:
    """The fastest reader that gives the same pixels, levels, frame and validity: our own decoder but for what it would miss."""
    kind = "georeferenced TIFF" if signs.georeferenced else "TIFF"
    if signs.refusal:
        vendor = None if signs.georeferenced else OpenSlide.detect_format(path)
        if vendor is not None and vendor != "generic-tiff":
            return "slide", f"is a TIFF of OpenSlide's format {vendor}: {signs.refusal}"
        return "raster", f"is a {kind} for GDAL: {signs.refusal}"
    missed = signs.otherwise
    if not missed and (signs.georeferenced or signs.dialect == "generic"):
        missed = changed_by(path, framed=signs.framed, overviewed=signs.opened is not None and len(signs.opened.pyramid.levels) > 1)
    # OME and scanners say channels, planes and pixel size in words that GDAL does not read; so may resolution tags.
    told = signs.dialect != "generic" or (signs.opened is not None and signs.opened.pyramid.mpp is not None and not signs.georeferenced)
    missed = missed or ("" if told else _slow_strips(signs))
    if missed:
        return "raster", f"is a {kind} for GDAL: {missed}"
    stored = f"{'tiled' if signs.tiled else 'striped'} {kind} ({signs.dialect})"
    if not signs.georeferenced:
        return "tiff", f"is a {stored}, decoded here"
    turbo = ", JPEG by libjpeg-turbo as other programs do" if signs.compression == _JPEG else ""
    return "tiff", f"is a {stored}, decoded here and placed by GDAL{turbo}"


def _slow_strips(signs: TiffSigns) -> str:
    """Why GDAL, which keeps the strips that it has decoded, is faster; empty where it is not, or for tiles.

    Measured on windows of 512 pixels and on bands of whole strips, 2048 and 10980 pixels wide.
    """
    if signs.tiled:
        return ""
    if signs.compression not in {_NO_CODEC, _JPEG}:
        return "its strips are compressed, and GDAL keeps what it has decoded of them"
    if signs.strip_rows < _STRIP_ROWS:
        return "its strips hold few rows, and GDAL decodes many in one call"
    return "its strips are too large to decode for one window" if signs.strip_bytes > _STRIP_BYTES else ""


def _by_plugin(path: Path, head: bytes) -> tuple[str, str] | None:
    for name, plugin in _plugins():
        why = plugin.claim(path, head)
        if why:
            return name, why
    return None


def _by_library(path: Path) -> tuple[str, str] | None:
    vendor = OpenSlide.detect_format(path)
    if vendor is not None:
        return "slide", f"OpenSlide recognises {vendor}"
    driver = driver_of(path)
    return None if driver is None else ("raster", f"GDAL recognises {driver}")


def _describe(head: bytes) -> str:
    """What the first bytes are, in words where we know them."""
    known = next((name for magic, name in _NO_IMAGES if head.startswith(magic) and (magic or not head)), None)
    return known or f"the bytes {head[:8].hex(' ')}"
