"""open_result(): what a run left, ready for numpy. Opening reads a few JSON files; everything else is read when it is asked for."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS

from patchdrive.models.types import ModelSpec
from patchdrive.pipeline.map_view import MapView, open_map
from patchdrive.pipeline.maps import StoredMap
from patchdrive.pipeline.paint import painted_maps
from patchdrive.pipeline.plan import Plan, feature_blocks, map_blocks
from patchdrive.pipeline.store import OWN_IMAGES, SCHEMA
from patchdrive.pipeline.tables import ROWS, STATES, FoundBoxes, FoundObjects, states_of
from patchdrive.readers.errors import StoreError

_BROUGHT = "influence_"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ResultRound:
    """One round: its plan, and what became of it."""

    plan: Plan
    """Which patches."""
    codes: NDArray[np.int8]
    """(n,) index into `patchdrive.pipeline.tables.STATES`."""
    reasons: Mapping[str, int]
    """Why rows were skipped or failed, with how often."""
    attention: NDArray[np.float32] | None = None
    """(n,) how much a drive's answers attend to each patch, NaN where it was not kept; None before its end, or without a drive."""
    influence: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """By answer, (n,) how much of the probability of its likeliest class each patch brings; NaN where that was not tried."""

    @property
    def worth(self) -> NDArray[np.float32]:
        """(n,) what patches are ranked by: attention, -1 where there is none, or else the score."""
        return self.plan.score if self.attention is None else np.nan_to_num(self.attention, nan=-1.0)

    @property
    def done(self) -> NDArray[np.bool_]:
        """(n,) True where the model's answer is in the store."""
        return np.asarray(self.codes == STATES.index("done"))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Patches:
    """The patches of all rounds, one after the other, row for row those of `Result.features`."""

    y: NDArray[np.int64]
    """(n,) first rows, target pixels."""
    x: NDArray[np.int64]
    """(n,) first columns, target pixels."""
    side: NDArray[np.int64]
    """(n,) rows, and columns, target pixels."""
    centres: NDArray[np.float64]
    """(n, 2) level-0 pixels, (y, x)."""
    score: NDArray[np.float32]
    """(n,) mean saliency, or what the drive gave."""
    rank: NDArray[np.int64]
    """(n,) 0 for the patch that was chosen first in its round."""
    round: NDArray[np.int64]
    """(n,) index of its round."""
    state: NDArray[np.str_]
    """(n,) planned, done, skipped or failed."""

    def __len__(self) -> int:
        return len(self.y)


