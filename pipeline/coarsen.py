"""What is made of results that are all there: maps painted from patches, and the coarser levels of every map. A band at a time.

A band is computed from nothing but the finer level, or the tables, so whoever builds it places the same bytes. Each has a record beside
the store, `coarse/<folder>/<name>/<level>-<band>.json`, with the SHA-256 of its files: a kill costs the band in hand.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from patchdrive.pipeline.journal import Journal
from patchdrive.pipeline.map_arrays import COARSE, create_map
from patchdrive.pipeline.paint import Painting, painted_maps
from patchdrive.pipeline.pyramid import Reduction, halve

_ROWS = 256
"""Rows of the coarser level that are made at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """Some rows of one level of a map, over its whole width."""

    map: str
    """Path of the map's group in the store, `images/<name>`."""
    level: int
    """1 for the first that is made from another; 0 of maps that are painted."""
    index: int
    """0 for the uppermost."""

    @property
    def record(self) -> str:
        """Where its record lies in the run's state."""
        return f"coarse/{self.map}/{self.level}-{self.index:05d}.json"

    @property
    def array(self) -> str:
        """Path of its level's array in the store."""
        return f"{self.map}/{self.level}/map"


def bands_of(store: Path, tables: Sequence[str]) -> list[Band]:
    """Every band of every map of a store, in an order in which each finds what it is made from.

    Args:
        store: `<id>.zarr`.
        tables: names of its feature tables.
    """
    bands, painted = [], {one.name for one in painted_maps(tables)}
    for folder in ("labels", "images"):  # the validity of an image lies in labels
        for group in sorted((store / folder).glob("*/zarr.json")):
            levels = _multiscale(group.parent)["datasets"]
            for level in range(0 if group.parent.name in painted else 1, len(levels)):
                height = _height(group.parent / str(level) / "map")
                path = f"{folder}/{group.parent.name}"
                bands += [Band(map=path, level=level, index=index) for index in range(-(-height // COARSE))]
    return bands


def create_painted(store: Path, painting: Painting, journal: Journal) -> None:
    """Make room for the maps that `coarsen` paints."""
    for stored in painted_maps(list(painting.tables)):
        create_map(store, stored, painting.frame, COARSE, journal)


def coarsen(store: Path, journal: Journal, painting: Painting | None, wants_stop: Callable[[], bool]) -> bool:
    """Build the bands that have no record. Several processes may: each band is one's.

    Args:
        store: `<id>.zarr`.
        journal: of the store.
        painting: what maps are painted from; None where there are no tables.
        wants_stop: asked before each band.

    Returns:
        Whether all are built; False where a stop was wished for before.

    Raises:
        StoreWriteError: the store cannot be written.
        StoreInUseError: another process took our work over.
    """
    painted = {} if painting is None else {stored.path: stored for stored in painted_maps(list(painting.tables))}
    for band in bands_of(store, [] if painting is None else list(painting.tables)):
        if wants_stop():
            return False
        with journal.door():
            if journal.read(band.record) is not None:
                continue
            if band.level == 0:
                assert painting is not None
                parts = painting.parts(painted[band.map], band.index * COARSE, COARSE)
            else:
                parts = _squares(store, band)
            journal.write(band.record, {"files": journal.place(store / band.array, parts)})
    return True


def _squares(store: Path, band: Band) -> Iterator[tuple[tuple[slice, ...], NDArray[Any]]]:
    """Where each shard of the band lies, and what it holds."""
    group = store / band.map
    coarse, fine = (zarr.open_array(store=group / str(level) / "map", mode="r") for level in (band.level, band.level - 1))
    validity = store / "labels" / f"{group.name}_valid" / str(band.level - 1) / "map"
    valid = zarr.open_array(store=validity, mode="r") if band.map.startswith("images/") and validity.is_dir() else None
    reduction, none = _multiscale(group)["type"], coarse.fill_value if "_FillValue" in coarse.attrs else None
    top, (height, width) = band.index * COARSE, coarse.shape[-2:]
    channels = [()] if coarse.ndim == 2 else [(slice(channel, channel + 1),) for channel in range(coarse.shape[0])]
    for left in range(0, width, COARSE):
        area = (slice(top, min(top + COARSE, height)), slice(left, min(left + COARSE, width)))
        for channel in channels:
            yield (*channel, *area), _square(fine, valid, (*channel, *area), reduction, none)


def _square(fine: Any, valid: Any, place: tuple[slice, ...], reduction: Reduction, none: float | None) -> NDArray[Any]:
    """One shard of a coarser level, some rows at a time."""
    *channel, rows, columns = place
    square = np.empty((*(1 for _ in channel), rows.stop - rows.start, columns.stop - columns.start), fine.dtype)
    across = slice(2 * columns.start, 2 * columns.stop)
    edges = [*range(rows.start, rows.stop, _ROWS), rows.stop]
    for begin, end in pairwise(edges):
        down = slice(2 * begin, 2 * end)
        known = None if valid is None else np.asarray(valid[down, across]) == 1
        halved = halve(np.asarray(fine[(*channel, down, across)]), reduction, none=none, valid=known)
        square[..., begin - rows.start : end - rows.start, :] = halved
    return square


def _multiscale(group: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((group / "zarr.json").read_text())["attributes"]["ome"]["multiscales"][0]
    return found


def _height(array: Path) -> int:
    return int(json.loads((array / "zarr.json").read_text())["shape"][-2])
