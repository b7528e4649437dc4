"""The page of one store: the pictures first, then what is to be said of them. Pure: words and pictures in, text out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from patchdrive.pipeline.causes import causes_of
from patchdrive.pipeline.report_figures import Figure
from patchdrive.pipeline.report_parts import badge, document, legend, notice, picture, small, stack, stack_words, table, text

_PATCH_SIDE = 320
"""Largest picture of a patch inside the page."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PatchCard:
    """One of the best patches."""

    name: str
    """Of its file, without suffix."""
    lines: tuple[str, ...]
    """Score, rank and place."""
    pixels: NDArray[np.uint8]
    """(side, side, 3)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Page:
    """Everything a page says."""

    title: str
    """The store's id."""
    status: str
    """done, partial or failed."""
    lead: str
    """The outcome in a sentence."""
    notices: tuple[str, ...]
    """What the reader must know first."""
    facts: tuple[tuple[str, str], ...]
    """(name, value)."""
    counts: Mapping[str, int]
    """Patches by state; planned are those that are not yet computed."""
    coverage: float | None
    """Share of the valid area inside planned patches; None where unknown."""
    seconds: Mapping[str, float]
    """By stage, and `total`; empty where unknown."""
    reasons: Mapping[str, int]
    """Why patches were skipped or failed."""
    answers: Mapping[str, Mapping[str, float]]
    """Class probabilities about the whole image."""
    figures: Sequence[Figure]
    """Pictures of the whole image."""
    patches_note: str
    """What the patches are, or why there are none."""
    patches: Sequence[PatchCard]
    """The best ones."""
    details: str
    """The store's facts, as JSON."""


def render(page: Page) -> str:
    """The page as one HTML document."""
    parts = [
        f"<header><h1>{text(page.title)} {badge(page.status)}</h1>"
        f'<p class="lead">{text(page.lead)}</p>{stack(page.counts)}{stack_words(page.counts)}</header>',
        *(notice(told) for told in page.notices),
        *(_answer(name, classes) for name, classes in page.answers.items()),
        _figures(page.figures),
        _patches(page),
        _reasons(page.reasons),
        '<div class="columns">',
        f"<section><h2>Facts</h2>{table((), [(text(name), text(value)) for name, value in page.facts])}</section>",
        _seconds(page.seconds),
        "</div>",
        f"<details><summary>Source, model and settings, as the store keeps them</summary><pre>{text(page.details)}</pre></details>",
    ]
    return document(page.title, parts, _STYLE)


def _bars(entries: Sequence[tuple[str, float, str]], most: float) -> str:
    """(name, value, its text) as bars up to `most`."""
    lines = "".join(
        f'<tr><th scope="row">{text(name)}</th><td class="track"><span style="width:{100 * value / most:.1f}%"></span></td>'
        f"<td>{text(told)}</td></tr>"
        for name, value, told in entries
    )
    return f'<table class="bars">{lines}</table>'


def _seconds(seconds: Mapping[str, float]) -> str:
    if not seconds:
        return ""
    stages = sorted(((name, value) for name, value in seconds.items() if name != "total"), key=lambda pair: -pair[1])
    entries = [("total", seconds.get("total", 0.0)), *stages]
    most = max([value for _, value in entries] + [1e-9])
    bars = _bars([(name, value, f"{value:,.2f} s") for name, value in entries], most)
    return f'<section><h2>Seconds</h2>{bars}<p class="small">Stages run side by side, so they need not add up to the total.</p></section>'


def _reasons(reasons: Mapping[str, int]) -> str:
    """What is behind them, each told once."""
    if not reasons:
        return ""
    rows = [
        (f"{cause.patches:,} {text(cause.state)}", text(cause.told) + alike(cause.alike, "differ from it in their numbers"))
        for cause in causes_of({"": reasons})
    ]
    return f'<section class="causes"><h2>Not computed, or not whole</h2>{table(("Patches", "Cause"), rows)}</section>'


def alike(count: int, how: str) -> str:
    """So many more say the same."""
    return f' <span class="small">({count:,} more {how})</span>' if count else ""


def _answer(name: str, classes: Mapping[str, float]) -> str:
    entries = [(label, value, f"{value:.3f}") for label, value in classes.items()]
    return f'<section class="answer"><h2>Answer: {text(name)}</h2>{_bars(entries, 1.0)}</section>'


def _figures(figures: Sequence[Figure]) -> str:
    shown = "".join(
        f'<figure><a href="{quote(figure.name)}.png">{picture(figure.pixels, figure.alt)}</a>'
        f"<figcaption><h2>{text(figure.title)}</h2>{legend(figure.legend)}<p>{text(figure.caption)}</p></figcaption></figure>"
        for figure in figures
    )
    return f'<section class="figures" aria-label="Pictures">{shown}</section>' if shown else ""


def _patches(page: Page) -> str:
    cards = "".join(_card(card) for card in page.patches)
    return f'<section><h2>Best patches</h2><p>{text(page.patches_note)}</p><div class="patches">{cards}</div></section>'


def _card(card: PatchCard) -> str:
    shown = picture(small(card.pixels, _PATCH_SIDE), f"Patch: {', '.join(card.lines)}")
    return (
        f'<figure><a href="{quote(card.name)}.png">{shown}</a>'
        f"<figcaption>{'<br>'.join(text(line) for line in card.lines)}</figcaption></figure>"
    )


_STYLE = """
.columns{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,22rem),1fr));gap:0 3rem}
.columns th,.causes tbody th{white-space:nowrap}
.bars th,.bars td{border:0;padding:.2rem 1rem .2rem 0;overflow-wrap:break-word}
.bars .track{width:99%;vertical-align:middle}
.bars .track span{display:block;height:.6rem;min-width:1px;border-radius:.3rem;background:var(--accent)}
.bars td:last-child{padding-right:0;text-align:right;white-space:nowrap}
.answer{max-width:36rem}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr));gap:1.75rem;margin-top:2rem;align-items:start}
figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:.6rem;overflow:hidden;break-inside:avoid}
.figures a{display:block;padding:1rem 1rem 0}
.figures img{margin:0 auto;width:auto;max-height:38rem;border-radius:.2rem}
.figures figcaption{padding:.25rem 1.25rem 1.1rem}
.figures h2{font-size:1.05rem;margin:.75rem 0 .35rem;overflow-wrap:anywhere}
.figures p{font-size:.92rem;color:var(--soft)}
.patches{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(44%,10.5rem),1fr));gap:1rem;margin-top:1rem}
.patches img{width:100%}
.patches figcaption{font-size:.8rem;line-height:1.4;color:var(--soft);padding:.5rem .7rem .6rem;font-variant-numeric:tabular-nums}
details{margin-top:2.75rem}
summary{cursor:pointer;color:var(--soft)}
pre{overflow:auto;background:var(--card);border:1px solid var(--line);border-radius:.4rem;padding:1rem;font-size:.8rem}
@media print{.figures,.patches{display:block}.figures figure,.patches figure{display:inline-block;vertical-align:top;margin:0 1% 1rem 0}
.figures figure{width:48%}.patches figure{width:23%}}
"""
