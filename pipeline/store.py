"""ResultStore: where results land. Layout, rounds, commits, resume.

`<id>.zarr` holds results only: equal results are equal bytes. Beside it `<id>.patchdrive/` holds the run's state (settings, plans,
one record per committed block) and `<id>.done.json`, written last, the report.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import zarr
from numpy.typing import NDArray

from patchdrive.models.types import ModelSpec, OutputSpec
from patchdrive.pipeline import tables
from patchdrive.pipeline.arrays import ensure_group
from patchdrive.pipeline.drive import Outcome
from patchdrive.pipeline.glance import View
from patchdrive.pipeline.journal import Journal, sweep, write_whole
from patchdrive.pipeline.map_arrays import create_map, place_map, write_map
from patchdrive.pipeline.maps import StoredMap, encode, stored_maps
from patchdrive.pipeline.metadata import Frame
from patchdrive.pipeline.plan import Block, Plan, feature_blocks, map_blocks
from patchdrive.pipeline.stitch import Finished, MapPart
from patchdrive.readers import Image
from patchdrive.readers.errors import ModelError, StoreError

SCHEMA = 1
"""Version of the layout; a store of another one is not resumed."""
OWN_IMAGES = ("saliency", "thumbnail")
"""Images that every store has; no model output may take their names."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Round:
    """One plan of a drive, and what of it is not yet committed."""

    index: int
    """0 for the first."""
    plan: Plan
    """Which patches."""
    blocks: tuple[Block, ...]
    """All of them."""
    todo: tuple[Block, ...]
    """Those without a record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What memory decided before the first commit; kept on resume, so that the bytes are the same."""

    batch_size: int
    """Patches per batch."""
    edge: int
    """Side of a map block, target pixels."""


def store_name(image: Image) -> str:
    """`<id>.zarr`: the source's stem and six hex digits of its identity, so that equal names never meet."""
    name = Path(image.source.rstrip("/")).name
    for suffix in (".ome.tiff", ".ome.tif", ".ome.zarr"):
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
            break
    else:
        name = Path(name).stem
    return f"{name}-{image.identity[:6]}.zarr"


