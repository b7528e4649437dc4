"""Why a program may differ from us: each rule proves itself on the very pixels that differ, or it is no reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import tifffile
from numpy.typing import NDArray
from oracle_programs import CANNOT, OfOpenSlide, OfRasterio, OfTifffile, Oracle, Size, is_nan, size_of

from patchdrive.readers import Image, Level, Window

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
        except CANNOT:
            return False
        return np.array_equal(self.image.read(window, level=level.index), theirs, equal_nan=theirs.dtype.kind == "f")


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
        known["NaN"] = ~ours & is_nan(stored).all(axis=2)
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
    if name == "OpenSlide" and size in {size_of(page.aspage().shape, page.aspage().axes) for page in tiff.pages[0].pages or ()}:
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
    gap[(ours == theirs) | (is_nan(ours) & is_nan(theirs))] = 0
    return np.asarray(np.nan_to_num(gap, nan=np.inf, posinf=np.inf).max(axis=2))


def why_not(case: Case, name: str) -> str:
    """The rule by which an oracle that opens the image cannot decode it."""
    first = None if case.tiff is None else case.tiff.pages[0]
    if name != "rasterio" or case.tiff is None or first is None or first.compression != _JPEG or first.photometric != 2:
        return "cannot"
    frame = case.tiff.stored(first, 0).partition(b"\xff\xc0")[2]  # SOF0: length, precision, height, width, count, id, sampling
    return "tagged RGB" if frame[9:10] not in {b"", b"\x11"} else "cannot"
