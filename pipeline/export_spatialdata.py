"""Export for SpatialData and all that builds on it: one Zarr store of tables, shapes, points, images and labels.

tables/<table>               features of the patches that are done, an AnnData table that annotates `tiles`
shapes/tiles                 their boxes, GeoParquet
points/<name>                things found
images/<map>, labels/<map>   maps, painted ones, saliency and thumbnail, every level as the store has it

What has no rows is left out. All lie in "global": level-0 pixels, x right and y down, the image's corner at (0, 0). Written to container
format 0.2 (rasters and shapes 0.3, points and tables 0.2), as spatialdata 0.8 writes it. There pixel i of an image covers
[i, i + 1), its centre being at i + 0.5, so a scale and the map's corner put it in its place; a level lies on the finest one by its pixels'
centres, as in OME-Zarr.
"""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from numpy.typing import NDArray
from zarr.errors import ZarrUserWarning

from patchdrive.models.types import OutputSpec
from patchdrive.pipeline.arrays import ArraySpec, ensure_array, ensure_group
from patchdrive.pipeline.drafts import draft_of
from patchdrive.pipeline.export_geoparquet import boxes
from patchdrive.pipeline.export_tables import done_features, slide_name
from patchdrive.pipeline.geoparquet import GROUP, write_geoparquet
from patchdrive.pipeline.glance import layout_of
from patchdrive.pipeline.map_view import MapView
from patchdrive.pipeline.ranks import steps
from patchdrive.pipeline.result import Result, ResultRound
from patchdrive.pipeline.settings import RunSettings
from patchdrive.pipeline.tables import ROWS, FoundObjects
from patchdrive.readers.errors import StoreError

_TILES, _REGION_KEY, _INSTANCE_KEY = "tiles", "library_id", "tile_id"
_OURS = "patchdrive_export"
"""Root attribute by which an earlier export is known."""
_OBS: Mapping[str, str] = {_INSTANCE_KEY: "int64", "round": "int32", "score": "float32", "rank": "int64"}
_ARRAY = {"encoding-type": "array", "encoding-version": "0.2.0"}
_STRINGS = {"encoding-type": "string-array", "encoding-version": "0.2.0"}
_STRING = {"encoding-type": "string", "encoding-version": "0.2.0"}
_DICT = {"encoding-type": "dict", "encoding-version": "0.1.0"}


def to_spatialdata(result: Result, out: Path) -> list[Path]:
    """`<slide>.zarr`, which `spatialdata.read_zarr` opens; LazySlide finds the tiles and what they were made with.

    Raises:
        StoreError: the store was moved without its state; two things in it would have one name; or `<slide>.zarr` is there and is no
            export of ours, an image for instance.
    """
    rounds, path = result.rounds, out / f"{slide_name(result)}.zarr"
    finished = result.report is not None  # only then are coarser levels whole
    maps = (result.thumbnail_map, result.saliency, *result.maps.values(), *result.painted.values())
    names = _element_names([*result.tables, *result.objects, *(view.name for view in maps)])
    _require_replaceable(path)
    with draft_of(path) as draft:
        ensure_group(draft, _root_attributes(result))
        for folder in ("images", "labels", "points", "shapes", "tables"):
            ensure_group(draft / folder, {})
        count = sum(int(held.done.sum()) for held in rounds)
        if count:  # SpatialData refuses shapes that are none
            _write_tiles(draft / "shapes" / _TILES, rounds)
        for table, vector in result.spec.features.items() if count else ():
            target = draft / "tables" / names[table]
            _create_table(target, count, vector)
            _fill_table(target, rounds, done_features(tuple(zip(rounds, result.tables[table], strict=True))))
        for name, found in result.objects.items():
            if len(found):
                _write_points(draft / "points" / names[name], found)
        for view in maps:
            _copy_map(view, draft / view.path.parent.name / names[view.name], levels=None if finished else 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ZarrUserWarning)  # Parquet files are no part of Zarr's hierarchy, as SpatialData has it
            zarr.consolidate_metadata(draft)
    return [path]


def _element_names(names: Sequence[str]) -> Mapping[str, str]:
    """What each is called there: letters, digits, `_`, `-` and `.`, no two alike whatever their case.

    Raises:
        StoreError: two are.
    """
    called = {name: re.sub(r"[^\w.-]", "_", name) for name in names}
    taken = [_TILES, *(called[name].lower() for name in names)]
    twice = next((name for name in taken if taken.count(name) > 1), None)
    if twice is not None:
        raise StoreError(
            f"two parts of the store would be called {twice!r}, and SpatialData tells its parts by name; --to anndata, cog, geojson do not"
        )
    return called


def _require_replaceable(path: Path) -> None:
    """
    Raises:
        StoreError: something is there that is no earlier export.
    """
    metadata = path / "zarr.json"
    if path.exists() and not (metadata.is_file() and _OURS in json.loads(metadata.read_text()).get("attributes", {})):
        raise StoreError(f"{path} is there and was not written by this export, which would replace it; use another -o")


