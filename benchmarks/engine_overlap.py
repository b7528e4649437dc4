"""Does the device ever wait? Wall over max(read, compute) of run(), with a device that takes a fixed time for every batch.

`read` is run() with the same model at no cost: opening excepted, all that a run does, a real store included. `compute` is the time that
the device is busy: batches times what one sleep of that length takes here on an idle thread. No device can be given anything before the
image was looked at small, so of one image alone the whole run can reach no less than 1 + glance / max(read, compute); the second
figure leaves the glance out of wall and of read, and is what the pipeline itself reaches. The third is an archive of three such
slides, two in flight, with nothing left out: the next one is looked at while this one computes.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from bench_files import SLIDES, bench_file
from engine_models import SIDE, FixedCost
from read_bar import Bar

from patchdrive.pipeline.archive import Archive, Models
from patchdrive.pipeline.run import run
from patchdrive.pipeline.run_report import RunReport
from patchdrive.pipeline.settings import RunSettings
from patchdrive.pipeline.watcher import Nobody
from patchdrive.readers import Image, open_image

RATIOS = (0.5, 1.0, 2.0, 4.0)
"""Compute over read."""
ASKED = 1.03
_LEAST_SECONDS = 4.0  # below it the first and the last batch weigh too much
_BATCH = 32
_SLIDES = 3
"""In the archive."""
_ARCHIVES = 3
"""Rounds of it: each takes two minutes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """One run."""

    wall: float
    """Seconds of run()."""
    batches: int
    """How often the device was asked."""
    report: RunReport
    """What the run told."""


def timed_run(image: Image, seconds: float, saliency: str | None) -> Timed:
    """run() into a fresh store, with a device that takes `seconds` for every batch."""
    model, settings = FixedCost(seconds), RunSettings(patch_size=SIDE, batch_size=_BATCH, saliency=saliency)
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        report = run(image, model, Path(folder) / "slide.zarr", settings=settings)
        wall = time.perf_counter() - begin
    if report.status != "done":
        raise RuntimeError(f"the run ended {report.status}: {dict(report.reasons)}")
    return Timed(wall=wall, batches=model.batches, report=report)


class _Given(Models):
    """This model, for every image."""

    def __init__(self, model: FixedCost) -> None:
        super().__init__((), RunSettings())
        self._model = model

    def of(self, _: Image) -> FixedCost:
        return self._model


def timed_archive(slide: Path, seconds: float, saliency: str | None) -> tuple[float, int]:
    """Seconds and batches of an archive of `_SLIDES` times the slide, two in flight."""
    model, settings = FixedCost(seconds), RunSettings(patch_size=SIDE, batch_size=_BATCH, saliency=saliency)
    with tempfile.TemporaryDirectory() as folder:
        links = [Path(folder) / f"{slide.stem}-{index}{slide.suffix}" for index in range(_SLIDES)]
        for link in links:
            link.symlink_to(slide)
        archive = Archive(
            out=Path(folder) / "out", models=_Given(model), settings=settings, watch=lambda _: nullcontext(Nobody()), say=_say
        )
        begin = time.perf_counter()
        ended = list(archive.run_all([str(link) for link in links], in_flight=2, stop=Event()))
        wall = time.perf_counter() - begin
    if any(one.report.status != "done" for one in ended):
        raise RuntimeError(f"an image ended {[one.report.status for one in ended]}")
    return wall, model.batches


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def slept(seconds: float) -> float:
    """What a sleep of `seconds` takes where nothing else runs."""
    found = []
    for _ in range(max(5, min(50, int(0.5 / seconds)))):
        begin = time.perf_counter()
        time.sleep(seconds)
        found.append(time.perf_counter() - begin)
    return statistics.median(found)


