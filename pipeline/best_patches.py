"""The patches of the highest attention or score, read from the source once more: the pixels the model saw."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from patchdrive.models.types import ModelSpec
from patchdrive.pipeline.feed import FeedSettings, feed
from patchdrive.pipeline.glance import thumbnail_of
from patchdrive.pipeline.plan import Block, Plan
from patchdrive.pipeline.reads import read_frame
from patchdrive.pipeline.result import ResultRound
from patchdrive.pipeline.timings import Timings
from patchdrive.readers import Image

_POOL_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BestPatch:
    """One patch, to look at."""

    round: int
    """Index of its round."""
    row: int
    """Of the round's plan."""
    pixels: NDArray[np.uint8]
    """(side, side, 3) for people, white where invalid."""


def best_rows(rounds: Sequence[ResultRound], count: int) -> list[tuple[int, int]]:
    """(round, row) of the `count` computed patches that are worth most, best first; ties by round, then by rank."""
    best: list[tuple[float, int, int, int]] = []
    for index, held in enumerate(rounds):
        rows = np.nonzero(held.done)[0]
        rows = rows[np.lexsort((held.plan.rank[rows], -held.worth[rows]))[:count]]
        best += [(-float(held.worth[row]), index, int(held.plan.rank[row]), row) for row in rows.tolist()]
    return [(index, row) for _, index, _, row in sorted(best)[:count]]


def read_best(image: Image, rounds: Sequence[ResultRound], spec: ModelSpec, count: int) -> list[BestPatch]:
    """The pixels of `best_rows`, at the pixel size of the plan; patches that cannot be read now are left out.

    Red, green and blue where channels are so named, else the first channel as grey; other dtypes than uint8 are stretched, each
    channel of each round together, from the 2nd to the 98th percentile.
    """
    wanted = best_rows(rounds, count)
    found: dict[tuple[int, int], BestPatch] = {}
    for index in sorted({index for index, _ in wanted}):
        rows = np.array(sorted(row for at, row in wanted if at == index), np.int64)
        found |= {(index, patch.row): patch for patch in _read_rows(image, rounds[index].plan, rows, spec, index)}
    return [found[key] for key in wanted if key in found]


def _read_rows(image: Image, plan: Plan, rows: NDArray[np.int64], spec: ModelSpec, index: int) -> list[BestPatch]:
    names = {name.lower(): channel for channel, name in enumerate(image.channels)}
    colors = ("red", "green", "blue")
    channels = tuple(names[color] for color in colors) if names.keys() >= set(colors) else (0,)
    settings = FeedSettings(
        frame=read_frame(image.levels, plan.grid, plan.side, spec.resampling),
        channels=channels,
        fill=spec.fill,
        batch_size=min(8, len(rows)),
        pool_bytes=_POOL_BYTES,
        workers=1,
    )
    block = Block(index=0, rows=rows, owned=rows, window=None)
    read: list[int] = []
    pixels, valid = [], []
    with closing(feed(image, plan, (block,), settings, Timings())) as batches:
        for batch in batches:
            kept = batch.pixels[batch.places]
            read += batch.rows.tolist()
            pixels.append(kept.reshape(-1, plan.side, len(channels)))
            valid.append(
                np.ones(kept.shape[:3], np.bool_).reshape(-1, plan.side)
                if batch.valid is None
                else batch.valid[batch.places].reshape(-1, plan.side)
            )
    if not read:
        return []
    # One tall picture, so that all patches of the round share one stretch; patches made by area means of bytes are bytes to the eye.
    tall = np.concatenate(pixels)
    tall = np.rint(tall).astype(np.uint8) if image.dtype == np.uint8 else tall
    shown = thumbnail_of(tall, np.concatenate(valid), tuple(image.channels[channel] for channel in channels), 1)
    return [
        BestPatch(round=index, row=row, pixels=patch) for row, patch in zip(read, shown.reshape(-1, plan.side, plan.side, 3), strict=True)
    ]
