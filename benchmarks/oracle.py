"""Every real image against every other program that opens it: levels, pixels, validity; and the reason of whatever differs.

    make bench NAME=oracle

Windows lie inside, at the borders and across tiles of every level that both have (matched by size); values are compared exactly. A
difference counts as explained only where a rule proves itself on the very pixels that differ: it foresees each of them, or another
program gives ours. Anything else is printed as UNEXPLAINED, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import openslide
import rasterio
import tifffile
import zarr
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.windows import Window as RasterioWindow

from patchdrive.readers import Image, Level, PatchdriveError, Window, open_image

_SIDE = 512
_SEED = 3
_SIDE_FILES = (".msk", ".ovr", ".xml")
_WHOLE = 1 << 26  # pixels of a level that OpenSlide may be asked for at once
_SAME = {("slide", "OpenSlide"), ("raster", "rasterio"), ("multiscale", "zarr")}  # our reader asks the same library
_CANNOT = (openslide.OpenSlideError, RasterioError, tifffile.TiffFileError, OSError, ValueError, KeyError, RuntimeError)
_JPEG, _PALETTE, _GREYS = 7, 3, (0, 1)

REASONS = {
    "libjpeg9": "rasterio's wheel decodes JPEG with IJG libjpeg 9, tifffile and we with libjpeg-turbo: other chroma, the same luma",
    "8 bits": "OpenSlide gives 8 bits: the high byte of grey, (v + 128) / 257 of colours",
    "palette": "OpenSlide applies the palette; we give what is stored",
    "first": "OpenSlide shows the first channel of a grey image as red, green and blue",
    "opacity": "OpenSlide multiplies colours by opacity, in 8 bits, and back; a fourth channel of unknown meaning may count as opacity",
    "sheared": "libtiff's RGBA reader shears tiles cut by the right edge where a grey pixel has more than one byte",
    "not stored": "tiles that were left out: OpenSlide shows its background there, invalid; here they hold nodata or 0, as in GDAL",
    "gaps": "tiles that were left out of a slide: background and invalid, as in OpenSlide; the other fills them with nodata or 0",
    "no masks": "OpenSlide knows neither masks nor nodata; rasterio's validity is ours",
    "NaN": "NaN is invalid here; rasterio knows only what is declared",
    "fill value": "GDAL takes a Zarr fill value for nodata; OME-Zarr does not",
    "tagged RGB": "libtiff refuses JPEG of reduced chroma in a file tagged RGB; it is YCbCr as its sampling says, and tifffile has it so",
    "cannot": "the other cannot decode this: its own error is given; a third program decodes it as we do",
    "SubIFD": "OpenSlide does not look into SubIFDs",
    "subdatasets": "GDAL takes directories that are not tagged as reduced for images of their own",
    "scaled": "OpenSlide makes coarser levels of NDPI itself, by decoding JPEG at a half, a quarter, an eighth; they are not stored",
    "ovr": "tifffile does not look into the .ovr file beside it",
    "associated": "a label, macro or thumbnail, which we give as `associated`",
    "masks as levels": "OpenSlide takes mask directories for levels",
    "factor 1": "an overview as large as the image is no level",
}
Size = tuple[int, int]


class Oracle(Protocol):
    """An image as another program sees it."""

    sizes: Sequence[Size]

    def read(self, level: int, window: Window) -> NDArray[Any]: ...
    def valid(self, level: int, window: Window) -> NDArray[np.bool_] | None: ...
    def close(self) -> None: ...


class OfOpenSlide:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._slide = openslide.OpenSlide(path)
        self.sizes: Sequence[Size] = [(height, width) for width, height in self._slide.level_dimensions]
        colour = self._slide.properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "FFFFFF")
        self.background = np.frombuffer(bytes.fromhex(colour), np.uint8)
        self._whole: tuple[int, NDArray[np.uint8]] | None = None

    def read(self, level: int, window: Window) -> NDArray[Any]:
        rgba = self._rgba(level, window)
        return np.where(rgba[:, :, 3:] == 0, self.background, rgba[:, :, :3])

    def valid(self, level: int, window: Window) -> NDArray[np.bool_]:
        return np.asarray(self._rgba(level, window)[:, :, 3] > 0)

    def close(self) -> None:
        self._slide.close()

    def _rgba(self, level: int, window: Window) -> NDArray[np.uint8]:
        downsample = self._slide.level_downsamples[level]
        if downsample.is_integer():
            return self._region(int(window.x * downsample), int(window.y * downsample), level, (window.width, window.height))
        # Between whole level-0 pixels OpenSlide blends; from the level's own origin it does not.
        height, width = self.sizes[level]
        if height * width > _WHOLE:
            raise ValueError(f"level {level} of {height} x {width} has a fractional downsample: too large to be read whole")
        if self._whole is None or self._whole[0] != level:
            self._whole = level, self._region(0, 0, level, (width, height))
        return self._whole[1][window.y : window.y_end, window.x : window.x_end]

    def _region(self, x: int, y: int, level: int, size: Size) -> NDArray[np.uint8]:
        try:
            return np.asarray(self._slide.read_region((x, y), level, size))
        except openslide.OpenSlideError:
            self._slide = openslide.OpenSlide(self._path)  # a handle that failed once fails for ever
            raise


class OfRasterio:
    def __init__(self, path: Path) -> None:
        with ExitStack() as opened:
            self.base = opened.enter_context(rasterio.open(path))
            if not self.base.count:
                raise ValueError("no bands")
            overviews = range(len(self.base.overviews(1)))
            self._levels = [self.base, *(opened.enter_context(rasterio.open(path, overview_level=at)) for at in overviews)]
            self.close = opened.pop_all().close
        self.sizes: Sequence[Size] = [(level.height, level.width) for level in self._levels]

    def read(self, level: int, window: Window) -> NDArray[Any]:
        return np.moveaxis(self._levels[level].read(window=_for_rasterio(window)), 0, 2)

    def valid(self, level: int, window: Window) -> NDArray[np.bool_]:
        return np.asarray(self._levels[level].dataset_mask(window=_for_rasterio(window)) > 0)


def _for_rasterio(window: Window) -> RasterioWindow:
    return RasterioWindow(window.x, window.y, window.width, window.height)


class OfTifffile:
    """The levels of the first series, then the other pages that are images of the same kind."""

    def __init__(self, path: Path) -> None:
        with ExitStack() as opened:
            file = opened.enter_context(tifffile.TiffFile(path))
            self._file = file
            self.pages = [page.aspage() for page in file.pages]
            stores = [(file.series[0].aszarr(level=at), level.axes) for at, level in enumerate(file.series[0].levels)]
            known = {_size_of(level.shape, level.axes) for level in file.series[0].levels}
            for page in self.pages:
                size = _size_of(page.shape, page.axes)
                if size not in known and not page.subfiletype & 4 and page.samplesperpixel == self.pages[0].samplesperpixel:
                    known.add(size)
                    stores.append((page.aszarr(), page.axes))
            self._arrays = [(zarr.open_array(opened.enter_context(store), mode="r"), axes) for store, axes in stores]
            self.close = opened.pop_all().close
        self.sizes: Sequence[Size] = [_size_of(array.shape, axes) for array, axes in self._arrays]

    def read(self, level: int, window: Window) -> NDArray[Any]:
        return _cut(*self._arrays[level], window)

    def valid(self, level: int, window: Window) -> NDArray[np.bool_] | None:  # noqa: ARG002 - it knows of none
        return None

    def page(self, level: Level) -> tifffile.TiffPage | None:
        """The directory of a level, if it is in the main chain."""
        size = (level.height, level.width)
        return next((page for page in self.pages if (page.imagelength, page.imagewidth) == size and not page.subfiletype & 4), None)

    def stored(self, page: tifffile.TiffPage, index: int) -> bytes:
        self._file.filehandle.seek(page.dataoffsets[index])
        return bytes(self._file.filehandle.read(page.databytecounts[index]))

    def tile(self, page: tifffile.TiffPage, index: int) -> NDArray[Any]:
        """One stored tile, whole: (height, width, channel)."""
        stored, _, shape = page.decode(self.stored(page, index), index)
        whole = np.zeros((page.tilelength, page.tilewidth, page.samplesperpixel), page.dtype)
        if stored is not None:
            whole[: shape[1], : shape[2]] = stored[0]
        return whole


class OfZarr:
    def __init__(self, path: Path) -> None:
        group = zarr.open_group(path, mode="r", use_consolidated=False)
        attributes: Any = group.attrs.asdict()
        image = attributes.get("ome", attributes)["multiscales"][0]
        self._axes = "".join({"x": "X", "y": "Y", "c": "S"}.get(axis["name"], "Q") for axis in image["axes"])
        self._arrays = [zarr.open_array(path / dataset["path"], mode="r") for dataset in image["datasets"]]
        self.sizes: Sequence[Size] = [_size_of(array.shape, self._axes) for array in self._arrays]

    def read(self, level: int, window: Window) -> NDArray[Any]:
        return _cut(self._arrays[level], self._axes, window)

    def valid(self, level: int, window: Window) -> NDArray[np.bool_]:
        return np.asarray(~_is_nan(self.read(level, window)).all(axis=2))  # OME-Zarr declares nothing: what is a number is valid

    def close(self) -> None:
        pass


def _size_of(shape: Sequence[int], axes: str) -> Size:
    return shape[axes.index("Y")], shape[axes.index("X")]


def _cut(array: Any, axes: str, window: Window) -> NDArray[Any]:
    """(height, width, channel) of an array whose axes are Y, X, S and others of length 1."""
    place = {"Y": slice(window.y, window.y_end), "X": slice(window.x, window.x_end), "S": slice(None)}
    cut = np.asarray(array[tuple(place.get(axis, 0) for axis in axes)])
    kept = [axis for axis in axes if axis in place]
    return cut.transpose([kept.index(axis) for axis in "YXS" if axis in kept]).reshape(window.height, window.width, -1)


ORACLES: Mapping[str, Callable[[Path], Oracle]] = {
    "OpenSlide": OfOpenSlide,
    "rasterio": OfRasterio,
    "tifffile": OfTifffile,
    "zarr": OfZarr,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One image, and who opens it."""

    path: Path
    image: Image
    oracles: Mapping[str, Oracle]

    @property
    def tiff(self) -> OfTifffile | None:
        found = self.oracles.get("tifffile")
        return found if isinstance(found, OfTifffile) else None

    def page(self, level: Level) -> tifffile.TiffPage | None:
        return None if self.tiff is None else self.tiff.page(level)

    def as_ours(self, name: str, level: Level, window: Window) -> bool:
        """True where oracle `name` has the level, and gives our pixels."""
        oracle = self.oracles.get(name)
        if oracle is None or (level.height, level.width) not in oracle.sizes:
            return False
        try:
            theirs = oracle.read(oracle.sizes.index((level.height, level.width)), window)
        except _CANNOT:
            return False
        return np.array_equal(self.image.read(window, level=level.index), theirs, equal_nan=theirs.dtype.kind == "f")


