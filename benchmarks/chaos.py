"""SIGKILL, over and over: `make chaos N=200`. Every store must end as the one of a run that nobody disturbed, to the byte.

Each job is run once undisturbed. Then copies of it are run as `patchdrive run` in processes of their own (forked from this one, which
has imported everything and started nothing), killed at a random instant after the first block was committed, begun again with the same
command, killed again, and at last left to finish. A quarter of the kills happen at named points inside a commit (`chaos_points`).
Work lost by a kill: the time from the last record of the killed process, or from its start, to the kill.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from chaos_jobs import JOBS, Job, command, names, write_source
from chaos_points import CALLS, Counted, Point

from patchdrive.pipeline import cli
from patchdrive.pipeline.shard import Shard

_LONGEST = 120.0
"""Seconds after which a process hangs."""
_LIVES = 5
"""Most kills of one store."""
_LOOK = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class Uncut:
    """A job that nobody disturbed."""

    files: dict[str, str]
    """SHA-256 of each file of the store."""
    seconds: float
    """From start to end."""
    tail: float
    """Of them, after the first record."""
    calls: dict[str, int]
    """Calls of the first process after the first record."""


@dataclass(slots=True)
class Tally:
    """What happened."""

    lost: dict[str, list[float]] = field(default_factory=dict)
    """Seconds of work lost by each kill, by job."""
    points: Counter[str] = field(default_factory=Counter)
    """Kills at named points."""
    stores: int = 0
    """Compared."""
    wrong: list[str] = field(default_factory=list)
    """What differed."""

    @property
    def kills(self) -> int:
        return sum(map(len, self.lost.values()))


def begin(arguments: Sequence[str], out: Path, point: Point | None, counts: Path | None = None) -> int:
    """Fork a process that runs the command; its words go to `out/log`."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        log = os.open(out / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        counted = Counted(out, point)
        code = cli.main(arguments)
        if counts is not None:
            counted.save(counts)
    finally:
        os._exit(code)


def ended(child: int) -> bool:
    return os.waitpid(child, os.WNOHANG)[0] == child


def wait(children: dict[int, int], tally: Tally, what: str) -> None:
    """Until all have ended; one that does not is killed and told."""
    limit = time.monotonic() + _LONGEST
    while children:
        for index, child in list(children.items()):
            if ended(child):
                del children[index]
            elif time.monotonic() > limit:
                tally.wrong.append(f"{what}: process {index} hung")
                os.kill(child, signal.SIGKILL)
        time.sleep(_LOOK)


def records(out: Path) -> list[Path]:
    """Of blocks, and of bands of painted maps and coarser levels."""
    return [*out.glob("*.patchdrive/commits/*/*.json"), *out.glob("*.patchdrive/coarse/*/*/*.json")]


def tree(out: Path) -> dict[str, str]:
    (store,) = out.glob("*.zarr")
    files = {path.relative_to(store).as_posix(): path for path in store.rglob("*") if path.is_file()}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}


