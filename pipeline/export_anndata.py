"""Export for scanpy, squidpy and all that reads AnnData: a feature table as one .h5ad (on-disk format 0.1.0) of the rows that are done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from patchdrive.pipeline.export_slides import new_h5
from patchdrive.pipeline.export_tables import done_features, slide_name
from patchdrive.pipeline.result import Result
from patchdrive.pipeline.tables import ROWS
from patchdrive.readers.errors import StoreError

_ARRAY = {"encoding-type": "array", "encoding-version": "0.2.0"}
_STRINGS = {"encoding-type": "string-array", "encoding-version": "0.2.0"}
_DICT = {"encoding-type": "dict", "encoding-version": "0.1.0"}


def to_anndata(result: Result, out: Path) -> list[Path]:
    """`<slide>_<table>.h5ad`: X as stored; `obs` with y, x (target pixels), score, rank, round; `obsm/spatial` centres, level-0 (x, y).

    Names of rows are `<round>_<row>`, of the plan.

    Raises:
        StoreError: the store holds maps.
    """
    if not result.spec.features:
        raise StoreError(f"{result.path.name} holds no features (but maps, or boxes), which this form is for; export it --to another form")
    rounds, written = result.rounds, []
    done = [held.done for held in rounds]
    columns: dict[str, NDArray[Any]] = {
        name: np.concatenate([getattr(held.plan, name)[kept] for held, kept in zip(rounds, done, strict=True)])
        for name in ("y", "x", "score", "rank")
    }
    columns["round"] = np.concatenate([np.full(int(kept.sum()), index) for index, kept in enumerate(done)])
    names = [f"{index}_{row}" for index, kept in enumerate(done) for row in np.flatnonzero(kept).tolist()]
    spatial = np.concatenate([held.plan.centres[kept] for held, kept in zip(rounds, done, strict=True)])[:, ::-1]
    for table, vector in result.spec.features.items():
        path = out / f"{slide_name(result)}_{table}.h5ad"
        with new_h5(path) as file:
            file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
            shape = (len(names), len(vector.channels))
            chunks = (min(ROWS, len(names)), shape[1]) if names else None
            stored = file.create_dataset("X", shape=shape, dtype=vector.dtype, chunks=chunks)
            stored.attrs.update(_ARRAY)
            start = 0
            for part in done_features(tuple(zip(rounds, result.tables[table], strict=True))):
                stored[start : start + len(part)] = part
                start += len(part)
            _frame(file.create_group("obs"), names, columns)
            _frame(file.create_group("var"), list(vector.channels), {})
            for group in ("layers", "obsm", "obsp", "uns", "varm", "varp"):
                file.create_group(group).attrs.update(_DICT)
            file.create_dataset("obsm/spatial", data=spatial).attrs.update(_ARRAY)
            _provenance(file["uns"], result)
        written.append(path)
    return written


def _frame(group: h5py.Group, names: list[str], columns: dict[str, NDArray[Any]]) -> None:
    order = np.array(list(columns), dtype=h5py.string_dtype())
    group.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index", "column-order": order})
    group.create_dataset("_index", data=np.array(names, dtype=object), dtype=h5py.string_dtype()).attrs.update(_STRINGS)
    for name, values in columns.items():
        group.create_dataset(name, data=values).attrs.update(_ARRAY)


def _provenance(group: h5py.Group, result: Result) -> None:
    """Whose features these are."""
    facts = {"model": result.facts["model"]["digest"], "source": result.facts["source"]["identity"]}
    held = group.create_group("patchdrive")
    held.attrs.update(_DICT)
    for name, value in facts.items():
        held.create_dataset(name, data=value, dtype=h5py.string_dtype()).attrs.update(
            {"encoding-type": "string", "encoding-version": "0.2.0"}
        )
