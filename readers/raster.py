"""Everything GDAL opens, through rasterio: GeoTIFF and COG, JPEG2000, PNG, JPEG, VRT (https://gdal.org/drivers/raster/)."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import MaskFlags
from rasterio.io import DatasetReader
from rasterio.windows import Window as RasterioWindow

from patchdrive.readers.errors import FormatError, ReadError
from patchdrive.readers.gdal import GDAL_CACHE_BYTES, GDAL_ERRORS, GDAL_OPTIONS, open_gdal, opening
from patchdrive.readers.geometry import Level, Window
from patchdrive.readers.georeference import georeference_of
from patchdrive.readers.icc import profile_of, profile_properties
from patchdrive.readers.identity import file_identity
from patchdrive.readers.pixels import check_out, is_alpha, mask_of, spread_squares
from patchdrive.readers.vrt import refuse_descriptions, vrt_sources

MaskKind = Literal["none", "dataset", "alpha", "nodata", "bands"]
"""What decides validity: nothing, a mask of the whole dataset, an alpha channel, one nodata value, a nodata value per channel."""

_CODECS = {"JP2OpenJPEG": "jpeg2000", "JPEG": "jpeg", "PNG": "deflate", "GTiff": "none", "VRT": "unknown"}
"""By driver, where GDAL names no compression."""


class RasterImage:
    """A raster as an Image: every band is a channel, every overview that is smaller a level; values, frame and nodata as stored.

    Channels are named by the band descriptions where all are there and differ, else by their colours (red, palette, alpha) where
    they differ, else band_1, band_2 and on, as GIS programs count.

    Validity comes from the first that the file has: a mask of the whole dataset, an alpha channel, nodata (a pixel is invalid where
    every channel is). NaN is invalid besides. A band tagged alpha is believed to be one where at least half of a sample of it is
    either zero or the sample's largest value; infrared that NAIP tags as alpha is not, and stays a channel like the others.

    `transform` is None where the file has none (plain PNG), or only ground control points or RPCs, which are no affine frame.
    """

    reader = "raster"
    cache_bytes = GDAL_CACHE_BYTES
    """What GDAL may keep of decoded blocks, in the whole process, for the memory budget."""
    mpp: tuple[float, float] | None = None
    associated: Mapping[str, NDArray[np.uint8]]

    def __init__(self, path: Path | str) -> None:
        """Open `path`, a local file.

        Raises:
            FormatError: GDAL cannot open it, its channels differ in dtype or are complex, or it points at the network.
            ReadError: it has an alpha channel that cannot be decoded.
        """
        self._path = Path(path)
        refuse_descriptions(self._path)
        self._handles = _Handles(self._path)
        with opening(self._path), self._handles.borrow(None) as dataset:
            self.dtype = _dtype(dataset, self.source)
            self.levels, self._overviews = _pyramid(self._path, dataset)
            georeference = georeference_of(dataset)
            self.transform, self.crs = georeference.transform, georeference.crs
            self.nodata, note = _nodata(dataset, self.dtype)
            self.properties: Mapping[str, str] = {**georeference.properties} | ({} if note is None else {"patchdrive.nodata": note})
            self.codec = _codec(dataset)
            self.color_profile = profile_of(dataset.tags(ns="COLOR_PROFILE").get("SOURCE_ICC_PROFILE", ""))
            self.properties = {**self.properties, **profile_properties(self.color_profile)}
            self.channels, self._alpha = georeference.channels, georeference.alpha
            if self._alpha is not None and not is_alpha(self._sample(self._alpha)):
                self.channels, self._alpha = georeference.without_alpha().channels, None
            self._mask_kind = self._find_mask(dataset)
        self.associated = {}

    def __reduce__(self) -> tuple[Callable[[Path], RasterImage], tuple[Path]]:
        """Pickles as its source: a handle does not travel."""
        return RasterImage, (self._path,)

    @property
    def source(self) -> str:
        """The path it was opened from."""
        return str(self._path)

    @property
    def identity(self) -> str:
        """Of the file, of its external overviews and mask, and of what a VRT points at."""
        beside = [self._path.with_name(self._path.name + suffix) for suffix in (".ovr", ".msk")]
        others = [*(file for file in beside if file.is_file()), *vrt_sources(self._path)]
        return file_identity(self._path, index="".join(map(file_identity, others)).encode())

    @property
    def has_mask(self) -> bool:
        """True with a mask, alpha or nodata, and for floats, which may be NaN."""
        return self._mask_kind != "none" or self.dtype.kind == "f"

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
        bands = range(1, len(self.channels) + 1)
        order = list(bands) if channels is None else [bands[channel] for channel in channels]
        shape = (window.height, window.width, len(order))
        if out is None:
            out = np.empty(shape, self.dtype)
        check_out(out, shape, self.dtype)
        if order:
            with self._reading(window, level) as dataset:
                dataset.read(order, window=_rasterio_window(window), out=out.transpose(2, 0, 1))
        return out

    def read_mask(self, window: Window, *, level: int = 0) -> NDArray[np.bool_]:
        """See `Image.read_mask`."""
        self.levels[level].check(window, self.source)
        valid = self._declared_mask(window, level)
        if self.dtype.kind == "f" and self._mask_kind != "nodata":
            valid &= mask_of(self.read(window, level=level), None)
        return valid

    def close(self) -> None:
        """Close every handle that is not reading just now."""
        self._handles.close()

    def _declared_mask(self, window: Window, level: int) -> NDArray[np.bool_]:
        """What the file itself says of validity."""
        if self._mask_kind == "none":
            return np.ones((window.height, window.width), np.bool_)
        if self._mask_kind == "nodata":
            return mask_of(self.read(window, level=level), self.nodata)
        if self._mask_kind == "alpha":
            assert self._alpha is not None
            return self.read(window, level=level, channels=[self._alpha])[:, :, 0] > 0
        with self._reading(window, level) as dataset:
            bands = [1] if self._mask_kind == "dataset" else dataset.indexes
            masks = dataset.read_masks(bands, window=_rasterio_window(window))
        valid: NDArray[np.bool_] = np.logical_or.reduce(masks > 0, axis=0)
        return valid

    @contextmanager
    def _reading(self, window: Window, level: int) -> Iterator[DatasetReader]:
        """A handle of `level`; what GDAL says of a failure becomes a ReadError."""
        try:
            with self._handles.borrow(self._overviews[level]) as dataset:
                yield dataset
        except (*GDAL_ERRORS, MemoryError) as error:
            reason = error.__cause__ or error
            raise ReadError(
                f"{self.source}: GDAL cannot decode rows {window.y}..{window.y_end}, columns {window.x}..{window.x_end} "
                f"of level {level}: {reason}"
            ) from error

    def _find_mask(self, dataset: DatasetReader) -> MaskKind:
        """The first that the file has of: dataset mask, alpha that is one, nodata."""
        flags = dataset.mask_flag_enums[0]
        if MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags:
            return "dataset"
        if self._alpha is not None:
            return "alpha"
        if self.nodata is not None:
            return "nodata"
        per_band = {value for value in dataset.nodatavals if value is not None and _holds(self.dtype, value)}
        return "bands" if per_band else "none"

    def _sample(self, channel: int) -> NDArray[Any]:
        """Values of 16 squares of 64 pixels spread over the coarsest level: a thumbnail would decode all of an image without overviews."""
        level = self.levels[-1]
        return np.concatenate([self.read(square, level=level.index, channels=[channel]).ravel() for square in spread_squares(level)])


class _Handles:
    """Handles of one file, each lent to one thread at a time: GDAL's are not safe to share."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        # By process too: after a fork a handle's file position would be shared.
        self._free: dict[tuple[int, int | None], list[DatasetReader]] = {}

    @contextmanager
    def borrow(self, overview: int | None) -> Iterator[DatasetReader]:
        """A handle of level 0 (None) or of an overview, inside GDAL's environment; one that failed is not lent again."""
        with rasterio.Env(**GDAL_OPTIONS), ExitStack() as failed:
            with self._lock:
                free = self._free.setdefault((os.getpid(), overview), [])
                dataset = free.pop() if free else None
            if dataset is None:
                dataset = open_gdal(self._path, overview)
            failed.callback(dataset.close)
            yield dataset
            failed.pop_all()
            with self._lock:
                free.append(dataset)

    def close(self) -> None:
        """Close those that are not lent."""
        with self._lock:
            handles = [dataset for free in self._free.values() for dataset in free]
            self._free.clear()
        for dataset in handles:
            dataset.close()


