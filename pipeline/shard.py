"""Shard: which part of a run's blocks is this process's, where several processes compute one image."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from patchdrive.readers.errors import SettingsError


@dataclass(frozen=True, slots=True)
class Shard:
    """The `index`-th of `count` processes on one image.

    Raises:
        SettingsError: there is no such part.
    """

    index: int
    """0 for the first."""
    count: int
    """How many processes share the work; 1: this one does all of it."""

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise SettingsError(f"a shard is i/n with 0 <= i < n, got {self}; four processes are 0/4, 1/4, 2/4 and 3/4")

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `i/n`.

        Raises:
            SettingsError: it is written otherwise, or there is no such part.
        """
        found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text.strip())
        if found is None:
            raise SettingsError(f"a shard is written i/n, got {text!r}; four processes are 0/4, 1/4, 2/4 and 3/4")
        return cls(int(found[1]), int(found[2]))

    def share(self, things: int) -> range:
        """Which of `things` are ours: contiguous, no share more than one larger than another, every thing in exactly one."""
        return range(self.index * things // self.count, (self.index + 1) * things // self.count)

    @property
    def lease(self) -> str:
        """Name of the lease that this part of a run is held by."""
        return "lease" if self.count == 1 else f"lease-{self.index}-of-{self.count}"

    def bars(self, lease: str) -> bool:
        """Whether a live `lease` means that we must not start: it is our own part, the whole run, or a part of another division."""
        return lease == self.lease or self.count == 1 or not lease.endswith(f"-of-{self.count}")


WHOLE = Shard(0, 1)
"""One process does all of it."""
