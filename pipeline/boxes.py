"""Boxes and centres that detection heads find, some of them twice where patches overlap: of those that mean one thing, the best. Pure.

Non-maximum suppression, greedy: from the best to the worst, each box is kept unless it *rivals* one that is kept. Who is kept among boxes
that rival each other, over any number of steps, depends on nobody else. So boxes may come in parts: such a group is decided once no box
that is still to come can join it, and the result is that of all boxes at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from patchdrive.readers.errors import SettingsError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Boxes:
    """n boxes, in pixels of one level."""

    y: NDArray[np.float64]
    """(n,) upper edges."""
    x: NDArray[np.float64]
    """(n,) left edges."""
    height: NDArray[np.float64]
    """(n,) > 0."""
    width: NDArray[np.float64]
    """(n,) > 0."""
    score: NDArray[np.float64]
    """(n,) how sure the model is; the greater the better."""
    kind: NDArray[np.int64]
    """(n,) class: boxes of different ones are never rivals."""

    def __len__(self) -> int:
        return len(self.y)

    @classmethod
    def around(cls, centres: NDArray[np.float64], radius: float, score: NDArray[np.float64], kind: NDArray[np.int64]) -> Boxes:
        """The squares of side 2 * `radius` around `centres`, (n, 2) (y, x), which stand for these; to compare by `near(radius)`."""
        side = np.full(len(centres), 2 * radius)
        return cls(y=centres[:, 0] - radius, x=centres[:, 1] - radius, height=side, width=side, score=score, kind=kind)

    @property
    def centres(self) -> NDArray[np.float64]:
        """(n, 2), (y, x)."""
        return np.stack([self.y + self.height / 2, self.x + self.width / 2], axis=1)

    @property
    def bottom(self) -> NDArray[np.float64]:
        """(n,) lower edges."""
        return self.y + self.height

    def taken(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Boxes:
        """Some of them, by index or mask."""
        return Boxes(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


NO_BOXES = Boxes(y=np.zeros(0), x=np.zeros(0), height=np.zeros(0), width=np.zeros(0), score=np.zeros(0), kind=np.zeros(0, np.int64))
Rivalry = Callable[[Boxes, Boxes], NDArray[np.bool_]]
"""Of two boxes of one class that overlap, row by row, whether they mean one thing. Symmetric."""


def overlapping(iou: float) -> Rivalry:
    """Boxes are rivals where intersection over union is above `iou`.

    Raises:
        SettingsError: `iou` is not in [0, 1).
    """
    if not 0 <= iou < 1:
        raise SettingsError(f"the IoU above which boxes mean one thing is at least 0 and below 1, got {iou:g}")

    def rival(one: Boxes, other: Boxes) -> NDArray[np.bool_]:
        high = np.minimum(one.bottom, other.bottom) - np.maximum(one.y, other.y)
        wide = np.minimum(one.x + one.width, other.x + other.width) - np.maximum(one.x, other.x)
        shared = np.maximum(high, 0) * np.maximum(wide, 0)
        return np.asarray(shared > iou * (one.height * one.width + other.height * other.width - shared))

    return rival


def near(radius: float) -> Rivalry:
    """Centres of `Boxes.around(..., radius, ...)` are rivals where they are less than `radius` apart.

    Raises:
        SettingsError: `radius` is not above 0.
    """
    if not radius > 0:
        raise SettingsError(f"the distance below which centres mean one thing is above 0, got {radius:g}")

    def rival(one: Boxes, other: Boxes) -> NDArray[np.bool_]:
        return np.asarray(((one.centres - other.centres) ** 2).sum(axis=1) < radius**2)

    return rival


def suppress(boxes: Boxes, rival: Rivalry) -> NDArray[np.int64]:
    """Rows of the boxes that are kept, from the best to the worst; of equal scores the upper, then the left one is the better."""
    order = _best_first(boxes)
    return order[_kept(_rivals(boxes.taken(order), rival))]


def suppress_parts(parts: Iterable[tuple[Boxes, float]], rival: Rivalry) -> Iterator[Boxes]:
    """`suppress` of all parts together, in bounded memory.

    Held at a time: a part, and the groups of rivals that one may still come to.

    Args:
        parts: some boxes, and the row that no upper edge of a box that is still to come lies above.
        rival: which boxes mean one thing.

    Returns:
        The boxes kept, each once, part by part; in the order of the lower edges of their groups of rivals, then from the best to the worst:
        the same however the boxes were parted.

    Raises:
        SettingsError: a box begins above the row that a part before it gave.
    """
    held: list[Boxes] = []
    passed = -np.inf
    for boxes, row in parts:
        if len(boxes) and boxes.y.min() < passed:
            raise SettingsError(
                f"no box was to begin above row {passed:g} any more, and one begins at {boxes.y.min():g}; give parts downwards"
            )
        passed = max(passed, row)
        decided, left = _decide(joined([*held, boxes]), rival, passed)
        held = [left]
        yield decided
    if held:
        yield _decide(held[0], rival, np.inf)[0]


def joined(parts: Sequence[Boxes]) -> Boxes:
    """All in one, in order; at least one part."""
    return Boxes(**{field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Boxes)})


def _decide(boxes: Boxes, rival: Rivalry, passed: float) -> tuple[Boxes, Boxes]:
    """Those kept of the groups that end above the row `passed`, and all boxes of the other groups."""
    boxes = boxes.taken(_best_first(boxes))
    rivals = _rivals(boxes, rival)
    groups, group = connected_components(rivals, directed=False)
    end = np.full(groups, -np.inf)
    np.maximum.at(end, group, boxes.bottom)
    final = end[group] <= passed
    kept = _kept(rivals)
    kept = kept[final[kept]]
    return boxes.taken(kept[np.argsort(end[group[kept]], kind="stable")]), boxes.taken(~final)


def _best_first(boxes: Boxes) -> NDArray[np.int64]:
    return np.lexsort((boxes.kind, boxes.width, boxes.height, boxes.x, boxes.y, -boxes.score))


def _rivals(boxes: Boxes, rival: Rivalry) -> csr_array:
    """(n, n), where a box is followed by a rival that is worse: boxes come from the best to the worst."""
    shapes = shapely.box(boxes.x, boxes.y, boxes.x + boxes.width, boxes.bottom)
    better, worse = shapely.STRtree(shapes).query(shapes)
    candidates = (better < worse) & (boxes.kind[better] == boxes.kind[worse])
    better, worse = better[candidates], worse[candidates]
    rivals = rival(boxes.taken(better), boxes.taken(worse))
    better, worse = better[rivals], worse[rivals]
    return csr_array((np.ones(len(better), np.bool_), (better, worse)), shape=(len(boxes), len(boxes)))


def _kept(rivals: csr_array) -> NDArray[np.int64]:
    """Rows of the greedy choice."""
    kept = np.ones(rivals.shape[0], np.bool_)
    for row in np.flatnonzero(np.diff(rivals.indptr)).tolist():
        if kept[row]:
            kept[rivals.indices[rivals.indptr[row] : rivals.indptr[row + 1]]] = False
    return np.flatnonzero(kept)