def _root_attributes(result: Result) -> dict[str, Any]:
    """Of the container; `tile_spec` and `slide_properties` are what LazySlide knows its tiles and its slide by."""
    (height, width), mpp = result.size, result.mpp
    slide = {"shape": [height, width], "n_level": 1, "level_shape": [[height, width]], "level_downsample": [1.0]}
    attributes: dict[str, Any] = {
        "spatialdata_attrs": {"version": "0.2", "spatialdata_software_version": f"patchdrive {version('patchdrive')}"},
        "slide_properties": {**slide, "mpp": None if mpp is None else sum(mpp) / 2},
        _OURS: {"source": result.facts["source"]["identity"], "model": result.facts["model"]["digest"]},
    }
    if result.rounds:
        plan, layout = result.rounds[0].plan, layout_of(result.spec, RunSettings(**result.facts["settings"]))
        down, across = plan.grid.downsample_y, plan.grid.downsample_x
        attributes["tile_spec"] = {
            _TILES: {
                "height": plan.side,
                "width": plan.side,
                "stride_height": layout.stride,
                "stride_width": layout.stride,
                "mpp": None if mpp is None else (mpp[0] * down + mpp[1] * across) / 2,
                "ops_level": 0,
                "ops_downsample": (down + across) / 2,
                "base_level": 0,
                "base_downsample": (down + across) / 2,
                "tissue_name": None,
            }
        }
    return attributes


def _done(rounds: Sequence[ResultRound]) -> Iterator[tuple[ResultRound, NDArray[np.int64], dict[str, NDArray[Any]]]]:
    """Rows that are done, 65,536 at most at a time: of which round, where in its plan, and their columns; `tile_id` counts them all."""
    first = 0
    for index, held in enumerate(rounds):
        plan, done = held.plan, held.done
        for part in steps(len(done), GROUP):
            rows = np.flatnonzero(done[part]) + part.start
            ids = np.arange(first, first + len(rows))
            first += len(rows)
            yield held, rows, {_INSTANCE_KEY: ids, "round": np.full(len(rows), index), "score": plan.score[rows], "rank": plan.rank[rows]}


def _write_tiles(path: Path, rounds: Sequence[ResultRound]) -> None:
    ensure_group(path, _vector_attributes("ngff:shapes", "0.3"))

    def batches() -> Iterator[tuple[NDArray[Any], Mapping[str, NDArray[Any]]]]:
        for held, rows, columns in _done(rounds):
            edges = held.plan.edges_of(rows)
            yield boxes(edges), {**columns, "x": edges[:, 1], "y": edges[:, 0], "tissue_id": np.zeros(len(rows), np.int64)}

    kinds = {**_OBS, "x": "float64", "y": "float64", "tissue_id": "int64"}
    columns = {name: pa.from_numpy_dtype(kind) for name, kind in kinds.items()}
    write_geoparquet(path / "shapes.parquet", batches(), columns=columns, crs=None)


def _write_points(path: Path, found: FoundObjects) -> None:
    ensure_group(path, _vector_attributes("ngff:points", "0.2"))
    table = pa.table({"x": found.yx[:, 1], "y": found.yx[:, 0], "score": found.score})
    pq.write_table(table, path / "points.parquet", compression="zstd", row_group_size=GROUP)


def _create_table(path: Path, rows: int, vector: OutputSpec) -> None:
    """An AnnData table (on-disk format 0.1.0) of `rows` rows, as yet empty, that says which tiles it is about."""
    about = {"region": _TILES, "region_key": _REGION_KEY, "instance_key": _INSTANCE_KEY}
    kind = {"encoding-type": "anndata", "encoding-version": "0.1.0", "spatialdata-encoding-type": "ngff:regions_table", "version": "0.2"}
    ensure_group(path, {**kind, **about})
    for name in ("layers", "obsm", "obsp", "uns", "varm", "varp", "uns/spatialdata_attrs"):
        ensure_group(path / name, _DICT)
    for name, value in about.items():
        _put(path / "uns" / "spatialdata_attrs" / name, np.array(value, object), _STRING)
    frame = {"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index"}
    ensure_group(path / "var", {**frame, "column-order": []})
    _put(path / "var" / "_index", np.array(vector.channels, object), _STRINGS)
    ensure_group(path / "obs", {**frame, "column-order": [_REGION_KEY, *_OBS]})
    ensure_group(path / "obs" / _REGION_KEY, {"encoding-type": "categorical", "encoding-version": "0.2.0", "ordered": False})
    _put(path / "obs" / _REGION_KEY / "categories", np.array([_TILES], object), _STRINGS)
    each, width = max(1, min(rows, GROUP)), len(vector.channels)
    ensure_array(path / "obs" / _REGION_KEY / "codes", ArraySpec(shape=(rows,), dtype="int8", chunks=(each,)), _ARRAY)  # all 0, its fill
    ensure_array(path / "obs" / "_index", ArraySpec(shape=(rows,), dtype="string", chunks=(each,), fill=""), _STRINGS)
    for name, dtype in _OBS.items():
        ensure_array(path / "obs" / name, ArraySpec(shape=(rows,), dtype=dtype, chunks=(each,)), _ARRAY)
    ensure_array(path / "obsm" / "spatial", ArraySpec(shape=(rows, 2), dtype="float64", chunks=(each, 2)), _ARRAY)
    ensure_array(path / "X", ArraySpec(shape=(rows, width), dtype=vector.dtype, chunks=(max(1, min(rows, ROWS)), width)), _ARRAY)


