"""MapView: one map of a store, opened lazily; its numbers decoded, its pixels placed on level 0."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS

from patchdrive.pipeline.maps import decode_probability
from patchdrive.readers import Window
from patchdrive.readers.errors import StoreError


@dataclass(frozen=True, slots=True, kw_only=True)
class MapAxis:
    """How one axis of a map lies on level 0: pixel i covers [i, i + 1) * downsample."""

    extent: int
    """Map pixels."""
    downsample: float
    """Level-0 pixels per map pixel."""
    chunk: int
    """Map pixels that are decoded at once."""


class MapView:
    """One map. Opening it reads two small JSON files; `values` reads the chunks it needs."""

    def __init__(self, path: Path, *, pixel_size: tuple[float, float] = (1.0, 1.0)) -> None:
        """See `open_map`."""
        self.path = path
        self._pixel_size = pixel_size
        self._group = _attributes(path)["ome"]
        self._facts = _attributes(path / "0" / "map")

    @property
    def name(self) -> str:
        """Of its group."""
        return self.path.name

    @property
    def kind(self) -> Literal["probability", "label", "image"]:
        """How its numbers are meant."""
        kind: Literal["probability", "label", "image"] = self._facts["patchdrive:kind"]
        return kind

    @property
    def channels(self) -> tuple[str, ...]:
        """Channel names; class names of a label map, class i having value i."""
        if self.kind == "label":
            return tuple(entry["class"] for entry in self._group["image-label"]["properties"])
        return tuple(entry["label"] for entry in self._group["omero"]["channels"])

    @property
    def colors(self) -> tuple[str, ...]:
        """One RRGGBB per channel or class."""
        if self.kind == "label":
            return tuple(bytes(entry["rgba"][:3]).hex().upper() for entry in self._group["image-label"]["colors"])
        return tuple(entry["color"] for entry in self._group["omero"]["channels"])

    @cached_property
    def array(self) -> zarr.Array[Any]:
        """As stored: (channel, height, width), or (height, width) of a label map."""
        return zarr.open_array(store=self.path / "0" / "map", mode="r")

    @cached_property
    def coarser(self) -> tuple[zarr.Array[Any], ...]:
        """Its coarser levels, each half the finer one; all "none" before the run is finished."""
        datasets = self._group["multiscales"][0]["datasets"]
        return tuple(zarr.open_array(store=self.path / entry["path"], mode="r") for entry in datasets[1:])

    @property
    def height(self) -> int:
        """Rows."""
        return int(self.array.shape[-2])

    @property
    def width(self) -> int:
        """Columns."""
        return int(self.array.shape[-1])

    @property
    def downsample(self) -> tuple[float, float]:
        """Level-0 pixels per map pixel, (y, x)."""
        scale = self._transformation("scale")
        return scale[0] / self._pixel_size[0], scale[1] / self._pixel_size[1]

    @property
    def translation(self) -> tuple[float, float]:
        """Centre of the first map pixel less the centre of the first level-0 pixel, level-0 pixels, (y, x)."""
        shift = self._transformation("translation")
        return shift[0] / self._pixel_size[0], shift[1] / self._pixel_size[1]

    @property
    def axes(self) -> tuple[MapAxis, MapAxis]:
        """The y and the x axis."""
        down, extents, chunks = self.downsample, (self.height, self.width), self.array.chunks[-2:]
        y, x = (MapAxis(extent=extents[axis], downsample=down[axis], chunk=int(chunks[axis])) for axis in (0, 1))
        return y, x

    @property
    def transform(self) -> Affine | None:
        """Map pixel (column, row; edges) to world, for scenes."""
        held = self._facts.get("spatial:transform")
        return None if held is None else Affine(*held)

    @property
    def crs(self) -> CRS | None:
        """World frame of `transform`."""
        held = self._facts.get("proj:wkt2")
        return None if held is None else CRS.from_wkt(held)

    @cached_property
    def validity(self) -> MapView | None:
        """The label map that says where an image has values; None for the kinds that keep a value for "none"."""
        path = self.path.parent.parent / "labels" / f"{self.name}_valid"
        return MapView(path, pixel_size=self._pixel_size) if self.kind == "image" and (path / "zarr.json").exists() else None

    def values(self, window: Window | None = None) -> NDArray[Any]:
        """The numbers as they are meant.

        Args:
            window: map pixels, inside the map; None for all of it, however large.

        Returns:
            Of a probability map (channel, height, width) float32 in [0, 1], NaN where there is none. Of a label map (height, width)
            and of an image (channel, height, width), in the stored dtype, as masked arrays: masked where there is none.

        Raises:
            WindowError: the window is empty.
            StoreError: the window overhangs the map.
        """
        rows, columns = self._slices(window)
        stored = np.asarray(self.array[..., rows, columns])
        if self.kind == "probability":
            return decode_probability(stored)
        if self.kind == "label":
            fill = self._facts.get("_FillValue")
            return np.ma.MaskedArray(stored, mask=np.zeros(stored.shape, np.bool_) if fill is None else stored == fill)
        known = np.ones(stored.shape[-2:], np.bool_) if self.validity is None else self.validity.array[rows, columns] == 1
        return np.ma.MaskedArray(stored, mask=np.broadcast_to(~np.asarray(known), stored.shape))

    def windows(self, most: int = 1 << 22) -> Iterator[Window]:
        """Windows of whole chunks that tile the map, row-major, each of about `most` pixels or one chunk."""
        y, x = self.axes
        across = max(1, most // (y.chunk * x.chunk)) * x.chunk
        for top in range(0, y.extent, y.chunk):
            for left in range(0, x.extent, across):
                yield Window(y=top, x=left, height=min(y.chunk, y.extent - top), width=min(across, x.extent - left))

    def _slices(self, window: Window | None) -> tuple[slice, slice]:
        whole = Window(y=0, x=0, height=self.height, width=self.width)
        asked = window or whole
        if not whole.contains(asked):
            raise StoreError(
                f"{self.path}: rows {asked.y}..{asked.y_end}, columns {asked.x}..{asked.x_end} overhang the map of "
                f"{whole.height} x {whole.width}; clip the window with Window.intersect"
            )
        return asked.within(whole)

    def _transformation(self, kind: str) -> tuple[float, float]:
        entries = self._group["multiscales"][0]["datasets"][0]["coordinateTransformations"]
        y, x = next(entry[kind] for entry in entries if entry["type"] == kind)[-2:]
        return float(y), float(x)


def open_map(path: Path, *, pixel_size: tuple[float, float] = (1.0, 1.0)) -> MapView:
    """Open the map whose group is at `path`.

    Args:
        path: `<id>.zarr/images/<name>` or `<id>.zarr/labels/<name>`.
        pixel_size: of a level-0 pixel in the unit of the map's axes, (y, x): the image's mpp, or 1 where it has none.

    Raises:
        StoreError: there is no map of ours.
    """
    if not (path / "0" / "map" / "zarr.json").is_file():
        raise StoreError(f"{path} holds no map of a patchdrive store; the maps are the folders in images/ and labels/ of one")
    return MapView(path, pixel_size=pixel_size)


def _attributes(path: Path) -> dict[str, Any]:
    attributes: dict[str, Any] = json.loads((path / "zarr.json").read_text())["attributes"]
    return attributes
