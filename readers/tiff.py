"""TIFF pyramids read by their own tiles: generic, Aperio SVS, OME-TIFF, GeoTIFF and COG. The fast path.

The file is mapped, its tile index is a view of the map, and a tile is decoded straight into the caller's array where it
is asked for whole. Nothing is shared between threads but that map.

Where a GeoTIFF lies in the world and what its channels are called is GDAL's to say; it is asked when somebody wants to know.
Not here: vendors whose tiles do not lie on a grid (reader "slide").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS

from patchdrive.readers.errors import ReadError
from patchdrive.readers.geometry import Level, Window
from patchdrive.readers.georeference import Georeference, read_georeference
from patchdrive.readers.identity import file_identity
from patchdrive.readers.pixels import check_out, is_alpha, mask_of, spread_squares
from patchdrive.readers.tiff_associated import AssociatedImages
from patchdrive.readers.tiff_gaps import has_gaps, where_stored
from patchdrive.readers.tiff_pyramid import TiffPyramid
from patchdrive.readers.tiff_signs import OpenedTiff, described, georeferenced, open_tiff
from patchdrive.readers.tiff_window import StoredPlane, decode_stored, read_plane
from patchdrive.readers.tiles import TileGrid, Torn

_Validity = Literal["everywhere", "mask", "alpha", "nodata", "gaps"]
"""What decides it, NaN besides."""


class TiffImage:
    """A TIFF pyramid as an Image.

    Channels, frame and validity of a georeferenced file are as `RasterImage` says them: what its docstring promises holds here too.
    """

    reader = "tiff"
    cache_bytes = 0

    def __init__(self, path: str | Path, *, opened: OpenedTiff | None = None) -> None:
        """Map the file and read its directories; no pixel is decoded.

        Args:
            path: the file.
            opened: what has been read of it already; None to read it now.

        Raises:
            FormatError: not a TIFF this reader decodes; says which reader may, or what is damaged.
        """
        self.source = str(path)
        self._opened = opened or open_tiff(Path(path))

    def __getstate__(self) -> dict[str, str]:
        return {"source": self.source}

    @cached_property
    def _opened(self) -> OpenedTiff:
        # Reached only where an unpickled image is first used.
        return open_tiff(Path(self.source))

    @property
    def _pyramid(self) -> TiffPyramid:
        return self._opened.pyramid

    @cached_property
    def identity(self) -> str:
        """See `Image.identity`; the tile index is the byte counts and offsets of every level and its mask."""
        layouts = [layout for stored in self._pyramid.layouts for layout in stored]
        layouts += [mask for mask in self._pyramid.masks if mask is not None]
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
        """See `Image.channels`.

        Raises:
            ReadError: one is tagged as alpha, and cannot be decoded to see whether it is.
        """
        return self._named.channels

    @property
    def transform(self) -> Affine | None:
        """See `Image.transform`; GDAL's answer."""
        return self._named.transform if georeferenced(self._opened.first) else None

    @property
    def crs(self) -> CRS | None:
        """See `Image.crs`; GDAL's answer."""
        return self._named.crs if georeferenced(self._opened.first) else None

    @property
    def mpp(self) -> tuple[float, float] | None:
        """See `Image.mpp`; None for what is placed in the world."""
        return None if georeferenced(self._opened.first) else self._pyramid.mpp

    @property
    def nodata(self) -> float | None:
        """See `Image.nodata`; GDAL's tag, as a pixel holds it (0.1 is no float32)."""
        value = self._pyramid.nodata
        with np.errstate(over="ignore"):  # a double that no float32 holds is infinite there
            return None if value is None else float(np.asarray(value).astype(self.dtype))

    @property
    def has_mask(self) -> bool:
        """True with a mask, alpha or nodata, for floats, which may be NaN, and where a slide's scanner left tiles out."""
        return self._validity != "everywhere" or self.dtype.kind == "f"

    @property
    def color_profile(self) -> bytes | None:
        """See `Image.color_profile`."""
        return self._pyramid.color_profile

    @property
    def associated(self) -> Mapping[str, NDArray[np.uint8]]:
        """See `Image.associated`; each is decoded when asked for."""
        return AssociatedImages(self.source, self._opened.data, self._pyramid.associated)

    @property
    def properties(self) -> Mapping[str, str]:
        """See `Image.properties`; a georeferenced file has GDAL's besides."""
        return {**self._pyramid.properties} | ({**self._named.properties} if georeferenced(self._opened.first) else {})

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
        wanted = self._wanted(channels)
        shape = (window.height, window.width, len(wanted))
        if out is None:
            out = np.empty(shape, self.dtype)
        else:
            check_out(out, shape, self.dtype)
        for stored in self._planes(level, wanted):
            read_plane(stored, window, out)
        return out

    def grid(self, *, level: int) -> TileGrid:
        """See `DecodesTiles.grid`: the stored tiles."""
        return self._pyramid.layouts[level][0].grid

    def decode(
        self,
        tiles: Sequence[tuple[int, int]],
        *,
        level: int,
        channels: Sequence[int],
        out: Sequence[NDArray[Any]],
        valid: Sequence[NDArray[np.bool_]] | None,
    ) -> tuple[Torn, ...]:
        """See `DecodesTiles.decode`; straight into `out` where it holds what a tile holds. Validity costs no second decoding."""
        wanted, deciding = self._wanted(channels), () if valid is None else self._deciding
        order = [*wanted, *(channel for channel in deciding if channel not in wanted)]
        places = [order.index(channel) for channel in deciding]
        planes, torn = self._planes(level, order), []
        for at, (row, column) in enumerate(tiles):
            target = out[at]
            pixels = target if order == wanted else np.empty((*target.shape[:2], len(order)), self.dtype)
            try:
                decode_stored(planes, row, column, pixels)
                if order != wanted:
                    target[...] = pixels[:, :, : len(wanted)]
                if valid is not None:
                    window = self.grid(level=level).window(row, column)
                    inside = pixels[: window.height, : window.width]
                    decided = inside if places == list(range(len(order))) else inside[:, :, places]
                    valid[at][: window.height, : window.width] = self._valid(decided, window, level)
            except ReadError as error:
                torn.append(Torn(window=self.grid(level=level).window(row, column), reason=str(error)))
        return tuple(torn)

    def read_mask(self, window: Window, *, level: int = 0) -> NDArray[np.bool_]:
        """See `Image.read_mask`."""
        self.levels[level].check(window, self.source)
        deciding = self._deciding
        pixels = self.read(window, level=level, channels=deciding) if deciding else np.empty((window.height, window.width, 0), self.dtype)
        return self._valid(pixels, window, level)

    def close(self) -> None:
        """See `Image.close`; the map goes with the last tile still being read."""
        self.__dict__.pop("_opened", None)

    @cached_property
    def _named(self) -> Georeference:
        """The channels and their opacity, which its values have confirmed; for a georeferenced file the frame too."""
        opened = self._opened
        names = opened.pyramid.channels
        named = read_georeference(Path(self.source), opened.first) if described(opened.first) else None
        if named is None or len(named.channels) != len(names):  # GDAL's image is the first directory, which may be another
            alpha = names.index("alpha") if "alpha" in names else None
            named = Georeference(transform=None, crs=None, channels=names, alpha=alpha, properties={})
        if named.alpha is None:
            return named
        coarsest = opened.pyramid.levels[-1]
        squares = [self.read(square, level=coarsest.index, channels=[named.alpha]) for square in spread_squares(coarsest)]
        return named if is_alpha(np.concatenate([square.ravel() for square in squares])) else named.without_alpha()

    @cached_property
    def _validity(self) -> _Validity:
        if any(mask is not None for mask in self._pyramid.masks):
            return "mask"
        if self._named.alpha is not None:
            return "alpha"
        if self.nodata is not None:
            return "nodata"
        gaps = self._pyramid.gaps and any(has_gaps(layouts) for layouts in self._pyramid.layouts)
        return "gaps" if gaps else "everywhere"

    @cached_property
    def _deciding(self) -> tuple[int, ...]:
        """The channels whose pixels decide validity."""
        if self._validity == "nodata" or self.dtype.kind == "f":
            return tuple(range(len(self._pyramid.channels)))
        alpha = self._named.alpha if self._validity == "alpha" else None
        return () if alpha is None else (alpha,)

    def _valid(self, pixels: NDArray[Any], window: Window, level: int) -> NDArray[np.bool_]:
        """Validity of `window`, (height, width), from the pixels of the `_deciding` channels there, in that order."""
        valid = np.ones((window.height, window.width), np.bool_)
        mask = self._pyramid.masks[level]
        if mask is not None:
            opaque = np.empty((window.height, window.width, 1), mask.coding.dtype)
            name = f"{self.source}, mask of level {level}"
            stored = StoredPlane(data=self._opened.data, layout=mask, plane=0, fill=0, name=name, wanted=((0, 0),))
            read_plane(stored, window, opaque)
            valid = opaque[:, :, 0] > 0
        elif self._validity == "alpha":
            valid = pixels[:, :, self._deciding.index(self._named.alpha)] > 0
        elif self._validity == "gaps":
            valid = where_stored(self._pyramid.layouts[level], window)
        if self._validity == "nodata" or self.dtype.kind == "f":
            valid &= mask_of(pixels, self.nodata if self._validity == "nodata" else None)
        return valid

    def _wanted(self, channels: Sequence[int] | None) -> list[int]:
        every = range(len(self._pyramid.channels))
        return list(every) if channels is None else [every[index] for index in channels]

    def _planes(self, level: int, wanted: Sequence[int]) -> tuple[StoredPlane, ...]:
        """The grids of stored tiles that hold the `wanted` channels, and what is taken of each."""
        opened, first, name = self._opened, 0, f"{self.source}, level {level}"
        planes: list[StoredPlane] = []
        for layout in opened.pyramid.layouts[level]:
            samples = layout.coding.samples
            for plane in range(layout.planes):
                taken = tuple((place, index - first) for place, index in enumerate(wanted) if first <= index < first + samples)
                first += samples
                if taken:
                    stored = StoredPlane(data=opened.data, layout=layout, plane=plane, fill=opened.pyramid.fill, name=name, wanted=taken)
                    planes.append(stored)
        return tuple(planes)
