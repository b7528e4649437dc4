"""Everything OpenSlide opens: DICOM, NDPI, MRXS, VMS, SCN, BIF and the rest of its formats (https://openslide.org/formats/)."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openslide
from affine import Affine
from numpy.typing import NDArray
from openslide import OpenSlide, OpenSlideCache, OpenSlideError
from pyproj import CRS

from patchdrive.readers.dicom_colours import frames_hold_ycbcr
from patchdrive.readers.errors import FormatError, ReadError
from patchdrive.readers.geometry import Level, Window, align_down
from patchdrive.readers.icc import is_profile, profile_properties
from patchdrive.readers.identity import file_identity
from patchdrive.readers.pixel_size import Mpp, PixelSize, from_resolution, judge, number
from patchdrive.readers.pixels import check_out
from patchdrive.readers.tiff_codecs import ycbcr_to_rgb

_CELL = 256
"""Least side of the fixed cells that a level of fractional downsample is read by; its stored tile, where OpenSlide names none."""
_REACH = 128
"""How far before a cell an exact origin is looked for, level pixels."""
_PIECE = 1 << 22
"""Pixels asked of OpenSlide at once: bounds its RGBA copy, and keeps below the 4096 columns at which it cuts regions itself."""
_EXACT = 1 / 512
"""Level pixels: cairo places tiles on a grid of 1/256 pixel, and copies them unblended where that grid says "whole pixel"."""
_PRINTED = ("generic-tiff", "hamamatsu", "trestle")
"""Vendors whose pixel size is that of the resolution tags, which so cannot confirm it."""
_UNITS = {"inch": 2, "centimeter": 3}
_TRANSFER_SYNTAXES = {
    "1.2.840.10008.1.2": "none",
    "1.2.840.10008.1.2.1": "none",
    "1.2.840.10008.1.2.4.50": "jpeg",
    "1.2.840.10008.1.2.4.90": "jpeg2000",
    "1.2.840.10008.1.2.4.91": "jpeg2000",
}
"""DICOM's names for the codecs that OpenSlide decodes (PS3.5, annex A)."""


