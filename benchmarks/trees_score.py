"""How good boxes are: average precision, as object detection measures it, by two notions of a hit.

Detections come from the surest to the least sure; each takes the crown that fits it best of those that it may take and nobody took before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

IOU = 0.4
"""Intersection over union from which a box is a crown, as the authors of the plots have it (Weinstein et al. 2019)."""

Boxes = NDArray[np.float64]
"""(n, 4) y, x, bottom and right edges, pixels."""
Fit = Callable[[Boxes, Boxes], NDArray[np.float64]]
"""(n, m): how well each of n boxes fits each of m crowns; not above zero where it may not take it."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Found:
    """Boxes and how sure they are."""

    boxes: Boxes
    score: NDArray[np.float64]
    """(n,)."""

    def within(self, part: tuple[slice, slice]) -> Self:
        """Those centred in these rows and columns."""
        centre = (self.boxes[:, :2] + self.boxes[:, 2:]) / 2
        low, high = np.array([[edge.start, edge.stop] for edge in part]).T
        kept = ((centre >= low) & (centre < high)).all(axis=1)
        return type(self)(boxes=self.boxes[kept], score=self.score[kept])


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """Of detections, all plots together."""

    average_precision: float
    """Area under the precision that can be had at each recall or a higher one (VOC since 2010)."""
    precision: float
    """Where its harmonic mean with recall is highest."""
    recall: float
    """There."""
    score: float
    """The least score of a detection there."""


def overlap(boxes: Boxes, crowns: Boxes) -> NDArray[np.float64]:
    """Intersection over union; 0 below IOU."""
    low, high = np.maximum(boxes[:, None, :2], crowns[None, :, :2]), np.minimum(boxes[:, None, 2:], crowns[None, :, 2:])
    shared = (high - low).clip(min=0).prod(axis=2)
    area, others = ((some[:, 2:] - some[:, :2]).prod(axis=1) for some in (boxes, crowns))
    iou = shared / (area[:, None] + others - shared)
    return np.asarray(np.where(iou >= IOU, iou, 0.0))


def centred(boxes: Boxes, crowns: Boxes) -> NDArray[np.float64]:
    """1 where a box is centred as the crown is, towards 0 at the crown's edge; 0 outside it."""
    centre, middle = ((some[:, :2] + some[:, 2:]) / 2 for some in (boxes, crowns))
    apart = np.abs(centre[:, None] - middle) / ((crowns[:, 2:] - crowns[:, :2]) / 2)
    return np.asarray((1 - apart.max(axis=2)).clip(min=0))


def quality(found: Sequence[Found], crowns: Sequence[Boxes], fit: Fit) -> Quality:
    """Of what was found in each plot, against its crowns."""
    hit = np.concatenate([_hits(some, boxes, fit) for some, boxes in zip(found, crowns, strict=True)])
    score = np.concatenate([some.score for some in found])
    order = np.argsort(-score, kind="stable")
    right = hit[order].cumsum()
    if not right.size or not right[-1]:
        return Quality(average_precision=0.0, precision=0.0, recall=0.0, score=1.0)
    precision, recall = right / np.arange(1, len(right) + 1), right / sum(map(len, crowns))
    highest = np.maximum.accumulate(precision[::-1])[::-1]
    best = int(np.argmax(2 * precision * recall / (precision + recall).clip(min=1e-9)))
    return Quality(
        average_precision=float((np.diff(recall, prepend=0.0) * highest).sum()),
        precision=float(precision[best]),
        recall=float(recall[best]),
        score=float(score[order[best]]),
    )


def _hits(found: Found, crowns: Boxes, fit: Fit) -> NDArray[np.bool_]:
    """(n,) which detections take a crown."""
    fits, hit = fit(found.boxes, crowns), np.zeros(len(found.score), np.bool_)
    for row in np.argsort(-found.score, kind="stable").tolist():
        best = int(fits[row].argmax()) if len(crowns) else -1
        if best >= 0 and fits[row, best] > 0:
            hit[row] = True
            fits[:, best] = 0.0
    return hit
