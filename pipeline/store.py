"""ResultStore: where results land. Layout, rounds, commits, resume.

`<id>.zarr` holds results only: equal results are equal bytes. Beside it `<id>.patchdrive/` holds the run's state (settings, plans,
one record per committed block) and `<id>.done.json`, written last, the report.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import zarr
from numpy.typing import NDArray

from patchdrive.models.types import ModelSpec, OutputSpec
from patchdrive.pipeline import tables
from patchdrive.pipeline.arrays import ensure_group
from patchdrive.pipeline.coarsen import bands_of
from patchdrive.pipeline.derive import draw_maps, painting_of, write_things
from patchdrive.pipeline.drive import Outcome
from patchdrive.pipeline.facts import begun, check_facts, done_path, remove_run
from patchdrive.pipeline.glance import View
from patchdrive.pipeline.journal import Journal, StoreInUseError, digest_of
from patchdrive.pipeline.lease import PACE, Pace
from patchdrive.pipeline.map_arrays import create_map, place_map, write_map
from patchdrive.pipeline.maps import StoredMap, encode, stored_maps
from patchdrive.pipeline.metadata import Frame
from patchdrive.pipeline.paint import SCORES
from patchdrive.pipeline.plan import Block, Layout, Plan, feature_blocks, map_blocks
from patchdrive.pipeline.provenance import provenance
from patchdrive.pipeline.shard import WHOLE, Shard
from patchdrive.pipeline.stitch import Finished, MapPart
from patchdrive.readers import Image
from patchdrive.readers.errors import ModelError, StoreError

SCHEMA = 1
"""Version of the layout; a store of another one is not resumed."""
OWN_IMAGES = ("saliency", "thumbnail", SCORES.name)
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
    """Those of our shard without a record."""


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
    def open(
        cls,
        path: Path,
        spec: ModelSpec,
        facts: Mapping[str, Any],
        *,
        overwrite: bool,
        all_classes: bool,
        shard: Shard = WHOLE,
        pace: Pace = PACE,
    ) -> Self:
        """Create the store, or take up where an earlier run with the same facts left off.

        Of several processes that open a new store, the first stands in its door until it has begun the first round.

        Args:
            path: `<id>.zarr`.
            spec: of the model whose outputs are stored.
            facts: everything that decides the answer, as plain JSON: source identity, model digest, settings.
            overwrite: start anew whatever is there.
            all_classes: keep every class probability.
            shard: which part of the blocks is ours, where several processes compute one image.
            pace: of the lease.

        Raises:
            StoreError: the store holds another run; names the facts that differ.
            StoreInUseError: another process does our part, or works on the store in a way that does not go with it.
        """
        if path.suffix != ".zarr":
            raise StoreError(f"a store's name ends in .zarr, got {path.name}")
        journal = Journal(path.with_suffix(".patchdrive"), shard=shard, pace=pace)
        with ExitStack() as refused:
            refused.callback(journal.close)
            if overwrite or not begun(journal):
                if journal.others():
                    raise StoreInUseError(f"{path} cannot be started anew while other shards of it are at work; wait for them, or end them")
                remove_run(journal, anything=overwrite)
            check_facts(journal, {"schema": SCHEMA, **facts})
            if not done_path(path).exists() and not journal.others():  # also where it was damaged since
                ensure_group(path, {"patchdrive": {"schema": SCHEMA, **facts}}, journal)
            if begun(journal):
                journal.leave_door()
            else:
                for folder in ("images", "labels", "tables"):
                    ensure_group(path / folder, {}, journal)
            refused.pop_all()
        return cls(path, spec, journal, all_classes=all_classes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._journal.close()

    @property
    def report(self) -> dict[str, Any] | None:
        """The finished run's report, or None while there is work left."""
        path = done_path(self.path)
        report: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
        return report

    def sizes(self) -> Sizes | None:
        """The recorded sizes, or None before the first round."""
        held = self._journal.read("sizes.json")
        return None if held is None else Sizes(**{name: value for name, value in held.items() if name != "was"})

    def shrink(self, sizes: Sizes) -> Sizes:
        """Record a smaller batch, after the device ran out of memory; the sizes that hold from now on, for us and for the other shards.

        Blocks committed before keep what they were computed with; `was` in `sizes.json` names those sizes.
        """
        with self._journal.door():
            held = self._journal.read("sizes.json") or asdict(sizes)
            if sizes.batch_size < held["batch_size"]:
                was = [*held.get("was", ()), held["batch_size"]]
                self._journal.write("sizes.json", {**held, "batch_size": sizes.batch_size, "was": was})
        recorded = self.sizes()
        return sizes if recorded is None else recorded

    def put_view(self, view: View, models: Sequence[str] = ()) -> None:
        """What was seen of the image before any patch was read: the saliency, and a thumbnail for people.

        Args:
            view: the image, seen small.
            models: names by which `load_model` finds the models again, where they are known.
        """
        if (self._journal.folder / "plans" / "0.json").exists():
            return  # begun before: what was seen then is what the plan was made of
        named = {"models": list(models)} if models else {}
        source = view.image.source
        where = str(Path(source).absolute()) if Path(source).exists() else source
        self._journal.write("source.json", {"source": where, "reader": view.image.reader, **named})
        level, cell = view.saliency.level, view.thumbnail_cell
        saliency = OutputSpec(name="saliency", kind="probability", channels=("saliency",), colors=("FFFFFF",))
        self.put_map(saliency, view.saliency.map[None], view.saliency.mask, view.frame(level))
        rgb = OutputSpec(name="thumbnail", kind="image", channels=("red", "green", "blue"), dtype="uint8")
        thumbnail, _ = stored_maps(rgb, all_classes=False)  # its validity is the saliency's
        write_map(self.path, thumbnail, view.frame(level).coarser(cell), view.thumbnail.transpose(2, 0, 1), self._journal)

    def put_outcome(self, outcome: Outcome, view: View) -> None:
        """What a drive returned: fused maps, things found, what is known of each patch, answers about the whole image.

        Of several processes each has it, and the same: one at a time puts it, and nobody once the store is finished.
        """
        with self._journal.door():
            if self.report is None:
                self._put_outcome(outcome, view)

    def _put_outcome(self, outcome: Outcome, view: View) -> None:
        for fused in outcome.maps:
            self.put_map(fused.output, fused.values, fused.valid, view.frame(fused.grid))
        for name, found in outcome.objects.items():
            tables.create_objects(self.path / "tables" / f"{self._spec.name}_{name}", found, self._journal)
        for index, round_ in enumerate(self._rounds):
            columns = {name: rounds[index] for name, rounds in outcome.columns.items()}
            for name in self._spec.tables:
                tables.add_columns(self._table(name, round_.index), columns, self._journal)
        if outcome.embedding is not None:
            tables.create_vector(self.path / "tables" / f"{self._spec.name}_image", outcome.embedding, self._journal)
        told = {"audit": outcome.audit, "answers": outcome.answers}
        self._tell({name: said for name, said in told.items() if said})

    def _tell(self, said: Mapping[str, Any]) -> None:
        """Add to the attributes of the root."""
        attributes = json.loads((self.path / "zarr.json").read_text())["attributes"]
        ensure_group(self.path, {**attributes, **said}, self._journal)

    def begin_round(self, plan: Plan, frame: Frame, sizes: Sizes) -> Round:
        """Make room for the plan's results, and say which blocks are still to be computed. Sizes recorded before are kept.

        Raises:
            StoreError: an earlier run recorded another plan for this round.
        """
        with self._journal.door():
            blocks = self._begin(plan, frame, sizes)
        self._journal.leave_door()
        index, share = len(self._rounds), self._journal.shard.share(len(blocks))
        done = self._journal.recorded(index)
        todo = tuple(block for block in blocks[share.start : share.stop] if block.index not in done)
        self._rounds.append(Round(index=index, plan=plan, blocks=blocks, todo=todo))
        return self._rounds[-1]

    def _begin(self, plan: Plan, frame: Frame, sizes: Sizes) -> tuple[Block, ...]:
        index, recorded = len(self._rounds), self.sizes()
        if recorded is None:
            self._journal.write("sizes.json", asdict(sizes))
        edge = (recorded or sizes).edge
        record = self._journal.read(f"plans/{index}.json")
        if record is not None and record["digest"] != plan.digest:
            raise StoreError(
                f"{self.path}: round {index} was planned otherwise before (source, model and settings agree, so the software differs); "
                "start anew with --overwrite"
            )
        blocks = feature_blocks(plan, rows=tables.ROWS) if self._spec.vectors else map_blocks(plan, edge=edge, halo=self._spec.halo)
        if record is None:
            self._create_round(index, plan)
        if not self._spec.vectors:
            self._create_maps(frame, edge)
        if record is None:
            self._journal.write(f"plans/{index}.json", {"digest": plan.digest, "rows": len(plan), "blocks": len(blocks)})
        return blocks

    def whole(self, round_: Round) -> bool:
        """Whether every block of the round has a record, whoever wrote it."""
        return self._journal.recorded(round_.index).issuperset(block.index for block in round_.blocks)

    def orphans(self, round_: Round) -> tuple[Block, ...]:
        """Blocks of the round without a record whose shard nobody does: not begun, ended or dead. Ours to compute, or anybody's.

        Two processes may compute one block: they place the same bytes. Each begins at another place, so that they rarely meet.
        """
        shard, done = self._journal.shard, self._journal.recorded(round_.index)
        shares = [Shard(index, shard.count).share(len(round_.blocks)) for index in sorted(self._journal.absent_shards())]
        left = [block for share in shares for block in round_.blocks[share.start : share.stop] if block.index not in done]
        first = shard.share(len(left)).start
        return (*left[first:], *left[:first])

    def _create_round(self, index: int, plan: Plan) -> None:
        self._journal.put(self._journal.folder / "plans" / f"{index}.npz", plan.save)
        for name, vector in self._spec.tables.items():
            tables.create_table(self._table(name, index), plan, vector.columns, vector.dtype, self._journal)

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
        files: dict[str, str] = {}
        for name, vector in self._spec.tables.items():
            files |= self._place_features(self._table(name, round_.index), vector, finished)
        for name, part in finished.maps.items():
            output, stored = self._maps[name]
            for one in stored:
                assert block.window is not None
                files |= place_map(self.path, one, block.window, encode(output, part, one), self._journal)
        counts = Counter(drop.state for drop in finished.dropped)
        self._journal.commit(
            round_.index,
            block.index,
            {
                "planned": len(block.owned),
                "skipped": counts["skipped"],
                "failed": counts["failed"],
                "dropped": [[drop.row, drop.state, drop.reason] for drop in finished.dropped],
                "batch_size": finished.batch_size,
                "masked": [[hole.row, hole.reason] for hole in finished.holed],
                "files": files,
            },
        )

    def _place_features(self, table: Path, vector: OutputSpec, finished: Finished) -> dict[str, str]:
        rows = finished.block.rows
        start = int(rows[0])
        values = np.full((len(rows), len(vector.columns)), np.nan, vector.dtype)
        if len(finished.rows):
            with np.errstate(over="ignore"):
                values[finished.rows - start] = finished.features[vector.name]
            lost = np.isinf(values).any(axis=1)
            if lost.any():
                row = int(rows[np.nonzero(lost)[0][0]])
                raise ModelError(f"{self._spec.name}: {vector.name!r} of patch {row} does not fit {vector.dtype}; store another dtype")
        return self._journal.place(table / "X", [((slice(start, start + len(rows)), slice(0, values.shape[1])), values)])

    def features(self, plan: Plan) -> zarr.Array[Any] | None:
        """(n, D) features of the current round, as the store holds them: not read yet, NaN where not computed; None for map models.

        Of several tables, the first; a drive has one.
        """
        round_ = self._rounds[-1]
        assert round_.plan is plan
        name = next(iter(self._spec.tables), None)
        return None if name is None else self._features(name, round_.index)

    def put_map(self, output: OutputSpec, values: NDArray[Any], valid: NDArray[np.bool_], frame: Frame) -> None:
        """A map that is there whole, (channel, height, width), on the frame it lies on."""
        for stored in stored_maps(output, all_classes=self._all_classes):
            write_map(self.path, stored, frame, encode(output, MapPart(values=values, valid=valid), stored), self._journal)

    def derive(self, view: View, layout: Layout, wants_stop: Callable[[], bool]) -> bool:
        """What follows from patches that are all done: things of their boxes, painted maps, and the coarser levels of all maps.

        Args:
            view: the image.
            layout: of the patches.
            wants_stop: asked again and again.

        Returns:
            Whether it is all there; False where a stop was wished for before.
        """
        plans = [round_.plan for round_ in self._rounds]
        tables = {name: [self._features(name, index) for index in range(len(plans))] for name in self._spec.tables}
        with self._journal.door():
            if self.report is None:
                write_things(self.path, self._spec, plans, tables, self._journal)
        return draw_maps(self.path, painting_of(self._spec, plans, tables, view, layout), self._journal, wants_stop)

    def finish(self, report: Mapping[str, Any]) -> dict[str, Any]:
        """Write the rows' states, the digest of every file, and last of all the report: the run is done.

        Returns:
            The report that is in place: of several shards' that finish, the first's.
        """
        with self._journal.door():
            held = self.report
            if held is not None:
                return held
            assert all(self.whole(round_) for round_ in self._rounds)
            for round_ in self._rounds:
                if self._spec.vectors:
                    records = self._journal.committed(round_.index)
                    states = tables.states_of(len(round_.plan), round_.blocks, records)
                    for name in self._spec.tables:
                        tables.write_states(self._table(name, round_.index), states, self._journal)
            reader = (self._journal.read("source.json") or {}).get("reader", "")
            self._tell({"provenance": provenance(reader, [round_.plan.digest for round_ in self._rounds])})
            self._journal.write("contents.json", self._contents())
            self._journal.tidy()
            self._journal.put_text(done_path(self.path), json.dumps(report, indent=1) + "\n")
        return dict(report)

    def _contents(self) -> dict[str, str]:
        """SHA-256, hex, of every file that no record names, by its path in the store."""
        records = [record for round_ in self._rounds for record in self._journal.committed(round_.index).values()]
        records += [self._journal.read(band.record) or {} for band in bands_of(self.path, list(self._spec.features))]
        named = {name for record in records for name in record.get("files", ())}
        files = {path.relative_to(self.path).as_posix(): path for path in sorted(self.path.rglob("*")) if path.is_file()}
        return {name: digest_of(path) for name, path in files.items() if name not in named}

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

    def masked(self) -> Counter[str]:
        """How often each reason left a hole in a patch that was computed."""
        records = [record for round_ in self._rounds for record in self._journal.committed(round_.index).values()]
        return Counter(reason for record in records for _, reason in record.get("masked", ()))

    def _features(self, name: str, index: int) -> zarr.Array[Any]:
        return zarr.open_array(store=self._table(name, index) / "X", mode="r")

    def _table(self, name: str, index: int) -> Path:
        return self.path / "tables" / f"{name}_round{index}"