def undisturbed(job: Job, source: Path, out: Path) -> Uncut:
    out.mkdir()
    began, tally = time.time(), Tally()
    children = {index: begin(command(job, source, out, index), out, None, out / f"calls{index}") for index in range(job.processes)}
    wait(children, tally, job.name)
    now = time.time()
    if tally.wrong or not list(out.glob("*.done.json")):
        raise SystemExit(f"{job.name} does not run undisturbed: {tally.wrong}\n{(out / 'log').read_text()}")
    first = min(path.stat().st_mtime for path in records(out))
    return Uncut(files=tree(out), seconds=now - began, tail=now - first, calls=json.loads((out / "calls0").read_text()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One store that is disturbed."""

    job: Job
    """How it is made."""
    source: Path
    """Of what."""
    out: Path
    """Where."""
    uncut: Uncut
    """What it must be in the end."""

    def begin(self, index: int, point: Point | None = None) -> int:
        return begin(command(self.job, self.source, self.out, index), self.out, point)

    def lost(self, index: int, began: float) -> float:
        """Seconds from the last record of a process that was killed now, or from its start."""
        now, times = time.time(), [began]
        for plan in self.out.glob("*.patchdrive/plans/*.json"):
            share = Shard(index, self.job.processes).share(json.loads(plan.read_text())["blocks"])
            paths = [path for path in records(self.out) if path.parent.name == plan.stem and int(path.stem) in share]
            times += [path.stat().st_mtime for path in paths]
        return now - max(times)


def live(trial: Trial, draw: random.Random, tally: Tally) -> None:
    """Begin the job's processes, kill one of them or all somewhere, and wait for the others."""
    job, uncut = trial.job, trial.uncut
    point = None
    if tally.kills and 4 * tally.points.total() <= tally.kills and any(uncut.calls.get(call) for call in CALLS):
        call = draw.choices(CALLS, [uncut.calls.get(call, 0) for call in CALLS])[0]
        point = Point(call=call, number=draw.randint(1, uncut.calls[call]), after=draw.random() < 0.5)
    victims = draw.choice([[0], [job.processes - 1], list(range(job.processes))])
    delay = draw.uniform(0, uncut.seconds if records(trial.out) else uncut.tail)
    began = time.time()
    children = {index: trial.begin(index, point if index == victims[0] else None) for index in range(job.processes)}
    if point is None:
        killed = kill_sometime(children, victims, trial.out, delay)
    else:
        _, status = os.waitpid(children.pop(victims[0]), 0)
        killed = [victims[0]] if os.WIFSIGNALED(status) else []
        tally.points[str(point)] += len(killed)
    for index in killed:
        tally.lost.setdefault(job.name, []).append(trial.lost(index, began))
    wait(children, tally, job.name)


def kill_sometime(children: dict[int, int], victims: Sequence[int], out: Path, delay: float) -> list[int]:
    """Once a block is committed, and then `delay` seconds later, unless they end before."""
    limit = time.monotonic() + _LONGEST
    due = None
    while time.monotonic() < limit and (due is None or time.monotonic() < due):
        if due is None and records(out):
            due = time.monotonic() + delay
        time.sleep(_LOOK)
        for index in [index for index, child in children.items() if ended(child)]:
            del children[index]
        if not set(victims) & set(children):
            return []
    killed = [index for index in victims if index in children]
    for index in killed:
        os.kill(children[index], signal.SIGKILL)
    for index in killed:
        os.waitpid(children.pop(index), 0)
    return killed


def disturbed(trial: Trial, draw: random.Random, tally: Tally) -> None:
    """One store, killed some times, resumed until done, compared."""
    trial.out.mkdir()
    for _ in range(draw.randint(1, _LIVES)):
        if not list(trial.out.glob("*.done.json")):
            live(trial, draw, tally)
    wait({index: trial.begin(index) for index in range(trial.job.processes)}, tally, trial.job.name)
    tally.stores += 1
    wrong = differences(trial.out, trial.uncut)
    tally.wrong += [f"{trial.job.name}, store {tally.stores}: {what}" for what in wrong]
    if wrong:
        print((trial.out / "log").read_text()[-3000:])


def differences(out: Path, uncut: Uncut) -> list[str]:
    """What is not as it should be of a store that was disturbed and has ended."""
    if not list(out.glob("*.done.json")):
        return ["not done"]
    held, wanted = tree(out), uncut.files
    found = [f"{name} is missing" for name in sorted(wanted.keys() - held.keys())]
    found += [f"{name} is one too many" for name in sorted(held.keys() - wanted.keys())]
    found += [f"{name} differs" for name in sorted(held.keys() & wanted.keys()) if held[name] != wanted[name]]
    (state,) = out.glob("*.patchdrive")
    named = [json.loads(path.read_text())["files"] for path in records(out)] + [json.loads((state / "contents.json").read_text())]
    if sum(map(len, named)) != len(held) or {name: digest for files in named for name, digest in files.items()} != held:
        found.append("records and contents.json do not name each file once, with its digest")
    left = [path for path in (state / "scratch").rglob("*") if path.is_file()]
    return [*found, *(f"{path} was left behind" for path in left)]


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill runs, resume them, compare what they leave.")
    parser.add_argument("kills", type=int, nargs="?", default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="jobs whose name holds this")
    options = parser.parse_args()
    jobs = [job for job in JOBS if options.only in job.name]
    draw, tally, began = random.Random(options.seed), Tally(), time.monotonic()
    with TemporaryDirectory(prefix="chaos-") as folder:
        root, source = Path(folder), Path(folder) / "slide.tif"
        write_source(source)
        print(f"{names(jobs)}: each undisturbed ...")
        uncut = {job.name: undisturbed(job, source, root / f"uncut{index}") for index, job in enumerate(jobs)}
        for name, each in uncut.items():
            print(f"  {name}: {each.seconds:.1f} s, {each.tail:.1f} s after the first record, {len(each.files)} files, {each.calls}")
        while tally.kills < options.kills and not tally.wrong:
            job = jobs[tally.stores % len(jobs)]
            disturbed(Trial(job=job, source=source, out=root / f"cut{tally.stores}", uncut=uncut[job.name]), draw, tally)
    tell(tally, time.monotonic() - began)
    return 1 if tally.wrong else 0


def tell(tally: Tally, seconds: float) -> None:
    lost = [each for of in tally.lost.values() for each in of]
    print(f"{tally.kills} kills, {tally.stores} stores compared, {len(tally.wrong)} wrong, {seconds:.0f} s")
    for name, of in tally.lost.items():
        print(f"  {name}: {len(of)} kills, work lost {statistics.median(of):.2f} s in the median, {max(of):.2f} s at worst")
    if lost:
        print(f"  all: work lost {statistics.median(lost):.2f} s in the median, {max(lost):.2f} s at worst")
    print(f"  at named points: {sum(tally.points.values())}: {dict(sorted(tally.points.items()))}")
    for wrong in tally.wrong:
        print(f"WRONG {wrong}")


if __name__ == "__main__":
    sys.exit(main())
