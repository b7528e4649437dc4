"""Leases: one holder at a time, told dead from alive by its process or by watching it, whatever the clocks say."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from patchdrive.pipeline import lease as lease_module
from patchdrive.pipeline.lease import Holder, Lease, Pace, Verdict, Watch, held_numbers, lease_names, lease_path, take

QUICK = Pace(beat=0.05, patience=1.0, poll=0.01)
PROCESS = f"""
import importlib.util, sys, time
from dataclasses import replace
from pathlib import Path
spec = importlib.util.spec_from_file_location("lease", {lease_module.__file__!r})  # alone: the whole package takes seconds to import
module = sys.modules["lease"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
Holder, Lease, Pace, Watch, take = module.Holder, module.Lease, module.Pace, module.Watch, module.take
folder, boot, start = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
holder = Holder.this_process()
if boot:
    holder = replace(holder, boot=boot, host="host of " + boot)
watch = Watch(folder, "lease", Pace(beat=0.05, patience=1.0, poll=0.01))
print("ready", flush=True)
while not start.exists():
    time.sleep(0.0005)
found = take(watch, holder)
print("won" if isinstance(found, Lease) else "lost", flush=True)
for line in sys.stdin:
    if line == "held\\n":
        print(found.held, flush=True)
    if line == "check\\n":
        print(found.check(), flush=True)
    if line == "release\\n":
        found.release()
        print("released", flush=True)
"""


class Process:
    """Another process that takes the lease `lease` once the file `start` is there."""

    def __init__(self, folder: Path, start: Path, boot: str = "") -> None:
        arguments = [sys.executable, "-c", PROCESS, str(folder), boot, str(start)]
        self.popen = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def line(self) -> str:
        return self.popen.stdout.readline().strip()

    def ask(self, what: str) -> str:
        self.popen.stdin.write(what + "\n")
        self.popen.stdin.flush()
        return self.line()

    def end(self) -> None:
        self.popen.kill()
        self.popen.communicate()


@pytest.fixture
def start(tmp_path):
    """Starts a process that takes the lease in `tmp_path / 'state'`; its boot says from which machine it seems to be."""
    (tmp_path / "state").mkdir()
    begun = []

    def begin(*boots, at_once=True):
        go = tmp_path / f"go-{len(begun)}"
        processes = [Process(tmp_path / "state", go, boot) for boot in boots]
        begun.extend(processes)
        for process in processes:
            assert process.line() == "ready"
        if at_once:
            go.touch()
        return processes

    yield begin
    for process in begun:
        process.end()


@pytest.fixture
def state(tmp_path):
    return tmp_path / "state"


def watch(state):
    return Watch(state, "lease", QUICK)


def test_a_process_here_is_seen_alive_and_dead_at_once(start, state):
    (process,) = start("")
    assert process.line() == "won"
    verdict = watch(state).look()
    assert (verdict.live, verdict.number, verdict.holder.pid) == (True, 1, process.popen.pid)
    assert str(process.popen.pid) in str(verdict.holder)
    process.popen.send_signal(signal.SIGSTOP)  # stands still, and lives
    time.sleep(2 * QUICK.patience)
    assert watch(state).look().live is True
    process.popen.kill()
    while Path(f"/proc/{process.popen.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    assert watch(state).look().live is False  # nobody waited for it yet: a zombie is dead
    process.popen.wait()
    assert watch(state).look().live is False


def test_a_process_id_used_again_is_another_process(state, tmp_path):
    state.mkdir()
    us = Holder.this_process()
    held = take(watch(state), replace(us, start=us.start - 1))
    assert isinstance(held, Lease)
    assert watch(state).look().live is False
    held.release()


def test_a_process_elsewhere_is_watched(start, state):
    (process,) = start("another machine")
    assert process.line() == "won"
    looking = watch(state)
    assert looking.look().live is None
    began = time.monotonic()
    assert looking.settle().live is True
    assert time.monotonic() - began < QUICK.patience / 2
    process.end()
    assert watch(state).look().live is None
    began = time.monotonic()
    assert looking.settle().live is True  # it moved a moment ago
    while looking.look().live:
        time.sleep(0.01)
    assert QUICK.patience * 0.9 < time.monotonic() - began < QUICK.patience * 3
    assert watch(state).settle().live is False


@pytest.mark.parametrize("years", [-40, pytest.param(40, marks=pytest.mark.slow)])
def test_clocks_that_are_wrong_or_jump_change_nothing(start, state, years):
    (process,) = start("another machine")
    assert process.line() == "won"
    looking, stop = watch(state), threading.Event()
    path = lease_path(state, "lease", 1)

    def jump():
        while not stop.wait(0.003):
            moment = time.time() + years * 365 * 86400
            os.utime(path, (moment, moment))

    thread = threading.Thread(target=jump)
    thread.start()
    try:
        assert looking.settle().live is True
        until = time.monotonic() + 2 * QUICK.patience
        while time.monotonic() < until:
            assert looking.look().live is True
            time.sleep(0.02)
        process.end()
        assert watch(state).settle().live is False  # a file whose time moves, and not its bytes, is no life
    finally:
        stop.set()
        thread.join()


def test_a_pause_of_the_watcher_is_not_a_death(start, state):
    (process,) = start("another machine")
    assert process.line() == "won"
    looking = Watch(state, "lease", replace(QUICK, beat=0.2, patience=0.6))
    process.popen.send_signal(signal.SIGSTOP)  # as if the file server were away, for it and for us
    looking.look()
    time.sleep(1.5)
    assert looking.look().live is None
    process.popen.send_signal(signal.SIGCONT)
    assert looking.settle().live is True


@pytest.mark.parametrize("before", ["nothing", "dead here", "dead elsewhere", "given back", "torn"])
def test_of_many_at_once_exactly_one_wins(start, state, before):
    if before == "torn":
        lease_path(state, "lease", 1).touch()  # the machine crashed
    elif before != "nothing":
        (first,) = start("another machine" if before == "dead elsewhere" else "")
        assert first.line() == "won"
        if before == "given back":
            assert first.ask("release") == "released"
        first.end()
    for round_ in range(3):
        processes = start(*["", "", "", "another machine", "a third machine", "", "", ""])
        said = sorted(process.line() for process in processes)
        assert said == ["lost"] * 7 + ["won"], (round_, said)
        for process in processes:
            process.end()
    assert len(held_numbers(state, "lease")) <= 2
    assert not list(state.glob(".*"))


def test_one_that_stood_still_learns_that_it_was_taken_over(start, state):
    (first,) = start("another machine")
    assert first.line() == "won"
    assert first.ask("check") == "True"
    first.popen.send_signal(signal.SIGSTOP)
    second = take(watch(state), Holder.this_process())
    assert isinstance(second, Lease)
    first.popen.send_signal(signal.SIGCONT)
    assert first.ask("check") == "False"
    assert first.ask("held") == "False"
    time.sleep(5 * QUICK.beat)
    assert first.ask("release") == "released"
    assert second.check()
    verdict = watch(state).look()
    assert (verdict.live, verdict.number, verdict.holder.pid) == (True, 2, os.getpid())
    second.release()


def test_the_beat_notices_by_itself(state):
    state.mkdir()
    held = take(watch(state), Holder.this_process())
    lease_path(state, "lease", 2).write_bytes(lease_path(state, "lease", 1).read_bytes())
    until = time.monotonic() + 5
    while held.held and time.monotonic() < until:
        time.sleep(0.01)
    assert not held.held
    held.release()


def test_a_folder_that_is_gone_is_not_held(state):
    state.mkdir()
    held = take(watch(state), Holder.this_process())
    lease_path(state, "lease", 1).unlink()
    assert not held.check()
    held.release()


def test_numbers_only_grow_and_files_do_not_pile_up(state):
    state.mkdir()
    for turn in range(1, 8):
        held = take(watch(state), Holder.this_process())
        assert max(held_numbers(state, "lease")) == turn
        assert len(held_numbers(state, "lease")) <= 2
        assert take(watch(state), Holder.this_process()).live is True
        held.release()
        assert watch(state).look() == Verdict(live=False, number=turn, holder=None)


def test_one_that_looked_long_ago_does_not_win(state):
    """It saw nobody, slept while others came and went, and now creates the first number."""
    state.mkdir()

    class Slow(Watch):
        def settle(self):
            verdict = super().settle()
            if not verdict.number:
                for _ in range(2):
                    take(watch(state), Holder.this_process()).release()
                self.other = take(watch(state), Holder.this_process())
                assert held_numbers(state, "lease") == {2, 3}
            return verdict

    slow = Slow(state, "lease", QUICK)
    assert take(slow, Holder.this_process()).live is True
    assert held_numbers(state, "lease") == {2, 3}
    assert slow.other.check()
    slow.other.release()


def test_where_there_are_no_hard_links(state, monkeypatch):
    state.mkdir()

    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(lease_module.os, "link", refuse)
    held = take(watch(state), Holder.this_process())
    assert isinstance(held, Lease)
    assert take(watch(state), Holder.this_process()).live is True
    held.release()
    again = take(watch(state), Holder.this_process())
    assert isinstance(again, Lease)
    again.release()


def test_names_are_told_apart(state):
    state.mkdir()
    held = [take(Watch(state, name, QUICK), Holder.this_process()) for name in ("lease", "lease-0-of-2", "lease-10-of-12", "door")]
    assert all(isinstance(one, Lease) for one in held)
    (state / "run.json").touch()
    (state / "lease").touch()
    assert lease_names(state) == {"lease", "lease-0-of-2", "lease-10-of-12", "door"}
    assert held_numbers(state, "lease") == {1}
    for one in held:
        one.release()
