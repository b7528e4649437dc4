"""Frames: the facts every other module leans on."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchdrive.readers import Level, Window
from patchdrive.readers.errors import WindowError
from patchdrive.readers.geometry import align_down, align_up, pick_level

places = st.integers(-1000, 1000)
sizes = st.integers(1, 500)
windows = st.builds(lambda y, x, height, width: Window(y=y, x=x, height=height, width=width), places, places, sizes, sizes)


def a_level(index: int, downsample: float) -> Level:
    return Level(index=index, height=900, width=800, downsample_y=downsample, downsample_x=downsample, tile_height=256, tile_width=256)


@given(value=places, step=sizes)
def test_alignment_brackets_a_value(value, step):
    assert align_down(value, step) <= value <= align_up(value, step)
    assert align_down(value, step) % step == align_up(value, step) % step == 0
    assert align_up(value, step) - align_down(value, step) in {0, step}


@given(downsample=st.floats(1, 64), y=st.floats(-1e6, 1e6), x=st.floats(-1e6, 1e6))
def test_to_base_and_from_base_round_trip(downsample, y, x):
    level = a_level(1, downsample)
    assert all(math.isclose(a, b, rel_tol=1e-12) for a, b in zip(level.from_base(*level.to_base(y, x)), (y, x), strict=True))


@given(one=windows, other=windows)
def test_intersection_holds_the_pixels_of_both(one, other):
    rows = set(range(one.y, one.y_end)) & set(range(other.y, other.y_end))
    columns = set(range(one.x, one.x_end)) & set(range(other.x, other.x_end))
    shared = one.intersect(other)
    if not rows or not columns:
        assert shared is None
        return
    assert shared is not None
    assert set(range(shared.y, shared.y_end)) == rows
    assert set(range(shared.x, shared.x_end)) == columns
    assert one.contains(shared)
    assert other.contains(shared)


@pytest.mark.parametrize(("height", "width"), [(0, 1), (1, 0), (-3, 5)])
def test_an_empty_window_is_an_error(height, width):
    with pytest.raises(WindowError, match="at least one pixel"):
        Window(y=0, x=0, height=height, width=width)


def test_the_coarsest_level_that_keeps_the_detail_is_picked():
    levels = tuple(a_level(index, downsample) for index, downsample in enumerate((1.0, 4.0003, 16.01)))
    assert [pick_level(levels, wanted, wanted).index for wanted in (0.5, 1.0, 4.0, 4.0003, 15.9, 40.0)] == [0, 0, 0, 1, 1, 2]
    assert pick_level(levels, 4.0, 4.0, tolerance=0.01).index == 1
