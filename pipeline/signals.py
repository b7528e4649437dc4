"""Signals: the wish to end, as the system tells it."""

from __future__ import annotations

import math
import os
import signal
import socket
import time
from collections.abc import Callable
from threading import Event, Thread

TRY_AGAIN = 75
"""Exit code: the same command again goes on (EX_TEMPFAIL of sysexits.h)."""
_ECHO = 0.5
"""Seconds in which a signal that comes again is the same one: `timeout` sends it to the process, and once more to its group."""


class Signals:
    """Hears SIGTERM, SIGUSR1 and Ctrl-C for as long as a command runs: what is in hand is finished, then no more; the second time
    the process ends at once, which costs that and nothing else.

    A thread of its own listens: handlers in Python run in the main thread, which may be waiting for a model that does not answer.
    """

    def __init__(self, say: Callable[[str], None], *, hand: str = "the block in hand") -> None:
        """
        Args:
            say: tells people a line.
            hand: what is finished first.
        """
        self._say, self._hand = say, hand
        self.asked = Event()
        """Set by the first signal."""
        self._ear, self._wire = socket.socketpair()
        self._wire.setblocking(False)
        self._wakeup = signal.set_wakeup_fd(self._wire.fileno())
        self._before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
        self._listener = Thread(target=self._listen, name="signals", daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        heard = -math.inf
        while number := self._ear.recv(1):
            if number[0] not in self._before or time.monotonic() - heard < _ECHO:
                continue
            if self.asked.is_set():
                os._exit(TRY_AGAIN)
            heard = time.monotonic()
            self.asked.set()
            self._say(f"patchdrive: finishing {self._hand}; the same command goes on from there (once more to stop at once)")

    def close(self) -> None:
        """What signals did before, they do again."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        self._wire.close()
        self._listener.join()
        self._ear.close()
