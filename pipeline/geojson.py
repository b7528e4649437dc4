"""GeoJSON of QuPath or of a GIS: features, and where they lie on an image."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyproj import CRS, Transformer

from patchdrive.readers import Image
from patchdrive.readers.errors import SettingsError

LONGITUDE_LATITUDE = "OGC:CRS84"
"""What GeoJSON is in where it does not say (RFC 7946)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Feature:
    """A geometry and what is said of it."""

    geometry: Mapping[str, Any]
    """Of one of GeoJSON's types, never a collection; (x, y)."""
    properties: Mapping[str, Any] = field(default_factory=dict)
    """As the file has them."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Features:
    """All of a file."""

    path: Path
    """Of the file."""
    features: tuple[Feature, ...]
    """In its order."""
    crs: str
    """Of their coordinates where the image is a scene with a CRS; of any other image they are level-0 pixels, or its own world's units."""


def read_features(path: Path, *, option: str) -> Features:
    """Every feature of a file, gzipped or not; those of collections one by one.

    Args:
        path: of the file.
        option: that named it, for the error.

    Raises:
        SettingsError: it cannot be read, or is no GeoJSON.
    """
    try:
        data = path.read_bytes()
        held = json.loads(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
        features = tuple(one for one in _features(held, {}) if one.geometry["coordinates"])
        crs = held["crs"]["properties"]["name"] if isinstance(held, dict) and held.get("crs") else LONGITUDE_LATITUDE
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SettingsError(f"{option} {path} cannot be read as GeoJSON ({error!r})") from error
    return Features(path=path, features=features, crs=str(crs))


def _features(held: Any, properties: Mapping[str, Any]) -> Iterator[Feature]:
    if isinstance(held, list):  # QuPath's older files are bare lists of features
        for one in held:
            yield from _features(one, properties)
    elif held["type"] == "FeatureCollection":
        yield from _features(held["features"], properties)
    elif held["type"] == "Feature":
        if held["geometry"] is not None:
            yield from _features(held["geometry"], held.get("properties") or {})
    elif held["type"] == "GeometryCollection":
        yield from _features(held["geometries"], properties)
    else:
        yield Feature(geometry=held, properties=properties)


def brought(geometries: list[Any], crs: str, image: Image) -> list[Any]:
    """The same geometries in the CRS of a scene that has one; others are as they were.

    Raises:
        ValueError: a corner cannot be brought there.
        CRSError: of pyproj: `crs` is none.
    """
    if image.crs is None:
        return geometries
    to_image = Transformer.from_crs(CRS.from_user_input(crs), image.crs, always_xy=True)
    return [{**geometry, "coordinates": _moved(geometry["coordinates"], to_image)} for geometry in geometries]


def unit_of(crs: str, image: Image) -> str:
    """What coordinates are taken to be, for people."""
    if image.crs is not None:
        return crs
    return "level-0 pixels (x, y)" if image.transform is None else "the units of its transform"


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
