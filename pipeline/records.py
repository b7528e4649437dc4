"""Checks of a store against its records: every file, every block, every count. Reads, never writes."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from patchdrive.pipeline.ledger import Ledger, RoundLedger
from patchdrive.pipeline.problems import Cure, Kind, Problem
from patchdrive.pipeline.tables import STATES, states_of

READ_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError)
"""What zarr raises for an array that is not what it was."""
_CHUNK = re.compile(r"(.+)/c(?:/\d+)*")
_WRITTEN_LAST = re.compile(r"zarr\.json|tables/[^/]+/obs/state/codes/c/\d+")
"""What the end of every run writes anew: the root's attributes, and the rows' states."""
_SHOWN = 10
"""Blocks without a record that are named one by one, per round."""


def check_files(ledger: Ledger, workers: int) -> tuple[int, list[Problem]]:
    """Every file that is named is there with its bytes, and every file that is there is named.

    Returns:
        How many were compared, and what is wrong.
    """
    there = sorted(path.relative_to(ledger.path).as_posix() for path in ledger.path.rglob("*") if not path.is_dir() or path.is_symlink())
    with ThreadPoolExecutor(workers) as threads:
        found = dict(zip(ledger.named, threads.map(lambda name: _digest(ledger.path / name), ledger.named), strict=True))
    problems = []
    for name, named in ledger.named.items():
        digest = found[name]
        if digest == named.digest:
            continue
        cure: Cure = "mend" if named.owner is not None or _WRITTEN_LAST.fullmatch(name) or ledger.derived(name) else "overwrite"
        kind: Kind = "missing" if digest is None else "changed"
        what = "the file is not there" if digest is None else "its bytes are not those that were written"
        problems.append(ledger.problem(kind, f"{ledger.path.name}/{name}", what, cure, named.owner))
    problems += [problem for name in there if name not in ledger.named for problem in _unnamed(ledger, name)]
    return sum(digest is not None for digest in found.values()), problems


def _digest(path: Path) -> str | None:
    """SHA-256 of a file's bytes, hex; None where there is no file."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None


def _unnamed(ledger: Ledger, name: str) -> list[Problem]:
    """What is wrong with a file that no record names; nothing where it may still get one, or its block is told of anyway."""
    owner = ledger.owner(name)
    where = f"{ledger.path.name}/{name}"
    if owner is not None:
        if owner[1] not in ledger.rounds[owner[0]].records:
            return []  # placed, not yet recorded: its block is computed again, and placed over it
        return [ledger.problem("foreign", where, "its block's record does not name it", "mend", owner)]
    if ledger.derived(name):
        if not ledger.finished or not all(ledger.bands.values()):
            return []  # its band is built again, and placed over it
        return [ledger.problem("foreign", where, "no record names this file", "mend", None)]
    chunk = _CHUNK.fullmatch(name)
    ours = Path(name).name == "zarr.json" or (chunk is not None and (ledger.path / chunk[1] / "zarr.json").is_file())
    if not ledger.finished and ours:
        return []  # metadata is named when the run is finished
    return [ledger.problem("foreign", where, "no record names this file", "move", None)]


def check_blocks(ledger: Ledger) -> list[Problem]:
    """Of a finished store: every block, and every band of a coarser level, has its record."""
    if not ledger.finished:
        return []
    problems = []
    for index in sorted(ledger.rounds):
        round_ = ledger.rounds[index]
        lost = [block.index for block in round_.blocks if block.index not in round_.records]
        told = {owner for owner, _ in ledger.surplus.values()}
        folder = f"{ledger.path.stem}.patchdrive/commits/{index}"
        for block in lost[:_SHOWN]:
            if (index, block) not in told:
                what = "there is no record of this block"
                problems.append(ledger.problem("record", f"{folder}/{block:08d}.json", what, "mend", (index, block)))
        if len(lost) > _SHOWN:
            what = f"there is no record of {len(lost) - _SHOWN} more blocks, {lost[_SHOWN]} to {lost[-1]}"
            problems.append(Problem(kind="record", where=folder, what=what, cure="mend", round=index))
    state = f"{ledger.path.stem}.patchdrive"
    bands = [band for band, recorded in ledger.bands.items() if not recorded and not (ledger.path.parent / state / band.record).exists()]
    for band in bands[:_SHOWN]:
        what = f"there is no record of this band of level {band.level} of {band.map}"
        problems.append(Problem(kind="record", where=f"{state}/{band.record}", what=what, cure="mend"))
    return problems


