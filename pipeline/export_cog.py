"""Export for GIS: each map of a scene as a cloud-optimised GeoTIFF, with its place, nodata, names, colours and overviews."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import rasterio
import rasterio.shutil
from rasterio.io import DatasetWriter
from rasterio.windows import Window as RasterWindow

from patchdrive.pipeline.drafts import draft_of
from patchdrive.pipeline.export_tables import slide_name
from patchdrive.pipeline.map_view import MapView
from patchdrive.pipeline.maps import NONE, PROBABILITY_STEPS
from patchdrive.pipeline.result import Result
from patchdrive.readers.errors import StoreError

_BLOCK = 512
"""Side of a tile of the file, map pixels."""


def to_cog(result: Result, out: Path) -> list[Path]:
    """`<scene>_<map>.tif` for each map, and the saliency: values as stored, written a window at a time.

    A probability is uint8 with scale 1 / 254 and nodata 255, a label uint8 with its colours and the class names as tags, an image its own
    dtype with a mask band.

    Raises:
        StoreError: it is no scene, or holds no finished map.
    """
    maps = [result.saliency, *result.painted.values(), *(view for name, view in result.maps.items() if not _is_validity(name, result))]
    if maps[0].transform is None:
        raise StoreError(f"{result.path.name} is of an image without a place on a map, which this form is for")
    written = []
    for view in maps:
        path = out / f"{slide_name(result)}_{view.name}.tif"
        with draft_of(path) as draft, rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
            plain = draft.with_name("plain")
            _write(view, plain)
            rasterio.shutil.copy(
                plain,
                draft,
                driver="COG",
                compress="DEFLATE",
                predictor="YES",
                blocksize=_BLOCK,
                bigtiff="IF_SAFER",
                overviews="IGNORE_EXISTING",
                resampling="NEAREST" if view.kind == "label" else "AVERAGE",
            )
        written.append(path)
    return written


def _is_validity(name: str, result: Result) -> bool:
    """Of an image, whose mask it becomes."""
    return name.endswith("_valid") and name.removesuffix("_valid") in result.maps


def _write(view: MapView, path: Path) -> None:
    """The map as an ordinary tiled GeoTIFF."""
    label = view.kind == "label"
    bands, transform = 1 if label else len(view.channels), view.transform
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=view.height,
        width=view.width,
        count=bands,
        dtype=view.array.dtype,
        crs=None if view.crs is None else view.crs.to_wkt(),
        transform=transform,
        nodata=None if view.kind == "image" else NONE,
        tiled=True,
        blockxsize=_BLOCK,
        blockysize=_BLOCK,
        interleave="band",
        compress="DEFLATE",
        bigtiff="IF_SAFER",
    ) as dataset:
        _describe(view, dataset)
        for window in view.windows():
            part = RasterWindow(window.x, window.y, window.width, window.height)
            stored = np.asarray(view.array[..., window.y : window.y_end, window.x : window.x_end])
            dataset.write(stored[None] if label else stored, window=part)
            if view.validity is not None:
                known = np.asarray(view.validity.array[window.y : window.y_end, window.x : window.x_end])
                dataset.write_mask(known == 1, window=part)


def _describe(view: MapView, dataset: DatasetWriter) -> None:
    if view.kind == "label":
        dataset.set_band_description(1, view.name)
        dataset.write_colormap(1, {value: (*bytes.fromhex(color), 255) for value, color in enumerate(view.colors)})
        dataset.update_tags(1, **{f"class_{value}": name for value, name in enumerate(view.channels)})
        return
    for band, name in enumerate(view.channels, start=1):
        dataset.set_band_description(band, name)
    if view.kind == "probability":
        dataset.scales = (1 / PROBABILITY_STEPS,) * len(view.channels)
