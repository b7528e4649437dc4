"""Turns on a device: one batch is computed at a time, and of the runs that share the device who came first goes first.

The first run thus ends as if it were alone; the second computes where the first has nothing ready, and is warm when it ends.
"""

from __future__ import annotations

import heapq
import itertools
from threading import Event, Lock
from types import TracebackType
from typing import Self


class Line:
    """Who waits for one device."""

    def __init__(self) -> None:
        """Nobody."""
        self._guard = Lock()
        self._waiting: list[tuple[int, int, Ticket]] = []
        self._numbers = itertools.count()
        self._holder: Ticket | None = None

    def ask(self, rank: int) -> Ticket:
        """A place in the line, behind lower ranks and those of this rank who asked before."""
        ticket = Ticket(self)
        with self._guard:
            heapq.heappush(self._waiting, (rank, next(self._numbers), ticket))
            self._call()
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """The device, or the place in the line, is given up."""
        with self._guard:
            if self._holder is ticket:
                self._holder = None
            else:
                self._waiting = [entry for entry in self._waiting if entry[2] is not ticket]
                heapq.heapify(self._waiting)
            self._call()

    def _call(self) -> None:
        """The next holder, where the device is free; called under the guard."""
        if self._holder is None and self._waiting:
            self._holder = heapq.heappop(self._waiting)[2]
            self._holder.called.set()


class Ticket:
    """A place in a line; as a context manager it waits for the device, and gives it up. One that is not used is given up too."""

    def __init__(self, line: Line) -> None:
        """`Line.ask` makes them."""
        self._line = line
        self.called = Event()
        """Set once the device is ours."""

    def give_up(self) -> None:
        """We shall not come, or are done; more than once does no harm."""
        self._line.leave(self)

    def __enter__(self) -> Self:
        try:
            self.called.wait()
        except BaseException:  # an interrupt: nobody would give it up
            self.give_up()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.give_up()


class Turn:
    """One run's way to ask for one device."""

    def __init__(self, line: Line | None = None, rank: int = 0) -> None:
        """In a line of its own where none is given."""
        self._line, self._rank = line or Line(), rank

    def ask(self) -> Ticket:
        """For one batch, as soon as it is ready: who has asked may go first again."""
        return self._line.ask(self._rank)
