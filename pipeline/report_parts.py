"""What the pages of a report are made of: plain HTML in one file, no script, nothing fetched. Pure: words and pictures in, text out."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from patchdrive.pipeline.report_figures import Ramp, Swatches

MARK = '<meta name="generator" content="patchdrive report">'
"""Stands in the head of every page: a file without it is not ours."""
QUALITY = 88
"""Of the JPEGs inside a page; the PNGs beside it are exact."""
_STATES = {"done": "done", "skipped": "skipped", "failed": "failed", "planned": "not yet computed"}


def text(value: str) -> str:
    """As the text of an element or of an attribute."""
    return html.escape(value, quote=True)


def document(title: str, parts: Iterable[str], style: str) -> str:
    """A page of `parts`, the empty ones left out, with the style of all pages and its own."""
    head = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">{MARK}'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{_STYLE}{style}</style></head><body><main>"
    )
    return "\n".join([head, *(part for part in parts if part), "</main></body></html>\n"])


def badge(status: str) -> str:
    """A coloured word."""
    return f'<span class="badge {text(status.replace(" ", "-"))}">{text(status)}</span>'


def notice(told: str) -> str:
    """What the reader must know."""
    return f'<p class="notice">{text(told)}</p>'


def stack(counts: Mapping[str, int]) -> str:
    """Patches by state, as one bar."""
    bars = "".join(f'<span class="{state}" style="flex-grow:{count}"></span>' for state, count in counts.items() if count)
    return f'<div class="stack" aria-hidden="true">{bars}</div>' if bars else ""


def key(state: str) -> str:
    """The colour that a state has in `stack`."""
    return f'<span class="key {state}"></span>'


def stack_words(counts: Mapping[str, int]) -> str:
    """What the colours of `stack` mean, with the numbers."""
    words = "".join(f"<span>{key(state)}{count:,} {_STATES[state]}</span>" for state, count in counts.items() if count)
    return f'<p class="keys small">{words}</p>' if words else ""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; the first cell of a row names it. Cells are HTML; without `head` there is no head row."""
    named = "".join(f'<th scope="col">{text(name)}</th>' for name in head)
    lines = "".join(f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>' for row in rows)
    return f'<div class="wide"><table>{f"<thead><tr>{named}</tr></thead>" if head else ""}<tbody>{lines}</tbody></table></div>'


def legend(meaning: Ramp | Swatches | None) -> str:
    """What the colours of a picture mean."""
    if isinstance(meaning, Ramp):
        stops = ",".join(f"#{color}" for color in meaning.colors)
        return (
            f'<div class="ramp"><span>{text(meaning.low)}</span>'
            f'<span class="strip" style="background:linear-gradient(to right,{stops})"></span><span>{text(meaning.high)}</span></div>'
        )
    if isinstance(meaning, Swatches):
        items = "".join(f'<li><span class="swatch" style="background:#{color}"></span>{text(told)}</li>' for color, told in meaning.entries)
        return f'<ul class="swatches">{items}</ul>'
    return ""


def picture(pixels: NDArray[np.uint8], alt: str, *, quality: int = QUALITY) -> str:
    """(height, width, 3) as a JPEG inside the page; no colour is thinned out in one of a high quality."""
    thin = "444" if quality >= QUALITY else "420"
    encoded = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=quality, colorspace="RGB", colorsubsampling=thin)
    data = base64.standard_b64encode(encoded).decode()
    size = f'width="{pixels.shape[1]}" height="{pixels.shape[0]}"'
    return f'<img alt="{text(alt)}" {size} src="data:image/jpeg;base64,{data}">'


