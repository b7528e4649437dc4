"""Where faults are tried: the program in processes that can be watched, small disks, and what a case found."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import tifffile

_SERVER = Path(__file__).with_name("fault_server.py")
_LOOK = 0.002
LONGEST = 60.0
"""Seconds after which a process hangs."""
OPTIONS = ("--patch-size", "32", "--saliency", "valid", "--batch-size", "64", "--workers", "1", "--device", "cpu", "--json")
"""4608 patches in 72 batches and 5 blocks."""
BLOCKS, NOBODY = 5, 65534
_GATE_BATCH, _BEFORE_GATE = 40, 2  # a batch of the third block, and the blocks before it


class SkippedError(Exception):
    """This machine does not allow what a case needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a process ended."""

    code: int | None
    """Exit code, or minus the signal; None where it hung and was killed."""
    seconds: float
    """It ran for."""
    out: tuple[str, ...]
    """Lines it wrote on stdout."""
    err: tuple[str, ...]
    """Lines it wrote on stderr."""

    @property
    def report(self) -> dict[str, Any]:
        """Its first JSON line; empty where there is none."""
        return json.loads(self.out[0]) if self.out else {}


@dataclass(slots=True, kw_only=True)
class Row:
    """What one case found: a row of the table."""

    fault: str
    """What was done."""
    sees: list[str] = field(default_factory=list)
    """What the user sees: stderr, or where that is empty the reasons of the report."""
    exits: list[int | None] = field(default_factory=list)
    """Exit codes of the runs that met the fault."""
    status: str = ""
    """Of their JSON line; empty where none was printed."""
    store: str = ""
    """What the store says after it."""
    again: str = ""
    """What the same command does once the fault is gone."""
    seconds: float = 0.0
    """The longest run that met the fault took."""
    skipped: str = ""
    """Why the case could not be tried here."""
    wrong: list[str] = field(default_factory=list)
    """What is not as it should be."""

    def require(self, kept: bool, what: str) -> None:
        """Note `what` as wrong unless it is `kept`."""
        if not kept:
            self.wrong.append(what)

    def met(self, ended: Ended, *, codes: Sequence[int], words: str = "", bug: bool = False, within: float = 20.0) -> None:
        """A run that met the fault: note what it said, and whether it said it as it should.

        Args:
            ended: the run.
            codes: it may exit with.
            words: that its stderr must hold.
            bug: in a user's code, whose traceback is wanted.
            within: seconds that it may take.
        """
        said = "\n".join(ended.err)
        shown = ended.err[-1:] if bug else ended.err or [f"{many} x {why}" for why, many in ended.report.get("reasons", {}).items()]
        self.sees += [line for line in shown if line not in self.sees]
        self.exits.append(ended.code)
        self.status = str(ended.report.get("status", self.status))
        self.seconds = max(self.seconds, ended.seconds)
        self.require(ended.code in codes, f"exit code {ended.code}, wanted one of {list(codes)}: {said[-600:]}")
        self.require(words in said, f"{words!r} is not among the words {said[-600:]!r}")
        self.require(("Traceback" in said) == bug, f"a traceback where none is due, or none where one is: {said[-1500:]}")
        self.require(ended.seconds <= within, f"took {ended.seconds:.1f} s")
        self.require(bug or len(ended.err) <= 4, f"{len(ended.err)} lines on stderr: {said[-600:]}")


class Process:
    """One process of the program."""

    def __init__(self, lab: Lab, pid: int, out: Path, err: Path) -> None:
        self.pid, self._lab, self._out, self._err, self._began = pid, lab, out, err, time.monotonic()

    def wait(self, longest: float = LONGEST) -> Ended:
        """Until it has ended; one that does not is killed."""
        code, by = None, time.monotonic() + longest
        while (code := self._lab.ask({"ended": self.pid})) is None and time.monotonic() < by:
            time.sleep(_LOOK)
        seconds = time.monotonic() - self._began
        if code is None:
            os.kill(self.pid, signal.SIGKILL)
            while self._lab.ask({"ended": self.pid}) is None:
                time.sleep(_LOOK)
        out = self._out.read_text().splitlines() if self._out.exists() else []
        return Ended(code=code, seconds=seconds, out=tuple(out), err=tuple(self._err.read_text().splitlines()))


class Gate:
    """The batch before which a model waits until it is let through."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self.environment = {"FAULT_MODEL": f"gate:{_GATE_BATCH}", "FAULT_GATE": str(folder)}

    def reached(self, out: Path) -> None:
        """Wait until a process that writes to `out` stands here, and has written all that it could before."""
        wait_until(lambda: (self._folder / "here").exists() and records(out) == _BEFORE_GATE, "no process came to the gate")

    def open(self) -> None:
        (self._folder / "go").touch()


