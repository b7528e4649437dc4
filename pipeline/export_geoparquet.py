"""Export for GIS, DuckDB and geopandas: patches as boxes, things found as points, objects of maps as polygons; a GeoParquet file for each.

Geometries are in world coordinates for a scene, in level-0 pixels (x right, y down) for a slide.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import shapely
from affine import Affine
from numpy.typing import NDArray

from patchdrive.pipeline.export_tables import slide_name
from patchdrive.pipeline.geoparquet import GROUP, write_geoparquet
from patchdrive.pipeline.objects import ObjectMap, Tracing, object_maps
from patchdrive.pipeline.ranks import steps
from patchdrive.pipeline.result import Result, ResultRound
from patchdrive.pipeline.tables import STATES, FoundObjects

_Batch = tuple[NDArray[Any], Mapping[str, NDArray[Any]]]
_PATCHES = {
    "y": pa.float64(),
    "x": pa.float64(),
    "side": pa.float64(),
    "round": pa.int32(),
    "score": pa.float32(),
    "rank": pa.int64(),
    "state": pa.string(),
}


def to_geoparquet(result: Result, out: Path, tracing: Tracing | None = None) -> list[Path]:
    """`<slide>_patches.parquet`, every planned patch, and `<slide>_<name>.parquet` for each kind of thing found and each traced map.

    Patches are boxes, things points, or boxes where a detection head found them, objects of maps polygons.

    Raises:
        SettingsError: `tracing` names what is not there.
        StoreError: the store was moved without its state, which holds its plans.
    """
    traced = () if tracing is None else object_maps(result, tracing)  # raises before a file is made
    slide, transform, crs = slide_name(result), result.transform, result.crs
    written = [out / f"{slide}_patches.parquet"]
    write_geoparquet(written[0], _patches(result.rounds, transform), columns=_PATCHES, crs=crs)
    for name, found in result.objects.items():
        written.append(out / f"{slide}_{name}.parquet")
        classed = {} if found.boxes is None else {"class": pa.string()}
        write_geoparquet(written[-1], _found(found, transform), columns={"score": pa.float32(), **classed}, crs=crs)
    for one in traced:
        written.append(out / f"{slide}_{one.name}.parquet")
        columns = {"class": pa.string(), **dict.fromkeys(one.measured, pa.float64())}
        write_geoparquet(written[-1], _objects(one, transform), columns=columns, crs=crs)
    return written


def _patches(rounds: Sequence[ResultRound], transform: Affine | None) -> Iterator[_Batch]:
    states = np.array(STATES)
    for index, held in enumerate(rounds):
        plan, grid = held.plan, held.plan.grid
        side = plan.side * (grid.downsample_y + grid.downsample_x) / 2
        for part in steps(len(plan), GROUP):
            edges = plan.edges_of(part)
            columns = {
                "y": edges[:, 0],
                "x": edges[:, 1],
                "side": np.full(len(edges), side),
                "round": np.full(len(edges), index, np.int32),
                "score": plan.score[part],
                "rank": plan.rank[part],
                "state": states[held.codes[part]],
            }
            yield boxes(edges, transform), columns


def _found(found: FoundObjects, transform: Affine | None) -> Iterator[_Batch]:
    for part in steps(len(found), GROUP):
        if found.boxes is None:
            yield _placed(shapely.points(found.yx[part, ::-1]), transform), {"score": found.score[part]}
        else:
            names = np.array(found.boxes.classes)[found.boxes.kind[part]]
            yield boxes(found.corners[part], transform), {"score": found.score[part], "class": names}


def _objects(traced: ObjectMap, transform: Affine | None) -> Iterator[_Batch]:
    classes = np.array(traced.classes)
    for batch in traced.objects():
        geometry = shapely.reverse(batch.geometry) if _mirrors(transform) else batch.geometry
        yield _placed(geometry, transform), {"class": classes[batch.kind], **batch.measured}


def boxes(edges: NDArray[np.float64], transform: Affine | None = None) -> NDArray[Any]:
    """(n,) polygons, counter-clockwise, of (n, 4) edges as of `Plan.edges_of`; in the world, turned as it is turned, with a transform."""
    top, left, bottom, right = edges.T
    return _placed(shapely.box(left, top, right, bottom, ccw=not _mirrors(transform)), transform)


def _mirrors(transform: Affine | None) -> bool:
    """Whether counter-clockwise becomes clockwise."""
    return transform is not None and transform.determinant < 0


def _placed(geometry: NDArray[Any], transform: Affine | None) -> NDArray[Any]:
    """Level-0 pixels to world, every corner by itself."""
    if transform is None:
        return geometry
    a, b, c, d, e, f = list(transform)[:6]

    def world(xy: NDArray[np.float64]) -> NDArray[np.float64]:
        x, y = xy.T
        return np.stack([a * x + b * y + c, d * x + e * y + f], axis=1)

    placed: NDArray[Any] = shapely.transform(geometry, world)
    return placed
