"""Export for QuPath and whatever reads GeoJSON: patches as tiles, things found as points, objects of maps as polygons.

All in level-0 pixels, (x, y). One FeatureCollection, one feature a line, gzipped: files are read and written line by line, however long.
"""

from __future__ import annotations

import gzip
import json
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import shapely

from patchdrive.pipeline.drafts import draft_of
from patchdrive.pipeline.export_tables import slide_name
from patchdrive.pipeline.objects import ObjectMap, Objects, Tracing, object_maps
from patchdrive.pipeline.result import Result, ResultRound
from patchdrive.pipeline.tables import STATES, FoundObjects

_AT_ONCE = 1 << 16
"""Rows whose corners are held as Python numbers at a time."""
_FOUND = (200, 60, 60)
"""Colour, RGB, of what has none of its own."""
_LEVEL = 6
"""Of gzip: 9 takes eight times as long for 1.5 % less."""


def to_geojson(result: Result, out: Path, tracing: Tracing | None = None) -> list[Path]:
    """`<slide>_patches.geojson.gz`, and `<slide>_<name>.geojson.gz` for each kind of thing found and each map that is traced.

    A patch is a QuPath tile with its score, rank and round as measurements; one that was skipped or failed has that as its class. A thing
    found is a detection with its score. An object of a map is a polygon with its class, area and mean probability. Ids follow from the
    store's name and the row: the same store gives the same bytes.

    Raises:
        SettingsError: `tracing` names what is not there.
        StoreError: the store was moved without its state, which holds its plans.
    """
    rounds, traced = result.rounds, () if tracing is None else object_maps(result, tracing)  # raise before a folder is made
    slide, space = slide_name(result), uuid.uuid5(uuid.NAMESPACE_URL, f"patchdrive/{result.path.stem}")
    written = [out / f"{slide}_patches.geojson.gz"]
    _write(written[0], _patches(rounds, space))
    for name, found in result.objects.items():
        written.append(out / f"{slide}_{name}.geojson.gz")
        _write(written[-1], _found(name, found, space))
    for one in traced:
        written.append(out / f"{slide}_{one.name}.geojson.gz")
        _write(written[-1], _objects(one, space))
    return written


def _found(name: str, found: FoundObjects, space: uuid.UUID) -> Iterator[str]:
    """Points, or boxes with their class."""
    for row, ((top, left, bottom, right), score) in enumerate(zip(found.corners.tolist(), found.score.tolist(), strict=True)):
        place, kind = _place("Point", [left, top]), name
        if found.boxes is not None:
            place = _place("Polygon", [[[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]])
            kind = found.boxes.classes[found.boxes.kind[row]]
        yield _feature(uuid.uuid5(space, f"{name} {row}"), place, "detection", {"score": score}, (kind, _FOUND))


def _objects(traced: ObjectMap, space: uuid.UUID) -> Iterator[str]:
    kind, row = "annotation" if traced.tracing.annotations else "detection", 0
    classes = [(name, tuple(bytes.fromhex(color))) for name, color in zip(traced.classes, traced.colors, strict=True)]
    for batch in traced.objects():
        for place, value, measured in zip(_places(batch), batch.kind.tolist(), _measured(batch), strict=True):
            name = uuid.uuid5(space, f"{traced.name} object {row}")
            yield _feature(name, place, kind, measured, classes[value])
            row += 1


def _places(batch: Objects) -> Iterator[str]:
    """Each polygon as JSON, whole numbers without their .0."""
    return (re.sub(r"\.0(?=[],])", "", place) for place in shapely.to_geojson(batch.geometry).tolist())


def _measured(batch: Objects) -> Iterator[dict[str, float]]:
    held = {name: values.round(4).tolist() for name, values in batch.measured.items()}
    return (dict(zip(held, row, strict=True)) for row in zip(*held.values(), strict=True))


def _patches(rounds: Sequence[ResultRound], space: uuid.UUID) -> Iterator[str]:
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
                state = None if STATES[code] == "done" else (STATES[code], _FOUND)
                yield _feature(uuid.uuid5(space, f"patch {index} {row}"), _place("Polygon", [ring]), "tile", measured, state)


def _feature(name: uuid.UUID, place: str, kind: str, measured: Mapping[str, Any], classed: tuple[str, Sequence[int]] | None) -> str:
    """A line of the file; `place` is JSON already, `classed` the name of a class and its colour."""
    properties: dict[str, Any] = {"objectType": kind, "isLocked": kind != "annotation", "measurements": measured}
    if classed is not None:
        properties["classification"] = {"name": classed[0], "color": classed[1]}
    return f'{{"type":"Feature","id":"{name}","geometry":{place},"properties":{_text(properties)}}}'


def _place(kind: str, coordinates: object) -> str:
    return _text({"type": kind, "coordinates": coordinates})


def _text(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _write(path: Path, features: Iterable[str]) -> None:
    with (
        draft_of(path) as draft,
        draft.open("wb") as raw,
        gzip.GzipFile(fileobj=raw, mode="wb", filename="", mtime=0, compresslevel=_LEVEL) as file,
    ):
        file.write(b'{"type":"FeatureCollection","features":[')
        between = "\n"
        for feature in features:
            file.write((between + feature).encode())
            between = ",\n"
        file.write(b"\n]}\n")
