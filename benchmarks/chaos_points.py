"""The points inside a commit at which `make chaos` kills: before or after the n-th fsync, rename or link once a record is there.

The program itself knows nothing of this: the calls are replaced in the process that is to die.
"""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CALLS = ("os.fsync", "Path.replace", "os.link")


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Where to die."""

    call: str
    """One of `CALLS`."""
    number: int
    """Which of its calls after the first record, from 1."""
    after: bool
    """Once it has been done, not before."""

    def __str__(self) -> str:
        return f"{'after' if self.after else 'before'} {self.call}"


class Counted:
    """Counts the calls that this process makes once a block of the store is committed, and ends it at a point."""

    def __init__(self, out: Path, point: Point | None) -> None:
        self.counts: Counter[str] = Counter()
        self._out, self._point, self._armed = out, point, False
        for name, owner, attribute in zip(CALLS, (os, Path, os), ("fsync", "replace", "link"), strict=True):
            setattr(owner, attribute, self._counted(name, getattr(owner, attribute)))

    def _counted(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            self._armed = self._armed or any(self._out.glob("*.patchdrive/commits/*/*.json"))
            self.counts[name] += self._armed
            point = self._point
            here = point is not None and self._armed and (point.call, point.number) == (name, self.counts[name])
            if here and point is not None and not point.after:
                os.kill(os.getpid(), signal.SIGKILL)
            answer = original(*arguments, **named)
            if here:
                os.kill(os.getpid(), signal.SIGKILL)
            return answer

        return wrapped

    def save(self, path: Path) -> None:
        """Leave the counts for the parent."""
        path.write_text(json.dumps(self.counts))
