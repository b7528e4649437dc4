"""Tiled TIFF pyramids read by their own tiles: generic, Aperio SVS, OME-TIFF, COG without its georeferencing. The fast path.

The file is mapped, its tile index is a view of the map, and a tile is decoded straight into the caller's array where it
is asked for whole. Nothing is shared between threads but that map.

Not here: strips and georeferencing (reader "raster"), vendors whose tiles do not lie on a grid (reader "slide"),
and internal mask directories, which only georeferenced files are known to have.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchdrive.readers.errors import FormatError
from patchdrive.readers.geometry import Level, Window
from patchdrive.readers.identity import file_identity
from patchdrive.readers.pixels import check_out, mask_of
from patchdrive.readers.tiff_associated import AssociatedImages
from patchdrive.readers.tiff_dialects import ELSEWHERE, Dialect, dialect_of
from patchdrive.readers.tiff_index import Directory, walk
from patchdrive.readers.tiff_pyramid import TiffPyramid, read_pyramid
from patchdrive.readers.tiff_tiles import TileLayout, tile_layout
from patchdrive.readers.tiff_window import StoredPlane, read_plane

_GEOREFERENCED = (33550, 33922, 34264, 34735)
_COMPLEX = (5, 6)


@dataclass(frozen=True, slots=True, kw_only=True)
class TiffSigns:
    """What the first directory of a TIFF says of who should read it."""

    tiled: bool
    """False for strips."""
    georeferenced: bool
    """It has a pixel scale, tie points, a transformation or GeoTIFF keys."""
    dialect: Dialect
    """Who wrote it; "ndpi" for Hamamatsu."""
    compression: int
    """TIFF's number of the codec."""
    complex_samples: bool
    """Samples are complex numbers."""
    refusal: str
    """Why `TiffImage` would refuse it, and what to do; empty where it would not."""


def sniff_tiff(path: Path) -> TiffSigns:
    """Look at the header and the first directory of a TIFF, and at nothing else.

    Raises:
        FormatError: not a TIFF, or damaged before its first directory ends.
    """
    try:
        return _signs(next(walk(_mapped(path))))
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error


def _signs(first: Directory) -> TiffSigns:
    dialect, tiled = dialect_of(first), 322 in first
    if dialect in ELSEWHERE:
        refusal = ELSEWHERE[dialect]
    elif not tiled:
        refusal = "its pixels lie in strips, not tiles"
    else:
        refusal = _refusal(first)
    return TiffSigns(
        tiled=tiled,
        georeferenced=any(tag in first for tag in _GEOREFERENCED),
        dialect=dialect,
        compression=first.integer(259, 1),
        complex_samples=any(kind in _COMPLEX for kind in first.integers(339)),
        refusal=refusal,
    )


def _refusal(first: Directory) -> str:
    try:
        tile_layout(first)
    except FormatError as error:
        return str(error)
    return ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Opened:
    """A mapped file and what its directories say."""

    data: memoryview
    """The whole file."""
    pyramid: TiffPyramid
    """What it holds."""


def _mapped(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise FormatError(f"it cannot be opened: {error}") from error


def _open(source: str) -> _Opened:
    try:
        data = _mapped(Path(source))
        return _Opened(data=memoryview(data), pyramid=read_pyramid(tuple(walk(data))))
    except FormatError as error:
        raise FormatError(f"{source}: {error}") from error


class TiffImage:
    """A tiled TIFF pyramid as an Image."""

    reader = "tiff"
    transform = None
    crs = None

    def __init__(self, path: str | Path) -> None:
        """Map the file and read its directories; no pixel is decoded.

        Raises:
            FormatError: not a tiled TIFF this reader decodes; says which reader may, or what is damaged.
        """
        self.source = str(path)
        self._opened = _open(self.source)

    def __getstate__(self) -> dict[str, str]:
        return {"source": self.source}

    @cached_property
    def _opened(self) -> _Opened:
        # Reached only where an unpickled image is first used.
        return _open(self.source)

    @property
    def _pyramid(self) -> TiffPyramid:
        return self._opened.pyramid

    @cached_property
    def identity(self) -> str:
        """See `Image.identity`; the tile index is every level's byte counts and offsets."""
        layouts = [layout for stored in self._pyramid.layouts for layout in stored]
        index = b"".join(part.tobytes() for layout in layouts for part in (layout.offsets, layout.counts))
        return file_identity(Path(self.source), index=index)

    @property
    def codec(self) -> str:
        """See `Image.codec`."""
        return self._pyramid.layouts[0][0].coding.codec

    @property
    def levels(self) -> tuple[Level, ...]:
        """See `Image.levels`."""
        return self._pyramid.levels

    @property
    def dtype(self) -> np.dtype[Any]:
        """See `Image.dtype`."""
        return self._pyramid.layouts[0][0].coding.dtype

    @property
    def channels(self) -> tuple[str, ...]:
        """See `Image.channels`."""
        return self._pyramid.channels

    @property
    def mpp(self) -> tuple[float, float] | None:
        """See `Image.mpp`."""
        return self._pyramid.mpp

    @property
    def nodata(self) -> float | None:
        """See `Image.nodata`; GDAL's tag."""
        return self._pyramid.nodata

    @property
    def has_mask(self) -> bool:
        """True with an alpha channel, a nodata value, or floats, which may be NaN."""
        return "alpha" in self.channels or self.nodata is not None or self.dtype.kind == "f"

    @property
    def associated(self) -> Mapping[str, NDArray[np.uint8]]:
        """See `Image.associated`; each is decoded when asked for."""
        return AssociatedImages(self.source, self._opened.data, self._pyramid.associated)

    @property
    def properties(self) -> Mapping[str, str]:
        """See `Image.properties`."""
        return self._pyramid.properties

    def read(
        self,
        window: Window,
        *,
        level: int = 0,
        channels: Sequence[int] | None = None,
        out: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        """See `Image.read`. Each tile the window touches is decoded once; one whole tile goes straight into `out`."""
        opened = self._opened
        opened.pyramid.levels[level].check(window, self.source)
        count = len(opened.pyramid.channels)
        wanted = range(count) if channels is None else [range(count)[index] for index in channels]
        shape = (window.height, window.width, len(wanted))
        if out is None:
            out = np.empty(shape, self.dtype)
        else:
            check_out(out, shape, self.dtype)
        first = 0
        for layout in opened.pyramid.layouts[level]:
            for plane in range(layout.planes):
                samples = layout.coding.samples
                taken = [(place, index - first) for place, index in enumerate(wanted) if first <= index < first + samples]
                first += samples
                if taken:
                    read_plane(self._stored(layout, plane, level), window, taken, out)
        return out

    def read_mask(self, window: Window, *, level: int = 0) -> NDArray[np.bool_]:
        """See `Image.read_mask`."""
        self.levels[level].check(window, self.source)
        if not self.has_mask:
            return np.ones((window.height, window.width), np.bool_)
        if "alpha" in self.channels:
            return self.read(window, level=level, channels=[self.channels.index("alpha")])[:, :, 0] > 0
        return mask_of(self.read(window, level=level), self.nodata)

    def close(self) -> None:
        """See `Image.close`; the map goes with the last tile still being read."""
        self.__dict__.pop("_opened", None)

    def _stored(self, layout: TileLayout, plane: int, level: int) -> StoredPlane:
        opened = self._opened
        return StoredPlane(data=opened.data, layout=layout, plane=plane, fill=opened.pyramid.fill, name=f"{self.source}, level {level}")
