"""One network, one slide, the same patches: `patchdrive run` and the other engines, each a process of its own, in turn.

A first round is not counted: it draws up the patches (patchdrive's plan), warms the page cache, watches how much memory each takes,
and compares what each leaves.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from bench_files import HEIGHT, WIDTH
from engine_models import SIDE
from numpy.typing import NDArray

from patchdrive.pipeline import open_result

OURS = "patchdrive"
BATCH = 32
_HERE = Path(__file__).parent
_LIMIT = 3600.0  # seconds that one process may take
_LOOK = 0.1  # seconds between two looks at memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """One network over one share of the slide."""

    network: str
    """Name in `engine_networks`."""
    slide: Path
    """What is read."""
    saliency: str | None
    """Of patchdrive, module:function; None: tissue, all of it."""
    peers: Mapping[str, Path]
    """Name in `engine_peers` to the interpreter it is installed for."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lap:
    """One process from its start to its end."""

    wall: float
    """Seconds, imports included."""
    seconds: float
    """By its own clock, imports excluded."""
    patches: int
    """Computed."""
    about: str
    """Who it says it is."""
    told: Mapping[str, Any] = field(default_factory=dict)
    """patchdrive's report."""
    memory: int = 0
    """Most bytes the process and its children held at once, shared pages counted once; 0 where nobody looked."""
    answer: Mapping[str, NDArray[Any]] | None = None
    """y, x (n,) and features (n, D), where they are to be compared."""


class EngineError(RuntimeError):
    """An engine ended with an error."""


