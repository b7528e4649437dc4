"""Timings and counts of a run, gathered where the work is done and told in the report."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Timings:
    """Seconds by stage and bytes by name; every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._begin = time.perf_counter()
        self._seconds: dict[str, float] = {}
        self._waits: dict[str, float] = {}
        self._bytes: dict[str, int] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent inside to `name`."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - begin
            with self._lock:
                self._seconds[name] = self._seconds.get(name, 0.0) + spent

    @contextmanager
    def waiting(self, name: str, *, of: int = 1) -> Iterator[None]:
        """Add the time spent inside to the wait called `name`, `who_for_whom`; where one `of` several threads waits, its share."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            spent = (time.perf_counter() - begin) / of
            with self._lock:
                self._waits[name] = self._waits.get(name, 0.0) + spent

    def waits(self) -> dict[str, float]:
        """Seconds by wait."""
        with self._lock:
            return {name: round(value, 3) for name, value in sorted(self._waits.items())}

    def count(self, name: str, amount: int) -> None:
        """Add `amount` to the bytes called `name`."""
        with self._lock:
            self._bytes[name] = self._bytes.get(name, 0) + amount

    def bytes_of(self, name: str) -> int:
        """Bytes counted under `name` so far."""
        with self._lock:
            return self._bytes.get(name, 0)

    def seconds(self) -> dict[str, float]:
        """Seconds by stage, `total` (since the start) first."""
        with self._lock:
            stages = {name: round(value, 3) for name, value in sorted(self._seconds.items())}
        return {"total": round(time.perf_counter() - self._begin, 3), **stages}