def overlap_round(image: Image, saliency: str | None) -> Iterator[dict[str, Any]]:
    """Every ratio once, each after a run at no cost that says what reading takes just now."""
    for ratio in RATIOS:
        read = timed_run(image, 0.0, saliency)
        cost = ratio * read.wall / read.batches
        took = slept(cost)
        whole = timed_run(image, cost, saliency)
        compute = took * whole.batches
        glances = [one.report.seconds.get("glance", 0.0) for one in (read, whole)]
        yield {
            "ratio": ratio,
            "read": read.wall,
            "compute": compute,
            "wall": whole.wall,
            "glance": glances[1],
            "over": whole.wall / max(read.wall, compute),
            "over_after_glance": (whole.wall - glances[1]) / max(read.wall - glances[0], compute),
            "stages": dict(whole.report.seconds),
            "read_stages": dict(read.report.seconds),
            "patches": read.report.planned,
            "batches": read.batches,
        }


def archive_round(slide: Path, saliency: str | None) -> Iterator[dict[str, Any]]:
    """Every ratio once, after a run at no cost."""
    read, batches = timed_archive(slide, 0.0, saliency)
    for ratio in RATIOS:
        cost = ratio * read / batches
        compute = slept(cost) * batches
        wall, _ = timed_archive(slide, cost, saliency)
        yield {"ratio": ratio, "read": read, "compute": compute, "wall": wall, "over": wall / max(read, compute)}


def measure_overlap(rounds: int, saliency: str | None) -> dict[str, Any]:
    """All rounds after a run that warms up, printed; as plain data."""
    print(f"\n## wall / max(read, compute), {rounds} rounds: {SLIDES[0].name}, {SIDE}-px patches over tissue", flush=True)
    image = open_image(bench_file(SLIDES[0].name))
    timed_run(image, 0.0, saliency)
    found = []
    for number in range(rounds):
        for one in overlap_round(image, saliency):
            found.append(one)
            told = f"compute {one['ratio']:g} x read: read {one['read']:.1f} s, wall {one['wall']:.1f} s"
            _say(f"  round {number + 1} of {rounds}, {told}")
    image.close()
    archives = []
    for number in range(min(rounds, _ARCHIVES)):
        for one in archive_round(bench_file(SLIDES[0].name), saliency):
            archives.append(one)
            _say(f"  round {number + 1}, archive, compute {one['ratio']:g} x read: {one['over']:.2f}")
    bars = []
    for ratio in RATIOS:
        of_ratio = [one for one in found if one["ratio"] == ratio]
        read, compute, wall, glance = (statistics.median(one[key] for one in of_ratio) for key in ("read", "compute", "wall", "glance"))
        note = f"read {read:.2f} s, compute {compute:.2f} s, wall {wall:.2f} s, of which glance {glance:.2f} s"
        for key, words in (("over", "whole run"), ("over_after_glance", "after the glance")):
            reached = statistics.median(one[key] for one in of_ratio)
            bars.append(Bar(name=f"compute {ratio:g} x read, {words}", asked=ASKED, reached=reached, note=note))
            print(bars[-1], flush=True)
    for ratio in RATIOS:
        of_ratio = [one for one in archives if one["ratio"] == ratio]
        read, compute, wall = (statistics.median(one[key] for one in of_ratio) for key in ("read", "compute", "wall"))
        over = statistics.median(one["over"] for one in of_ratio)
        note = f"read {read:.2f} s, compute {compute:.2f} s, wall {wall:.2f} s"
        bars.append(Bar(name=f"compute {ratio:g} x read, archive of {_SLIDES}", asked=ASKED, reached=over, note=note))
        print(bars[-1], flush=True)
    read = statistics.median(one["read"] for one in found)
    _say_stages(found)
    if read < _LEAST_SECONDS:
        print(f"  a run at no cost takes {read:.1f} s here, less than {_LEAST_SECONDS:g}: its beginning and end weigh too much")
    reached = [{"name": bar.name, "asked": bar.asked, "reached": bar.reached, "ok": bar.ok} for bar in bars]
    return {"rounds": found, "archives": archives, "bars": reached}


def _say_stages(found: list[dict[str, Any]]) -> None:
    names = sorted({name for one in found for name in one["read_stages"]})
    told = [f"{name} {statistics.median(one['read_stages'].get(name, 0.0) for one in found):.2f}" for name in names]
    print(f"  a run at no cost, {found[0]['patches']} patches in {found[0]['batches']} batches, seconds by stage: {', '.join(told)}")
