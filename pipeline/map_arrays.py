"""A map on disk: one strict OME-Zarr multiscale, with what GIS need beside it where the image has a place.

<name>/zarr.json         ome: multiscales, omero or image-label; for scenes the conventions of GeoZarr too
<name>/0/map             (channel, y, x), or (y, x) for labels; 1/map, 2/map ... each half the finer one (see `coarsen`)
<name>/0/{x, y, spatial_ref}   for scenes, and so in every level
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchdrive.pipeline.arrays import ArraySpec, ensure_array, ensure_filled, ensure_group
from patchdrive.pipeline.journal import Journal
from patchdrive.pipeline.maps import PROBABILITY_STEPS, StoredMap, value_window
from patchdrive.pipeline.metadata import (
    Frame,
    axes_of,
    image_label,
    map_attributes,
    multiscales,
    omero,
    pyramid_layout,
    spatial_ref_attributes,
)
from patchdrive.readers import Window

_SHARD_CHUNK = 512
_PLAIN_CHUNK = 1024
"""Georeferenced maps have plain chunks: GDAL before 3.13 reads no shards."""
_WHOLE = 4096
"""Side of a shard of a map that is written at once."""
COARSE = 2048
"""Side of a shard of a coarser level, which holds one channel; of plain chunks as many lie side by side."""


def create_map(store: Path, stored: StoredMap, frame: Frame, block: int, journal: Journal) -> None:
    """The group and the empty arrays of one map, with everything viewers and GIS need to place it.

    Args:
        store: `<id>.zarr`.
        stored: what the map is.
        frame: how its pixels lie on the image.
        block: side of the squares it will be written in, map pixels: whole chunks, or one shard.
        journal: through which it is written.
    """
    label, frames = stored.folder == "labels", frame.levels()
    scales = multiscales(stored.name, frames, stored.reduction, channel_axis=not label)
    ome: dict[str, Any] = {"version": "0.5", "multiscales": [scales]}
    if label:
        ome["image-label"] = image_label(stored.channels, stored.colors)
    else:
        ome["omero"] = omero(stored.channels, stored.colors, *value_window(stored))
    group = store / stored.path
    ensure_group(group, {"ome": ome, **pyramid_layout(frames, stored.reduction)}, journal)
    lead, names = ((), ("y", "x")) if label else ((len(stored.channels),), ("c", "y", "x"))
    singly = tuple(1 for _ in lead)
    for index, level in enumerate(frames):
        side = COARSE if index else block
        chunk, shards = _chunking(level, side)
        spec = ArraySpec(
            shape=(*lead, level.height, level.width),
            dtype=stored.dtype,
            chunks=(*singly, chunk, chunk),
            shards=(*(singly if index else lead), side, side) if shards else None,
            fill=0 if stored.fill is None else stored.fill,
            names=names,
        )
        scale = {"scale_factor": 1 / PROBABILITY_STEPS} if stored.kind == "probability" else {}
        attributes = {"patchdrive:kind": stored.kind, **scale, **map_attributes(level, stored.fill, np.dtype(stored.dtype))}
        ensure_group(group / str(index), {}, journal)
        ensure_array(group / str(index) / "map", spec, attributes, journal)
        _create_axes(group / str(index), level, journal)


def place_map(store: Path, stored: StoredMap, window: Window, values: NDArray[Any], journal: Journal) -> dict[str, str]:
    """Put one block of a map in place; `window` is in target pixels. Returns the digests of its files."""
    y, x = window.y // stored.stride, window.x // stored.stride
    area = (slice(y, y + values.shape[-2]), slice(x, x + values.shape[-1]))
    lead = () if stored.folder == "labels" else (slice(0, len(values)),)
    return journal.place(store / stored.path / "0" / "map", [((*lead, *area), values)])


def write_map(store: Path, stored: StoredMap, frame: Frame, values: NDArray[Any], journal: Journal) -> None:
    """A map that is there whole, created and written at once."""
    create_map(store, stored, frame, _WHOLE, journal)
    journal.place(store / stored.path / "0" / "map", [(tuple(slice(0, extent) for extent in values.shape), values)])


def _create_axes(level: Path, frame: Frame, journal: Journal) -> None:
    if frame.transform is None:
        return
    ensure_array(level / "spatial_ref", ArraySpec(shape=(), dtype="int64", chunks=()), spatial_ref_attributes(frame), journal)
    for axis, (values, attributes) in axes_of(frame).items():
        ensure_filled(level / axis, values, journal, attributes=attributes, names=(axis,))


def _chunking(frame: Frame, block: int) -> tuple[int, bool]:
    """Side of a chunk, and whether a block's chunks share a shard."""
    placed = frame.transform is not None
    return min(_PLAIN_CHUNK if placed else _SHARD_CHUNK, block), not placed
