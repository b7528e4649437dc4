"""What goes wrong, and what then: `make bench NAME=faults`. What the user sees, what the store says, what the next run does.

Each fault is done to the real program in a process of its own. Of every run that meets one: it ends within seconds, with the exit code
of DESIGN.md 7 and one clear line; what it committed is kept, and the same command, once the fault is gone, ends with the bytes of a
run that nobody disturbed. A disk of a few pages is a tmpfs, which only root may mount; elsewhere those cases are skipped, and say so.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import fault_cases as of_files
import fault_cases_run as of_runs
from fault_lab import Lab, Row, SkippedError

_QUICK_PACE = json.dumps({"beat": 0.1, "patience": 1.5})


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One fault."""

    name: str
    """In a word."""
    do: Callable[[Lab, Row], None]
    """Does it, and fills its row in."""
    quick: Callable[[Lab, Row], None]
    """The same in less time; `do` itself where there is no such way."""


def _case(name: str, do: Callable[[Lab, Row], None], quick: Callable[[Lab, Row], None] | None = None) -> Case:
    return Case(name=name, do=do, quick=quick or do)


CASES = (
    _case("disk full", partial(of_files.full_disk, step=2), partial(of_files.full_disk, step=24)),
    _case("disk full amid blocks", of_files.full_disk_amid),
    _case("read-only output", of_files.read_only),
    _case("output read-only amid blocks", of_files.read_only_amid),
    _case("no such folder", of_files.no_folder),
    _case("too many open files", of_files.few_files),
    _case("source that may not be read", of_files.source_locked),
    _case("source cut short while read", of_files.source_cut),
    _case("source overwritten while read", of_files.source_overwritten),
    _case("source deleted while read", of_files.source_gone_amid),
    _case("source deleted between runs", of_files.source_gone),
    _case("source replaced between runs", of_files.source_replaced),
    _case("a tile that fails", of_files.torn_tile),
    _case("a tile that fails, at the glance", partial(of_files.torn_tile, coarser=False)),
    _case("a tile that hangs", of_files.hung_tile),
    _case("a glance that hangs", of_files.hung_glance),
    _case("a model that raises", of_runs.model_raises),
    _case("a model out of memory above 16", of_runs.model_out_of_memory),
    _case("a model that never fits", of_runs.model_never_fits),
    _case("a model that gives NaN", of_runs.model_gives_nan),
    _case("two runs at once", of_runs.two_runs),
    _case("SIGKILL", of_runs.killed_plainly),
    _case("SIGKILL, then another machine", of_runs.other_host, partial(of_runs.other_host, pace=_QUICK_PACE)),
    _case("another machine, while it runs", of_runs.other_host_alive),
    _case("SIGSTOP, taken over, SIGCONT", of_runs.stopped_and_continued),
    _case("a clock that jumps", of_runs.clock_jumps),
    _case("SIGTERM twice", of_runs.asked_twice),
    _case("nobody reads stdout", of_runs.nobody_listens),
)


def tried(case: Case, lab: Lab, *, quick: bool) -> Row:
    """What a case found."""
    row, do = Row(fault=case.name), case.quick if quick else case.do
    try:
        do(lab, row)
    except SkippedError as reason:
        row.skipped = str(reason)
    except (TimeoutError, OSError, ValueError, KeyError) as error:
        row.wrong.append(f"{type(error).__name__}: {error}")
    return row


def show(rows: Sequence[Row], root: str) -> None:
    """A table."""
    print("| fault | what the user sees | exit | s | what the store says | the next run |\n|---|---|---|---|---|---|")
    for row in rows:
        seen = "<br>".join(row.sees).replace(root, "") or "nothing" if not row.skipped else f"skipped: {row.skipped}"
        exits = ", ".join(f"{code} ({many} times)" if many > 1 else str(code) for code, many in Counter(row.exits).items())
        cells = (row.fault, seen, exits, f"{row.seconds:.1f}", row.store, row.again)
        print("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")


def main() -> int:
    parser = argparse.ArgumentParser(description="Break what a run needs, and look at what it does.")
    parser.add_argument("--quick", action="store_true", help="fewer sizes of a full disk, less patience with another machine")
    parser.add_argument("--only", action="append", help="the fault of this name; repeat it for several")
    parser.add_argument("--json", type=Path, help="where the rows go (default: benchmarks/results/faults.json)")
    given = parser.parse_args()
    cases = [case for case in CASES if given.only is None or case.name in given.only]
    with TemporaryDirectory(prefix="faults-") as folder, Lab(Path(folder)) as lab:
        rows = []
        for case in cases:
            rows.append(tried(case, lab, quick=given.quick))
            print(f"  {case.name}: {'skipped' if rows[-1].skipped else 'WRONG' if rows[-1].wrong else 'good'}", file=sys.stderr, flush=True)
    show(rows, folder)
    wrong = [(row.fault, what) for row in rows for what in row.wrong]
    skipped, bad = sum(bool(row.skipped) for row in rows), len({fault for fault, _ in wrong})
    print(f"\n{len(rows)} faults, {skipped} skipped, {bad} not as they should be")
    for fault, what in wrong:
        print(f"WRONG {fault}: {what}")
    name = "faults-part.json" if given.only or given.quick else "faults.json"
    out = given.json or Path(__file__).parent / "results" / name
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps([asdict(row) for row in rows], indent=1).replace(folder, ""))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