def check_counts(ledger: Ledger) -> list[Problem]:
    """Of a finished store whose records are whole: the report counts what they count."""
    whole = all(len(round_.records) == len(round_.blocks) for round_ in ledger.rounds.values())
    if ledger.report is None or ledger.unreadable or not whole:
        return []
    records = [record for round_ in ledger.rounds.values() for record in round_.records.values()]
    reasons = Counter(f"{state}: {reason}" for record in records for _, state, reason in record["dropped"])
    skipped, failed = (sum(record[state] for record in records) for state in ("skipped", "failed"))
    planned = sum(len(round_.plan) for round_ in ledger.rounds.values())
    counted = {"planned": planned, "done": planned - skipped - failed, "skipped": skipped, "failed": failed}
    counted["status"] = "failed" if failed else "done"
    problems = []
    for key, value in {**counted, "reasons": dict(reasons)}.items():
        told = ledger.report.get(key)
        if told != value:
            what = f"it says {key} {json.dumps(told)}, the records give {json.dumps(value)}"
            problems.append(Problem(kind="report", where=f"{ledger.path.stem}.done.json", what=what, cure="mend"))
    return problems


def check_facts(ledger: Ledger, bad: Iterable[str]) -> list[Problem]:
    """The root of the store says what was run, as its state does."""
    if "zarr.json" in bad:
        return []
    try:
        said: Any = json.loads((ledger.path / "zarr.json").read_text())["attributes"]["patchdrive"]
    except (OSError, ValueError, KeyError, TypeError):
        said = None
    if said == ledger.facts:
        return []
    what = "it does not say the same of the run as run.json"
    if isinstance(said, dict):
        what += f": {', '.join(sorted(key for key in said.keys() | ledger.facts.keys() if said.get(key) != ledger.facts.get(key)))} differ"
    return [Problem(kind="facts", where=f"{ledger.path.name}/zarr.json", what=what, cure="overwrite")]


def check_states(ledger: Ledger, bad: Iterable[str]) -> list[Problem]:
    """Of a finished store: the state of every row of every table is that of the records."""
    if not ledger.finished:
        return []
    problems = []
    damaged = tuple(bad)
    for round_ in ledger.rounds.values():
        for table in ledger.spec.tables:
            name = f"tables/{table}_round{round_.index}/obs/state/codes"
            if len(round_.plan) and len(round_.records) == len(round_.blocks) and not any(path.startswith(f"{name}/") for path in damaged):
                problems += _check_codes(ledger, round_, name)
    return problems


def _check_codes(ledger: Ledger, round_: RoundLedger, name: str) -> list[Problem]:
    where = f"{ledger.path.name}/{name}"
    wanted = states_of(len(round_.plan), round_.blocks, round_.records)
    try:
        held = np.asarray(zarr.open_array(store=ledger.path / name, mode="r")[:])
    except READ_ERRORS as error:
        return [Problem(kind="states", where=where, what=f"it cannot be read ({error})", cure="overwrite", round=round_.index)]
    rows = np.flatnonzero(held != wanted) if held.shape == wanted.shape else np.arange(len(wanted))
    if not len(rows):
        return []
    row = int(rows[0])
    said = STATES[held[row]] if held.shape == wanted.shape and 0 <= held[row] < len(STATES) else "something else"
    what = f"{len(rows)} rows have another state than their records; row {row} is {said} here and {STATES[wanted[row]]} there"
    return [Problem(kind="states", where=where, what=what, cure="mend", round=round_.index, rows=(row, int(rows[-1])))]
