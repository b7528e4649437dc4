"""A store as a page with pictures, for people."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from patchdrive.pipeline.best_patches import read_best
from patchdrive.pipeline.budget import show_bytes
from patchdrive.pipeline.causes import without_folder
from patchdrive.pipeline.info import crs_name
from patchdrive.pipeline.journal import write_whole
from patchdrive.pipeline.pictures import save_picture
from patchdrive.pipeline.plan import Plan
from patchdrive.pipeline.records import READ_ERRORS
from patchdrive.pipeline.report_figures import Figure, canvas_of, figures
from patchdrive.pipeline.report_page import Page, PatchCard, render
from patchdrive.pipeline.result import Result, ResultRound, open_result
from patchdrive.pipeline.tables import STATES
from patchdrive.readers import FormatError, ReadError, open_image
from patchdrive.readers.errors import StoreError

PAGE = "index.html"
"""The page, in the folder of its store."""
BEST = 24
"""Patches shown."""


def write_report(store: Path, out: Path | None = None) -> Path:
    """Write `<id>.report/`: `index.html`, which needs nothing else, and every picture as PNG.

    The label and macro image of a slide are never read, and of the source's path only the file name is told.

    Args:
        store: `<id>.zarr`, finished or not.
        out: folder for `<id>.report`; None: beside the store.

    Returns:
        The path of the page.

    Raises:
        StoreError: it is not a store of ours, or what it holds cannot be read.
    """
    page = read_page(store)
    folder = report_folder(store, out)
    write_page(page, folder)
    return folder / PAGE


def report_folder(store: Path, out: Path | None) -> Path:
    """Where the report of a store lies: in `out`, or beside it."""
    return (out if out is not None else store.parent) / f"{store.stem}.report"


def read_page(store: Path) -> Page:
    """Everything that the page of a store says, read from it and, where it is still there, from its source.

    Raises:
        StoreError: it is not a store of ours, or what it holds cannot be read.
    """
    try:
        result = open_result(store)
        rounds, notices = _rounds(result)
        drawn, undrawn = _figures(result, rounds)
        return _page(result, rounds, (*notices, *undrawn), drawn, _cards(result, rounds))
    except READ_ERRORS as error:
        raise StoreError(f"{store} cannot be read ({error}); `patchdrive verify` says what is wrong with it") from error


def write_page(page: Page, folder: Path) -> None:
    """The page, and every picture of it as PNG, in place of those that were there."""
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*.png"):
        stale.unlink()
    every: list[Figure | PatchCard] = [*page.figures, *page.patches]
    for picture in every:
        save_picture(folder / f"{picture.name}.png", picture.pixels)
    write_whole(folder / PAGE, render(page))


def _rounds(result: Result) -> tuple[tuple[ResultRound, ...], tuple[str, ...]]:
    """The patches, and what the reader must know."""
    partial = ("This run is not finished: what follows is what is there so far. The same command again takes it up where it stands.",)
    notices = partial if result.report is None else ()
    if not result.state_folder.is_dir():
        return (), (*notices, f"The store was moved without {result.state_folder.name}, so its patches are not known here.")
    return result.rounds, notices


def _figures(result: Result, rounds: Sequence[ResultRound]) -> tuple[tuple[Figure, ...], tuple[str, ...]]:
    try:
        canvas = canvas_of(result)
    except StoreError:
        return (), ("The run ended before it had looked at the image, so there is nothing to draw.",)
    return tuple(figures(result, rounds, canvas)), ()


def _cards(result: Result, rounds: Sequence[ResultRound]) -> tuple[tuple[PatchCard, ...], str]:
    """The best patches and what to say of them, or why there are none."""
    if result.source is None:
        return (), "Without the run's state beside the store nobody knows where its source lies, so no patch is shown."
    if not any(held.done.any() for held in rounds):
        return (), "No patch was computed, or none is known here."
    source, reader = result.source
    try:
        image = open_image(source, reader=reader)
    except (FormatError, ReadError):
        return (), f"The source {Path(source).name} is not where it was, so no patch can be shown."
    try:
        if image.identity != result.facts["source"]["identity"]:
            return (), f"The source {Path(source).name} is no longer the image that was read, so no patch is shown."
        best = read_best(image, rounds, result.spec, BEST)
    finally:
        image.close()
    cards = []
    by = "score" if result.attention is None else "attention of the answers"
    for place, patch in enumerate(best):
        plan = rounds[patch.round].plan
        y, x = plan.centres[patch.row].tolist()
        turn = f"round {patch.round}, " if len(rounds) > 1 else ""
        told = _decided(rounds[patch.round], patch.row)
        lines = (f"score {plan.score[patch.row]:.3f}", f"{turn}rank {plan.rank[patch.row]:,}", f"y {y:,.0f}, x {x:,.0f}", *told)
        cards.append(PatchCard(name=f"patch_{place + 1:02d}", lines=lines, pixels=patch.pixels))
    return tuple(cards), (
        f"The computed patches of the highest {by}, up to {BEST}, read again from the source at the size the model saw; y and x are "
        "their centres in level-0 pixels, rank 0 was chosen first. White is beyond the image, or not valid. "
        f"{'' if image.dtype == np.uint8 else 'Contrast stretched from the 2nd to the 98th percentile of these patches together.'}"
    ).strip()


def _decided(held: ResultRound, row: int) -> tuple[str, ...]:
    """What a patch had to do with the answers, where a drive says it."""
    if held.attention is None:
        return ()
    brought = [f"brings {values[row]:+.3f} to {name}" for name, values in held.influence.items() if np.isfinite(values[row])]
    return (f"attention {held.attention[row]:.3f}", *brought) if np.isfinite(held.attention[row]) else ("not kept",)


def _audited(audit: Mapping[str, Any]) -> str:
    """An audit in a sentence."""
    return (
        f"{audit['missed']:.1%} of the targets were missed ({audit['missed_low']:.1%} to {audit['missed_high']:.1%} with "
        f"{audit['confidence']:.0%} confidence): {audit['hits']:,} of {audit['sampled']:,} patches drawn from {audit['outside']:,} places "
        f"that nobody chose show one, {audit['found']:,} of the chosen ones do"
    )


def _page(
    result: Result, rounds: Sequence[ResultRound], notices: tuple[str, ...], drawn: Sequence[Figure], best: tuple[Sequence[PatchCard], str]
) -> Page:
    report = result.report or {}
    counts = _counts(report, rounds)
    planned = sum(counts.values())
    covered = f", {report['coverage']:.1%} of the valid area inside them" if report else ""
    return Page(
        title=result.path.stem,
        status=report.get("status", "partial"),
        lead=f"{counts['done']:,} of {planned:,} planned patches done by {result.spec.name}{covered}.",
        notices=(*notices, *(without_folder(note, report["source"]) for note in report.get("notes", ()))),
        facts=tuple(_facts(result, report, rounds)),
        counts=counts,
        coverage=report.get("coverage"),
        seconds=report.get("seconds", {}),
        reasons=_reasons(result, report, rounds),
        answers=result.answers,
        figures=drawn,
        patches_note=best[1],
        patches=best[0],
        details=json.dumps(result.facts, indent=1),
    )


def _reasons(result: Result, report: Mapping[str, Any], rounds: Sequence[ResultRound]) -> dict[str, int]:
    """Why patches were not computed, or have holes; of the source's path only the file name."""
    reasons = Counter(report.get("reasons", {}))
    reasons.update({f"done with a hole: {why}": count for why, count in report.get("masked", {}).items()})
    if not report:
        for held in rounds:
            reasons.update(held.reasons)
    source = report["source"] if report else result.source[0] if result.source is not None else ""
    return {without_folder(told, source): count for told, count in sorted(reasons.items())}