def driver_of(path: Path) -> str | None:
    """Name of the GDAL driver that opens `path`; None where there is none.

    Raises:
        FormatError: it is XML or JSON, or a VRT of anything but local files.
    """
    refuse_descriptions(path)
    try:
        with rasterio.Env(**GDAL_OPTIONS), open_gdal(path) as dataset:
            return str(dataset.driver)
    except FormatError:
        return None


def _dtype(dataset: DatasetReader, source: str) -> np.dtype[Any]:
    names: list[str] = sorted(set(dataset.dtypes))
    if not names:
        raise FormatError(f"{source}: holds no bands but {len(dataset.subdatasets)} subdatasets; convert the one you want to GeoTIFF")
    if len(names) > 1:
        raise FormatError(f"{source}: every channel has one dtype, got {', '.join(names)}; split the bands with gdal_translate -b")
    if names[0].startswith("complex"):
        raise FormatError(f"{source}: {names[0]} pixels have no order; write their amplitude first, as gdal_calc --calc 'abs(A)' does")
    return np.dtype(names[0])


def _pyramid(path: Path, dataset: DatasetReader) -> tuple[tuple[Level, ...], tuple[int | None, ...]]:
    """The levels, and GDAL's overview index of each (None for level 0).

    An overview that is no smaller than the level before it is none: GDAL knows such of factor 1.
    """
    found: list[tuple[int | None, Level]] = [(None, _frame(dataset, dataset))]
    for index in range(min(len(dataset.overviews(band)) for band in dataset.indexes)):
        with open_gdal(path, index) as smaller:
            found.append((index, _frame(smaller, dataset)))
    found.sort(key=lambda item: item[1].height * item[1].width, reverse=True)
    kept = found[:1]
    for overview, level in found[1:]:
        finer = kept[-1][1]
        if level.height <= finer.height and level.width <= finer.width and level.window != finer.window:
            kept.append((overview, level))
    return tuple(replace(level, index=index) for index, (_, level) in enumerate(kept)), tuple(overview for overview, _ in kept)


