"""mend(): take damaged blocks back, so that the next run computes those again and nothing else."""

from __future__ import annotations

from pathlib import Path

from patchdrive.pipeline.journal import Journal, sync
from patchdrive.pipeline.ledger import Ledger, read_ledger
from patchdrive.pipeline.problems import Verdict
from patchdrive.readers.errors import StoreError


def mend(verdict: Verdict) -> int:
    """Drop the records and the files of every block that `verdict` found wrong, and the report: the run is unfinished again.

    What the end of every run makes, painted maps and coarser levels, goes too: what it is made of may be other than it was.

    Done in an order that a kill may cut anywhere: whatever is left, `verify` finds the same blocks wrong, or they are computed again.

    Returns:
        How many blocks the next run of the same command computes again.

    Raises:
        StoreError: something is wrong that a resumed run does not put right; nothing was changed then. Or a process is writing there.
    """
    hopeless = [problem for problem in verdict.problems if problem.cure != "mend"]
    if hopeless:
        raise StoreError(f"{verdict.store}: nothing was mended, for {len(hopeless)} of the problems cannot be: {hopeless[0]}")
    if verdict.good:
        return 0
    journal = Journal(verdict.store.with_suffix(".patchdrive"))
    try:
        return _take_back(verdict)
    finally:
        journal.close()


def _take_back(verdict: Verdict) -> int:
    store, state = verdict.store, verdict.store.with_suffix(".patchdrive")
    ledger = read_ledger(store)
    blocks = {(problem.round, problem.block) for problem in verdict.problems if problem.round is not None and problem.block is not None}
    told = {(index, block.index) for index, held in ledger.rounds.items() for block in held.blocks if block.index not in held.records}
    again = {(index, block) for index, block in blocks if index in ledger.rounds} | told
    _remove(store.with_suffix(".done.json"))
    for band in ledger.bands:
        _remove(state / band.record)  # first: a band is built again where its record is not there
    for name in _files_of(ledger, again):
        _remove(store / name)
    for index, block in sorted(again):
        _remove(state / "commits" / str(index) / f"{block:08d}.json")
    for record in ledger.surplus:
        _remove(record)
    return len(again)


def _files_of(ledger: Ledger, blocks: set[tuple[int, int]]) -> list[str]:
    """Every file in the place of one of these blocks, named or not, and of what the end of every run makes."""
    there = [path.relative_to(ledger.path).as_posix() for path in ledger.path.rglob("*") if not path.is_dir()]
    return [name for name in there if ledger.owner(name) in blocks or ledger.derived(name)]


def _remove(path: Path) -> None:
    """For good; what is gone already is fine."""
    if path.exists():
        path.unlink()
        sync(path.parent)
