"""What an audit says: the share of targets that a drive missed, with its confidence interval."""

from __future__ import annotations

from typing import Any

from scipy.stats import beta

from patchdrive.models.types import Audit

CONFIDENCE = 0.95


def missed_of(audit: Audit) -> dict[str, Any]:
    """The audit as plain JSON, with the share of targets missed and the interval that holds it 19 times of 20.

    Of n patches drawn from N outside, h showed a target. With p in the interval of Clopper and Pearson (1934) around h / n, N p targets
    were missed; beside the f found the share is N p / (N p + f). The model's own eyes count both: what it cannot see close up, it does
    not miss.
    """
    n, hits, tail = audit.sampled, audit.hits, (1 - CONFIDENCE) / 2
    low = float(beta.ppf(tail, hits, n - hits + 1)) if hits else 0.0
    high = float(beta.ppf(1 - tail, hits + 1, n - hits)) if hits < n else 1.0
    if n == audit.outside:  # all of them were read: nothing is left to guess
        low = high = hits / n if n else 0.0
    low, middle, high = (_share(p * audit.outside, audit.found) for p in (low, hits / n if n else 0.0, high))
    return {
        "sampled": n,
        "outside": audit.outside,
        "hits": hits,
        "found": audit.found,
        "missed": round(middle, 6),
        "missed_low": round(low, 6),
        "missed_high": round(high, 6),
        "confidence": CONFIDENCE,
    }


def _share(missed: float, found: int) -> float:
    return missed / (missed + found) if missed + found else 0.0
