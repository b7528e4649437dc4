"""Causes: why patches were not computed, told once for all that say the same. Pure."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

_NUMBER = re.compile(r"\w*\d\w*")
_STATES = ("failed", "skipped", "done with a hole")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """Reasons that differ in nothing but their numbers: every torn tile has its own."""

    state: str
    """What became of the patches: failed, skipped, or done with a hole."""
    told: str
    """The commonest of the reasons."""
    alike: int
    """How many others there are."""
    patches: int
    """Of all of them."""
    images: tuple[str, ...]
    """Whose patches, sorted."""


def causes_of(reasons: Mapping[str, Mapping[str, int]]) -> tuple[Cause, ...]:
    """What is behind the reasons of some images: failures first, then by how many patches.

    Args:
        reasons: by image; `state: why`, with how often.
    """
    counts: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    images: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for image, held in reasons.items():
        for reason, count in held.items():
            state, _, why = reason.partition(": ")
            key = (state, _NUMBER.sub("#", why))
            counts[key][why] += count
            images[key].add(image)
    found = [
        Cause(
            state=key[0],
            told=min(whys, key=lambda why: (-whys[why], why)),
            alike=len(whys) - 1,
            patches=whys.total(),
            images=tuple(sorted(images[key])),
        )
        for key, whys in counts.items()
    ]
    return tuple(sorted(found, key=lambda cause: (_STATES.index(cause.state), -cause.patches, cause.told)))


def without_folder(told: str, source: str) -> str:
    """Words about an image without the folder that it lies in: that may name a patient, and tells nobody else anything."""
    folder = source.rstrip("/").rpartition("/")[0]
    return told.replace(f"{source}, ", "").replace(f"{folder}/", "") if folder else told