class Result:
    """One store, read only. See `open_result`."""

    def __init__(
        self, path: Path, facts: Mapping[str, Any], answers: Mapping[str, Mapping[str, float]], audit: Mapping[str, Any] | None
    ) -> None:
        self.path, self.facts, self.answers, self.audit = path, facts, answers, audit

    @property
    def report(self) -> dict[str, Any] | None:
        """What the run told when it ended; None while it is partial."""
        path = self.path.with_suffix(".done.json")
        report: dict[str, Any] | None = json.loads(path.read_text()) if path.is_file() else None
        return report

    @cached_property
    def spec(self) -> ModelSpec:
        """Of the model, or of a driving model's patch encoder."""
        return ModelSpec.from_dict(self.facts["model"]["spec"])

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the image's level 0."""
        return int(self.facts["source"]["height"]), int(self.facts["source"]["width"])

    @property
    def mpp(self) -> tuple[float, float] | None:
        """Micrometres per level-0 pixel, (y, x)."""
        held = self.facts["source"]["mpp"]
        return None if held is None else (float(held[0]), float(held[1]))

    @property
    def transform(self) -> Affine | None:
        """Level-0 pixel (column, row; edges) to world, for scenes."""
        (down, across), held = self.saliency.downsample, self.saliency.transform
        return None if held is None else held @ Affine.scale(1 / across, 1 / down)

    @property
    def crs(self) -> CRS | None:
        """World frame of `transform`."""
        return self.saliency.crs

    @property
    def state_folder(self) -> Path:
        """`<id>.patchdrive`, beside the store: plans and commits."""
        return self.path.with_suffix(".patchdrive")

    @property
    def source(self) -> tuple[str, str] | None:
        """(path or URL, reader) of the image, as the run opened it; None without the run's state beside the store."""
        path = self.state_folder / "source.json"
        if not path.exists():
            return None
        held = json.loads(path.read_text())
        return held["source"], held["reader"]

    @cached_property
    def rounds(self) -> tuple[ResultRound, ...]:
        """Plans and states, in order.

        Raises:
            StoreError: the store was moved without its state.
        """
        folder = self.state_folder
        if not folder.is_dir():
            raise StoreError(f"{self.path.name} has no {folder.name} beside it, which holds its plans; keep the two together")
        paths = sorted((folder / "plans").glob("*.json"), key=lambda path: int(path.stem))
        return tuple(self._round(index, Plan.load(path.with_suffix(".npz"))) for index, path in enumerate(paths))

    def _round(self, index: int, plan: Plan) -> ResultRound:
        folder = self.state_folder
        commits = sorted((folder / "commits" / str(index)).glob("*.json"))
        records = {int(path.stem): json.loads(path.read_text()) for path in commits}
        if self.spec.vectors:
            blocks = feature_blocks(plan, rows=ROWS)
        else:
            blocks = map_blocks(plan, edge=json.loads((folder / "sizes.json").read_text())["edge"], halo=self.spec.halo)
        tables = [path / "obs" for path in self._round_tables(self.spec.name)[index : index + 1]]
        columns = {
            path.name: path for obs in tables for path in obs.iterdir() if path.name == "attention" or path.name.startswith(_BROUGHT)
        }
        known = {name: np.asarray(zarr.open_array(store=path, mode="r")[:]) for name, path in columns.items()}
        dropped = Counter(f"{state}: {reason}" for record in records.values() for _, state, reason in record["dropped"])
        return ResultRound(
            plan=plan,
            codes=states_of(len(plan), blocks, records),
            reasons=dict(sorted(dropped.items())),
            attention=known.pop("attention", None),
            influence={name.removeprefix(_BROUGHT): values for name, values in sorted(known.items())},
        )

    @cached_property
    def patches(self) -> Patches:
        """The patches of all rounds.

        Raises:
            StoreError: the store was moved without its state.
        """
        plans, codes = [held.plan for held in self.rounds], [held.codes for held in self.rounds]
        rows = [len(plan) for plan in plans]
        return Patches(
            y=_joined([plan.y for plan in plans], np.int64),
            x=_joined([plan.x for plan in plans], np.int64),
            side=np.repeat(np.array([plan.side for plan in plans], np.int64), rows),
            centres=_joined([plan.centres for plan in plans], np.float64).reshape(-1, 2),
            score=_joined([plan.score for plan in plans], np.float32),
            rank=_joined([plan.rank for plan in plans], np.int64),
            round=np.repeat(np.arange(len(plans)), rows),
            state=np.array(STATES)[_joined(codes, np.int8)],
        )

    @cached_property
    def tables(self) -> Mapping[str, tuple[zarr.Array[Any], ...]]:
        """By the name of the model that made them, (n, D) per round, unread; NaN where not computed. Empty for models that make maps."""
        return {name: self._arrays(name) for name in self.spec.features}

    def _arrays(self, name: str) -> tuple[zarr.Array[Any], ...]:
        return tuple(zarr.open_array(store=path / "X", mode="r") for path in self._round_tables(name))

    def _round_tables(self, name: str) -> list[Path]:
        rounds = {int(found[1]): path for path in (self.path / "tables").glob("*_round*") if (found := _round_of(path, name))}
        return [rounds[index] for index in sorted(rounds)]

    @property
    def features(self) -> NDArray[Any] | None:
        """`features_of` the only, or the first, of `tables`; None for models that make maps, or where no round was begun."""
        first = next((name for name, arrays in self.tables.items() if arrays), None)
        return None if first is None else self.features_of(first)

    def features_of(self, name: str) -> NDArray[Any]:
        """(n, D) of all rounds of one of `tables` in the stored dtype, rows as in `patches`, NaN where not computed. Reads them all.

        Raises:
            StoreError: there is no such table.
        """
        arrays = self.tables.get(name, ())
        if not arrays:
            held = [one for one, found in self.tables.items() if found]
            raise StoreError(f"{self.path.name} has no features of {name!r}; it has those of {held or 'nobody'}")
        return np.concatenate([np.asarray(array[:]) for array in arrays])

    @cached_property
    def maps(self) -> Mapping[str, MapView]:
        """What the model made, by name; nothing is read yet."""
        paths = [path for folder in ("labels", "images") for path in sorted((self.path / folder).iterdir()) if path.is_dir()]
        left_out = {*OWN_IMAGES, *self._painted}
        return {path.name: self._open(path) for path in paths if path.name not in left_out}

    @cached_property
    def painted(self) -> Mapping[str, MapView]:
        """Maps of one pixel per patch: `scores`, and each table's features as three colours. Empty before the patches are all done."""
        if self.report is None:
            return {}
        paths = [self.path / one.path for one in self._painted.values() if one.folder == "images"]
        return {path.name: self._open(path) for path in paths if path.is_dir()}

    @property
    def _painted(self) -> Mapping[str, StoredMap]:
        return {one.name: one for one in painted_maps(list(self.spec.features))}

    @cached_property
    def saliency(self) -> MapView:
        """Where it was worth looking, in [0, 1]."""
        return self._open(self.path / "images" / "saliency")

    @cached_property
    def thumbnail_map(self) -> MapView:
        """The thumbnail with its place on the image."""
        return self._open(self.path / "images" / "thumbnail")

    @property
    def thumbnail(self) -> NDArray[np.uint8]:
        """(height, width, 3), at most 1024 a side."""
        return np.ascontiguousarray(np.asarray(self.thumbnail_map.array[:]).transpose(1, 2, 0))

    @cached_property
    def attention(self) -> NDArray[np.float32] | None:
        """(n,) how much a drive's answers attend to each patch, rows as in `patches`, NaN where it was not kept; None without a drive."""
        held = [held.attention for held in self.rounds]
        return None if not held or any(one is None for one in held) else np.concatenate([one for one in held if one is not None])

    @cached_property
    def embedding(self) -> NDArray[np.float32] | None:
        """(D,) the image as a whole, where the model says it as a vector."""
        path = self.path / "tables" / f"{self.spec.name}_image" / "X"
        return np.asarray(zarr.open_array(store=path, mode="r")[0]) if path.is_dir() else None

    @cached_property
    def objects(self) -> Mapping[str, FoundObjects]:
        """Things found, by name."""
        prefix = f"{self.spec.name}_"
        paths = sorted(
            path
            for path in (self.path / "tables").glob(f"{prefix}*")
            if (path / "obs" / "score").exists() and not (path / "obs" / "rank").exists() and (path / "X" / "zarr.json").exists()
        )
        return {path.name.removeprefix(prefix): _objects(path) for path in paths}

    def _open(self, path: Path) -> MapView:
        return open_map(path, pixel_size=self.mpp or (1.0, 1.0))


