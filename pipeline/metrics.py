"""How good answers are: accuracy, areas under curves, found objects, overlaps; each with an interval by bootstrap over images. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A number and how sure it is."""

    value: float
    """Of all that was judged; NaN where it cannot be said, as an AUROC of one class."""
    low: float
    """Lower end of the interval; NaN where it cannot be said."""
    high: float
    """Upper end."""

    def to_dict(self) -> dict[str, float | None]:
        """Plain JSON types: what cannot be said is null."""
        return {
            name: None if math.isnan(value) else value for name, value in (("value", self.value), ("low", self.low), ("high", self.high))
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, float | None]) -> Self:
        """Read what `to_dict` wrote."""
        return cls(**{name: math.nan if value is None else value for name, value in fields.items()})

    def __str__(self) -> str:
        return f"{self.value:.3f}" if math.isnan(self.low) else f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def bootstrapped(
    measure: Callable[[NDArray[np.int64]], Mapping[str, float]],
    units: Sequence[NDArray[np.int64]],
    *,
    confidence: float,
    resamples: int,
    seed: int,
) -> dict[str, Metric]:
    """Metrics of everything, with percentile intervals (Efron 1979): what is judged is drawn again, whole units at a time.

    Args:
        measure: the metrics of the items with these indices; an item may come several times.
        units: the items of each unit; those of one image belong together. Of one unit alone no interval can be said.
        confidence: of the intervals.
        resamples: draws.
        seed: of the draws.
    """
    everything = np.concatenate(units)
    rng, resamples = np.random.default_rng([seed, 4]), resamples if len(units) > 1 else 0
    drawn = [measure(np.concatenate([units[unit] for unit in rng.integers(len(units), size=len(units))])) for _ in range(resamples)]
    metrics = {}
    for name, value in measure(everything).items():
        known = np.array([one[name] for one in drawn])
        known = known[np.isfinite(known)]
        low, high = np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2]).tolist() if len(known) else (math.nan, math.nan)
        metrics[name] = Metric(value=value, low=low, high=high)
    return metrics


def auroc(scores: NDArray[np.floating[Any]], positive: NDArray[np.bool_]) -> float:
    """Area under the ROC curve: the chance that a positive scores higher than a negative, ties counted half (Mann and Whitney 1947).

    NaN without one of both.
    """
    count, others = int(positive.sum()), int((~positive).sum())
    if not count or not others:
        return math.nan
    ranks = rankdata(scores)
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * others))


def average_precision(scores: NDArray[np.floating[Any]], positive: NDArray[np.bool_], total: int | None = None) -> float:
    """Sum of precision times the step in recall, from the highest score down; equal scores make one step.

    Args:
        scores: (n,).
        positive: (n,).
        total: positives there are, where some have no score at all: objects that nobody reported. NaN where it is 0.
    """
    total = int(positive.sum()) if total is None else total
    if not total:
        return math.nan
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(positive[order])
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1) if len(scores) else np.zeros(0, np.int64)
    found = hits[last]
    return float((found / (last + 1) * np.diff(found, prepend=0)).sum() / total)


def class_metrics(probabilities: NDArray[np.floating[Any]], labels: NDArray[np.int64]) -> dict[str, float]:
    """Of answers about images.

    Args:
        probabilities: (n, classes).
        labels: (n,) the true class of each.

    Returns:
        `accuracy`; `balanced_accuracy`: the mean over the classes that occur of how many of each are right; `auroc` and
        `average_precision`: of the second class where there are two, else the mean over classes, each against the others.
    """
    classes = probabilities.shape[1]
    right = probabilities.argmax(axis=1) == labels
    asked = range(1, 2) if classes == 2 else range(classes)
    return {
        "auroc": _mean([auroc(probabilities[:, index], labels == index) for index in asked]),
        "accuracy": float(right.mean()),
        "balanced_accuracy": _mean([float(right[labels == index].mean()) for index in np.unique(labels).tolist()]),
        "average_precision": _mean([average_precision(probabilities[:, index], labels == index) for index in asked]),
    }


def _mean(values: Sequence[float]) -> float:
    """Of those that can be said."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Hits:
    """What was reported in one piece of an image, and what of it is there."""

    scores: NDArray[np.float64]
    """(n,) of the objects reported."""
    right: NDArray[np.bool_]
    """(n,) True where one is a target that no better one is."""
    targets: int
    """There are."""
    read: int
    """Of them, those that lie in a patch that was read."""


def hits_of(found: NDArray[np.float64], scores: NDArray[np.float64], targets: NDArray[np.float64], *, near: float, read: int = 0) -> Hits:
    """From the highest score down, each object takes the nearest target within `near` that no other has taken.

    Args:
        found: (n, 2) places reported.
        scores: (n,) of them.
        targets: (m, 2) places.
        near: largest distance.
        read: of the targets, how many lie in a patch that was read.
    """
    right, free = np.zeros(len(found), np.bool_), np.ones(len(targets), np.bool_)
    for index in np.argsort(-scores, kind="stable").tolist():
        distance = np.where(free, np.hypot(*(targets - found[index]).T), np.inf)
        if len(distance) and distance.min() <= near:
            free[distance.argmin()] = False
            right[index] = True
    return Hits(scores=scores, right=right, targets=len(targets), read=read)


def object_metrics(hits: Sequence[Hits], threshold: float) -> dict[str, float]:
    """Of objects: `precision`, `recall` and `f1` of those at or above `threshold`, `average_precision` of all that were reported, and
    `read`: the share of targets that lie in a patch that was read.
    """
    scores, right = np.concatenate([one.scores for one in hits]), np.concatenate([one.right for one in hits])
    targets = sum(one.targets for one in hits)
    taken = scores >= threshold
    found, reported = int((right & taken).sum()), int(taken.sum())
    return {
        "average_precision": average_precision(scores, right, targets),
        "f1": 2 * found / (reported + targets) if reported + targets else math.nan,
        "precision": found / reported if reported else math.nan,
        "recall": found / targets if targets else math.nan,
        "read": sum(one.read for one in hits) / targets if targets else math.nan,
    }


def pixel_metrics(confusion: NDArray[np.int64]) -> dict[str, float]:
    """Of pixels: `accuracy`, `balanced_accuracy`, and `mean_iou`: intersection over union, the mean over the classes that occur.

    Args:
        confusion: (classes, classes) pixels of the true class (row) that were given a class (column).
    """
    right, true, given = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    union, there = true + given - right, true > 0
    return {
        "mean_iou": _mean((right[union > 0] / union[union > 0]).tolist()),
        "accuracy": float(right.sum() / true.sum()) if true.sum() else math.nan,
        "balanced_accuracy": _mean((right[there] / true[there]).tolist()),
    }
