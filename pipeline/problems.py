"""Problem: one thing that is wrong with a store, in words, with the way out; and Verdict, all that was found."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Kind = Literal["missing", "changed", "foreign", "record", "plan", "facts", "states", "report", "answer"]
Cure = Literal["mend", "overwrite", "move"]
_WAYS_OUT = {
    "mend": "`patchdrive verify --mend` makes the next run of the same command do this part again, and no other",
    "overwrite": "run the same command again with --overwrite",
    "move": "it is not of this run: move it elsewhere",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is not as it was left."""

    kind: Kind
    """`missing`, `changed`, `foreign`: of a file; `record`, `plan`, `facts`, `report`: of the run's state; `states`: of a table's column;
    `answer`: computed again, it is something else."""
    where: str
    """The file, relative to the folder that the store lies in."""
    what: str
    """What is wrong with it, in words."""
    cure: Cure
    """`mend`: a resumed run can do this part again; `overwrite`: it cannot; `move`: the file is somebody else's."""
    round: int | None = None
    """Of the block it belongs to."""
    block: int | None = None
    """The block it belongs to."""
    rows: tuple[int, int] | None = None
    """First and last row of the round's plan that it holds, or that are touched."""

    def __str__(self) -> str:
        place = "" if self.block is None else f" (round {self.round}, block {self.block}{self._rows()})"
        return f"{self.where}{place}: {self.what}; {_WAYS_OUT[self.cure]}"

    def _rows(self) -> str:
        if self.rows is None:
            return ""
        first, last = self.rows
        return f", row {first}" if first == last else f", rows {first} to {last}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What `verify` found."""

    store: Path
    """`<id>.zarr`."""
    finished: bool
    """False while blocks are still to be computed: those are no problem."""
    files: int
    """Files whose bytes were compared with what was recorded."""
    patches: int
    """Rows computed again."""
    problems: tuple[Problem, ...]
    """All that is wrong, in the order of the checks."""

    @property
    def good(self) -> bool:
        """True where nothing is wrong."""
        return not self.problems

    def __str__(self) -> str:
        state = "" if self.finished else " (not finished)"
        count = len(self.problems)
        found = "good" if self.good else f"{count} problem{'' if count == 1 else 's'}"
        return f"{self.store}{state}: {found}; {self.files} files checked, {self.patches} patches computed again"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "store": str(self.store),
            "finished": self.finished,
            "files": self.files,
            "patches": self.patches,
            "problems": [problem.to_dict() for problem in self.problems],
        }