class Lab:
    """A folder, a picture, and what a run that nobody disturbs makes of it. Use as a context manager."""

    def __init__(self, root: Path) -> None:
        self.root, self.source = root, root / "slide.tif"
        self._begun = 0
        root.chmod(0o755)  # another user reads the source
        write_source(self.source)
        few = {**os.environ, "OMP_NUM_THREADS": "1"}  # the model computes next to nothing, in batches that gain nothing by two threads
        self._server = subprocess.Popen(
            [sys.executable, str(_SERVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=_SERVER.parent, env=few
        )

    def __enter__(self) -> Self:
        out = self.folder("undisturbed")
        ended = self.run(out)
        if ended.code != 0:
            raise SystemExit(f"it does not run undisturbed: {ended}")
        self.undisturbed = tree(store_of(out))
        return self

    def __exit__(self, *_error: object) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.stdout.close()
        self._server.wait(10)

    def ask(self, order: Mapping[str, Any]) -> Any:
        """One order to the server, and its answer."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def folder(self, name: str) -> Path:
        """A new one."""
        path = self.root / name
        path.mkdir(parents=True)
        return path

    def copy(self, name: str) -> Path:
        """A source of one's own, to be damaged."""
        path = self.folder(name) / "slide.tif"
        shutil.copyfile(self.source, path)
        return path

    def begin(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str] | None = None,
        *,
        listened: bool = True,
        files: int = 0,
        user: int = 0,
    ) -> Process:
        """Begin a process of the program.

        Args:
            arguments: of `patchdrive`.
            environment: what of it differs.
            listened: False where whoever read its stdout has gone.
            files: most that it may hold open; 0 for the usual number.
            user: who runs it; 0 for us.
        """
        if user and os.geteuid():
            raise SkippedError("only root may run a process as another user")
        self._begun += 1
        out, err = self.root / f"out-{self._begun}", self.root / f"err-{self._begun}"
        out.touch()
        order = {"arguments": list(arguments), "environment": dict(environment or {}), "listened": listened, "files": files, "user": user}
        return Process(self, self.ask({**order, "out": str(out), "err": str(err)}), out, err)

    def run(self, out: Path, environment: Mapping[str, str] | None = None, *more: str, source: Path | None = None) -> Ended:
        """`patchdrive run` to its end."""
        return self.begin(self.command(out, *more, source=source), environment).wait()

    def command(self, out: Path, *more: str, source: Path | None = None) -> list[str]:
        """Arguments of `patchdrive run`."""
        return ["run", "-o", str(out), "--model", "fault_inside:Means", *OPTIONS, *more, "--", str(source or self.source)]

    def told(self, out: Path) -> str:
        """What the store in `out` says of itself: its records, and what `patchdrive verify` makes of them."""
        stores = sorted(out.glob("*.zarr")) if out.is_dir() else []
        if not stores:
            return "no store"
        told = []
        for store in stores:
            done = store.with_suffix(".done.json").exists()
            count = len(list(store.with_suffix(".patchdrive").glob("commits/*/*.json")))
            verdict = self.begin(["verify", str(store), "--no-recompute"]).wait()
            word = {0: "good", 3: "NOT GOOD"}.get(verdict.code or 0, verdict.err[0] if verdict.err else "?")
            told.append(f"{'done' if done else 'unfinished'}, {count} of {BLOCKS} blocks recorded; verify: {word}")
        return "; ".join(told)

    def resumed(self, row: Row, out: Path, *more: str, source: Path | None = None, wanted: Mapping[str, str] | None = None) -> None:
        """The same command, undisturbed now: it must end with the bytes of a run that never was disturbed."""
        before = records(out)
        ended = self.run(out, None, *more, source=source)
        same = ended.code == 0 and tree(store_of(out)) == (self.undisturbed if wanted is None else wanted)
        row.again = f"exit {ended.code}; {before} of {BLOCKS} blocks kept; {'bytes equal' if same else 'BYTES DIFFER'}"
        row.require(same, f"the next run did not mend it: {row.again} {ended.err[-3:]}")
        row.require(not ended.err, f"the next run complains: {ended.err[:3]}")


def write_source(path: Path, seed: int = 7) -> None:
    """A slide of 2048 x 2304 pixels of noise, 0.5 µm each, one coarser level, plain tiles."""
    pixels = np.random.default_rng(seed).integers(100, 255, (2048, 2304, 3), np.uint8)
    how: dict[str, Any] = {"tile": (256, 256), "photometric": "rgb", "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as file:
        file.write(pixels, resolution=(2e4, 2e4), **how)
        file.write(np.ascontiguousarray(pixels[::4, ::4]), resolution=(5e3, 5e3), subfiletype=1, **how)


def wait_until(true: Callable[[], bool], otherwise: str) -> None:
    by = time.monotonic() + LONGEST
    while not true():
        if time.monotonic() > by:
            raise TimeoutError(otherwise)
        time.sleep(_LOOK)


def store_of(out: Path) -> Path:
    (store,) = out.glob("*.zarr")
    return store


def records(out: Path) -> int:
    return len(list(out.glob("*.patchdrive/commits/*/*.json")))


def tree(root: Path) -> dict[str, str]:
    """SHA-256 of each file, by its path."""
    files = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}


@contextmanager
def disk(folder: Path, options: str) -> Iterator[None]:
    """A file system of its own in `folder`, in memory."""
    mounted = _mount("-t", "tmpfs", "-o", options, "patchdrive-faults", str(folder))
    if mounted:
        raise SkippedError(f"no disk can be mounted here ({mounted})")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    """Change the disk in `folder`, once nobody holds a file there open for writing."""
    wait_until(lambda: not _mount("-o", f"remount,{options}", str(folder)), f"{folder} cannot be mounted again with {options}")


def _mount(*arguments: str) -> str:
    """Why it did not work; empty where it did."""
    with suppress(FileNotFoundError):
        done = subprocess.run(["mount", *arguments], check=False, capture_output=True, text=True)
        return "" if done.returncode == 0 else done.stderr.strip() or f"mount: exit code {done.returncode}"
    return "there is no mount"
