"""What decides a run's answer, recorded when it begins: a store is gone on with, begun anew, or refused with what differs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from patchdrive.pipeline.journal import Journal
from patchdrive.readers.errors import StoreError

_WORDS = 60
"""Characters of a value that are told: digests and specs are long, and what else differs says why."""


def done_path(store: Path) -> Path:
    """Where the report of a finished run lies."""
    return store.with_suffix(".done.json")


def begun(journal: Journal) -> bool:
    """Whether there is something to go on with: a run without a round holds nothing, and records without their store are worth nothing."""
    return (journal.folder / "plans" / "0.json").exists() and (journal.store / "tables" / "zarr.json").exists()


def remove_run(journal: Journal, *, anything: bool) -> None:
    """Start anew: drop what an earlier run left, or `anything`.

    In this order, so that a kill at any point leaves what the next start drops too: the report, the plan, the store, its facts last.
    """
    if not (anything or (journal.folder / "run.json").exists()):
        return
    done_path(journal.store).unlink(missing_ok=True)
    (journal.folder / "plans" / "0.json").unlink(missing_ok=True)
    if journal.store.exists():
        shutil.rmtree(journal.store)
    for entry in sorted(journal.entries(), key=lambda entry: entry.name == "run.json"):
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)


def check_facts(journal: Journal, facts: Mapping[str, Any]) -> None:
    """Record the facts of a new run; refuse to mix them with another's.

    Raises:
        StoreError: the store holds another run, with the facts that differ; or it is nobody's.
    """
    path, known = journal.store, journal.read("run.json")
    if known is None:
        if path.exists() and any(path.iterdir()):
            raise StoreError(f"{path} is there but its state {journal.folder.name} is not; move it away, or start anew with --overwrite")
        done_path(path).unlink(missing_ok=True)  # of a store that is no longer there
        journal.write("run.json", dict(facts))
        return
    differing = differences(known, json.loads(json.dumps(facts)))
    if differing:
        raise StoreError(f"{path} holds another run: {'; '.join(differing)}. Write elsewhere with -o, or start anew with --overwrite.")


def differences(known: Mapping[str, Any], asked: Mapping[str, Any], prefix: str = "") -> Sequence[str]:
    """What of plain JSON is not as it was: `name was one, now other`."""
    found: list[str] = []
    for key in sorted(known.keys() | asked.keys()):
        one, other = known.get(key), asked.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            found += differences(one, other, f"{prefix}{key}.")
        elif json.dumps(one, sort_keys=True) != json.dumps(other, sort_keys=True):
            found.append(f"{prefix}{key} was {_short(one)}, now {_short(other)}")
    return found


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _WORDS else text[:_WORDS] + "…"
