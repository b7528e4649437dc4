"""The programs that `oracle.py` asks: each shows an image as levels of pixels, (height, width, channel), with or without validity."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
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

from patchdrive.readers import Level, Window

CANNOT = (openslide.OpenSlideError, RasterioError, tifffile.TiffFileError, OSError, ValueError, KeyError, RuntimeError)
"""What they raise on what they cannot read."""
_WHOLE = 1 << 26  # pixels of a level that OpenSlide may be asked for at once
_JPEG, _PALETTE, _GREYS = 7, 3, (0, 1)

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
            known = {size_of(level.shape, level.axes) for level in file.series[0].levels}
            for page in self.pages:
                size = size_of(page.shape, page.axes)
                if size not in known and not page.subfiletype & 4 and page.samplesperpixel == self.pages[0].samplesperpixel:
                    known.add(size)
                    stores.append((page.aszarr(), page.axes))
            self._arrays = [(zarr.open_array(opened.enter_context(store), mode="r"), axes) for store, axes in stores]
            self.close = opened.pop_all().close
        self.sizes: Sequence[Size] = [size_of(array.shape, axes) for array, axes in self._arrays]

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
        self.sizes: Sequence[Size] = [size_of(array.shape, self._axes) for array in self._arrays]

    def read(self, level: int, window: Window) -> NDArray[Any]:
        return _cut(self._arrays[level], self._axes, window)

    def valid(self, level: int, window: Window) -> NDArray[np.bool_]:
        return np.asarray(~is_nan(self.read(level, window)).all(axis=2))  # OME-Zarr declares nothing: what is a number is valid

    def close(self) -> None:
        pass


def size_of(shape: Sequence[int], axes: str) -> Size:
    return shape[axes.index("Y")], shape[axes.index("X")]


def _cut(array: Any, axes: str, window: Window) -> NDArray[Any]:
    """(height, width, channel) of an array whose axes are Y, X, S and others of length 1."""
    place = {"Y": slice(window.y, window.y_end), "X": slice(window.x, window.x_end), "S": slice(None)}
    cut = np.asarray(array[tuple(place.get(axis, 0) for axis in axes)])
    kept = [axis for axis in axes if axis in place]
    return cut.transpose([kept.index(axis) for axis in "YXS" if axis in kept]).reshape(window.height, window.width, -1)


def is_nan(pixels: NDArray[Any]) -> NDArray[np.bool_]:
    return np.isnan(pixels) if pixels.dtype.kind == "f" else np.zeros(pixels.shape, np.bool_)


ORACLES: Mapping[str, Callable[[Path], Oracle]] = {
    "OpenSlide": OfOpenSlide,
    "rasterio": OfRasterio,
    "tifffile": OfTifffile,
    "zarr": OfZarr,
}
