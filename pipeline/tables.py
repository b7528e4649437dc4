"""Feature tables in AnnData's published on-disk format (encoding 0.1.0), so that anndata and scanpy open them by themselves.

X                (n, D)   features, one row per patch; NaN where the patch was not computed
obs              y, x     corner on the target grid; score, rank; state (planned, done, skipped, failed)
obsm/spatial     (n, 2)   patch centres, level-0 pixels, (x, y) as that format has it
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchdrive.pipeline.arrays import ArraySpec, ensure_array, ensure_filled, ensure_group
from patchdrive.pipeline.journal import Journal
from patchdrive.pipeline.plan import Block, Plan

ROWS = 1024
"""Rows of a feature block, and of a chunk of X."""
STATES = ("planned", "done", "skipped", "failed")
_COLUMN_CHUNK = 1 << 20
"""Rows of a chunk of obs."""
_NAME_CHUNK = 1 << 17
"""Rows of a chunk of names, and the least that are made at a time: texts take 150 bytes each while they are encoded."""
_SPATIAL_CHUNK, _MOST_CHUNKS = 1024, 1024
"""Rows of a chunk of obsm, as long as that makes no more chunks than this: each is a file, made safe by itself."""
_TABLE = {
    "encoding-type": "anndata",
    "encoding-version": "0.1.0",
    "spatialdata-encoding-type": "ngff:regions_table",
    "version": "0.2",
    "region": None,
    "region_key": None,
    "instance_key": None,
}
"""spatialdata reads no table without a version; of `region`, that it annotates no shapes, for there are none in the store."""
_ARRAY = {"encoding-type": "array", "encoding-version": "0.2.0"}
_STRINGS = {"encoding-type": "string-array", "encoding-version": "0.2.0"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FoundBoxes:
    """What is known of things found as boxes, beyond centres and scores."""

    size: NDArray[np.float64]
    """(n, 2) height and width, level-0 pixels."""
    kind: NDArray[np.int8]
    """(n,) index into `classes`."""
    classes: tuple[str, ...]
    """Names, at most 127."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FoundObjects:
    """Things a model found."""

    yx: NDArray[np.float64]
    """(n, 2) centres, level-0 pixels, (y, x)."""
    score: NDArray[np.float32]
    """(n,) in [0, 1]."""
    boxes: FoundBoxes | None = None
    """Sizes and classes, where a detection head found them."""

    def __len__(self) -> int:
        return len(self.score)

    @property
    def corners(self) -> NDArray[np.float64]:
        """(n, 4) y, x, bottom and right edges, level-0 pixels; of things without a size their centres twice."""
        half = np.zeros_like(self.yx) if self.boxes is None else self.boxes.size / 2
        return np.concatenate([self.yx - half, self.yx + half], axis=1)


def create_table(path: Path, plan: Plan, columns: Sequence[str], dtype: str, journal: Journal) -> None:
    """A table of one row per patch of the plan; X and state are filled later.

    Args:
        path: of the table's group.
        plan: whose rows it has.
        columns: names of X's columns.
        dtype: of X, a float.
        journal: through which it is written.
    """
    obs: dict[str, NDArray[Any]] = {"y": plan.y, "x": plan.x, "score": plan.score, "rank": plan.rank}

    def spatial(rows: slice) -> NDArray[np.float64]:
        return plan.centres_of(rows)[:, ::-1]

    _create_frame(path, len(plan), obs=obs, order=(*obs, "state"), columns=columns, spatial=spatial, journal=journal)
    _categories(path / "obs" / "state", len(plan), STATES, journal)
    spec = ArraySpec(shape=(len(plan), len(columns)), dtype=dtype, chunks=(ROWS, len(columns)), fill=float("nan"))
    ensure_array(path / "X", spec, _ARRAY, journal)


def create_objects(path: Path, found: FoundObjects, journal: Journal) -> None:
    """A table of things found: `obsm/spatial` their centres, level-0 pixels (x, y); `obs/score`; X the score once more.

    Of boxes `obs/height`, `obs/width` and `obs/class` too.
    """
    scores, yx, boxes = found.score.astype(np.float32), found.yx.astype(np.float64), found.boxes
    obs: dict[str, NDArray[Any]] = {"score": scores}
    if boxes is not None:
        obs |= {"height": boxes.size[:, 0], "width": boxes.size[:, 1]}
        _categories(path / "obs" / "class", len(scores), boxes.classes, journal)
        if len(scores):
            journal.place(path / "obs" / "class" / "codes", [((slice(0, len(scores)),), boxes.kind)])
    order = [*obs, *(() if boxes is None else ("class",))]

    def spatial(rows: slice) -> NDArray[np.float64]:
        return yx[rows, ::-1]

    _create_frame(path, len(scores), obs=obs, order=order, columns=("score",), spatial=spatial, journal=journal)
    ensure_filled(path / "X", scores[:, None], journal, attributes=_ARRAY)