class SlideImage:
    """A slide as an Image: RGB uint8, read through one OpenSlide handle (safe in any thread) with a small cache of its own.

    OpenSlide is addressed in whole level-0 pixels, and blends neighbours where those fall between a level's own pixels. Levels of
    whole downsample (level 0, NDPI, MRXS, VMS) are read exactly. Of the others every pixel comes from a fixed cell, so that its value
    never depends on the window it is read by; a cell begins at an exact origin where one lies within 128 pixels before it, and is
    shifted by at most half a level-0 pixel where none does. `properties["patchdrive.blended-levels"]` names the levels that have
    such cells.

    Where the slide stores nothing (alpha 0) `read` gives the slide's background colour, white where it names none, as OpenSlide's
    own thumbnails do, and `read_mask` is False.
    """

    reader = "slide"
    cache_bytes = 32 << 20
    """What OpenSlide may keep of decoded tiles, for the memory budget."""
    dtype: np.dtype[Any] = np.dtype(np.uint8)
    channels = ("red", "green", "blue")
    transform: Affine | None = None
    crs: CRS | None = None
    nodata: float | None = None

    def __init__(self, path: Path | str) -> None:
        """Open `path`; for DICOM any file of the series, for MRXS and VMS the file that bears that suffix.

        Raises:
            FormatError: OpenSlide cannot open it; its own reason is given.
        """
        self._path = Path(path)
        self._lock = threading.Lock()
        slide = _open(self._path)
        self._slide: OpenSlide | None = slide
        self._downsamples = tuple(slide.level_downsamples)
        properties = dict(slide.properties)
        self.levels = _levels(slide)
        blended = [level.index for level in self.levels if _blends(level, self._downsamples[level.index])]
        if blended:
            properties["patchdrive.blended-levels"] = " ".join(map(str, blended))
        pixel_size = _pixel_size(properties, slide.dimensions)
        self.mpp = pixel_size.mpp
        if pixel_size.doubt:
            properties["patchdrive.mpp"] = pixel_size.doubt
        self.color_profile = _color_profile(slide)
        self.codec = _codec(properties)
        tagged_rgb = properties.get("dicom.PhotometricInterpretation") == "RGB"
        self._mislabelled = self.codec == "jpeg" and tagged_rgb and frames_hold_ycbcr(self._path)
        if self._mislabelled:
            properties["patchdrive.colours"] = "tagged RGB, but its frames hold YCbCr: converted"
        self.properties: Mapping[str, str] = properties | profile_properties(self.color_profile)
        self.has_mask = _may_have_holes(properties)
        self.associated: Mapping[str, NDArray[np.uint8]] = _Associated(self._path, tuple(slide.associated_images))
        background = properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "FFFFFF")
        self._background = np.frombuffer(bytes.fromhex(background), np.uint8)

    def __reduce__(self) -> tuple[Callable[[Path], SlideImage], tuple[Path]]:
        """Pickles as its source: a handle does not travel."""
        return SlideImage, (self._path,)

    @property
    def source(self) -> str:
        """The path it was opened from."""
        return str(self._path)

    @property
    def identity(self) -> str:
        """Of the opened file and, by OpenSlide's own hash of the coarsest level and the metadata, of its companions."""
        return file_identity(self._path, index=self.properties.get(openslide.PROPERTY_NAME_QUICKHASH1, "").encode())

    def read(
        self,
        window: Window,
        *,
        level: int = 0,
        channels: Sequence[int] | None = None,
        out: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        """See `Image.read`."""
        self.levels[level].check(window, self.source)
        order = [range(3)[channel] for channel in (range(3) if channels is None else channels)]
        shape = (window.height, window.width, len(order))
        if out is None:
            out = np.empty(shape, self.dtype)
        check_out(out, shape, self.dtype)
        for part, rgba in self._pieces(window, level):
            if self.has_mask:
                rgba[rgba[:, :, 3] == 0, :3] = self._background
            rows, columns = part.within(window)
            for place, channel in enumerate(order):
                out[rows, columns, place] = rgba[:, :, channel]
        return out

    def read_mask(self, window: Window, *, level: int = 0) -> NDArray[np.bool_]:
        """See `Image.read_mask`: True where OpenSlide gives any opacity."""
        self.levels[level].check(window, self.source)
        mask = np.ones((window.height, window.width), np.bool_)
        if self.has_mask:
            for part, rgba in self._pieces(window, level):
                mask[part.within(window)] = rgba[:, :, 3] > 0
        return mask

    def close(self) -> None:
        """Let go of the handle."""
        with self._lock:
            self._slide = None

    def _pieces(self, window: Window, level: int) -> Iterator[tuple[Window, NDArray[np.uint8]]]:
        """The window in pieces, each with its RGBA; writing to the RGBA is allowed."""
        frame, downsample = self.levels[level], self._downsamples[level]
        for part, ask in cut(window, frame, downsample):
            x, y = (round_half_up(start * downsample) for start in (ask.x, ask.y))
            rgba = self._region(x, y, level, ask)[part.within(ask)]
            if self._mislabelled:  # OpenSlide believes the tag, and gives luma and chroma for red, green and blue
                ycbcr_to_rgb(rgba[:, :, :3])
            yield part, rgba

    def _region(self, x: int, y: int, level: int, ask: Window) -> NDArray[np.uint8]:
        """RGBA of `ask`, whose top-left is (x, y) in level-0 pixels.

        An OpenSlide handle that failed once fails for ever, in every thread; so a failure is believed only of a fresh handle.
        """
        size = (ask.width, ask.height)
        shared = self._handle()
        try:
            return np.array(shared.read_region((x, y), level, size))
        except OpenSlideError:
            self._discard(shared)
        try:
            with _open(self._path) as fresh:
                return np.array(fresh.read_region((x, y), level, size))
        except (OpenSlideError, FormatError) as error:
            raise ReadError(
                f"{self.source}: OpenSlide cannot decode rows {ask.y}..{ask.y_end}, columns {ask.x}..{ask.x_end} of level {level}: {error}"
            ) from error

    def _handle(self) -> OpenSlide:
        with self._lock:
            if self._slide is None:
                self._slide = _open(self._path)
            return self._slide

    def _discard(self, slide: OpenSlide) -> None:
        """Forget a poisoned handle; it closes itself when the last thread that reads from it lets go."""
        with self._lock:
            if self._slide is slide:
                self._slide = None


class _Associated(Mapping[str, NDArray[np.uint8]]):
    """Label, macro, thumbnail, decoded when asked for, by a handle of their own: a broken label must not poison the slide."""

    def __init__(self, path: Path, names: tuple[str, ...]) -> None:
        self._path, self._names = path, names

    def __getitem__(self, name: str) -> NDArray[np.uint8]:
        if name not in self._names:
            raise KeyError(name)
        try:
            with _open(self._path) as slide:
                return np.array(slide.associated_images[name].convert("RGB"))
        except OpenSlideError as error:
            raise ReadError(f"{self._path}: OpenSlide cannot decode the associated image {name!r}: {error}") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def exact_origin(start: int, downsample: float, reach: int = _REACH) -> int | None:
    """The nearest pixel at or before `start`, by at most `reach`, that a whole level-0 pixel hits; None where there is none."""
    for pixel in range(start, max(-1, start - reach - 1), -1):
        if abs(round_half_up(pixel * downsample) / downsample - pixel) < _EXACT:
            return pixel
    return None


def round_half_up(value: float) -> int:
    """The nearest integer; the greater of two (`round` takes the even one)."""
    return math.floor(value + 0.5)


def cut(window: Window, level: Level, downsample: float) -> Iterator[tuple[Window, Window]]:
    """(part, ask) pairs, level pixels: the parts tile `window` exactly once, and each lies in what is asked of OpenSlide for it.

    A level of whole downsample is asked for its parts themselves. Any other is asked for whole cells of a fixed grid, begun at an
    exact origin where one is near: the same pixel then has the same value in every window.
    """
    if downsample.is_integer():
        for band in _bands(window, level.tile_height):
            yield band, band
        return
    height, width = _cell(level.tile_height), _cell(level.tile_width)
    for y in range(align_down(window.y, height), window.y_end, height):
        for x in range(align_down(window.x, width), window.x_end, width):
            cell = Window(y=y, x=x, height=height, width=width).intersect(level.window)
            part = cell.intersect(window) if cell is not None else None
            if cell is None or part is None:
                continue
            top, left = (_begin(start, downsample) for start in (cell.y, cell.x))
            yield part, Window(y=top, x=left, height=cell.y_end - top, width=cell.x_end - left)


def _begin(start: int, downsample: float) -> int:
    origin = exact_origin(start, downsample)
    return start if origin is None else origin


def _cell(tile: int) -> int:
    """Tiles of 16 pixels would be asked for one by one: cells hold several of them."""
    return tile * math.ceil(_CELL / tile)


def _bands(window: Window, tile_height: int) -> Iterator[Window]:
    """The window in pieces of at most _PIECE pixels and 2048 columns, cut on tile rows where a piece holds several."""
    for x in range(window.x, window.x_end, 2048):
        width = min(2048, window.x_end - x)
        y = window.y
        while y < window.y_end:
            end = y + max(1, _PIECE // width)
            if align_down(end, tile_height) > y:
                end = align_down(end, tile_height)
            end = min(end, window.y_end)
            yield Window(y=y, x=x, height=end - y, width=width)
            y = end


def _open(path: Path) -> OpenSlide:
    """A fresh handle with its own small cache.

    Raises:
        FormatError: OpenSlide cannot open it.
    """
    try:
        slide = OpenSlide(path)
        slide.set_cache(OpenSlideCache(SlideImage.cache_bytes))
    except (OpenSlideError, OSError) as error:
        raise FormatError(f"{path}: OpenSlide cannot open it: {error}") from error
    return slide


def _levels(slide: OpenSlide) -> tuple[Level, ...]:
    base_width, base_height = slide.dimensions
    return tuple(
        Level(
            index=index,
            height=height,
            width=width,
            downsample_y=base_height / height,
            downsample_x=base_width / width,
            tile_height=min(height, _tile(slide, index, "height")),
            tile_width=min(width, _tile(slide, index, "width")),
        )
        for index, (width, height) in enumerate(slide.level_dimensions)
    )


def _tile(slide: OpenSlide, level: int, side: str) -> int:
    """Stored tile side; formats whose tiles form no grid (overlapping MRXS cameras) name none."""
    return int(slide.properties.get(f"openslide.level[{level}].tile-{side}", _CELL))


def _blends(level: Level, downsample: float) -> bool:
    """True where some cell of the level has no exact origin."""
    if downsample.is_integer():
        return False
    starts = {*range(0, level.height, _cell(level.tile_height)), *range(0, level.width, _cell(level.tile_width))}
    return any(exact_origin(start, downsample) is None for start in starts)


def _pixel_size(properties: Mapping[str, str], dimensions: tuple[int, int]) -> PixelSize:
    """What OpenSlide gives, against the objective, and against what else the slide says of its size: see `judge`.

    Args:
        properties: OpenSlide's.
        dimensions: (width, height) of level 0.
    """
    y, x = (number(properties.get(name)) for name in (openslide.PROPERTY_NAME_MPP_Y, openslide.PROPERTY_NAME_MPP_X))
    stated = None if y is None or x is None else (y, x)
    magnification = number(properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER))
    return judge(stated, magnification=magnification, second=_second_size(properties, dimensions))


def _second_size(properties: Mapping[str, str], dimensions: tuple[int, int]) -> Mpp | None:
    """(y, x) micrometres from a place OpenSlide did not take the pixel size from: resolution tags, or the extent of a DICOM slide."""
    if properties.get(openslide.PROPERTY_NAME_VENDOR) in _PRINTED:
        return None
    height, width = (number(properties.get(f"dicom.ImagedVolume{side}")) for side in ("Height", "Width"))
    if height is not None and width is not None:  # millimetres
        return 1e3 * height / dimensions[1], 1e3 * width / dimensions[0]
    y, x = (number(properties.get(f"tiff.{axis}Resolution")) for axis in "YX")
    unit = _UNITS.get(properties.get("tiff.ResolutionUnit", ""), 0)
    return from_resolution(None if y is None else (y, 1), None if x is None else (x, 1), unit).mpp


def _color_profile(slide: OpenSlide) -> bytes | None:
    """The stored bytes of the profile; a region of no pixels carries them, and decodes nothing."""
    profile: bytes = slide.read_region((0, 0), 0, (0, 0)).info.get("icc_profile", b"")
    return profile if is_profile(profile) else None


def _codec(properties: Mapping[str, str]) -> str:
    if properties.get(openslide.PROPERTY_NAME_VENDOR) == "hamamatsu":
        return "jpeg"  # the only codec of NDPI and VMS
    named = properties.get("mirax.LAYER_0_LEVEL_0_SECTION.IMAGE_FORMAT")
    if named is not None:
        return named.lower()
    return _TRANSFER_SYNTAXES.get(properties.get("dicom.TransferSyntaxUID", ""), "unknown")


def _may_have_holes(properties: Mapping[str, str]) -> bool:
    """False for the formats that store every pixel: NDPI and VMS are whole JPEGs, and DICOM says when it is TILED_FULL."""
    return not (
        properties.get(openslide.PROPERTY_NAME_VENDOR) == "hamamatsu" or properties.get("dicom.DimensionOrganizationType") == "TILED_FULL"
    )
