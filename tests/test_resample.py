"""Resampling against its slow twin: one output pixel at a time, by the definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchdrive.pipeline.resample import resample, span, taps


def area_twin(values: np.ndarray, start: float, step: float, count: int) -> np.ndarray:
    """Mean of a 1-D staircase over each [start + i * step, start + (i + 1) * step), integrated piece by piece."""
    means = []
    for i in range(count):
        low, high = start + i * step, start + (i + 1) * step
        total = sum(max(0.0, min(high, j + 1) - max(low, j)) * value for j, value in enumerate(values))
        means.append(total / step)
    return np.array(means)


@given(start=st.floats(0, 5), step=st.floats(1, 6), count=st.integers(1, 20), seed=st.integers(0, 99))
@settings(max_examples=150, deadline=None)
def test_area_is_the_mean_over_each_pixel(start, step, count, seed):
    values = np.random.default_rng(seed).random(int(start + step * count) + 3)
    line = taps(start, step, count, "area")
    got = sum(values[line.first + index] * weight for index, weight in zip(line.index, line.weight, strict=True))
    np.testing.assert_allclose(got, area_twin(values, start, step, count), atol=1e-5)
    np.testing.assert_allclose(line.weight.sum(axis=0), 1, atol=1e-6)


@given(start=st.floats(-500, 500), step=st.floats(0.2, 9), count=st.integers(1, 300), kind=st.sampled_from(["area", "nearest"]))
@settings(deadline=None)
def test_span_holds_every_tap(start, step, count, kind):
    line = taps(start, step, count, kind)
    begin, end = span(start, step, count)
    assert begin <= line.first
    assert line.first + line.extent <= end


def test_enlarging_is_linear_between_pixel_centres():
    ramp = np.arange(10.0)
    line = taps(2.0, 0.25, 8, "area")
    got = sum(ramp[line.first + index] * weight for index, weight in zip(line.index, line.weight, strict=True))
    np.testing.assert_allclose(got, 2.0 + (np.arange(8) + 0.5) * 0.25 - 0.5, atol=1e-6)


def test_nearest_keeps_labels_and_their_dtype():
    labels = np.random.default_rng(0).integers(0, 5, (40, 40, 1)).astype(np.uint16)
    line = taps(0.0, 2.5, 16, "nearest")
    part = slice(line.first, line.first + line.extent)
    got, valid = resample(labels[part, part], np.ones((line.extent, line.extent), bool), line, line, fill=0)
    centres = ((np.arange(16) + 0.5) * 2.5).astype(int)
    np.testing.assert_array_equal(got, labels[np.ix_(centres, centres)])
    assert got.dtype == np.uint16
    assert valid.all()


@pytest.mark.parametrize("step", [1.3, 2.0, 3.7])
def test_invalid_pixels_weigh_nothing(step):
    rng = np.random.default_rng(1)
    line = taps(0.0, step, 10, "area")
    pixels = rng.random((line.extent, line.extent, 2)).astype(np.float32)
    valid = rng.random((line.extent, line.extent)) > 0.5
    got, there = resample(np.where(valid[..., None], pixels, -9999), valid, line, line, fill=7.0)
    for y in range(10):
        for x in range(10):
            weight = np.zeros((line.extent, line.extent))
            for iy, wy in zip(line.index[:, y], line.weight[:, y], strict=True):
                for ix, wx in zip(line.index[:, x], line.weight[:, x], strict=True):
                    weight[iy, ix] += wy * wx
            weight *= valid
            assert there[y, x] == (weight.sum() > 0)
            wanted = (weight[..., None] * pixels).sum(axis=(0, 1)) / weight.sum() if there[y, x] else 7.0
            np.testing.assert_allclose(got[y, x], wanted, rtol=1e-4)
