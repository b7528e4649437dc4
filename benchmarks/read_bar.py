"""The bars of reading: what was asked for, what is reached, ok or short. Part of `make bench NAME=read`, or alone:

    make bench NAME=read_bar

Shares are of the limit on two threads measured in the same round; with fewer than two idle cores the limit itself scales badly,
and the line that says how it scaled tells whether a share means anything.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import openslide
from bench_files import SCENES, SLIDES, bench_file
from bench_memory import PATCHES, POOL_BYTES, peak_extra_bytes
from bench_readers import by_feed, decode_tiles, feed_settings, plan_of
from bench_work import WORKLOADS, Limit, Workload, path_of, stored_level
from read_convoy import measure_convoy

from patchdrive.pipeline.feed import feed
from patchdrive.pipeline.plan import feature_blocks
from patchdrive.pipeline.timings import Timings
from patchdrive.readers import Image, open_image
from patchdrive.readers.tiles import read_level

_SHARES = (
    ("rand512 un", "patches", 0.95),
    ("sweep256 st128", "patches", 0.75),
    ("sweep256 st128", "tiles", 0.95),
    ("saliency256 un", "patches", 0.95),
    ("defl sweep512 st256", "patches", 0.90),
    ("zstd sweep512 st256", "patches", 0.90),
)
_DECODED = (("rand512 un", 1.02), ("saliency256 un", 1.02), ("sweep256 al", 1.02), ("sweep256 st128", 1.15), ("sweep512 st256", 1.15))
_OVERLAPPED = 640  # patches: eighty batches, so that the first and the last weigh little


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One thing asked for."""

    name: str
    asked: float
    reached: float
    unit: str = ""
    least: bool = False
    """At least `asked` is good; else at most."""
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether it is reached."""
        return self.reached >= self.asked if self.least else self.reached <= self.asked

    def __str__(self) -> str:
        sign, verdict = ("≥" if self.least else "≤"), ("ok" if self.ok else "SHORT")
        return f"  {verdict:5} {self.name}: {self.reached:.3g}{self.unit}, asked {sign} {self.asked:g}{self.unit}" + (
            f" ({self.note})" if self.note else ""
        )


def _workload(name: str) -> Workload:
    return next(workload for workload in WORKLOADS if workload.name == name)


def _timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def share_rounds(workload: Workload, rounds: int, *, quick: bool) -> list[dict[str, float]]:
    """Of each round: the limit on two threads over the one on one, and the shares of the limit as patches and as tiles."""
    level, image = stored_level(workload.file), open_image(path_of(workload))
    slabs = [np.empty((32, level.tile, level.tile, level.channels), level.dtype) for _ in range(2)]
    limits = [Limit(level, threads) for threads in (1, 2)]

    def one_round(number: int, pool: ThreadPoolExecutor) -> dict[str, float]:
        corners = workload.corners(number, quick=quick)
        needed = level.needed(corners, workload.side)
        streams = level.streams(needed)
        one, two = (_timed(partial(limit.decode, streams)) for limit in limits)
        patches = _timed(lambda: by_feed(image, corners, workload.side))
        tiles = _timed(lambda: decode_tiles(image, needed, slabs, pool))
        return {"scaling": one / two, "patches": two / patches, "tiles": two / tiles}

    with ThreadPoolExecutor(2) as pool:
        found = [one_round(number, pool) for number in range(rounds + 1)]
    for limit in limits:
        limit.close()
    image.close()
    return found[1:]  # the first warms up


def share_bars(rounds: int, *, quick: bool) -> Iterator[Bar]:
    """How much of the two-thread limit is left when patches, or tiles, come out."""
    for name in dict.fromkeys(name for name, _, _ in _SHARES):
        found = share_rounds(_workload(name), rounds, quick=quick)
        scaling = statistics.median(one["scaling"] for one in found)
        for other, way, asked in _SHARES:
            if other == name:
                reached = statistics.median(one[way] for one in found)
                note = f"two threads of the limit are {scaling:.2f} x one"
                yield Bar(name=f"{name}, as {way}, share of the limit", asked=asked, reached=reached, least=True, note=note)


def decoded_bars(*, quick: bool) -> Iterator[Bar]:
    """Bytes decoded over bytes of the tiles needed."""
    for name, asked in _DECODED:
        workload = _workload(name)
        image = open_image(path_of(workload))
        timings = by_feed(image, workload.corners(1, quick=quick), workload.side)
        yield Bar(name=f"{name}, bytes decoded / needed", asked=asked, reached=timings.bytes_of("decoded") / timings.bytes_of("needed"))
        image.close()


def overlap_bars(rounds: int) -> Iterator[Bar]:
    """Wall over max(read, compute) where every batch costs the consumer a fixed time."""
    workload = _workload("rand512 un")
    image = open_image(path_of(workload))

    def wall(number: int, cost: float) -> tuple[float, int]:
        plan = plan_of(image, workload.draw(np.random.default_rng(number), number, _OVERLAPPED), workload.side)
        begin, batches = time.perf_counter(), 0
        for _ in feed(image, plan, feature_blocks(plan), feed_settings(image, plan, workers=2), Timings()):
            batches += 1
            time.sleep(cost)
        return time.perf_counter() - begin, batches

    ratios: dict[float, list[float]] = {0.5: [], 1.0: [], 2.0: []}
    for number in range(rounds):
        wall(number, 0.0)
        for ratio, found in ratios.items():
            read, batches = wall(number, 0.0)
            whole, _ = wall(number, ratio * read / batches)
            found.append(whole / (read * max(1.0, ratio)))
    image.close()
    for ratio, found in ratios.items():
        yield Bar(name=f"wall / max(read, compute), compute {ratio:g} x read", asked=1.03, reached=statistics.median(found))


def level_bars(times: int) -> Iterator[Bar]:
    """The whole level at /16, two threads."""
    path = bench_file(SLIDES[0].name)
    image, slide = open_image(path), openslide.OpenSlide(path)
    coarse = next(level for level in image.levels if round(level.downsample_y) == 16)
    ours, theirs = [], []
    for _ in range(times):
        ours.append(_timed(lambda: read_level(image, coarse.index, workers=2)))
        theirs.append(_timed(lambda: slide.read_region((0, 0), coarse.index, (coarse.width, coarse.height))))
    image.close()
    slide.close()
    note = f"{coarse.height} x {coarse.width}; OpenSlide {statistics.median(theirs) * 1e3:.0f} ms"
    yield Bar(name="whole level at /16", asked=10, reached=statistics.median(ours) * 1e3, unit=" ms", note=note)


def _open_and_look(path: Path) -> Image:
    image = open_image(path)
    assert image.levels
    return image


def open_bars(times: int) -> Iterator[Bar]:
    """Opening, until the levels are known."""
    for recipe in (*SLIDES, *SCENES):
        path, found = bench_file(recipe.name), []
        for _ in range(times):
            begin = time.perf_counter()
            image = _open_and_look(path)
            found.append(time.perf_counter() - begin)
            reader = image.reader
            image.close()
        note = f"reader {reader}"
        if recipe in SLIDES:
            theirs = statistics.median(_timed(lambda path=path: openslide.OpenSlide(path).close()) for _ in range(9))
            note += f"; OpenSlide {theirs * 1e3:.1f} ms"
        yield Bar(name=f"open {recipe.name}", asked=1, reached=statistics.median(found) * 1e3, unit=" ms", note=note)


def memory_bars() -> Iterator[Bar]:
    """Anonymous memory of reading alone."""
    for recipe in (SLIDES[0], SLIDES[2], SCENES[1]):
        reached = peak_extra_bytes(bench_file(recipe.name)) / 2**20
        note = f"{PATCHES} random 512-px patches, batches of 8, {POOL_BYTES // 2**20} MiB of decoded tiles"
        yield Bar(name=f"extra memory, {recipe.name}", asked=64, reached=reached, unit=" MiB", note=note)


def measure_bars(*, rounds: int, quick: bool) -> dict[str, Any]:
    """Every bar, printed as it is measured; the same as plain data."""
    print(f"\n## bars, {rounds} rounds", flush=True)
    bars = []
    times = 5 if quick else 25
    every = chain(
        share_bars(rounds, quick=quick),
        decoded_bars(quick=quick),
        overlap_bars(rounds),
        level_bars(times),
        open_bars(times),
        memory_bars(),
    )
    for bar in every:
        print(bar, flush=True)
        bars.append(bar)
    return {"bars": [asdict(bar) | {"ok": bar.ok} for bar in bars], "convoy": measure_convoy(rounds)}


def main(given: Sequence[str]) -> None:
    quick = "--quick" in given
    measure_bars(rounds=3 if quick else 7, quick=quick)


if __name__ == "__main__":
    main(sys.argv[1:])
