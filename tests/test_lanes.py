"""Lanes: each stream in a thread of its own, at most one thing waiting in each, errors and early ends heard at once."""

from __future__ import annotations

import threading
import time
from contextlib import closing
from functools import partial

import pytest

from patchdrive.pipeline.lanes import side_by_side
from patchdrive.pipeline.timings import Timings


def alive() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "patchdrive-lane"]


def counting(first, count, log, stop):
    try:
        for number in range(first, first + count):
            log.append(number)
            yield number
    finally:
        log.append("closed")


@pytest.mark.parametrize("lanes", [1, 2, 5])
def test_everything_comes_and_each_lane_keeps_its_order(lanes):
    logs = [[] for _ in range(lanes)]
    timings = Timings()
    came = list(side_by_side([partial(counting, 100 * lane, 20, logs[lane]) for lane in range(lanes)], timings))
    assert sorted(came) == sorted(100 * lane + number for lane in range(lanes) for number in range(20))
    for lane in range(lanes):
        assert [number for number in came if number // 100 == lane] == list(range(100 * lane, 100 * lane + 20))
        assert logs[lane][-1] == "closed"
    assert not alive()
    assert timings.waits().keys() == {"write_for_infer", "infer_for_write"}


def test_a_lane_is_one_thing_ahead_and_no_more():
    log = []
    with closing(side_by_side([partial(counting, 0, 10, log)], Timings())) as came:
        assert next(came) == 0
        for _ in range(100):
            if log == [0, 1]:
                break
            time.sleep(0.01)
        time.sleep(0.05)
        assert log == [0, 1]  # 0 is ours, 1 waits, 2 is not begun
    assert log == [0, 1, "closed"]
    assert not alive()


def test_an_error_ends_all_lanes_and_is_the_one_raised():
    def failing(stop):
        yield 1
        raise ZeroDivisionError

    def endless(stop):
        number = 0
        while not stop.is_set():
            yield number
            number += 1

    begin = time.monotonic()
    with pytest.raises(ZeroDivisionError):
        for _ in side_by_side([failing, endless], Timings()):
            pass
    assert time.monotonic() - begin < 5
    assert not alive()


def test_a_lane_that_makes_nothing_for_long_hears_that_nobody_wants_more():
    def slow(stop):
        while not stop.is_set():
            time.sleep(0.001)
        yield from ()

    with closing(side_by_side([partial(counting, 0, 3, []), slow], Timings())) as came:
        next(came)
    assert not alive()