def _frame(dataset: DatasetReader, base: DatasetReader) -> Level:
    """Sizes of a handle, against those of level 0; its index is not known yet."""
    tile_height, tile_width = dataset.block_shapes[0]
    return Level(
        index=0,
        height=dataset.height,
        width=dataset.width,
        downsample_y=base.height / dataset.height,
        downsample_x=base.width / dataset.width,
        tile_height=min(dataset.height, tile_height),
        tile_width=min(dataset.width, tile_width),
    )


def _nodata(dataset: DatasetReader, dtype: np.dtype[Any]) -> tuple[float | None, str | None]:
    """The value that all bands share and, where there is one that means nothing, a note that says so."""
    first = dataset.nodatavals[0]
    if len(set(map(repr, dataset.nodatavals))) > 1:  # by their text: NaN equals NaN there
        return None, f"per band: {dataset.nodatavals}"
    if first is None:
        return None, None
    if not _holds(dtype, first):
        return None, f"{first} is no {dtype}: ignored"
    return float(first), None


def _holds(dtype: np.dtype[Any], value: float) -> bool:
    """True where a pixel of `dtype` can have this value."""
    if dtype.kind == "f":
        return True
    return math.isfinite(value) and value == int(value) and np.iinfo(dtype).min <= value <= np.iinfo(dtype).max


def _codec(dataset: DatasetReader) -> str:
    named = dataset.tags(ns="IMAGE_STRUCTURE").get("COMPRESSION")
    return str(named).lower() if named else _CODECS.get(dataset.driver, "unknown")


def _rasterio_window(window: Window) -> RasterioWindow:
    return RasterioWindow(window.x, window.y, window.width, window.height)
