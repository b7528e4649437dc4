"""regions: where somebody drew that it is worth looking, GeoJSON of QuPath or of a GIS, over an image seen small."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS, Transformer
from pyproj.exceptions import CRSError
from rasterio.errors import RasterioError
from rasterio.features import rasterize

from patchdrive.pipeline.belonging import file_of
from patchdrive.pipeline.region_mask import RegionMask
from patchdrive.readers import Image, Level
from patchdrive.readers.errors import SettingsError

_LONGITUDE_LATITUDE = "OGC:CRS84"
"""What GeoJSON is in where it does not say (RFC 7946)."""
_RASTERS = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".jp2", ".vrt")
_PLACES = ("{}.geojson", "{}.geojson.gz", "{}.json", "{}.png")  # a .tif of that name may be the image itself


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Regions:
    """Polygons that somebody drew."""

    path: Path
    """Of the file."""
    polygons: tuple[Mapping[str, Any], ...]
    """GeoJSON geometries, Polygon or MultiPolygon; (x, y)."""
    crs: str
    """Of their coordinates where the image is a scene with a CRS; of any other image they are level-0 pixels, or its own world's units."""

    @property
    def digest(self) -> str:
        """Hex SHA-256 of what it says, wherever it lies."""
        return hashlib.sha256(json.dumps([self.crs, self.polygons], sort_keys=True).encode()).hexdigest()

    def over(self, image: Image, level: Level) -> NDArray[np.bool_]:
        """(height, width) True for every pixel of `level`, any frame of the image, that a polygon touches.

        Raises:
            SettingsError: no polygon lies on the image, or they cannot be brought into its CRS.
        """
        frame = Affine.scale(level.downsample_x, level.downsample_y)
        polygons: list[Any] = list(self.polygons)
        unit = "level-0 pixels (x, y)"
        try:
            if image.transform is not None:
                frame, unit = image.transform @ frame, "the units of its transform"
            if image.crs is not None:
                unit = self.crs
                to_image = Transformer.from_crs(CRS.from_user_input(self.crs), image.crs, always_xy=True)
                polygons = [{**polygon, "coordinates": _moved(polygon["coordinates"], to_image)} for polygon in polygons]
            shape = (level.height, level.width)
            inside = rasterize(polygons, out_shape=shape, transform=frame, all_touched=True, dtype=np.uint8, skip_invalid=False) == 1
        except (CRSError, RasterioError, TypeError, ValueError, IndexError) as error:
            raise SettingsError(f"--regions {self.path} does not fit {image.source}: {error}; it is taken to be in {unit}") from error
        if not inside.any():
            raise SettingsError(f"--regions {self.path}: none of its polygons lies on {image.source}; they are taken to be in {unit}")
        return np.asarray(inside)


def read_regions(where: str, source: str) -> Regions | RegionMask:
    """The polygons drawn for one image, or its mask.

    Args:
        where: a GeoJSON file, gzipped or not, or a raster, or a folder with `<image>.geojson`, `.geojson.gz`, `.json` or
            `.png` in it.
        source: the image's path; it is called by its file name without the suffix.

    Raises:
        SettingsError: there is no such file, it is no GeoJSON, or holds no polygon.
    """
    path = file_of(where, source, _PLACES, option="--regions")
    if path.suffix.lower() in _RASTERS:
        return RegionMask(path=path)
    try:
        data = path.read_bytes()
        held = json.loads(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
        areas = (geometry for geometry in _geometries(held) if geometry.get("type") in {"Polygon", "MultiPolygon"})
        polygons = tuple(area for area in areas if area["coordinates"])
        crs = held["crs"]["properties"]["name"] if isinstance(held, dict) and held.get("crs") else _LONGITUDE_LATITUDE
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SettingsError(f"--regions {path} cannot be read as GeoJSON ({error!r})") from error
    if not polygons:
        raise SettingsError(f"--regions {path} holds no polygon; draw areas, not points or lines")
    return Regions(path=path, polygons=polygons, crs=str(crs))


def _moved(coordinates: Any, to_image: Transformer) -> Any:
    """Nested lists of (x, y) in the image's CRS; heights are dropped.

    Raises:
        ValueError: a corner cannot be brought there.
    """
    if not isinstance(coordinates[0], int | float):
        return [_moved(part, to_image) for part in coordinates]
    x, y = to_image.transform(coordinates[0], coordinates[1])
    if not (math.isfinite(x) and math.isfinite(y)):
        raise ValueError(f"the corner {coordinates[:2]} lies beyond what the image's CRS can hold")
    return [x, y]


def _geometries(held: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(held, list):  # QuPath's older files are bare lists of features
        for one in held:
            yield from _geometries(one)
    elif held["type"] == "FeatureCollection":
        yield from _geometries(held["features"])
    elif held["type"] == "Feature":
        if held["geometry"] is not None:
            yield from _geometries(held["geometry"])
    elif held["type"] == "GeometryCollection":
        yield from _geometries(held["geometries"])
    else:
        yield held
