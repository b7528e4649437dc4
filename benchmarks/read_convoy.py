"""What the feed keeps of its speed beside Python: the interpreter lock changes hands at most once a switch interval.

Alone: `make bench NAME=read_convoy`.
"""

from __future__ import annotations

import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from bench_readers import by_feed
from bench_work import WORKLOADS, path_of

from patchdrive.readers import open_image

_INTERVALS = (5e-3, 1e-4)


def _busy(stop: threading.Event) -> None:
    while not stop.is_set():
        sum(range(1000))


def _half_busy(stop: threading.Event) -> None:
    while not stop.is_set():
        until = time.perf_counter() + 1e-3
        while time.perf_counter() < until:
            pass
        time.sleep(1e-3)


_BESIDE: dict[str, Callable[[threading.Event], None] | None] = {
    "alone": None,
    "beside a busy Python thread": _busy,
    "beside 1 ms of Python, 1 ms of waiting": _half_busy,
}


@contextmanager
def _beside(work: Callable[[threading.Event], None] | None, interval: float) -> Iterator[None]:
    before, stop = sys.getswitchinterval(), threading.Event()
    thread = None if work is None else threading.Thread(target=work, args=(stop,))
    sys.setswitchinterval(interval)
    if thread is not None:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        if thread is not None:
            thread.join()
        sys.setswitchinterval(before)


def measure_convoy(rounds: int) -> list[dict[str, Any]]:
    """Shares of the speed alone at an interval of 5 ms, medians of the rounds' own, for one decode thread and for two."""
    workload = next(workload for workload in WORKLOADS if workload.name == "rand512 un")
    image = open_image(path_of(workload))
    cases = [(workers, beside, interval) for workers in (1, 2) for interval in _INTERVALS for beside in _BESIDE]
    seconds: dict[tuple[int, str, float], list[float]] = {case: [] for case in cases}
    for number in range(rounds + 1):
        corners = workload.corners(number, quick=True)
        for case in cases:
            workers, beside, interval = case
            with _beside(_BESIDE[beside], interval):
                begin = time.perf_counter()
                by_feed(image, corners, workload.side, workers=workers)
                spent = time.perf_counter() - begin
            if number:  # the first round warms up
                seconds[case].append(spent)
    image.close()
    found = []
    print("\n## the feed beside Python (random 512 unaligned): share of its speed alone")
    for workers, beside, interval in cases:
        alone = seconds[workers, "alone", _INTERVALS[0]]
        share = statistics.median(one / other for one, other in zip(alone, seconds[workers, beside, interval], strict=True))
        found.append({"workers": workers, "beside": beside, "switch_interval_s": interval, "share_of_alone": share})
        print(f"  {workers} decode threads, switch interval {interval * 1e3:g} ms, {beside}: {share:.2f}")
    return found


if __name__ == "__main__":
    measure_convoy(5)