def _fill_table(path: Path, rounds: Sequence[ResultRound], features: Iterator[NDArray[Any]]) -> None:
    arrays = {
        name: zarr.open_array(store=path / name, mode="r+") for name in ("X", "obsm/spatial", "obs/_index", *(f"obs/{one}" for one in _OBS))
    }
    for held, rows, columns in _done(rounds):
        ids = columns[_INSTANCE_KEY]
        if not len(ids):
            continue
        part = slice(int(ids[0]), int(ids[-1]) + 1)
        edges = held.plan.edges_of(rows)
        arrays["obsm/spatial"][part] = (edges[:, [1, 0]] + edges[:, [3, 2]]) / 2
        arrays["obs/_index"][part] = ids.astype(np.dtypes.StringDType())
        for name, values in columns.items():
            arrays[f"obs/{name}"][part] = values
    start = 0
    for values in features:
        arrays["X"][start : start + len(values)] = values
        start += len(values)


def _put(path: Path, values: NDArray[Any], attributes: dict[str, Any]) -> None:
    """A small array of texts."""
    ensure_array(path, ArraySpec(shape=values.shape, dtype="string", chunks=values.shape, fill=""), attributes)
    zarr.open_array(store=path, mode="r+")[...] = values


def _copy_map(view: MapView, path: Path, *, levels: int | None) -> None:
    """The files of its first `levels`, None for all, as they are; only what the group says is put into SpatialData's words."""
    ome = json.loads((view.path / "zarr.json").read_text())["attributes"]["ome"]
    (held,) = ome["multiscales"]
    datasets = held["datasets"][:levels]
    for dataset in datasets:
        folder = Path(dataset["path"]).parent  # with the axes of scenes beside the map
        shutil.copytree(view.path / folder, path / folder)
    axes = [{"name": axis["name"], "type": axis["type"]} for axis in held["axes"]]
    frames, channel = _frames([axis["name"] for axis in axes]), len(axes) - 2
    corner = [shift - (down - 1) / 2 for shift, down in zip(view.translation, view.downsample, strict=True)]  # from centres to edges
    scale = {"type": "scale", "scale": [*[1.0] * channel, *view.downsample], **frames}
    shift = {"type": "translation", "translation": [*[0.0] * channel, *corner], **frames}
    place = {"type": "sequence", "transformations": [scale, shift], **frames}
    multiscale = {"name": held["name"], "axes": axes, "datasets": _on_finest(datasets), "coordinateTransformations": [place]}
    about = {**ome, "version": "0.5-dev-spatialdata", "multiscales": [multiscale]}
    ensure_group(path, {"ome": about, "spatialdata_attrs": {"version": "0.3"}})


def _on_finest(datasets: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every level's place on the finest one, in its pixels, instead of on level 0."""
    places = [{entry["type"]: np.array(entry[entry["type"]]) for entry in dataset["coordinateTransformations"]} for dataset in datasets]
    finest = places[0]
    return [
        {
            "path": dataset["path"],
            "coordinateTransformations": [
                {"type": "scale", "scale": (place["scale"] / finest["scale"]).tolist()},
                {"type": "translation", "translation": ((place["translation"] - finest["translation"]) / finest["scale"]).tolist()},
            ],
        }
        for dataset, place in zip(datasets, places, strict=True)
    ]


def _vector_attributes(kind: str, revision: str) -> dict[str, Any]:
    return {
        "encoding-type": kind,
        "axes": ["x", "y"],
        "spatialdata_attrs": {"version": revision},
        "coordinateTransformations": [{"type": "identity", **_frames(["x", "y"])}],
    }


def _frames(axes: Sequence[str]) -> dict[str, Any]:
    """From an element's own axes to "global"."""
    described = [{"name": "c", "type": "channel"} if axis == "c" else {"name": axis, "type": "space", "unit": "unit"} for axis in axes]
    return {"input": {"name": "".join(axes), "axes": described}, "output": {"name": "global", "axes": described}}