class ResultStore:
    """One image's results. Use as a context manager; `open` is the way in."""

    def __init__(self, path: Path, spec: ModelSpec, journal: Journal, *, all_classes: bool) -> None:
        self.path, self._spec, self._journal, self._all_classes = path, spec, journal, all_classes
        self._rounds: list[Round] = []
        self._maps: dict[str, tuple[OutputSpec, tuple[StoredMap, ...]]] = {}

    @classmethod
    def open(cls, path: Path, spec: ModelSpec, facts: Mapping[str, Any], *, overwrite: bool, all_classes: bool) -> Self:
        """Create the store, or take up where an earlier run with the same facts left off.

        Args:
            path: `<id>.zarr`.
            spec: of the model whose outputs are stored.
            facts: everything that decides the answer, as plain JSON: source identity, model digest, settings.
            overwrite: start anew whatever is there.
            all_classes: keep every class probability.

        Raises:
            StoreError: the store holds another run; names the facts that differ. Or it is in use.
        """
        if path.suffix != ".zarr":
            raise StoreError(f"a store's name ends in .zarr, got {path.name}")
        journal = Journal(path.with_suffix(".patchdrive"))
        with ExitStack() as refused:
            refused.callback(journal.close)
            # A run that never began a round holds nothing worth keeping; records without their store are worth nothing.
            begun = (journal.folder / "plans" / "0.json").exists() and (path / "zarr.json").exists()
            if overwrite or not begun:
                _remove(path, journal.folder, anything=overwrite)
            _check_facts(path, journal, {"schema": SCHEMA, **facts})
            sweep(path)
            refused.pop_all()
        store = cls(path, spec, journal, all_classes=all_classes)
        if store.report is None:
            ensure_group(path, {"patchdrive": {"schema": SCHEMA, **facts}})
            for folder in ("images", "labels", "tables"):
                ensure_group(path / folder, {})
        return store

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._journal.close()

    @property
    def report(self) -> dict[str, Any] | None:
        """The finished run's report, or None while there is work left."""
        path = _done_path(self.path)
        report: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
        return report

    def sizes(self) -> Sizes | None:
        """The recorded sizes, or None before the first round."""
        held = self._journal.read("sizes.json")
        return None if held is None else Sizes(**held)

    def put_view(self, view: View) -> None:
        """What was seen of the image before any patch was read: the saliency, and a thumbnail for people."""
        if (self._journal.folder / "plans" / "0.json").exists():
            return  # begun before: what was seen then is what the plan was made of
        self._journal.write("source.json", {"source": view.image.source, "reader": view.image.reader})
        level, cell = view.saliency.level, view.thumbnail_cell
        saliency = OutputSpec(name="saliency", kind="probability", channels=("saliency",), colors=("FFFFFF",))
        self.put_map(saliency, view.saliency.map[None], view.saliency.mask, view.frame(level))
        thumbnail = StoredMap(
            name="thumbnail",
            folder="images",
            channels=("red", "green", "blue"),
            colors=("FF0000", "00FF00", "0000FF"),
            kind="image",
            dtype="uint8",
            fill=None,
            stride=1,
        )
        write_map(self.path, thumbnail, view.frame(level).coarser(cell), view.thumbnail.transpose(2, 0, 1), self._journal)

    def put_outcome(self, outcome: Outcome, view: View) -> None:
        """What a drive returned: fused maps, things found, answers about the whole image."""
        for fused in outcome.maps:
            self.put_map(fused.output, fused.values, fused.valid, view.frame(fused.grid))
        for name, (yx, score) in outcome.objects.items():
            tables.create_objects(self.path / "tables" / f"{self._spec.name}_{name}", yx, score, self._journal)
        if outcome.answers:
            attributes = json.loads((self.path / "zarr.json").read_text())["attributes"]
            ensure_group(self.path, {**attributes, "answers": {name: dict(classes) for name, classes in outcome.answers.items()}})

    def begin_round(self, plan: Plan, frame: Frame, sizes: Sizes) -> Round:
        """Make room for the plan's results, and say which blocks are still to be computed.

        Raises:
            StoreError: an earlier run recorded another plan for this round.
        """
        index, edge = len(self._rounds), sizes.edge
        self._journal.write("sizes.json", {"batch_size": sizes.batch_size, "edge": edge})
        record = self._journal.read(f"plans/{index}.json")
        if record is not None and record["digest"] != plan.digest:
            raise StoreError(
                f"{self.path}: round {index} was planned otherwise before (source, model and settings agree, so the software differs); "
                "start anew with --overwrite"
            )
        blocks = feature_blocks(plan, rows=tables.ROWS) if self._spec.vector else map_blocks(plan, edge=edge, halo=self._spec.halo)
        if record is None:
            self._create_round(index, plan)
        if self._spec.vector is None:
            self._create_maps(frame, edge)
        if record is None:
            self._journal.write(f"plans/{index}.json", {"digest": plan.digest, "rows": len(plan), "blocks": len(blocks)})
        done = self._journal.committed(index)
        round_ = Round(index=index, plan=plan, blocks=blocks, todo=tuple(block for block in blocks if block.index not in done))
        self._rounds.append(round_)
        return round_

    def _create_round(self, index: int, plan: Plan) -> None:
        plans = self._journal.folder / "plans"
        plans.mkdir(exist_ok=True)
        plan.save(plans / f"{index}.npz")
        vector = self._spec.vector
        if vector is not None:
            tables.create_table(self._table(index), plan, vector.channels, vector.dtype, self._journal)

    def _create_maps(self, frame: Frame, edge: int) -> None:
        for output in self._spec.outputs:
            stored = stored_maps(output, all_classes=self._all_classes)
            taken = {*OWN_IMAGES, *(one.name for _, others in self._maps.values() for one in others)}
            if any(one.name in taken for one in stored):
                raise ModelError(f"{self._spec.name}: output {output.name!r} would be stored as one of {sorted(taken)}; rename it")
            self._maps[output.name] = (output, stored)
            for one in stored:
                create_map(self.path, one, frame.coarser(one.stride), edge // one.stride, self._journal)

    def commit(self, finished: Finished) -> None:
        """Make one block permanent: its files first, then its record."""
        round_ = self._rounds[-1]
        block = finished.block
        if finished.features is not None:
            self._place_features(round_, finished)
        for name, part in finished.maps.items():
            output, stored = self._maps[name]
            for one in stored:
                assert block.window is not None
                place_map(self.path, one, block.window, encode(output, part, one), self._journal)
        counts = Counter(drop.state for drop in finished.dropped)
        self._journal.commit(
            round_.index,
            block.index,
            {
                "planned": len(block.owned),
                "skipped": counts["skipped"],
                "failed": counts["failed"],
                "dropped": [[drop.row, drop.state, drop.reason] for drop in finished.dropped],
            },
        )

    def _place_features(self, round_: Round, finished: Finished) -> None:
        vector = self._spec.vector
        assert vector is not None
        assert finished.features is not None
        rows = finished.block.rows
        start = int(rows[0])
        values = np.full((len(rows), len(vector.channels)), np.nan, vector.dtype)
        if len(finished.rows):
            with np.errstate(over="ignore"):
                values[finished.rows - start] = finished.features
            lost = np.isinf(values).any(axis=1)
            if lost.any():
                row = int(rows[np.nonzero(lost)[0][0]])
                raise ModelError(f"{self._spec.name}: a feature of patch {row} does not fit {vector.dtype}; store another dtype")
        self._journal.place(self._table(round_.index) / "X", [((slice(start, start + len(rows)), slice(0, values.shape[1])), values)])

    def features(self, plan: Plan) -> zarr.Array[Any] | None:
        """(n, D) features of the current round, as the store holds them: not read yet, NaN where not computed; None for map models."""
        round_ = self._rounds[-1]
        assert round_.plan is plan
        if self._spec.vector is None:
            return None
        return zarr.open_array(store=self._table(round_.index) / "X", mode="r")

    def put_map(self, output: OutputSpec, values: NDArray[Any], valid: NDArray[np.bool_], frame: Frame) -> None:
        """A map that is there whole, (channel, height, width), on the frame it lies on."""
        for stored in stored_maps(output, all_classes=self._all_classes):
            write_map(self.path, stored, frame, encode(output, MapPart(values=values, valid=valid), stored), self._journal)

    def finish(self, report: Mapping[str, Any]) -> None:
        """Write the rows' states, and last of all the report: the run is done."""
        for round_ in self._rounds:
            if self._spec.vector is not None:
                records = self._journal.committed(round_.index)
                states = tables.states_of(len(round_.plan), round_.blocks, records)
                tables.write_states(self._table(round_.index), states, self._journal)
        self._journal.tidy()
        write_whole(_done_path(self.path), json.dumps(report, indent=1) + "\n")

    def counts(self) -> dict[str, int]:
        """planned, done, skipped, failed over all rounds begun."""
        planned = sum(len(round_.plan) for round_ in self._rounds)
        records = [record for round_ in self._rounds for record in self._journal.committed(round_.index).values()]
        skipped, failed = (sum(record[state] for record in records) for state in ("skipped", "failed"))
        committed = sum(record["planned"] for record in records)
        return {"planned": planned, "done": committed - skipped - failed, "skipped": skipped, "failed": failed}

    def reasons(self) -> Counter[str]:
        """How often each reason dropped a row."""
        records = [record for round_ in self._rounds for record in self._journal.committed(round_.index).values()]
        return Counter(f"{state}: {reason}" for record in records for _, state, reason in record["dropped"])

    def _table(self, index: int) -> Path:
        return self.path / "tables" / f"{self._spec.name}_round{index}"


def _done_path(path: Path) -> Path:
    return path.with_suffix(".done.json")


def _remove(path: Path, state: Path, *, anything: bool) -> None:
    """Start anew: drop what an earlier run left, or `anything`.

    In this order, so that a kill at any point leaves what the next start drops too: the report, the plan, the store, its facts last.
    """
    if not (anything or (state / "run.json").exists()):
        return
    _done_path(path).unlink(missing_ok=True)
    (state / "plans" / "0.json").unlink(missing_ok=True)
    if path.exists():
        shutil.rmtree(path)
    for entry in sorted(state.iterdir(), key=lambda entry: entry.name == "run.json"):
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != "lease":
            entry.unlink()


def _check_facts(path: Path, journal: Journal, facts: dict[str, Any]) -> None:
    """Record the facts of a new run; refuse to mix them with another's."""
    known = journal.read("run.json")
    if known is None:
        if path.exists() and any(path.iterdir()):
            raise StoreError(f"{path} is there but its state {journal.folder.name} is not; move it away, or start anew with --overwrite")
        _done_path(path).unlink(missing_ok=True)  # of a store that is no longer there
        journal.write("run.json", facts)
        return
    differing = _differences(known, json.loads(json.dumps(facts)))
    if differing:
        raise StoreError(f"{path} holds another run: {'; '.join(differing)}. Write elsewhere with -o, or start anew with --overwrite.")


def _differences(known: Mapping[str, Any], asked: Mapping[str, Any], prefix: str = "") -> Sequence[str]:
    found: list[str] = []
    for key in sorted(known.keys() | asked.keys()):
        one, other = known.get(key), asked.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            found += _differences(one, other, f"{prefix}{key}.")
        elif json.dumps(one, sort_keys=True) != json.dumps(other, sort_keys=True):
            found.append(f"{prefix}{key} was {json.dumps(one)}, now {json.dumps(other)}")
    return found