@dataclass(slots=True, kw_only=True)
class Row:
    """What one oracle says of one image."""

    file: str
    oracle: str
    reader: str
    codec: str
    independent: bool
    levels_compared: int = 0
    levels_ours: int = 0
    levels_theirs: int = 0
    windows: int = 0
    pixels: int = 0
    largest_difference: float = 0
    differing_pixels: int = 0
    mask_pixels: int = 0
    mask_differing: int = 0
    reasons: set[str] = field(default_factory=set)
    errors: set[str] = field(default_factory=set)
    unexplained: list[str] = field(default_factory=list)


def windows_of(level: Level) -> list[Window]:
    """At most 8, the same in every run: the four corners, two that straddle tiles, two anywhere."""
    rng = np.random.default_rng([_SEED, level.index])
    rows, columns = -(-level.height // level.tile_height), -(-level.width // level.tile_width)
    found = []
    for at in range(8):
        height, width = (int(side) for side in rng.integers(1 if at >= 6 else _SIDE // 2, _SIDE + 1, 2))
        if at < 4:
            y, x = (at // 2) * level.height, (at % 2) * level.width
        elif at < 6:
            y = int(rng.integers(0, rows + 1)) * level.tile_height - height // 2
            x = int(rng.integers(0, columns + 1)) * level.tile_width - width // 2
        else:
            y, x = int(rng.integers(0, level.height)), int(rng.integers(0, level.width))
        height, width = min(height, level.height), min(width, level.width)
        y, x = min(max(y, 0), level.height - height), min(max(x, 0), level.width - width)
        found.append(Window(y=y, x=x, height=height, width=width))
    return list(dict.fromkeys(found))


def as_openslide(case: Case, level: Level, window: Window, stored: NDArray[Any]) -> tuple[NDArray[Any], set[str]]:
    """What OpenSlide must give for what is `stored`, (height, width, 3) uint8, and the rules by which it differs."""
    page, oracle = case.page(level), case.oracles["OpenSlide"]
    if page is None or case.tiff is None or not isinstance(oracle, OfOpenSlide):
        return stored, set()
    grey, rules = page.photometric in _GREYS, set()
    pixels = _sheared(case.tiff, page, window, stored) if grey and page.planarconfig == 1 else stored
    if not np.array_equal(pixels, stored):
        rules.add("sheared")
    if pixels.dtype.itemsize == 2:
        rules.add("8 bits")
        unsigned = pixels.view(np.uint16)
        pixels = (unsigned >> 8 if grey else (unsigned.astype(np.uint32) + 128) // 257).astype(np.uint8)
    colours = pixels[:, :, :3]
    if page.photometric == _PALETTE and page.colormap is not None:
        rules.add("palette")
        colours = (page.colormap.T >> 8).astype(np.uint8)[pixels[:, :, 0]]
    elif grey:
        colours = np.repeat(pixels[:, :, :1], 3, axis=2)
        rules |= {"first"} if pixels.shape[2] > 1 else set()
    if (page.photometric == 2 and pixels.shape[2] == 4) or (page.planarconfig == 2 and pixels.shape[2] > 3):
        opacity = pixels[:, :, 3:4].astype(np.int32)
        multiplied = (colours * opacity + 127) // 255
        shown = np.where(opacity == 0, oracle.background, 255 * multiplied // np.maximum(opacity, 1)).astype(np.uint8)
        rules |= set() if np.array_equal(shown, colours) else {"opacity"}
        colours = shown
    shown = np.where(_not_stored(page, window)[:, :, np.newaxis], oracle.background, colours)
    rules |= set() if np.array_equal(shown, colours) else {"not stored"}
    return shown, rules


def _sheared(tiff: OfTifffile, page: tifffile.TiffPage, window: Window, stored: NDArray[Any]) -> NDArray[Any]:
    """`stored` as libtiff's RGBA reader has it: from row to row of a cut tile it skips bytes for pixels."""
    bytes_per_pixel = stored.dtype.itemsize * stored.shape[2]
    cut = page.imagewidth % page.tilewidth
    left = page.imagewidth - cut
    if bytes_per_pixel == 1 or cut == 0 or window.x_end <= left:
        return stored
    result, across = stored.copy(), -(-page.imagewidth // page.tilewidth)
    for row in range(window.y // page.tilelength, -(-window.y_end // page.tilelength)):
        height = min(page.tilelength, page.imagelength - row * page.tilelength)
        tile = tiff.tile(page, row * across + across - 1)
        starts = np.arange(height) * (cut * bytes_per_pixel + page.tilewidth - cut)
        found = tile.reshape(-1).view(np.uint8)[starts[:, np.newaxis] + np.arange(cut * bytes_per_pixel)]
        whole = Window(y=row * page.tilelength, x=left, height=height, width=cut)
        part = whole.intersect(window)
        if part is not None:
            result[part.within(window)] = found.view(tile.dtype).reshape(height, cut, -1)[part.within(whole)]
    return result


def _not_stored(page: tifffile.TiffPage, window: Window) -> NDArray[np.bool_]:
    """True where a window lies on tiles of no bytes."""
    if not page.is_tiled:
        return np.zeros((window.height, window.width), np.bool_)
    across = -(-page.imagewidth // page.tilewidth)
    rows, columns = (np.arange(start, start + count) for start, count in ((window.y, window.height), (window.x, window.width)))
    index = rows[:, np.newaxis] // page.tilelength * across + columns // page.tilewidth
    return np.asarray(np.asarray(page.databytecounts)[index] == 0, np.bool_)


def why_pixels(case: Case, name: str, level: Level, window: Window, pair: tuple[NDArray[Any], NDArray[Any]]) -> set[str]:
    """The rules that give `pair`, ours and theirs; none where they do not."""
    ours, theirs = pair
    if name == "OpenSlide":
        expected, rules = as_openslide(case, level, window, ours)
        return rules if np.array_equal(expected, theirs) else set()
    page = case.page(level) or (case.tiff and case.tiff.pages[0])  # a level in a SubIFD is coded as its image
    if page and _is_gap(case, level, window, difference(ours, theirs) > 0):
        return {"gaps"}
    if name != "rasterio" or not page or page.compression != _JPEG or ours.shape != theirs.shape or ours.shape[2] < 3:
        return set()
    free = ((ours > 0) & (ours < 255) & (theirs > 0) & (theirs < 255)).all(axis=2)
    luma = np.abs((ours[:, :, :3].astype(float) - theirs[:, :, :3]) @ [0.299, 0.587, 0.114])[free]
    return {"libjpeg9"} if _has_libjpeg9() and (luma <= 1).all() and case.as_ours("tifffile", level, window) else set()


def _is_gap(case: Case, level: Level, window: Window, where: NDArray[np.bool_]) -> bool:
    """True where all of `where` lies on tiles that are not stored, and OpenSlide's pixels and validity are ours there."""
    slide, page, size = case.oracles.get("OpenSlide"), case.page(level), (level.height, level.width)
    if not isinstance(slide, OfOpenSlide) or page is None or size not in slide.sizes or (where & ~_not_stored(page, window)).any():
        return False
    at, stored = slide.sizes.index(size), case.image.read(window, level=level.index)
    shown = comparable(case, "OpenSlide", level, stored)[where]
    same = np.array_equal(shown, slide.read(at, window)[where])
    return same and np.array_equal(case.image.read_mask(window, level=level.index)[where], slide.valid(at, window)[where])


def _has_libjpeg9() -> bool:
    packages = Path(rasterio.__file__).parents[1]
    return any((*packages.glob("rasterio.libs/libjpeg-*.so.9*"), *packages.glob("rasterio/.dylibs/libjpeg.9*")))


def why_mask(case: Case, name: str, level: Level, window: Window, pair: tuple[NDArray[Any], NDArray[Any]]) -> set[str]:
    """The rules by which validity differs, ours and theirs; none where one pixel is left over."""
    ours, theirs = pair
    left, rules = ours != theirs, set()
    stored = case.image.read(window, level=level.index)
    gdal, page = case.oracles.get("rasterio"), case.page(level)
    known: dict[str, NDArray[np.bool_]] = {}
    if isinstance(gdal, OfRasterio) and name == "rasterio":
        known["NaN"] = ~ours & _is_nan(stored).all(axis=2)
        known["gaps"] = left if _is_gap(case, level, window, left) else np.zeros_like(left)
        if gdal.base.driver == "Zarr" and gdal.base.nodata is not None:
            known["fill value"] = ours & (stored == gdal.base.nodata).all(axis=2)
    if name == "OpenSlide" and page is not None:
        known["not stored"] = ours & _not_stored(page, window)
        if gdal is not None and (level.height, level.width) in gdal.sizes:
            known["no masks"] = ~ours & (gdal.valid(gdal.sizes.index((level.height, level.width)), window) == ours)
    for rule, where in known.items():
        if (left & where).any():
            rules.add(rule)
            left &= ~where
    return set() if left.any() else rules


def why_levels(case: Case, name: str, missing: Counter[Size], extra: Counter[Size]) -> tuple[set[str], list[str]]:
    """Rules for levels that only we have, and that only they have; then those that no rule names."""
    rules, left = set(), []
    for size in missing:
        rule = _why_missing(case, name, size)
        rules |= {rule} if rule else set()
        left += [] if rule else [f"{name} has no level of {size}"]
    for size in extra:
        rule = _why_extra(case, name, size)
        rules |= {rule} if rule else set()
        left += [] if rule else [f"{name} has a level of {size} that we have not"]
    return rules, left


def _why_missing(case: Case, name: str, size: Size) -> str:
    tiff, oracle = case.tiff, case.oracles[name]
    if tiff is None:
        return ""
    pages = [page for page in tiff.pages if (page.imagelength, page.imagewidth) == size]
    halvings = [(tiff.pages[0].imagelength >> by, tiff.pages[0].imagewidth >> by) for by in range(1, 16)]
    if name == "OpenSlide" and size in {_size_of(page.aspage().shape, page.aspage().axes) for page in tiff.pages[0].pages or ()}:
        return "SubIFD"
    if isinstance(oracle, OfRasterio) and pages and not pages[0].subfiletype & 1 and len(oracle.base.subdatasets) == len(tiff.pages):
        return "subdatasets"
    if not pages and case.image.reader == "slide" and tiff.pages[0].is_ndpi and size in halvings:
        return "scaled"
    beside = case.path.with_name(case.path.name + ".ovr")
    if name == "tifffile" and beside.is_file():
        with tifffile.TiffFile(beside) as file:
            return "ovr" if size in [(page.aspage().imagelength, page.aspage().imagewidth) for page in file.pages] else ""
    return ""


def _why_extra(case: Case, name: str, size: Size) -> str:
    if size in [picture.shape[:2] for picture in case.image.associated.values()]:
        return "associated"
    if name == "rasterio" and size == (case.image.levels[0].height, case.image.levels[0].width):
        return "factor 1"
    masks = [] if case.tiff is None else [page for page in case.tiff.pages if page.subfiletype & 4]
    return "masks as levels" if name == "OpenSlide" and size in {(page.imagelength, page.imagewidth) for page in masks} else ""


def comparable(case: Case, name: str, level: Level, ours: NDArray[Any]) -> NDArray[Any]:
    """Our pixels with as many channels as OpenSlide's, grey thrice; the others give ours."""
    page = case.page(level)
    if name != "OpenSlide" or ours.shape[2] == 3:
        return ours
    grey = ours.shape[2] < 3 or (page is not None and page.photometric in _GREYS)
    return np.repeat(ours[:, :, :1], 3, axis=2) if grey else ours[:, :, :3]


def difference(ours: NDArray[Any], theirs: NDArray[Any]) -> NDArray[np.float64]:
    """Per pixel, the largest of its channels; 0 where both are NaN, infinite where one is."""
    gap = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
    gap[(ours == theirs) | (_is_nan(ours) & _is_nan(theirs))] = 0
    return np.asarray(np.nan_to_num(gap, nan=np.inf, posinf=np.inf).max(axis=2))


def _is_nan(pixels: NDArray[Any]) -> NDArray[np.bool_]:
    return np.isnan(pixels) if pixels.dtype.kind == "f" else np.zeros(pixels.shape, np.bool_)


def why_not(case: Case, name: str) -> str:
    """The rule by which an oracle that opens the image cannot decode it."""
    first = None if case.tiff is None else case.tiff.pages[0]
    if name != "rasterio" or case.tiff is None or first is None or first.compression != _JPEG or first.photometric != 2:
        return "cannot"
    frame = case.tiff.stored(first, 0).partition(b"\xff\xc0")[2]  # SOF0: length, precision, height, width, count, id, sampling
    return "tagged RGB" if frame[9:10] not in {b"", b"\x11"} else "cannot"


def compare_window(row: Row, case: Case, level: Level, at: int, window: Window) -> None:
    """Add one window to `row`; `at` is the oracle's level."""
    oracle, where = case.oracles[row.oracle], f"level {level.index}, {window}"
    stored = case.image.read(window, level=level.index)
    try:
        theirs, valid = oracle.read(at, window), oracle.valid(at, window)
    except _CANNOT as error:
        said = str(error.__cause__ or error).replace(f"{case.path.parent}/", "")
        row.errors = row.errors or {said}  # one of each row: they differ in the place only
        row.reasons.add(why_not(case, row.oracle))
        if not any(case.as_ours(name, level, window) for name in case.oracles if name != row.oracle):
            row.unexplained.append(f"{where}: nobody else decodes it as we do: {error}")
        return
    row.windows += 1
    row.pixels += window.height * window.width
    ours = comparable(case, row.oracle, level, stored)
    if ours.shape != theirs.shape or (ours.dtype != theirs.dtype and row.oracle != "OpenSlide"):
        row.unexplained.append(f"{where}: {ours.shape} {ours.dtype} is {theirs.shape} {theirs.dtype} there")
        return
    gap = difference(ours, theirs)
    if gap.any() or ours.dtype != theirs.dtype:
        row.largest_difference = max(row.largest_difference, float(gap.max()))
        row.differing_pixels += int((gap > 0).sum())
        rules = why_pixels(case, row.oracle, level, window, (stored, theirs))
        row.reasons |= rules
        row.unexplained += [] if rules else [f"{where}: pixels differ by up to {gap.max()}, {(gap > 0).mean():.2%} of them"]
    if valid is not None:
        mask = case.image.read_mask(window, level=level.index)
        row.mask_pixels += mask.size
        row.mask_differing += int((mask != valid).sum())
        if (mask != valid).any():
            rules = why_mask(case, row.oracle, level, window, (mask, valid))
            row.reasons |= rules
            row.unexplained += [] if rules else [f"{where}: validity differs at {(mask != valid).mean():.2%}"]


def twin(row: Row, case: Case, level: Level) -> int | None:
    """The oracle's level of that size; of several the one most like ours."""
    oracle, window = case.oracles[row.oracle], windows_of(level)[0]
    same = [at for at, size in enumerate(oracle.sizes) if size == (level.height, level.width)]
    if len(same) < 2:
        return same[0] if same else None
    ours, gaps = comparable(case, row.oracle, level, case.image.read(window, level=level.index)), {}
    for at in same:
        try:
            gaps[at] = difference(ours, oracle.read(at, window)).mean()
        except _CANNOT:
            continue  # a mask that it took for a level
    return min(gaps, key=lambda at: gaps[at], default=same[0])


def compare(case: Case, name: str, file: str) -> Row:
    """One image against one oracle."""
    image, oracle = case.image, case.oracles[name]
    row = Row(file=file, oracle=name, reader=image.reader, codec=image.codec, independent=(image.reader, name) not in _SAME)
    row.levels_ours, row.levels_theirs = len(image.levels), len(oracle.sizes)
    ours, theirs = Counter((level.height, level.width) for level in image.levels), Counter(oracle.sizes)
    rules, row.unexplained = why_levels(case, name, ours - theirs, theirs - ours)
    row.reasons |= rules
    for level in image.levels:
        at, before = twin(row, case, level), row.windows
        if at is not None:
            for window in windows_of(level):
                compare_window(row, case, level, at, window)
        row.levels_compared += row.windows > before
    return row


def candidates(root: Path) -> Iterator[Path]:
    """What somebody would give to `open_image`."""
    for folder in ("wsi", "rs"):
        yield from sorted(path for path in (root / folder).rglob("*") if path.is_file() and path.suffix not in _SIDE_FILES)
    said = (path for path in (root / "omezarr").rglob("*") if path.name in {".zattrs", "zarr.json"})
    yield from sorted({path.parent for path in said if b'"multiscales"' in path.read_bytes()})


def rows_of(path: Path, file: str) -> list[Row]:
    """Every oracle that opens `path`.

    Raises:
        PatchdriveError: we do not open it.
    """
    with ExitStack() as opened:
        image = open_image(path)
        opened.callback(image.close)
        oracles: dict[str, Oracle] = {}
        for name, opener in ORACLES.items():
            try:
                oracles[name] = opener(path)
            except _CANNOT:
                continue  # it does not open the file: no row
            opened.callback(oracles[name].close)
        case = Case(path=path, image=image, oracles=oracles)
        return [compare(case, name, file) for name in oracles]


def show(row: Row) -> None:
    levels = f"{row.levels_compared}/{row.levels_ours}/{row.levels_theirs}"
    name = row.oracle + ("" if row.independent else "*")
    share = row.differing_pixels / max(row.pixels, 1)
    mask = f"{row.mask_differing / row.mask_pixels:.2%}" if row.mask_pixels else "-"
    why = ", ".join(sorted(row.reasons)) + (" UNEXPLAINED" if row.unexplained else "")
    file = row.file if len(row.file) <= 58 else f"...{row.file[-55:]}"
    print(f"{file:58} {name:10} {row.reader:10} {levels:>7} {row.windows:4} {row.largest_difference:8.6g} {share:8.3%} {mask:>7}  {why}")


def show_end(rows: Sequence[Row], refused: Mapping[str, str], seconds: float) -> None:
    """Reasons, errors, refusals, totals."""
    print("\n* the library that our reader asks too: shows where we put its pixels, not how they are decoded\n\nreasons")
    used = Counter(reason for row in rows for reason in row.reasons)
    for reason, text in REASONS.items():
        if used[reason]:
            print(f"  {reason} ({used[reason]} rows): {text}")
    print("\nwhat the others cannot decode")
    for row in rows:
        for error in sorted(row.errors):
            print(f"  {row.file}, {row.oracle}: {error}")
    print("\nwhat we refuse")
    for file, why in refused.items():
        print(f"  {file}: {why}")
    images = {row.file for row in rows}
    alone = sorted(images - {row.file for row in rows if row.independent and row.windows})
    print(f"\nno independent oracle ({len(alone)} of {len(images)} images): {', '.join(alone)}")
    differing = [row for row in rows if row.differing_pixels or row.mask_differing or row.levels_ours != row.levels_theirs or row.errors]
    for name in ORACLES:
        mine = [row for row in rows if row.oracle == name]
        counts = f"{len(mine)} images, {sum(row.levels_compared for row in mine)} levels, {sum(row.windows for row in mine)} windows"
        same = sum(not row.differing_pixels and not row.mask_differing for row in mine if row.windows)
        print(f"{name}: {counts}, {sum(row.pixels for row in mine) / 1e6:.0f} Mpx; {same} images equal to the bit, validity included")
    for row in rows:
        for line in row.unexplained:
            print(f"UNEXPLAINED {row.file}, {row.oracle} against {row.reader}: {line}")
    unexplained = sum(bool(row.unexplained) for row in rows)
    print(f"{len(rows)} rows, {len(rows) - len(differing)} without any difference, {len(differing) - unexplained} explained, "
          f"{unexplained} UNEXPLAINED; {seconds:.0f} s")  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[""], help="images whose path holds one of these")
    given = parser.parse_args()
    root = Path(os.environ.get("PATCHDRIVE_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    if not root.is_dir():
        print(f"no real files at {root}: set PATCHDRIVE_DATA to their folder", file=sys.stderr)
        return 2
    warnings.simplefilter("ignore")  # the others' remarks on files made to be odd
    logging.disable()
    begin, rows, refused = time.perf_counter(), [], {}
    print(f"{'image':58} {'oracle':10} {'reader':10} {'levels':>7} {'win.':>4} {'largest':>8} {'pixels':>8} {'mask':>7}  reasons")
    print(f"{'':58} {'':10} {'':10} {'c/o/t':>7} {'':4} {'diff.':>8} {'differ':>8} {'differs':>7}  levels: compared/ours/theirs")
    with rasterio.Env():
        for path in candidates(root):
            file = path.relative_to(root).as_posix()
            if not any(word in file for word in given.only):
                continue
            try:
                found = rows_of(path, file)
            except PatchdriveError as error:
                refused[file] = str(error).removeprefix(f"{path}: ")
                continue
            for row in found:
                show(row)
            rows += found
    show_end(rows, refused, time.perf_counter() - begin)
    out = Path(__file__).parent / "results" / "oracle.json"
    out.parent.mkdir(exist_ok=True)
    written = [asdict(row) | {"reasons": sorted(row.reasons), "errors": sorted(row.errors)} for row in rows]
    out.write_text(json.dumps({"reasons": REASONS, "rows": written, "refused": refused}, indent=1))
    return int(any(row.unexplained for row in rows))


if __name__ == "__main__":
    sys.exit(main())
