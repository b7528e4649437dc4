"""Ledger: what the run's state says of a store, read without the lease and without trust: what cannot be read is a Problem."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from patchdrive.models.types import ModelSpec
from patchdrive.pipeline.coarsen import Band, bands_of
from patchdrive.pipeline.maps import stored_maps
from patchdrive.pipeline.plan import Block, Plan, feature_blocks, map_blocks
from patchdrive.pipeline.problems import Cure, Kind, Problem
from patchdrive.pipeline.store import SCHEMA, Sizes
from patchdrive.pipeline.tables import ROWS
from patchdrive.readers.errors import ModelError, StoreError

_TABLE_CHUNK = re.compile(r"tables/[^/]+_round(\d+)/X/c/(\d+)/\d+")
_CHUNK = re.compile(r"(.+)/c(?:/\d+)+")
_MAP_CHUNK = re.compile(r"((?:images|labels)/([^/]+)/0/map)/c((?:/\d+){2,3})")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RoundLedger:
    """One round, as recorded."""

    index: int
    """0 for the first."""
    plan: Plan
    """Which patches."""
    blocks: tuple[Block, ...]
    """All of them."""
    records: Mapping[int, Mapping[str, Any]]
    """By block; whole ones of blocks that there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """A file that a record names."""

    digest: str
    """SHA-256 of its bytes, hex."""
    owner: tuple[int, int] | None
    """The (round, block) whose record names it; None: no block's."""