def open_result(store: Path | str) -> Result:
    """Open what a run left, finished or not. Reads a few kilobytes.

    Args:
        store: `<id>.zarr`.

    Raises:
        StoreError: it is not a store of ours, or one of another layout.
    """
    path = Path(store)
    metadata = path / "zarr.json"
    if not metadata.is_file():
        what = "no Zarr group" if path.exists() else "not there"
        raise StoreError(f"{path} is {what}; a store is the <id>.zarr folder that `patchdrive run -o OUT` leaves in OUT")
    attributes = json.loads(metadata.read_text()).get("attributes", {})
    if "patchdrive" not in attributes:
        raise StoreError(f"{path} is a Zarr group, but no patchdrive store; images are opened with patchdrive.readers.open_image")
    facts = attributes["patchdrive"]
    if facts["schema"] != SCHEMA:
        raise StoreError(
            f"{path} has layout {facts['schema']}, this version reads {SCHEMA}; open it with the version that wrote it, or run again"
        )
    return Result(path, facts, attributes.get("answers", {}), attributes.get("audit"))


def _round_of(path: Path, name: str) -> re.Match[str] | None:
    return re.fullmatch(rf"{re.escape(name)}_round(\d+)", path.name)


def _objects(path: Path) -> FoundObjects:
    spatial, score = (np.asarray(zarr.open_array(store=path / name, mode="r")[:]) for name in ("obsm/spatial", "obs/score"))
    boxes = None
    if (path / "obs" / "class").is_dir():
        names = ("obs/height", "obs/width", "obs/class/codes", "obs/class/categories")
        height, width, kind, classes = (np.asarray(zarr.open_array(store=path / name, mode="r")[:]) for name in names)
        boxes = FoundBoxes(size=np.stack([height, width], axis=1), kind=kind, classes=tuple(classes.tolist()))
    return FoundObjects(yx=spatial[:, ::-1].astype(np.float64), score=score.astype(np.float32), boxes=boxes)


def _joined(parts: Sequence[NDArray[Any]], dtype: type[np.generic]) -> NDArray[Any]:
    return np.concatenate(parts) if parts else np.zeros(0, dtype)