def add_columns(path: Path, columns: Mapping[str, NDArray[Any]], journal: Journal) -> None:
    """More columns of a table's obs, (rows,) each, all told of at once; added again they are the same."""
    for name, values in columns.items():
        ensure_filled(path / "obs" / name, values, journal, attributes=_ARRAY)
    attributes = json.loads((path / "obs" / "zarr.json").read_text())["attributes"]
    order = attributes["column-order"]
    ensure_group(path / "obs", {**attributes, "column-order": [*order, *(name for name in columns if name not in order)]}, journal)


def create_vector(path: Path, vector: NDArray[np.float32], journal: Journal) -> None:
    """A table of one row for the image as a whole: X (1, D)."""
    ensure_group(path, _TABLE, journal)
    _create_folders(path, order=(), columns=[f"f{index}" for index in range(len(vector))], journal=journal)
    ensure_filled(path / "obs" / "_index", np.array(["image"], dtype=object), journal, attributes=_STRINGS)
    ensure_filled(path / "X", vector[None], journal, attributes=_ARRAY)


def states_of(rows: int, blocks: Sequence[Block], records: Mapping[int, Mapping[str, Any]]) -> NDArray[np.int8]:
    """(rows,) index into `STATES` of every row of a plan, from the records of its committed blocks."""
    states = np.zeros(rows, np.int8)
    for block in blocks:
        if block.index in records:
            states[block.owned] = STATES.index("done")
    for record in records.values():
        for row, state, _ in record["dropped"]:
            states[row] = STATES.index(state)
    return states


def write_states(path: Path, states: NDArray[np.int8], journal: Journal) -> None:
    """The state of every row, as codes into `STATES`."""
    if len(states):
        journal.place(path / "obs" / "state" / "codes", [((slice(0, len(states)),), states)])


def _create_frame(
    path: Path,
    rows: int,
    *,
    obs: Mapping[str, NDArray[Any]],
    order: Sequence[str],
    columns: Sequence[str],
    spatial: Callable[[slice], NDArray[np.float64]],
    journal: Journal,
) -> None:
    ensure_group(path, _TABLE, journal)
    _create_folders(path, order=order, columns=columns, journal=journal)
    column = max(1, min(rows, _COLUMN_CHUNK))
    _fill(
        path / "obs" / "_index",
        ArraySpec(shape=(rows,), dtype="string", chunks=(max(1, min(rows, _NAME_CHUNK)),), fill=""),
        _STRINGS,
        _names,
        journal,
    )
    for name, values in obs.items():
        spec = ArraySpec(shape=(rows,), dtype=values.dtype.name, chunks=(column,))
        _fill(path / "obs" / name, spec, _ARRAY, values.__getitem__, journal)
    spec = ArraySpec(shape=(rows, 2), dtype="float64", chunks=(_spatial_chunk(rows), 2))
    _fill(path / "obsm" / "spatial", spec, _ARRAY, spatial, journal)


def _create_folders(path: Path, *, order: Sequence[str], columns: Sequence[str], journal: Journal) -> None:
    """What every AnnData group has: its folders, obs with columns to come in this order, var with the names of X's columns."""
    for name in ("layers", "obsm", "obsp", "varm", "varp", "uns"):
        ensure_group(path / name, {"encoding-type": "dict", "encoding-version": "0.1.0"}, journal)
    frame = {"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index"}
    ensure_group(path / "obs", {**frame, "column-order": list(order)}, journal)
    ensure_group(path / "var", {**frame, "column-order": []}, journal)
    ensure_filled(path / "var" / "_index", np.array(columns, dtype=object), journal, attributes=_STRINGS)


def _names(rows: slice) -> NDArray[Any]:
    """Row numbers as text, 16 bytes each: an object array has a Python string for each."""
    return np.arange(rows.start, rows.stop).astype(np.dtypes.StringDType())


def _spatial_chunk(rows: int) -> int:
    chunk = _SPATIAL_CHUNK
    while chunk * _MOST_CHUNKS < rows:
        chunk *= 2
    return max(1, min(rows, chunk))


def _fill(path: Path, spec: ArraySpec, attributes: dict[str, Any], make: Callable[[slice], NDArray[Any]], journal: Journal) -> None:
    """An array that is written once, whole, from rows that are made some chunks at a time."""
    ensure_array(path, spec, attributes, journal)
    total, step = spec.shape[0], max(spec.chunks[0], _NAME_CHUNK)

    def parts() -> Iterator[tuple[tuple[slice, ...], NDArray[Any]]]:
        for start in range(0, total, step):
            rows = slice(start, min(start + step, total))
            yield (rows, *(slice(0, extent) for extent in spec.shape[1:])), make(rows)

    if total:
        journal.place(path, parts())


def _categories(path: Path, rows: int, names: Sequence[str], journal: Journal) -> None:
    ensure_group(path, {"encoding-type": "categorical", "encoding-version": "0.2.0", "ordered": False}, journal)
    ensure_filled(path / "categories", np.array(names, dtype=object), journal, attributes=_STRINGS)
    codes = ArraySpec(shape=(rows,), dtype="int8", chunks=(max(1, min(rows, _COLUMN_CHUNK)),))
    ensure_array(path / "codes", codes, _ARRAY, journal)
