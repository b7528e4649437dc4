"""GeoParquet 1.1 from a stream of batches, each a row group: memory holds one of them, however many rows there are.

Source: geoparquet.org/releases/v1.1.0. Coordinates are (x, y) whatever the CRS's own order of axes, as that format has it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from numpy.typing import NDArray
from pyproj import CRS

from patchdrive.pipeline.drafts import draft_of

GROUP = 1 << 16
"""Rows of a row group, for those who make batches: readers skip whole ones by their boxes, and one of them is held at once."""
_EDGES = ("xmin", "ymin", "xmax", "ymax")
_BOX = pa.struct([(edge, pa.float64()) for edge in _EDGES])


def write_geoparquet(
    path: Path,
    batches: Iterable[tuple[NDArray[Any], Mapping[str, NDArray[Any]]]],
    *,
    columns: Mapping[str, pa.DataType],
    crs: CRS | None,
) -> None:
    """A table of geometries: `columns`, then `geometry` (WKB) and `bbox` (each row's box, by which readers skip row groups).

    Args:
        path: there once it is whole.
        batches: (n,) shapely geometries, none of them empty, and the (n,) values of each column.
        columns: Arrow types by name, in order.
        crs: of the geometries; None where they lie in pixels, or in a frame that nobody names.
    """
    schema = pa.schema([*columns.items(), ("bbox", _BOX), ("geometry", pa.binary())])
    texts = [name for name, kind in columns.items() if pa.types.is_string(kind)]
    kinds: set[str] = set()
    low, high = np.full(2, np.inf), np.full(2, -np.inf)
    with draft_of(path) as draft, pq.ParquetWriter(draft, schema, compression="zstd", use_dictionary=texts) as file:
        for geometry, values in batches:
            if not len(geometry):
                continue
            edges = shapely.bounds(geometry)
            low, high = np.minimum(low, edges[:, :2].min(axis=0)), np.maximum(high, edges[:, 2:].max(axis=0))
            kinds |= {geometry[row].geom_type for row in np.unique(shapely.get_type_id(geometry), return_index=True)[1]}
            box = pa.StructArray.from_arrays([pa.array(edge) for edge in edges.T], names=_EDGES)
            held = [pa.array(values[name], kind) for name, kind in columns.items()]
            wkb = pa.array(shapely.to_wkb(geometry), pa.binary())
            file.write_batch(pa.RecordBatch.from_arrays([*held, box, wkb], schema=schema), row_group_size=len(geometry))
        bounds = [*low.tolist(), *high.tolist()] if kinds else None
        file.add_key_value_metadata({"geo": json.dumps(_geo(sorted(kinds), bounds, crs))})  # known once all rows went by


def _geo(kinds: list[str], bounds: list[float] | None, crs: CRS | None) -> dict[str, Any]:
    """The `geo` entry of the file's metadata."""
    column: dict[str, Any] = {
        "encoding": "WKB",
        "geometry_types": kinds,
        "crs": None if crs is None else crs.to_json_dict(),
        "covering": {"bbox": {edge: ["bbox", edge] for edge in _EDGES}},
    }
    if bounds is not None:
        column["bbox"] = bounds
    return {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
