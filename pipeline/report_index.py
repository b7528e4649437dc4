"""The index page of many images: totals, causes, and a card for each image. Pure: words and pictures in, text out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from patchdrive.pipeline.causes import causes_of
from patchdrive.pipeline.report_figures import Figure, Swatches
from patchdrive.pipeline.report_page import Page, alike
from patchdrive.pipeline.report_parts import badge, document, duration, key, legend, notice, picture, small, stack, table, text

SIDE = 192
"""Longest side of a picture on a card."""
QUALITY = 75
"""Of their JPEGs: with `SIDE`, 2 to 7 KB each, so 400 cards are some 5 MB."""
_MOST_CLASSES = 6
"""Longer legends are left to the image's own page."""
_MOST_IMAGES = 8
"""More images of one cause are counted."""
_OWN = ("thumbnail", "saliency", "plan")
_ORDER = ("unreadable", "failed", "partial", "done")


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexCard:
    """One image."""

    name: str
    """The store's id."""
    status: str
    """done, partial or failed; unreadable: there is no page of it."""
    link: str = ""
    """To its page, relative and quoted; empty where there is none."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Patches by state; planned are those that are not yet computed."""
    coverage: float | None = None
    """Share of the valid area inside planned patches; None where unknown."""
    seconds: float | None = None
    """From begin to end of the run; None where unknown."""
    reasons: Mapping[str, int] = field(default_factory=dict)
    """Why patches were skipped or failed."""
    pictures: tuple[str, ...] = ()
    """HTML of the thumbnail and of what was found, each with its legend."""
    problem: str = ""
    """Why there is no page."""


def card_of(page: Page, link: str) -> IndexCard:
    """A page on a card; of its pictures only small ones are kept.

    Args:
        page: what its page says.
        link: to that page, relative and quoted.
    """
    found = next((figure for figure in page.figures if figure.name not in _OWN and not figure.name.startswith("features")), None)
    named = {figure.name: figure for figure in page.figures}
    shown = [figure for figure in (named.get("thumbnail"), found or named.get("saliency")) if figure is not None]
    return IndexCard(
        name=page.title,
        status=page.status,
        link=link,
        counts=page.counts,
        coverage=page.coverage,
        seconds=page.seconds.get("total"),
        reasons=page.reasons,
        pictures=tuple(_picture(figure) for figure in shown),
    )


def render_index(cards: Sequence[IndexCard]) -> str:
    """The index page as one HTML document; the cards in any order."""
    ordered = sorted(cards, key=lambda card: (_ORDER.index(card.status), card.name.casefold(), card.name))
    anchors = {card.name: f"image-{index}" for index, card in enumerate(ordered)}
    counts: Counter[str] = Counter({"done": 0, "skipped": 0, "failed": 0, "planned": 0})
    for card in ordered:
        counts.update(card.counts)
    by_status = {status: [card for card in ordered if card.status == status] for status in _ORDER}
    title = "1 image" if len(ordered) == 1 else f"{len(ordered):,} images"
    lead = ", ".join(f"{len(held):,} {status}" for status, held in reversed(by_status.items()) if held)
    parts = [
        f'<header><h1>{title}</h1><p class="lead">{text(lead)}</p></header>',
        _totals(ordered, counts),
        _causes(ordered, anchors),
        _section("Look at these first", [card for card in ordered if card.status != "done"], anchors),
        _section("Done", by_status["done"], anchors),
    ]
    return document(f"{title}: {lead}", parts, _STYLE)


def _totals(cards: Sequence[IndexCard], counts: Mapping[str, int]) -> str:
    known = [card.seconds for card in cards if card.seconds is not None]
    running = sum(card.status == "partial" for card in cards)
    left = [("planned", "not yet computed", f"{counts['planned']:,}")] if counts["planned"] else []
    entries = [*_patches(counts), *left, ("", "run time", duration(sum(known)) if known else "unknown")]
    note = f'<p class="small">Run time is that of the {len(known):,} runs that ended.</p>' if running and known else ""
    return f'<section class="totals"><h2>Patches of all images</h2>{stack(counts)}{_numbers(entries)}{note}</section>'


def _patches(counts: Mapping[str, int]) -> list[tuple[str, str, str]]:
    """(colour, name, count) of patches, as a run counts them."""
    return [
        ("", "planned", f"{sum(counts.values()):,}"),
        *((state, state, f"{counts[state]:,}") for state in ("done", "skipped", "failed")),
    ]


