"""Which pixel size of a slide to believe: what is stated, against the resolution tags and the objective. Pure.

`judge` is the rule, for every reader of slides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

MICROMETRES = {2: 25400.0, 3: 10000.0}
"""Micrometres per TIFF ResolutionUnit: inch, centimetre."""
_RANGE = (0.01, 100.0)
_FACTOR = 2.0
"""How far y may be from x, and a size from what its objective gives: 10 / magnification, a camera's usual pixel."""
_AGREES = 0.05
"""Two statements of one size, each rounded in its own unit."""
# What programs write when they know nothing: print and screen resolutions, in dots per inch.
_DEFAULT_DPI = (72, 96, 100, 150, 200, 300, 600)

Mpp = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelSize:
    """What is believed of a slide's pixel size."""

    mpp: Mpp | None
    """Micrometres per pixel, (y, x); None where nothing is believed."""
    doubt: str
    """Why what is stated is not believed; empty where it is, or where nothing is stated."""


def judge(stated: Mpp | None, *, magnification: float | None = None, second: Mpp | None = None) -> PixelSize:
    """Believe a stated size, or say why not.

    A size is believed unless
    1. it is not from 0.01 to 100 micrometres: no light microscope, and no scanner's overview, is further out;
    2. y and x differ by more than a factor 2: one of them is something else;
    3. a magnification is known, and the size is further than a factor 2 from 10 / magnification, and no second statement of the
       size confirms it to 5 %. (An export at half the resolution keeps the name of its objective; both its sizes then agree.)
    Whatever fails is refused whole: no other size is guessed in its place.

    Args:
        stated: micrometres per pixel, (y, x), from the place where the vendor keeps it; None where it is not given.
        magnification: of the objective; None or <= 0 where it is not given.
        second: the same size from an independent place, such as resolution tags; None where there is none.
    """
    if stated is None or all(math.isnan(side) for side in stated):
        return PixelSize(mpp=None, doubt="")
    y, x = stated
    said = f"{y:.4g} x {x:.4g} µm a pixel"
    low, high = _RANGE
    if not (low <= y <= high and low <= x <= high):  # NaN too
        return PixelSize(mpp=None, doubt=f"{said} is not within {low:g} to {high:g} µm")
    if max(y / x, x / y) > _FACTOR:
        return PixelSize(mpp=None, doubt=f"{said}: y and x differ by more than a factor {_FACTOR:g}")
    if magnification is not None and 0 < magnification < math.inf:
        expected = 10 / magnification
        near = expected / _FACTOR <= math.sqrt(y * x) <= expected * _FACTOR
        if not near and not (second is not None and _agree(stated, second)):
            return PixelSize(mpp=None, doubt=f"{said} contradicts an objective of {magnification:g}x (about {expected:.4g} µm)")
    return PixelSize(mpp=(y, x), doubt="")


def from_resolution(y: tuple[float, float] | None, x: tuple[float, float] | None, unit: int) -> PixelSize:
    """The size that TIFF resolution tags state, refused where they state a print or screen resolution.

    Args:
        y: YResolution, (numerator, denominator), pixels per unit; None where absent.
        x: XResolution, likewise.
        unit: ResolutionUnit, 2 for inch and 3 for centimetre; any other is no length.
    """
    if unit not in MICROMETRES or y is None or x is None or not min(*y, *x) > 0:
        return PixelSize(mpp=None, doubt="")
    sizes = MICROMETRES[unit] * y[1] / y[0], MICROMETRES[unit] * x[1] / x[0]
    for size in sizes:
        dpi = next((dpi for dpi in _DEFAULT_DPI if math.isclose(MICROMETRES[2] / size, dpi, rel_tol=1e-4)), None)
        if dpi is not None:
            return PixelSize(mpp=None, doubt=f"{dpi} dots per inch is a resolution of print or screen")
    return judge(sizes)


def number(text: str | None) -> float | None:
    """The number a text is, or begins with before a unit such as "x"; None where it is none."""
    try:
        value = float((text or "").strip().rstrip("xX"))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _agree(one: Mpp, other: Mpp) -> bool:
    return all(math.isclose(mine, yours, rel_tol=_AGREES) for mine, yours in zip(one, other, strict=True))