@dataclass(kw_only=True, eq=False)
class Ledger:
    """All that is recorded of one store."""

    path: Path
    """`<id>.zarr`."""
    facts: Mapping[str, Any]
    """Of run.json."""
    spec: ModelSpec
    """Of the patch model."""
    sizes: Sizes | None
    """None before the first round."""
    report: Mapping[str, Any] | None
    """Of done.json; None where it is not there, or cannot be read."""
    finished: bool
    """True where done.json is there."""
    rounds: dict[int, RoundLedger] = field(default_factory=dict)
    """Those whose plan can be read."""
    unreadable: set[int] = field(default_factory=set)
    """Rounds whose plan cannot."""
    named: dict[str, Named] = field(default_factory=dict)
    """Every file that the records and contents.json name, relative to the store."""
    problems: list[Problem] = field(default_factory=list)
    """What of the state cannot be read, or contradicts itself."""
    bands: dict[Band, bool] = field(default_factory=dict)
    """Of the coarser levels of maps, each with whether it has a record."""
    surplus: dict[Path, tuple[tuple[int, int] | None, tuple[str, ...]]] = field(default_factory=dict)
    """Records that cannot be true: the (round, block) they stand for, if any, and the files they name."""

    def problem(self, kind: Kind, where: str, what: str, cure: Cure, owner: tuple[int, int] | None) -> Problem:
        """A Problem of a block, or of none."""
        if owner is None:
            return Problem(kind=kind, where=where, what=what, cure=cure)
        return Problem(kind=kind, where=where, what=what, cure=cure, round=owner[0], block=owner[1], rows=self.rows_of(owner))

    def owner(self, name: str) -> tuple[int, int] | None:
        """The (round, block) in whose place a chunk file lies, whatever the records say; None for all other files."""
        table = _TABLE_CHUNK.fullmatch(name)
        if table is not None:
            index, at = int(table[1]), int(table[2])
            return (index, at) if index in self.rounds and at < len(self.rounds[index].blocks) else None
        found = _MAP_CHUNK.fullmatch(name)
        if found is None or self.sizes is None or found[2] not in self._strides or 0 not in self.rounds:
            return None
        chunk = _chunk_of(self.path / found[1])
        places = [int(part) for part in found[3].split("/")[1:]]
        if chunk is None or len(chunk) != len(places):
            return None
        scale = self._strides[found[2]]
        y, x = (place * size * scale // self.sizes.edge for place, size in zip(places[-2:], chunk[-2:], strict=True))
        block = self._squares.get((y, x))
        return None if block is None else (0, block)

    def derived(self, name: str) -> bool:
        """Whether a chunk file is of a painted map, of a coarser level or of the things of boxes: the end of every run makes it anew."""
        chunk = _CHUNK.fullmatch(name)
        if chunk is None:
            return False
        things = (f"tables/{self.spec.name}_{output.name}/" for output in self.spec.boxes.values())
        return chunk[1] in self._band_arrays or any(name.startswith(table) for table in things)

    @cached_property
    def _band_arrays(self) -> frozenset[str]:
        return frozenset(band.array for band in self.bands)

    def tell(self, path: Path, what: str, owner: tuple[int, int] | None, cure: Cure = "mend") -> None:
        """Something is wrong with the record at `path`."""
        self.problems.append(self.problem("record", path.relative_to(self.path.parent).as_posix(), what, cure, owner))

    def state(self, name: str) -> dict[str, Any]:
        """A JSON object of the state that a run may do without; empty where there is none."""
        return _object(self.path.with_suffix(".patchdrive") / name, self.path.parent, [], "record", "overwrite") or {}

    def rows_of(self, owner: tuple[int, int]) -> tuple[int, int] | None:
        """First and last row that a block counts."""
        index, block = owner
        owned: Any = self.rounds[index].blocks[block].owned if index in self.rounds else ()
        return (int(owned[0]), int(owned[-1])) if len(owned) else None

    @cached_property
    def _strides(self) -> Mapping[str, int]:
        if self.spec.vectors:
            return {}
        every = self.facts["settings"]["all_classes"]
        return {stored.name: stored.stride for output in self.spec.outputs for stored in stored_maps(output, all_classes=every)}

    @cached_property
    def _squares(self) -> Mapping[tuple[int, int], int]:
        assert self.sizes is not None
        edge = self.sizes.edge
        return {(block.window.y // edge, block.window.x // edge): block.index for block in self.rounds[0].blocks if block.window}


def read_ledger(store: Path) -> Ledger:
    """Everything recorded of the store at `store`.

    Raises:
        StoreError: there is no store, it has no state beside it, or one of another version.
    """
    root, state, done = store.parent, store.with_suffix(".patchdrive"), store.with_suffix(".done.json")
    facts = _facts(store, state)
    problems: list[Problem] = []
    finished = done.exists()  # first: a run that ends meanwhile leaves more than an unfinished one needs, never less
    report = _object(done, root, problems, "report", "mend") if finished else None
    held = _object(state / "sizes.json", root, problems, "record", "overwrite") if (state / "sizes.json").exists() else None
    try:
        sizes = None if held is None else Sizes(batch_size=held["batch_size"], edge=held["edge"])
        spec = ModelSpec.from_dict(facts["model"]["spec"])
    except (KeyError, TypeError, ModelError) as error:
        what = f"{state.name}: run.json or sizes.json is not of this version ({error}); verify with the one that wrote it"
        raise StoreError(what) from error
    ledger = Ledger(path=store, facts=facts, spec=spec, sizes=sizes, report=report, finished=finished, problems=problems)
    for path in sorted((state / "plans").glob("*.json"), key=lambda path: path.name):
        _read_plan(ledger, path)
    for folder in sorted((state / "commits").glob("*")):
        _read_records(ledger, folder)
    ledger.bands = {band: _read_band(ledger, state / band.record) for band in _bands(store, list(spec.features))}
    contents = state / "contents.json"
    if contents.exists() or finished:
        _name(ledger, None, contents, _object(contents, root, problems, "record", "overwrite") or {}, "overwrite")
    return ledger


def _facts(store: Path, state: Path) -> dict[str, Any]:
    if not store.is_dir() or store.suffix != ".zarr":
        raise StoreError(f"{store} is no store; a store is the <id>.zarr folder that `patchdrive run -o OUT` leaves in OUT")
    if not (state / "run.json").is_file():
        raise StoreError(f"{store.name} has no {state.name}/run.json beside it, which says what was run; keep the two together")
    problems: list[Problem] = []
    facts = _object(state / "run.json", store.parent, problems, "facts", "overwrite")
    if facts is None:
        raise StoreError(f"{problems[0]}")
    if facts.get("schema") != SCHEMA:
        raise StoreError(f"{store} has layout {facts.get('schema')}, this version reads {SCHEMA}; verify with the version that wrote it")
    return facts


def _read_plan(ledger: Ledger, path: Path) -> None:
    """A round: its plan with the digest recorded, cut into blocks."""
    record = _object(path, ledger.path.parent, ledger.problems, "plan", "overwrite")
    if not path.stem.isdigit():
        return
    index, saved = int(path.stem), path.with_suffix(".npz")
    wrong = ""
    if record is not None:
        try:
            with zipfile.ZipFile(saved) as held:
                held.testzip()  # numpy leaves a torn file open
            plan = Plan.load(saved)
            blocks = _blocks(plan, ledger)
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, StoreError) as error:
            wrong = f"the plan cannot be read ({error or type(error).__name__})"
        else:
            if (plan.digest, len(plan), len(blocks)) == (record.get("digest"), record.get("rows"), record.get("blocks")):
                ledger.rounds[index] = RoundLedger(index=index, plan=plan, blocks=blocks, records={})
                return
            wrong = "the plan is not the one that was begun"
    ledger.unreadable.add(index)
    if wrong:
        where = saved.relative_to(ledger.path.parent).as_posix()
        ledger.problems.append(Problem(kind="plan", where=where, what=wrong, cure="overwrite", round=index))


def _blocks(plan: Plan, ledger: Ledger) -> tuple[Block, ...]:
    if ledger.spec.vectors:
        return feature_blocks(plan, rows=ROWS)
    if ledger.sizes is None:
        raise StoreError("sizes.json, which says how it was cut into blocks, is not there")
    return map_blocks(plan, edge=ledger.sizes.edge, halo=ledger.spec.halo)


def _read_records(ledger: Ledger, folder: Path) -> None:
    """The commit records of one round, each against its block."""
    index = int(folder.name) if folder.name.isdigit() else -1
    round_ = ledger.rounds.get(index)
    records: dict[int, Mapping[str, Any]] = {}
    for path in sorted(folder.glob("*.json")):
        record = _object(path, ledger.path.parent, ledger.problems, "record", "mend")
        files = {} if record is None or not isinstance(record.get("files"), dict) else record["files"]
        block = int(path.stem) if path.stem.isdigit() else -1
        known = round_ is not None and 0 <= block < len(round_.blocks) and path.name == f"{block:08d}.json"
        owner = (index, block) if known else None
        if record is None or not (known or index in ledger.unreadable):
            ledger.surplus[path] = (owner, tuple(files))
            if record is not None:
                ledger.tell(path, "a record of a block that no plan has", owner)
            continue
        wrong = _wrong_with(record, None if round_ is None else round_.blocks[block])
        if wrong:
            ledger.surplus[path] = (owner, tuple(files))
            ledger.tell(path, wrong, owner, "mend" if "files" in record else "overwrite")
        else:
            records[block] = record
        _name(ledger, owner, path, files, "overwrite" if owner is None else "mend")
    if round_ is not None:
        ledger.rounds[index] = RoundLedger(index=index, plan=round_.plan, blocks=round_.blocks, records=records)


def _bands(store: Path, tables: Sequence[str]) -> list[Band]:
    """Of a store whose metadata may be damaged, which is told elsewhere."""
    try:
        return bands_of(store, tables)
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return []


def _read_band(ledger: Ledger, path: Path) -> bool:
    """Whether there is a record of a band of a coarser level; enters the files that it names."""
    if not path.exists():
        return False
    record = _object(path, ledger.path.parent, ledger.problems, "record", "mend")
    if record is None:
        return False
    if not isinstance(record.get("files"), dict):
        ledger.tell(path, "the record does not say which files the band placed", None)
        return False
    _name(ledger, None, path, record["files"], "mend")
    return True


def _wrong_with(record: Mapping[str, Any], block: Block | None) -> str:
    """What is wrong with a record by itself, and as that of `block`; "" where nothing is."""
    if "files" not in record:
        return "the record names no files, as those of older versions do"
    if block is None:
        return ""
    dropped, owned = record.get("dropped"), set(block.owned.tolist())
    if not isinstance(dropped, list) or not all(isinstance(drop, list) and len(drop) == 3 for drop in dropped):
        return "the record does not say which rows were dropped"
    if record.get("planned") != len(owned):
        return f"the record counts {record.get('planned')} rows, the block has {len(owned)}"
    if len({row for row, _, _ in dropped}) < len(dropped) or not {row for row, _, _ in dropped} <= owned:
        return "the record drops rows twice, or rows of another block"
    for state in ("skipped", "failed"):
        count = sum(held == state for _, held, _ in dropped)
        if record.get(state) != count:
            return f"the record counts {record.get(state)} rows {state} and names {count}"
    if not isinstance(record["files"], dict):
        return "the record does not say which files the block placed"
    return ""


def _name(ledger: Ledger, owner: tuple[int, int] | None, path: Path, files: Mapping[str, Any], cure: Cure) -> None:
    """Enter the files that a record names: each once, and inside the store."""
    for name, digest in files.items():
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or not isinstance(digest, str):
            ledger.tell(path, f"it names {name!r} with {digest!r}: no file inside the store with its SHA-256", owner, cure)
        elif name in ledger.named:
            ledger.tell(path, f"it names {name}, which another record names too", owner, cure)
        else:
            ledger.named[name] = Named(digest=digest, owner=owner)


def _object(path: Path, root: Path, problems: list[Problem], kind: Kind, cure: Cure) -> dict[str, Any] | None:
    """The JSON object in a file below `root`; None, and a Problem, where there is none."""
    try:
        held = json.loads(path.read_text())
    except OSError as error:
        what = f"it cannot be read ({error.strerror})"
    except ValueError:
        what = "it is not JSON"
    else:
        if isinstance(held, dict):
            return held
        what = "it is not a JSON object"
    problems.append(Problem(kind=kind, where=path.relative_to(root).as_posix(), what=what, cure=cure))
    return None


def _chunk_of(array: Path) -> list[int] | None:
    """The shape of what an array keeps in one file; None where its metadata cannot be read."""
    try:
        shape = json.loads((array / "zarr.json").read_text())["chunk_grid"]["configuration"]["chunk_shape"]
        return [int(extent) for extent in shape]
    except (OSError, ValueError, KeyError, TypeError):
        return None
