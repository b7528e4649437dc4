"""Tasks in threads that can be left behind: who hangs in a read must not hang the program."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

from patchdrive.readers.errors import StalledError

T = TypeVar("T")


def patiently(tasks: Sequence[Callable[[], T]], *, workers: int, patience: float, stalled: Callable[[], StalledError]) -> list[T]:
    """What `tasks` return, in their order, done by `workers` threads; the first error of any ends them and is raised.

    Args:
        tasks: to be done.
        workers: threads.
        patience: seconds without one task done after which the rest is given up; its threads end with the process.
        stalled: the error to raise then.
    """
    left, done = deque(enumerate(tasks)), dict[int, T]()
    errors: list[BaseException] = []
    news = threading.Condition()

    def work() -> None:
        """Tasks, one after the other, until there are none or one of any thread failed."""
        while not errors:
            try:
                index, task = left.popleft()
            except IndexError:
                return
            try:
                answer = task()
            except BaseException as error:  # noqa: BLE001  raised where the answers are waited for
                with news:
                    errors.append(error)
                    news.notify()
                return
            with news:
                done[index] = answer
                news.notify()

    threads = [threading.Thread(target=work, name="patchdrive-look", daemon=True) for _ in range(min(workers, len(tasks)))]
    for thread in threads:
        thread.start()
    with news:
        while len(done) < len(tasks) and not errors:
            if not news.wait(min(patience, threading.TIMEOUT_MAX)):
                left.clear()
                raise stalled()
    if errors:
        left.clear()
        raise errors[0]
    for thread in threads:
        thread.join()
    return [done[index] for index in range(len(tasks))]
