"""regions: where somebody drew that it is worth looking, GeoJSON of QuPath or of a GIS, over an image seen small."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from pyproj.exceptions import CRSError
from rasterio.errors import RasterioError
from rasterio.features import rasterize

from patchdrive.pipeline.belonging import file_of
from patchdrive.pipeline.geojson import brought, read_features, unit_of
from patchdrive.pipeline.region_mask import RegionMask
from patchdrive.readers import Image, Level
from patchdrive.readers.errors import SettingsError

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
        frame, unit = frame if image.transform is None else image.transform @ frame, unit_of(self.crs, image)
        try:
            polygons = brought(list(self.polygons), self.crs, image)
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
    held = read_features(path, option="--regions")
    polygons = tuple(feature.geometry for feature in held.features if feature.geometry["type"] in {"Polygon", "MultiPolygon"})
    if not polygons:
        raise SettingsError(f"--regions {path} holds no polygon; draw areas, not points or lines")
    return Regions(path=path, polygons=polygons, crs=held.crs)