def small(pixels: NDArray[np.uint8], most: int) -> NDArray[np.uint8]:
    """(height, width, 3) by means of square blocks, its longer side at most `most`, so that a page stays light."""
    cell = -(-max(pixels.shape[:2]) // most)
    height, width = (max(cell, extent // cell * cell) for extent in pixels.shape[:2])
    whole = np.pad(pixels[:height, :width], ((0, max(0, height - len(pixels))), (0, max(0, width - pixels.shape[1])), (0, 0)), mode="edge")
    blocks = whole.reshape(height // cell, cell, width // cell, cell, 3)
    return np.asarray(np.rint(blocks.mean(axis=(1, 3))), np.uint8)


def duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60:,} h {minutes % 60} min"


_STYLE = """
:root{color-scheme:light dark;--ink:#1c2430;--soft:#5b6675;--paper:#fafaf8;--card:#fff;--line:#e1e5ea;--accent:#2f6f9f;
--done:#3d8b5f;--skipped:#c9a227;--failed:#c0453e;--planned:#b4bcc6}
@media (prefers-color-scheme:dark){:root{--ink:#e6eaf0;--soft:#a3aebc;--paper:#14181e;--card:#1c222b;--line:#323b47;--accent:#7cbbe6;
--done:#5bb585;--skipped:#dcbb4f;--failed:#e2706a;--planned:#5a6573}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1180px;margin:0 auto;padding:2.5rem 1.25rem 5rem}
h1{font-size:1.75rem;line-height:1.25;margin:0;font-weight:650;overflow-wrap:anywhere}
h2{font-size:1.15rem;line-height:1.3;margin:2.75rem 0 .75rem;font-weight:650}
h3{font-size:1rem;line-height:1.35;margin:0;font-weight:600;overflow-wrap:anywhere}
p{margin:.4rem 0;max-width:46rem}
a{color:var(--accent);text-underline-offset:.15em}
a:focus-visible,summary:focus-visible{outline:3px solid var(--accent);outline-offset:2px}
img{display:block;height:auto;max-width:100%}
.lead{font-size:1.1rem;color:var(--soft);max-width:none}
.small{font-size:.85rem;color:var(--soft)}
.badge{display:inline-block;font-size:.78rem;font-weight:600;line-height:1.3;padding:.15rem .6rem;border-radius:1rem;color:#fff;
background:#5b6675;vertical-align:.15em;white-space:nowrap}
.badge.done{background:#2f7a50}.badge.partial{background:#80650d}.badge.failed,.badge.unreadable{background:#b03a34}
.notice{border-left:4px solid var(--skipped);background:var(--card);padding:.7rem 1rem;margin:1rem 0;max-width:none;overflow-wrap:anywhere}
.stack{display:flex;height:.55rem;border-radius:.3rem;overflow:hidden}
header .stack{margin-top:1.25rem}
.keys{display:flex;flex-wrap:wrap;gap:.1rem 1.1rem}
.key{display:inline-block;width:.7rem;height:.7rem;border-radius:.2rem;margin-right:.4rem}
.stack .done,.key.done{background:var(--done)}.stack .skipped,.key.skipped{background:var(--skipped)}
.stack .failed,.key.failed{background:var(--failed)}.stack .planned,.key.planned{background:var(--planned)}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%}
th,td{text-align:left;vertical-align:top;padding:.4rem 1.2rem .4rem 0;border-bottom:1px solid var(--line);overflow-wrap:anywhere}
th{font-weight:500;color:var(--soft)}
td{font-variant-numeric:tabular-nums}
thead th{font-size:.85rem;white-space:nowrap}
.ramp{display:flex;align-items:center;gap:.5rem;font-size:.85rem;color:var(--soft)}
.strip{flex:1;max-width:16rem;height:.7rem;border-radius:.2rem;border:1px solid var(--line)}
.swatches{display:flex;flex-wrap:wrap;gap:.15rem 1rem;list-style:none;margin:.2rem 0;padding:0;font-size:.88rem}
.swatch{display:inline-block;width:.8rem;height:.8rem;border-radius:.2rem;margin-right:.4rem;vertical-align:-.06rem;
border:1px solid var(--line)}
@media (max-width:40rem){main{padding-top:1.25rem}h1{font-size:1.4rem}h2{margin-top:2rem}}
@media print{:root{color-scheme:light;--paper:#fff}body{font-size:11pt}main{max-width:none;padding:0}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}h2,h3{break-after:avoid}}
"""
