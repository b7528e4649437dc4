"""Who looks on while a run goes."""

from __future__ import annotations

from typing import Protocol


class Watcher(Protocol):
    """Who looks on while a run goes: a progress bar, a signal handler."""

    def began(self, rows: int, left: int) -> None:
        """A round of `rows` patches begins; `left` of them are not yet committed."""

    def committed(self, rows: int) -> None:
        """A block with `rows` patches of its own is safe."""

    def wants_stop(self) -> bool:
        """True to end after the block in hand."""


class Nobody:
    """The Watcher that does not look."""

    def began(self, rows: int, left: int) -> None:
        """Nothing."""

    def committed(self, rows: int) -> None:
        """Nothing."""

    def wants_stop(self) -> bool:
        """Never."""
        return False
