"""Where a raster lies in the world and what its bands are called, as GDAL understands its tags and the files beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import rasterio
from affine import Affine
from pyproj import CRS
from pyproj.exceptions import CRSError
from rasterio.enums import ColorInterp
from rasterio.errors import CRSError as RasterioCRSError
from rasterio.io import DatasetReader, MemoryFile

from patchdrive.readers.errors import FormatError
from patchdrive.readers.gdal import GDAL_OPTIONS, open_gdal, opening
from patchdrive.readers.tiff_bare import bare_tiff
from patchdrive.readers.tiff_index import Directory


@dataclass(frozen=True, slots=True, kw_only=True)
class Georeference:
    """What GDAL knows of a raster besides its pixels."""

    transform: Affine | None
    """Level-0 pixel (column, row; edges) to world; None where the file has none, or only control points or RPCs."""
    crs: CRS | None
    """World frame of `transform`; None where there is none, or none that pyproj understands."""
    channels: tuple[str, ...]
    """The bands' descriptions where all are there and differ, else their colours where they differ, else band_1, band_2 and on."""
    alpha: int | None
    """Index of the first channel that is tagged as opacity. Whether it is, its values say: see `is_alpha`."""
    properties: Mapping[str, str]
    """GDAL's tags, number of control points, scales and offsets; "patchdrive.crs" where the CRS is not understood."""

    def without_alpha(self) -> Georeference:
        """The same where the channel tagged as opacity is none (NAIP tags infrared so): it is named like one without a colour."""
        names = (f"band_{at + 1}" if at == self.alpha else name for at, name in enumerate(self.channels))
        return replace(self, channels=tuple(names), alpha=None)


def read_georeference(path: Path, first: Directory) -> Georeference:
    """Ask GDAL, by a handle that is closed again; by a copy of the tags where it lacks the file's codec.

    Args:
        path: a TIFF.
        first: its first directory.

    Raises:
        FormatError: GDAL understands neither.
    """
    with rasterio.Env(**GDAL_OPTIONS):
        try:
            with open_gdal(path) as dataset, opening(path):
                return georeference_of(dataset)
        except FormatError:
            with opening(path), MemoryFile(bare_tiff(first)) as copy, open_gdal(copy.name) as dataset:
                return georeference_of(dataset)


def georeference_of(dataset: DatasetReader) -> Georeference:
    """The same of an open handle of level 0."""
    transform = _transform(dataset)
    crs, note = _crs(dataset) if transform is not None else (None, None)
    properties = _properties(dataset)
    return Georeference(
        transform=transform,
        crs=crs,
        channels=_channel_names(dataset),
        alpha=dataset.colorinterp.index(ColorInterp.alpha) if ColorInterp.alpha in dataset.colorinterp else None,
        properties=properties if note is None else properties | {"patchdrive.crs": note},
    )


def _channel_names(dataset: DatasetReader) -> tuple[str, ...]:
    described = tuple(name.strip() if name else "" for name in dataset.descriptions)
    coloured = tuple(colour.name for colour in dataset.colorinterp)
    for names in (described, coloured):
        if all(names) and len(set(names)) == len(names) and "undefined" not in names:
            return names
    return tuple(f"band_{band}" for band in dataset.indexes)


def _transform(dataset: DatasetReader) -> Affine | None:
    """The stored frame; identity counts as one only where a CRS says what it is in."""
    if dataset.transform.is_identity and (dataset.crs is None or dataset.gcps[0]):
        return None
    return Affine(*dataset.transform[:6])


def _crs(dataset: DatasetReader) -> tuple[CRS | None, str | None]:
    """The world frame and, where the file has one that pyproj cannot read, a note that says so."""
    if dataset.crs is None:
        return None, None
    try:
        return CRS.from_wkt(dataset.crs.to_wkt(version="WKT2_2019")), None
    except (CRSError, RasterioCRSError) as error:
        return None, f"not understood: {error}"


def _properties(dataset: DatasetReader) -> dict[str, str]:
    properties = {str(key): str(value) for key, value in dataset.tags().items()} | {"driver": dataset.driver}
    if dataset.gcps[0]:
        properties["gcps"] = str(len(dataset.gcps[0]))
    if dataset.rpcs is not None:
        properties["rpcs"] = "yes"
    if any(scale != 1 for scale in dataset.scales) or any(offset != 0 for offset in dataset.offsets):
        properties["scales"], properties["offsets"] = (" ".join(map(str, values)) for values in (dataset.scales, dataset.offsets))
    return properties
