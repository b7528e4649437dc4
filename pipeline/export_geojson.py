"""Export for QuPath and whatever reads GeoJSON: patches as tiles, things found as points, in level-0 pixels (x, y).

One FeatureCollection, one feature a line, gzipped: files are read and written line by line, however long.
"""

from __future__ import annotations

import gzip
import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from patchdrive.pipeline.export_tables import slide_name
from patchdrive.pipeline.result import Result, ResultRound
from patchdrive.pipeline.tables import STATES

_AT_ONCE = 1 << 16
"""Rows whose corners are held as Python numbers at a time."""


def to_geojson(result: Result, out: Path) -> list[Path]:
    """`<slide>_patches.geojson.gz`, and `<slide>_<name>.geojson.gz` for each kind of thing found.

    A patch is a QuPath tile with its score, rank and round as measurements; one that was skipped or failed has that as its class. A thing
    found is a detection with its score. Ids follow from the store's name and the row: the same store gives the same bytes.

    Raises:
        StoreError: the store was moved without its state, which holds its plans.
    """
    rounds = result.rounds  # raises before a folder is made
    slide, space = slide_name(result), uuid.uuid5(uuid.NAMESPACE_URL, f"patchdrive/{result.path.stem}")
    written = [out / f"{slide}_patches.geojson.gz"]
    _write(written[0], _patches(rounds, space))
    for name, found in result.objects.items():
        written.append(out / f"{slide}_{name}.geojson.gz")
        points = (
            _feature(uuid.uuid5(space, f"{name} {row}"), {"type": "Point", "coordinates": [x, y]}, "detection", {"score": score}, name)
            for row, ((y, x), score) in enumerate(zip(found.yx.tolist(), found.score.tolist(), strict=True))
        )
        _write(written[-1], points)
    return written


def _patches(rounds: Sequence[ResultRound], space: uuid.UUID) -> Iterator[dict[str, Any]]:
    for index, held in enumerate(rounds):
        plan = held.plan
        for start in range(0, len(plan), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            columns = [
                *plan.edges_of(part).T.tolist(),
                plan.score[part].tolist(),
                plan.rank[part].tolist(),
                held.codes[part].tolist(),
            ]
            for row, (top, left, bottom, right, score, rank, code) in enumerate(zip(*columns, strict=True), start=start):
                ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
                measured = {"score": score, "rank": rank, "round": index}
                state = None if STATES[code] == "done" else STATES[code]
                place = {"type": "Polygon", "coordinates": [ring]}
                yield _feature(uuid.uuid5(space, f"patch {index} {row}"), place, "tile", measured, state)


def _feature(name: uuid.UUID, geometry: Mapping[str, Any], kind: str, measured: Mapping[str, Any], classed: str | None) -> dict[str, Any]:
    properties: dict[str, Any] = {"objectType": kind, "isLocked": True, "measurements": measured}
    if classed is not None:
        properties["classification"] = {"name": classed, "color": [200, 60, 60]}
    return {"type": "Feature", "id": str(name), "geometry": geometry, "properties": properties}


def _write(path: Path, features: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".partial")
    try:
        with draft.open("wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", filename="", mtime=0) as file:
            file.write(b'{"type":"FeatureCollection","features":[')
            between = b"\n"
            for feature in features:
                file.write(between + json.dumps(feature, separators=(",", ":"), allow_nan=False).encode())
                between = b",\n"
            file.write(b"\n]}\n")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