def lap(name: str, race: Race, corners: Path | None, *, watch: bool) -> Lap:
    """Run one engine once.

    Raises:
        EngineError: it failed; says its last words.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        if name == OURS:
            paths = os.pathsep.join([str(_HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
            wall, told, memory = _timed(_our_command(race, out), {**os.environ, "PYTHONPATH": paths}, watch=watch)
            counts = (told["planned"], told["done"], told["failed"])
            if told["status"] != "done" or counts[0] != counts[1]:
                raise EngineError(f"patchdrive ended {told['status']}: planned, done, failed are {counts}")
            answer = _our_answer(Path(told["store"])) if watch else None
            return Lap(
                wall=wall, seconds=told["seconds"]["total"], patches=told["done"], about=OURS, told=told, memory=memory, answer=answer
            )
        assert corners is not None
        job = out / "job.json"
        (out / "results").mkdir()
        facts = {"slide": str(race.slide), "corners": str(corners), "network": race.network, "batch_size": BATCH}
        job.write_text(json.dumps({**facts, "out": str(out / "results"), "keep": watch}))
        command = [str(race.peers[name]), str(_HERE / "engine_peers.py"), name, str(job)]
        # What this environment was given beside its packages is none of theirs.
        theirs = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        wall, told, memory = _timed(command, theirs, watch=watch)
        answer = _their_answer(out / "results" / "features.npz") if watch else None
        return Lap(wall=wall, seconds=told["seconds"], patches=told["patches"], about=told["about"], memory=memory, answer=answer)


def _our_command(race: Race, out: Path) -> list[str]:
    program = Path(sys.executable).parent / "patchdrive"
    command = [str(program), "run", str(race.slide), "-o", str(out), "--model", f"engine_models:{race.network}", "--json"]
    command += ["--patch-size", str(SIDE), "--batch-size", str(BATCH)]
    return command + (["--saliency", race.saliency] if race.saliency else [])


def _our_answer(store: Path) -> dict[str, NDArray[Any]]:
    result = open_result(store)
    assert result.features is not None
    return {"y": result.patches.y, "x": result.patches.x, "features": result.features}


def _their_answer(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path) as held:
        return {name: held[name] for name in ("y", "x", "features")}


def _timed(command: Sequence[str], environment: Mapping[str, str], *, watch: bool) -> tuple[float, dict[str, Any], int]:
    """(seconds, the JSON of its last line, most bytes held)."""
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        begin = time.perf_counter()
        with subprocess.Popen(command, stdout=stdout, stderr=stderr, env=environment) as process:
            try:
                memory = _watched(process) if watch else 0
                process.wait(timeout=_LIMIT)
            except BaseException:
                process.kill()
                raise
            wall = time.perf_counter() - begin
        stdout.seek(0)
        lines = stdout.read().decode(errors="replace").strip().splitlines()
        if process.returncode or not lines:
            stderr.seek(0)
            words = stderr.read().decode(errors="replace").strip().splitlines()
            raise EngineError(f"it ended with {process.returncode}: {words[-1] if words else 'no words'}")
        told: dict[str, Any] = json.loads(lines[-1])
        return wall, told, memory


def _watched(process: subprocess.Popen[bytes]) -> int:
    """Most bytes that the process and its children hold at once, until it ends."""
    most, end = 0, time.perf_counter() + _LIMIT
    while process.poll() is None and time.perf_counter() < end:
        most = max(most, sum(_held(each) for each in _family(process.pid)))
        time.sleep(_LOOK)
    return most


def _family(process: int) -> list[int]:
    """A process and all that descend from it."""
    found, looked = [process], 0
    while looked < len(found):
        try:
            threads = list(Path(f"/proc/{found[looked]}/task").iterdir())
            found += [int(child) for thread in threads for child in (thread / "children").read_text().split()]
        except OSError:  # it has just ended
            pass
        looked += 1
    return found


def _held(process: int) -> int:
    """Proportional set size: a page that k processes share counts 1/k in each."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has just ended
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def compare(ours: Mapping[str, NDArray[Any]], theirs: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """How far two engines' answers for the same patches lie apart; those inside the slide, for outside it each fills as it likes."""
    mine, other = _row_of(ours), _row_of(theirs)
    shared = [place for place in mine if place in other]
    inside = [place for place in shared if place[0] + SIDE <= HEIGHT and place[1] + SIDE <= WIDTH]
    a = ours["features"][[mine[place] for place in inside]].astype(np.float64)
    b = theirs["features"][[other[place] for place in inside]].astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return {
        "ours": len(mine),
        "theirs": len(other),
        "shared": len(shared),
        "compared": len(inside),
        "cosine_least": float(((a * b).sum(axis=1) / lengths).min()),
        "gap_largest": float(np.abs(a - b).max()),
        "value_largest": float(np.abs(a).max()),
    }


def _row_of(answer: Mapping[str, NDArray[Any]]) -> dict[tuple[int, int], int]:
    """Corner (y, x) to its row."""
    return {(int(y), int(x)): row for row, (y, x) in enumerate(zip(answer["y"], answer["x"], strict=True))}


def measure_race(race: Race, rounds: int) -> dict[str, Any]:
    """Everything of one network as plain data. An engine that fails in the first round takes no part, and is named with the reason."""
    with tempfile.TemporaryDirectory() as folder:
        corners = Path(folder) / "corners.npz"
        first = lap(OURS, race, None, watch=True)
        assert first.answer is not None
        np.savez(corners, y=first.answer["y"], x=first.answer["x"])
        laps, compared, failed = {OURS: first}, {}, {}
        for name in race.peers:
            try:
                laps[name] = lap(name, race, corners, watch=True)
            except EngineError as error:
                failed[name] = str(error)
                continue
            compared[name] = compare(first.answer, laps[name].answer or {})
        names = list(laps)
        found = []
        for number in range(rounds):
            turn = names[number % len(names) :] + names[: number % len(names)]
            done = {name: lap(name, race, corners, watch=False) for name in turn}
            found.append({name: {"wall": one.wall, "seconds": one.seconds, "told": dict(one.told)} for name, one in done.items()})
            walls = ", ".join(f"{name} {one.wall:.0f} s" for name, one in done.items())
            print(f"  {race.network}, round {number + 1} of {rounds}: {walls}", file=sys.stderr, flush=True)
    about = {name: {"about": one.about, "memory": one.memory, "patches": one.patches} for name, one in laps.items()}
    return {"network": race.network, "engines": about, "compared": compared, "failed": failed, "rounds": found}


def median_of(result: Mapping[str, Any], name: str, key: str) -> float:
    """Seconds of one engine, the median over rounds; `wall` or `seconds`."""
    return float(statistics.median(one[name][key] for one in result["rounds"]))


def ahead_of(result: Mapping[str, Any], name: str, key: str) -> float:
    """How many times as fast as `name` patchdrive is, the median over rounds of the ratio within a round."""
    return float(statistics.median(one[name][key] / one[OURS][key] for one in result["rounds"]))
