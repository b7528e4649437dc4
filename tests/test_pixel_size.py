"""Which pixel sizes of a slide are believed."""

from __future__ import annotations

import math

import pytest

from patchdrive.readers.pixel_size import from_resolution, judge, number


@pytest.mark.parametrize(
    ("stated", "magnification", "second"),
    [
        ((0.25, 0.25), None, None),
        ((0.25, 0.2501), 40, None),
        ((0.499, 0.499), 20, None),
        ((0.2281750559, 0.2281750559), 40, None),
        ((0.137, 0.137), 40, None),  # a fine camera
        ((0.499, 0.499), 40, None),  # a camera of coarse pixels, within a factor 2
        ((28.968, 28.969), None, None),
        ((1.0, 1.0), 40, (1.01, 1.01)),  # exported at a quarter of the size; the tags agree
        ((0.5, 0.25), None, None),  # y and x differ by exactly 2
        ((0.01, 0.01), None, None),
        ((100.0, 100.0), None, None),
        ((0.25, 0.25), 0, None),  # no objective is 0x
        ((0.25, 0.25), -1, None),
        ((0.25, 0.25), math.nan, None),
        ((0.25, 0.25), math.inf, None),
    ],
)
def test_believed(stated, magnification, second):
    found = judge(stated, magnification=magnification, second=second)
    assert (found.mpp, found.doubt) == (stated, "")


@pytest.mark.parametrize(
    ("stated", "magnification", "second", "doubt"),
    [
        ((0.0099, 0.0099), None, None, "not within 0.01 to 100"),
        ((352.8, 352.8), None, None, "not within"),
        ((0.0, 0.0), None, None, "not within"),
        ((-0.25, -0.25), 40, None, "not within"),
        ((math.inf, 0.25), None, None, "not within"),
        ((0.25, math.nan), None, None, "not within"),
        ((0.501, 0.25), None, None, "y and x differ by more than a factor 2"),
        ((0.25, 0.501), 40, (0.25, 0.501), "y and x differ"),
        ((0.51, 0.51), 40, None, "contradicts an objective of 40x"),
        ((0.12, 0.12), 40, None, "contradicts"),
        ((0.00025 * 1e3 * 1e3, 250.0), 40, (250.0, 250.0), "not within"),  # nanometres; confirmation is no excuse
        ((1.0, 1.0), 1e-320, None, "contradicts"),
        ((1.0, 1.0), 1e308, None, "contradicts"),
        ((1.0, 1.0), 40, (0.25, 0.25), "contradicts"),  # the tags side with the objective
        ((1.0, 1.0), 40, (1.06, 1.0), "contradicts"),
    ],
)
def test_refused_with_the_reason(stated, magnification, second, doubt):
    found = judge(stated, magnification=magnification, second=second)
    assert found.mpp is None
    assert doubt in found.doubt
    assert "µm" in found.doubt


@pytest.mark.parametrize("stated", [None, (math.nan, math.nan)])
def test_nothing_stated_is_no_doubt(stated):
    found = judge(stated, magnification=40, second=(0.25, 0.25))
    assert (found.mpp, found.doubt) == (None, "")


@pytest.mark.parametrize(
    ("y", "x", "unit", "mpp", "doubt"),
    [
        ((20000, 1), (40000, 1), 3, (0.5, 0.25), ""),
        ((101600, 1), (101600, 1), 2, (0.25, 0.25), ""),
        ((40000, 2), (40000, 2), 3, (0.5, 0.5), ""),
        ((72, 1), (72, 1), 2, None, "72 dots per inch"),
        ((118.1102, 1), (118.1102, 1), 3, None, "300 dots per inch"),
        ((1, 1), (1, 1), 3, None, "not within"),
        ((40000, 1), (40000, 1), 1, None, ""),
        ((40000, 1), None, 3, None, ""),
        ((0, 1), (40000, 1), 3, None, ""),
        ((40000, 0), (40000, 1), 3, None, ""),
        ((-1, 1), (40000, 1), 3, None, ""),
    ],
)
def test_resolution_tags(y, x, unit, mpp, doubt):
    found = from_resolution(y, x, unit)
    assert found.mpp == mpp
    assert doubt in found.doubt
    assert bool(found.doubt) == bool(doubt)


def test_numbers_in_texts():
    texts = ["40", " 40.5 ", "20x", "40X", None, "", "x", "many", "nan", "inf", "1e3"]
    assert [number(text) for text in texts] == [40, 40.5, 20, 40, None, None, None, None, None, None, 1000]
