"""OME-NGFF 0.5 and georeferencing attributes. Pure: frames in, JSON-ready dictionaries out.

Sources: ngff.openmicroscopy.org/0.5, CF conventions 1.11, GDAL's Zarr driver, zarr-conventions `proj` and `spatial`.
"""

from __future__ import annotations

import base64
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS

from patchdrive.pipeline.pyramid import Reduction
from patchdrive.readers import Level

_PROJ = {"uuid": "f17cb550-5864-4468-aeb7-f3180cfb622f", "name": "proj:"}
_SPATIAL = {"uuid": "689b58e2-cf7b-45e0-9fff-9cfc0883d6b4", "name": "spatial:"}
_MULTISCALES = {"uuid": "d35379db-88df-4056-af3a-620245f8e347", "name": "multiscales"}
_LEAST_SIDE = 512
"""Map pixels: a level of this size is not halved again."""
_HOW = {
    "mean": "each pixel is the mean of those of four that have a value",
    "nearest": "each pixel is the first of four",
    "max": "each pixel is the highest of four",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """How the pixels of a map lie on the image it was made from."""

    height: int
    """Rows of the map."""
    width: int
    """Columns of the map."""
    downsample_y: float
    """Level-0 rows per map row."""
    downsample_x: float
    """Level-0 columns per map column."""
    mpp: tuple[float, float] | None
    """Micrometres per level-0 pixel, (y, x), or None."""
    transform: Affine | None
    """Level-0 pixel to world, or None."""
    crs: CRS | None
    """World frame, or None."""
    shift_y: float = 0.0
    """Level-0 rows from the image's corner to the map's."""
    shift_x: float = 0.0
    """Level-0 columns from the image's corner to the map's."""

    def coarser(self, cell: int) -> Frame:
        """The frame of a map whose every pixel is `cell` x `cell` of ours."""
        height, width = -(-self.height // cell), -(-self.width // cell)
        return replace(self, height=height, width=width, downsample_y=self.downsample_y * cell, downsample_x=self.downsample_x * cell)

    def levels(self) -> list[Frame]:
        """Ours, and ever coarser ones, each half the finer, until no side is longer than 512."""
        frames = [self]
        while max(frames[-1].height, frames[-1].width) > _LEAST_SIDE:
            frames.append(frames[-1].coarser(2))
        return frames

    @property
    def map_transform(self) -> Affine | None:
        """Map pixel to world."""
        if self.transform is None:
            return None
        return self.transform @ Affine.translation(self.shift_x, self.shift_y) @ Affine.scale(self.downsample_x, self.downsample_y)

    @property
    def unit(self) -> str | None:
        """NGFF unit of `pixel_size`, None for level-0 pixels."""
        return "micrometer" if self.mpp is not None else None

    @property
    def pixel_size(self) -> tuple[float, float]:
        """Of a level-0 pixel in `unit`, (y, x)."""
        return self.mpp if self.mpp is not None else (1.0, 1.0)


def frame_of(grid: Level, mpp: tuple[float, float] | None, transform: Affine | None, crs: CRS | None) -> Frame:
    """The frame of a map that has one pixel per pixel of a target grid."""
    return Frame(
        height=grid.height,
        width=grid.width,
        downsample_y=grid.downsample_y,
        downsample_x=grid.downsample_x,
        mpp=mpp,
        transform=transform,
        crs=crs,
    )


def multiscales(name: str, frames: Sequence[Frame], reduction: Reduction, *, channel_axis: bool) -> dict[str, Any]:
    """The `multiscales` entry: one dataset "<k>/map" per frame; centres of level k lie (d - 1) / 2 level-0 pixels and the shift in."""
    unit = {} if frames[0].unit is None else {"unit": frames[0].unit}
    channel = [{"name": "c", "type": "channel"}] if channel_axis else []
    lead = [1.0] if channel_axis else []
    datasets = []
    for index, frame in enumerate(frames):
        size_y, size_x = frame.pixel_size
        scale = [*lead, frame.downsample_y * size_y, frame.downsample_x * size_x]
        centre_y, centre_x = frame.shift_y + (frame.downsample_y - 1) / 2, frame.shift_x + (frame.downsample_x - 1) / 2
        shift = [*(0.0 for _ in lead), centre_y * size_y, centre_x * size_x]
        transforms = [{"type": "scale", "scale": scale}, {"type": "translation", "translation": shift}]
        datasets.append({"path": f"{index}/map", "coordinateTransformations": transforms})
    return {
        "name": name,
        "type": reduction,
        "metadata": {"description": _HOW[reduction]},
        "axes": [*channel, {"name": "y", "type": "space", **unit}, {"name": "x", "type": "space", **unit}],
        "datasets": datasets,
    }


def pyramid_layout(frames: Sequence[Frame], reduction: Reduction) -> dict[str, Any]:
    """The levels of a scene's map in the words of the Zarr convention `multiscales`, for the group that holds them; {} for slides."""
    if frames[0].map_transform is None:
        return {}
    conventions = [_MULTISCALES, _SPATIAL] if frames[0].crs is None else [_MULTISCALES, _PROJ, _SPATIAL]
    layout: list[dict[str, Any]] = []
    for index, frame in enumerate(frames):
        derived = {"derived_from": str(index - 1)} if index else {}
        step = 2.0 if index else 1.0
        layout.append({"asset": str(index), **derived, "transform": {"scale": [step, step], "translation": [0.0, 0.0]}, **_place(frame)})
    method = {"mean": "average"}.get(reduction, reduction)
    place = {} if frames[0].crs is None else _projection(frames[0].crs)
    return {
        "zarr_conventions": conventions,
        "multiscales": {"layout": layout, "resampling_method": method},
        "spatial:dimensions": ["y", "x"],
        **place,
    }


def _place(frame: Frame) -> dict[str, Any]:
    """Where a map lies, in the words of the Zarr convention `spatial:`."""
    transform = frame.map_transform
    assert transform is not None
    return {"spatial:transform": list(transform)[:6], "spatial:shape": [frame.height, frame.width]}


def _projection(crs: CRS) -> dict[str, Any]:
    """A CRS in the words of the Zarr convention `proj:`."""
    authority = crs.to_authority(min_confidence=100)
    code = {} if authority is None else {"proj:code": ":".join(authority)}
    return {"proj:wkt2": crs.to_wkt("WKT2_2019"), **code}


def omero(channels: Sequence[str], colors: Sequence[str], low: float, high: float) -> dict[str, Any]:
    """How a viewer shows each channel."""
    window = {"min": low, "max": high, "start": low, "end": high}
    entries = [
        {"label": label, "color": color, "active": index < 3, "window": window}
        for index, (label, color) in enumerate(zip(channels, colors, strict=True))
    ]
    return {"channels": entries, "rdefs": {"model": "color" if len(entries) > 1 else "greyscale"}}


def image_label(names: Sequence[str], colors: Sequence[str]) -> dict[str, Any]:
    """The `image-label` entry of a label map: class i has value i."""
    pairs = list(enumerate(zip(names, colors, strict=True)))
    return {
        "colors": [{"label-value": value, "rgba": [*bytes.fromhex(color), 255]} for value, (_, color) in pairs],
        "properties": [{"label-value": value, "class": name} for value, (name, _) in pairs],
    }


def map_attributes(frame: Frame, fill: float | None, dtype: np.dtype[Any]) -> dict[str, Any]:
    """Attributes of the array `map`: what xarray, rioxarray and GDAL need to place it and to know its nodata."""
    attributes: dict[str, Any] = {}
    if fill is not None:
        attributes["_FillValue"] = fill_value_json(fill, dtype)
    if frame.map_transform is None:
        return attributes
    attributes |= {
        "grid_mapping": "spatial_ref",
        "zarr_conventions": [_SPATIAL],
        "spatial:dimensions": ["y", "x"],
        "spatial:registration": "pixel",
        **_place(frame),
    }
    if frame.crs is not None:
        place = _projection(frame.crs)
        attributes |= {"zarr_conventions": [_PROJ, _SPATIAL], **place, "_CRS": {"wkt": place["proj:wkt2"]}}
        if "proj:code" in place:
            url = "http://www.opengis.net/def/crs/{}/0/{}".format(*place["proj:code"].split(":"))
            attributes["_CRS"] = {"url": url, "wkt": place["proj:wkt2"]}
    return attributes


def fill_value_json(fill: float, dtype: np.dtype[Any]) -> int | str:
    """`_FillValue` as xarray's Zarr v3 backend reads it: a number, or base64 of the little-endian double for floats."""
    if dtype.kind == "f":
        return base64.standard_b64encode(np.array(fill, "<f8").tobytes()).decode()
    return int(fill)


def spatial_ref_attributes(frame: Frame) -> dict[str, Any]:
    """Attributes of the scalar `spatial_ref`: the CRS in CF's words and GDAL's GeoTransform."""
    transform = frame.map_transform
    assert transform is not None
    a, b, c, d, e, f = list(transform)[:6]
    attributes: dict[str, Any] = {"GeoTransform": " ".join(repr(float(value)) for value in (c, a, b, f, d, e))}
    if frame.crs is not None:
        wkt = frame.crs.to_wkt()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # CF has no word for some parameters; the WKT beside it has them all
            conventions = frame.crs.to_cf()
        attributes |= {**conventions, "crs_wkt": wkt, "spatial_ref": wkt}
    return attributes


def axes_of(frame: Frame) -> Mapping[str, tuple[NDArray[np.float64], dict[str, str]]]:
    """`x` and `y`: world coordinates of pixel centres, with CF attributes. Empty for slides and for rotated scenes."""
    transform = frame.map_transform
    if transform is None or transform.b or transform.d:
        return {}
    geographic = frame.crs is not None and frame.crs.is_geographic
    unit = "degrees" if geographic else _linear_unit(frame.crs)
    names = {"x": "longitude", "y": "latitude"} if geographic else {"x": "projection_x_coordinate", "y": "projection_y_coordinate"}
    units = {"x": "degrees_east", "y": "degrees_north"} if geographic else {"x": unit, "y": unit}
    across, down = float(transform.a), float(transform.e)
    centres: dict[str, NDArray[np.float64]] = {
        "x": float(transform.c) + across * (np.arange(frame.width, dtype=np.float64) + 0.5),
        "y": float(transform.f) + down * (np.arange(frame.height, dtype=np.float64) + 0.5),
    }
    return {axis: (values, {"axis": axis.upper(), "standard_name": names[axis], "units": units[axis]}) for axis, values in centres.items()}


def _linear_unit(crs: CRS | None) -> str:
    if crs is None or not crs.axis_info:
        return "unknown"
    return "m" if crs.axis_info[0].unit_name in {"metre", "meter"} else str(crs.axis_info[0].unit_name)
