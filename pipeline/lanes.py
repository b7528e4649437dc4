"""Lanes: streams that a thread each makes, so that the next thing is being made while the caller is busy with this one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from queue import SimpleQueue
from typing import Generic, TypeVar

from patchdrive.pipeline.timings import Timings

T = TypeVar("T")
_PARTING = 10.0
"""Seconds that a lane has to end its batch in hand once nobody wants more; one that does not is left behind, and ends with its batch."""

Stop = threading.Event
"""Set when nobody wants more; a lane looks at it before each batch."""


def side_by_side(lanes: Sequence[Callable[[Stop], Generator[T, None, None]]], timings: Timings) -> Generator[T, None, None]:
    """What all `lanes` make, as it comes. Each holds at most one thing that was not taken yet.

    The first error of any lane ends them all and is raised here; so does closing this generator. Who may stop early closes it.
    """
    stop, made = Stop(), SimpleQueue[_Lane[T]]()
    running = [_Lane(make(stop), made, stop, timings, of=len(lanes)) for make in lanes]
    try:
        for lane in running:
            lane.thread.start()
        left = len(running)
        while left:
            with timings.waiting("write_for_infer"):
                lane = made.get()
            if lane.error is not None:
                raise lane.take_error()
            if lane.ended:
                left -= 1
            else:
                yield lane.take()
    finally:
        stop.set()
        for lane in running:
            lane.taken.release()
        for lane in running:
            if lane.thread.ident is not None:
                lane.thread.join(_PARTING)


class _Lane(Generic[T]):
    """One stream and its thread; says so on `made` when it has a thing to take, is at its end, or failed."""

    def __init__(self, stream: Generator[T, None, None], made: SimpleQueue[_Lane[T]], stop: Stop, timings: Timings, *, of: int) -> None:
        self._stream, self._made, self._stop, self._timings, self._of = stream, made, stop, timings, of
        self._held: list[T] = []
        self.taken = threading.Semaphore(0)
        self.ended = False
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, name="patchdrive-lane", daemon=True)

    def take(self) -> T:
        """What it holds; it goes on with the next."""
        held = self._held.pop()
        self.taken.release()
        return held

    def take_error(self) -> BaseException:
        """Why it ended; kept no longer, for its frames hold on to what they were at."""
        error, self.error = self.error, None
        assert error is not None
        return error

    def _run(self) -> None:
        try:
            self._make()
            self.ended = True
        except BaseException as error:  # noqa: BLE001  raised where the things are waited for
            self.error = error
        self._made.put(self)

    def _make(self) -> None:
        try:
            for item in self._stream:
                self._held.append(item)
                del item
                self._made.put(self)
                with self._timings.waiting("infer_for_write", of=self._of):
                    self.taken.acquire()
                if self._stop.is_set():
                    return
        finally:
            self._stream.close()
