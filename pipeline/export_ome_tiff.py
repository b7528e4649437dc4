"""Export for QuPath and other viewers of slides: each map as a pyramidal, tiled OME-TIFF."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from patchdrive.pipeline.drafts import draft_of
from patchdrive.pipeline.export_tables import slide_name
from patchdrive.pipeline.map_view import MapView
from patchdrive.pipeline.result import Result

_TILE = 512


def to_ome_tiff(result: Result, out: Path) -> list[Path]:
    """`<slide>_<map>.ome.tif` for each map, and the saliency: values and levels as stored, a tile at a time.

    Channels have their names, pixels their size in micrometres where the image has one. What a map lies on is in its name and its pixel
    size alone: OME-TIFF has no word for the place of one image on another.
    """
    written = []
    for view in (result.saliency, *result.painted.values(), *result.maps.values()):
        path = out / f"{slide_name(result)}_{view.name}.ome.tif"
        with draft_of(path) as draft:
            _write(view, result.mpp, draft, finished=result.report is not None)
        written.append(path)
    return written


def _write(view: MapView, mpp: tuple[float, float] | None, path: Path, *, finished: bool) -> None:
    coarser = view.coarser if finished else ()  # not there yet
    about: dict[str, Any] = {"axes": "YX" if view.array.ndim == 2 else "CYX", "Name": view.name}
    if view.kind != "label":
        about["Channel"] = {"Name": list(view.channels)}
    if mpp is not None:
        (down, across), unit = view.downsample, {"PhysicalSizeXUnit": "µm", "PhysicalSizeYUnit": "µm"}
        about |= {"PhysicalSizeX": mpp[1] * across, "PhysicalSizeY": mpp[0] * down, **unit}
    with tifffile.TiffWriter(path, bigtiff=True, ome=True) as file:
        options: dict[str, Any] = {"tile": (_TILE, _TILE), "dtype": view.array.dtype, "photometric": "minisblack", "compression": "zlib"}
        levels: list[Any] = [view.array, *coarser]
        for index, level in enumerate(levels):
            place: dict[str, Any] = {"subifds": len(coarser), "metadata": about} if index == 0 else {"subfiletype": 1}
            file.write(_tiles(level), shape=level.shape, **options, **place)


def _tiles(level: Any) -> Iterator[NDArray[Any]]:
    """Channel by channel, row-major, each (512, 512), what overhangs zero."""
    planes = level.shape[0] if level.ndim > 2 else 1
    height, width = level.shape[-2:]
    for plane in range(planes):
        for top in range(0, height, _TILE):
            row = np.asarray(level[top : top + _TILE] if level.ndim == 2 else level[plane, top : top + _TILE])
            for left in range(0, width, _TILE):
                part = row[:, left : left + _TILE]
                yield np.pad(part, [(0, _TILE - part.shape[0]), (0, _TILE - part.shape[1])])