def _numbers(entries: Sequence[tuple[str, str, str]]) -> str:
    """(colour, name, value)."""
    shown = "".join(
        f"<div><dt>{key(state) if state else ''}{text(name)}</dt><dd>{text(value)}</dd></div>" for state, name, value in entries
    )
    return f'<dl class="numbers">{shown}</dl>'


def _causes(cards: Sequence[IndexCard], anchors: Mapping[str, str]) -> str:
    rows = []
    for cause in causes_of({card.name: card.reasons for card in cards}):
        links = ", ".join(f'<a href="#{anchors[name]}">{text(name)}</a>' for name in cause.images[:_MOST_IMAGES])
        more = len(cause.images) - _MOST_IMAGES
        told = text(cause.told) + alike(cause.alike, "differ from it in their numbers")
        rows.append((f"{cause.patches:,} {text(cause.state)}", told, f"{links} and {more:,} more" if more > 0 else links))
    if not rows:
        return ""
    return f'<section class="causes"><h2>What was not computed, by cause</h2>{table(("Patches", "Cause", "Images"), rows)}</section>'


def _section(title: str, cards: Sequence[IndexCard], anchors: Mapping[str, str]) -> str:
    shown = "".join(_card(card, anchors[card.name]) for card in cards)
    return f'<section><h2>{title} <span class="small">{len(cards):,}</span></h2><div class="cards">{shown}</div></section>' if shown else ""


def _card(card: IndexCard, anchor: str) -> str:
    if not card.link:
        return f'<article id="{anchor}"><h3>{text(card.name)} {badge(card.status)}</h3>{notice(card.problem)}</article>'
    entries = [
        *_patches(card.counts),
        ("", "coverage", "unknown" if card.coverage is None else f"{card.coverage:.1%}"),
        ("", "run time", "unknown" if card.seconds is None else duration(card.seconds)),
    ]
    pair = (
        f'<div class="pair">{"".join(card.pictures)}</div>'
        if card.pictures
        else '<p class="small">No picture: the run ended before its first look.</p>'
    )
    return (
        f'<article id="{anchor}"><h3><a href="{card.link}">{text(card.name)}</a> {badge(card.status)}</h3>{pair}'
        f"{stack(card.counts)}{_numbers(entries)}</article>"
    )


def _picture(figure: Figure) -> str:
    meaning = figure.legend
    if isinstance(meaning, Swatches) and len(meaning.entries) > _MOST_CLASSES:
        meaning = None
    name = {"thumbnail": "", "saliency": "saliency"}.get(figure.name, text(figure.title))
    caption = f"<figcaption>{name}{legend(meaning)}</figcaption>" if name else ""
    return f"<figure>{picture(small(figure.pixels, SIDE), figure.alt, quality=QUALITY)}{caption}</figure>"


_STYLE = """
.numbers{display:grid;grid-template-columns:repeat(4,1fr);gap:.5rem .75rem;margin:1rem 0 0}
.numbers dt{font-size:.78rem;color:var(--soft);white-space:nowrap}
.numbers dd{margin:0;font-variant-numeric:tabular-nums}
article .numbers{font-size:.92rem}
article .key{display:none}
.totals .numbers{grid-template-columns:repeat(auto-fill,minmax(9rem,1fr));gap:1rem;margin-top:1.5rem}
.totals dt{font-size:.85rem}
.totals dd{font-size:1.35rem;font-weight:600}
.causes th:first-child{white-space:nowrap}
.causes td:last-child{min-width:7rem;width:25%}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,21rem),1fr));gap:1.5rem}
article{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:1.1rem 1.25rem 1.2rem;break-inside:avoid;
content-visibility:auto;contain-intrinsic-size:auto 24rem;scroll-margin-top:1rem}
article:target{border-color:var(--accent);outline:1px solid var(--accent)}
h3 a{margin-right:.35rem}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:.75rem;margin:.9rem 0 1rem;align-items:start}
figure{margin:0}
.pair img{width:100%;aspect-ratio:1;object-fit:contain;background:var(--paper);border-radius:.3rem}
figcaption{font-size:.8rem;line-height:1.4;color:var(--soft);margin-top:.4rem;overflow-wrap:anywhere}
figcaption .ramp,figcaption .swatches{font-size:.78rem;margin-top:.1rem}
@media print{article{content-visibility:visible}.cards{grid-template-columns:1fr 1fr}}
"""