def _counts(report: dict[str, Any], rounds: Sequence[ResultRound]) -> dict[str, int]:
    """Patches by state, the finished run's own count first."""
    if report:
        states = {state: int(report[state]) for state in ("done", "skipped", "failed")}
        return {**states, "planned": int(report["planned"]) - sum(states.values())}
    return {
        state: sum(int((held.codes == STATES.index(state)).sum()) for held in rounds) for state in ("done", "skipped", "failed", "planned")
    }


def _facts(result: Result, report: dict[str, Any], rounds: Sequence[ResultRound]) -> list[tuple[str, str]]:
    height, width = result.size
    facts = [
        ("Image", f"{height:,} x {width:,} pixels (rows x columns), {height * width / 1e6:,.1f} Mpx"),
        ("Pixel size", _pixel_size(result)),
        ("Model", f"{result.spec.name} ({result.facts['model']['digest'][:12]}), on {result.facts['device']}"),
    ]
    for index, held in enumerate(rounds):
        name = "Patches" if len(rounds) == 1 else f"Round {index}"
        facts.append((name, f"{len(held.plan):,} of {held.plan.side} x {held.plan.side} pixels{_target(result, held.plan)}"))
    if result.audit is not None:
        facts.append(("Audit", _audited(result.audit)))
    if report:
        needed = max(1, report["bytes_needed"])
        facts += [
            ("Coverage", f"{report['coverage']:.1%} of the valid area is inside planned patches"),
            ("Decoded", f"{show_bytes(report['bytes_decoded'])}, {report['bytes_decoded'] / needed:.2f} x what the patches touch"),
            ("Peak memory", show_bytes(report["peak_host_bytes"])),
        ]
        if report["peak_device_bytes"]:
            facts.append(("Peak device memory", show_bytes(report["peak_device_bytes"])))
    return facts


def _pixel_size(result: Result) -> str:
    if result.mpp is not None:
        y, x = result.mpp
        return f"{y:.4g} µm per level-0 pixel" if y == x else f"{y:.4g} x {x:.4g} µm per level-0 pixel (y x x)"
    try:
        saliency = result.saliency
    except StoreError:
        return "unknown"
    if saliency.transform is None:
        return "unknown"
    transform, (down_y, down_x) = saliency.transform, saliency.downsample
    y, x = float(np.hypot(transform.b, transform.e)) / down_y, float(np.hypot(transform.a, transform.d)) / down_x
    frame = (
        "no CRS"
        if saliency.crs is None
        else f"{saliency.crs.name} ({crs_name(saliency.crs)})"
        if saliency.crs.to_epsg()
        else saliency.crs.name
    )
    return f"{y:.6g} x {x:.6g} per level-0 pixel (y x x), {frame}"


def _target(result: Result, plan: Plan) -> str:
    """At which pixel size patches were read, where that is not level 0's."""
    down_y, down_x = plan.grid.downsample_y, plan.grid.downsample_x
    if result.mpp is not None:
        return f" at {result.mpp[0] * down_y:.4g} µm"
    return "" if down_y == down_x == 1 else f", each {down_y:.4g} x {down_x:.4g} level-0 pixels"
