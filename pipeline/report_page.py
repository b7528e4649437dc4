"""The page of a report: plain HTML, one file, no script and nothing fetched. Pure: words and pictures in, text out."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from patchdrive.pipeline.report_figures import Figure, Ramp, Swatches

_QUALITY = 88
"""Of the JPEGs inside the page; the PNGs beside it are exact."""
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
    """Patches by state."""
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
        _head(page),
        "".join(f'<p class="notice">{_text(notice)}</p>' for notice in page.notices),
        _counts(page.counts),
        '<div class="columns">',
        _table("Facts", [(name, _text(value)) for name, value in page.facts]),
        "<div>",
        _seconds(page.seconds),
        _reasons(page.reasons),
        "".join(_answer(name, classes) for name, classes in page.answers.items()),
        "</div></div>",
        '<section class="figures" aria-label="Pictures">',
        *(_figure(figure) for figure in page.figures),
        "</section>",
        _patches(page),
        f"<details><summary>Source, model and settings, as the store keeps them</summary><pre>{_text(page.details)}</pre></details>",
        "</main></body></html>\n",
    ]
    return "\n".join(part for part in parts if part)


def _text(value: str) -> str:
    return html.escape(value, quote=True)


def _head(page: Page) -> str:
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(page.title)}</title><style>{_STYLE}</style></head><body><main>\n"
        f'<header><h1>{_text(page.title)} <span class="badge {_text(page.status)}">{_text(page.status)}</span></h1>'
        f'<p class="lead">{_text(page.lead)}</p></header>'
    )


def _counts(counts: Mapping[str, int]) -> str:
    """A bar of all planned patches by state."""
    total = sum(counts.values())
    if not total:
        return ""
    shown = {state: count for state, count in counts.items() if count}
    bars = "".join(f'<span class="{state}" style="flex-grow:{count}"></span>' for state, count in shown.items())
    words = ", ".join(f'<span class="key {state}"></span>{count:,} {_text(_STATES[state])}' for state, count in shown.items())
    return f'<div class="stack" aria-hidden="true">{bars}</div><p class="small">{words}</p>'


def _table(title: str, rows: Sequence[tuple[str, str]]) -> str:
    lines = "".join(f'<tr><th scope="row">{_text(name)}</th><td>{value}</td></tr>' for name, value in rows)
    return f"<section><h2>{_text(title)}</h2><table>{lines}</table></section>"


def _bars(entries: Sequence[tuple[str, float, str]], most: float) -> str:
    """(name, value, its text) as bars up to `most`."""
    lines = "".join(
        f'<div class="bar"><span>{_text(name)}</span><span class="track"><span style="width:{100 * value / most:.1f}%"></span></span>'
        f"<span>{_text(told)}</span></div>"
        for name, value, told in entries
    )
    return f'<div class="bars">{lines}</div>'


def _seconds(seconds: Mapping[str, float]) -> str:
    if not seconds:
        return ""
    stages = sorted(((name, value) for name, value in seconds.items() if name != "total"), key=lambda pair: -pair[1])
    entries = [("total", seconds.get("total", 0.0)), *stages]
    most = max([value for _, value in entries] + [1e-9])
    bars = _bars([(name, value, f"{value:,.2f} s") for name, value in entries], most)
    return f'<section><h2>Seconds</h2>{bars}<p class="small">Stages run side by side, so they need not add up to the total.</p></section>'


def _reasons(reasons: Mapping[str, int]) -> str:
    if not reasons:
        return ""
    return _table("Not computed", [(f"{count:,} x", _text(reason)) for reason, count in sorted(reasons.items(), key=lambda pair: -pair[1])])


def _answer(name: str, classes: Mapping[str, float]) -> str:
    entries = [(label, value, f"{value:.3f}") for label, value in classes.items()]
    return f"<section><h2>Answer: {_text(name)}</h2>{_bars(entries, 1.0)}</section>"


def _figure(figure: Figure) -> str:
    seen = f'{_size(figure.pixels)} src="{_jpeg(figure.pixels)}"'
    return (
        f'<figure><a href="{quote(figure.name)}.png"><img alt="{_text(figure.alt)}" {seen}></a>'
        f"<figcaption><h2>{_text(figure.title)}</h2>{_legend(figure.legend)}<p>{_text(figure.caption)}</p></figcaption></figure>"
    )


def _legend(legend: Ramp | Swatches | None) -> str:
    if isinstance(legend, Ramp):
        stops = ",".join(f"#{color}" for color in legend.colors)
        return (
            f'<div class="ramp"><span>{_text(legend.low)}</span>'
            f'<span class="strip" style="background:linear-gradient(to right,{stops})"></span><span>{_text(legend.high)}</span></div>'
        )
    if isinstance(legend, Swatches):
        items = "".join(f'<li><span class="swatch" style="background:#{color}"></span>{_text(told)}</li>' for color, told in legend.entries)
        return f'<ul class="swatches">{items}</ul>'
    return ""


def _patches(page: Page) -> str:
    cards = "".join(_card(card) for card in page.patches)
    return f'<section><h2>Best patches</h2><p>{_text(page.patches_note)}</p><div class="patches">{cards}</div></section>'


def _card(card: PatchCard) -> str:
    small, told = _small(card.pixels), "<br>".join(_text(line) for line in card.lines)
    alt = _text(f"Patch: {', '.join(card.lines)}")
    return (
        f'<figure><a href="{quote(card.name)}.png"><img alt="{alt}" {_size(small)} src="{_jpeg(small)}"></a>'
        f"<figcaption>{told}</figcaption></figure>"
    )


def _small(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A patch by block means, so that a page stays light."""
    cell = -(-len(pixels) // _PATCH_SIDE)
    side = len(pixels) // cell * cell
    blocks = pixels[:side, :side].reshape(side // cell, cell, side // cell, cell, 3)
    return np.asarray(np.rint(blocks.mean(axis=(1, 3))), np.uint8)


def _size(pixels: NDArray[np.uint8]) -> str:
    return f'width="{pixels.shape[1]}" height="{pixels.shape[0]}"'


def _jpeg(pixels: NDArray[np.uint8]) -> str:
    encoded = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=_QUALITY, colorspace="RGB", colorsubsampling="444")
    return "data:image/jpeg;base64," + base64.standard_b64encode(encoded).decode()


_STATES = {"done": "done", "skipped": "skipped", "failed": "failed", "planned": "not yet computed"}
_STYLE = """
:root{color-scheme:light dark;--ink:#1c2430;--soft:#5b6675;--paper:#fbfbf9;--card:#fff;--line:#dfe3e8;--accent:#2f6f9f;
--done:#3d8b5f;--skipped:#c9a227;--failed:#c0453e;--planned:#b4bcc6}
@media (prefers-color-scheme:dark){:root{--ink:#e6eaf0;--soft:#9aa6b5;--paper:#14181e;--card:#1c222b;--line:#323b47;--accent:#6fb1e0;
--done:#5bb585;--skipped:#dcbb4f;--failed:#e2706a;--planned:#5a6573}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1180px;margin:0 auto;padding:1.5rem 1rem 4rem}
h1{font-size:1.6rem;line-height:1.25;margin:0;overflow-wrap:anywhere}
h2{font-size:1.05rem;margin:1.5rem 0 .5rem}
p{margin:.4rem 0}
a{color:var(--accent)}
.lead{font-size:1.1rem;color:var(--soft)}
.small{font-size:.85rem;color:var(--soft)}
.badge{font-size:.8rem;font-weight:600;padding:.15rem .6rem;border-radius:1rem;color:#fff;background:var(--planned);vertical-align:middle}
.badge.done{background:#2f7a50}.badge.partial{background:#8a6d0f}.badge.failed{background:#b03a34}
.notice{border-left:4px solid var(--skipped);background:var(--card);padding:.6rem .9rem;margin:.8rem 0}
.stack{display:flex;height:.7rem;border-radius:.35rem;overflow:hidden;margin-top:1rem}
.key{display:inline-block;width:.7rem;height:.7rem;border-radius:.2rem;margin:0 .3rem 0 .2rem}
.stack .done,.key.done{background:var(--done)}.stack .skipped,.key.skipped{background:var(--skipped)}
.stack .failed,.key.failed{background:var(--failed)}.stack .planned,.key.planned{background:var(--planned)}
.columns{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,22rem),1fr));gap:0 2.5rem}
table{border-collapse:collapse;width:100%}
th,td{text-align:left;vertical-align:top;padding:.3rem .8rem .3rem 0;border-bottom:1px solid var(--line);overflow-wrap:anywhere}
th{font-weight:500;color:var(--soft);white-space:nowrap}
.bar{display:grid;grid-template-columns:6.5rem 1fr 5.5rem;gap:.6rem;align-items:center;padding:.12rem 0;font-size:.92rem}
.bar>span:first-child{overflow-wrap:anywhere}
.bar>span:last-child{text-align:right;font-variant-numeric:tabular-nums}
.track{height:.7rem;background:var(--line);border-radius:.35rem;overflow:hidden}
.track>span{display:block;height:100%;background:var(--accent)}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr));gap:1.5rem;margin-top:2rem;align-items:start}
figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:.6rem;overflow:hidden}
figure a{display:block;background:#ececec}
.figures img{display:block;margin:0 auto;width:auto;height:auto;max-width:100%;max-height:40rem}
.figures figcaption{padding:.2rem 1rem .9rem}
.figures figcaption h2{margin:.6rem 0 .3rem;overflow-wrap:anywhere}
.figures figcaption p{font-size:.92rem;color:var(--soft)}
.ramp{display:flex;align-items:center;gap:.5rem;font-size:.85rem}
.strip{flex:1;max-width:16rem;height:.8rem;border-radius:.2rem;border:1px solid var(--line)}
.swatches{display:flex;flex-wrap:wrap;gap:.2rem 1rem;list-style:none;margin:.2rem 0;padding:0;font-size:.9rem}
.swatch{display:inline-block;width:.85rem;height:.85rem;border-radius:.2rem;margin-right:.4rem;vertical-align:-.08rem;
border:1px solid var(--line)}
.patches{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(44%,10.5rem),1fr));gap:.8rem;margin-top:.8rem}
.patches img{display:block;width:100%;height:auto}
.patches figcaption{font-size:.78rem;line-height:1.35;color:var(--soft);padding:.4rem .6rem .5rem;
font-variant-numeric:tabular-nums}
details{margin-top:2rem}
summary{cursor:pointer;color:var(--soft)}
pre{overflow:auto;background:var(--card);border:1px solid var(--line);padding:.8rem;font-size:.8rem}
@media print{body{background:#fff}figure{break-inside:avoid}}
"""
