"""What the benchmark on labelled cells counts with: curves at equal pixels, and orders of patches."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def ways(monkeypatch):
    """The module; benchmarks are run, not installed."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("cells_ways")


def test_overlaps_and_cells_count_once(ways):
    corners = np.array([[0, 0], [0, 4], [8, 8]])
    curve = ways.Reads.of(corners, 16, 8).curve(np.array([[1.5, 6.5], [9.5, 9.5], [1.5, 13.5]]))
    np.testing.assert_allclose(curve.read, np.array([64, 96, 160]) / 256)
    np.testing.assert_allclose(curve.found, [1 / 3, 1 / 3, 2 / 3])
    assert curve.at(32 / 256) == pytest.approx(1 / 6)
    assert curve.at(0.9) is None


def test_within_a_mask_only_its_pixels_count(ways):
    mask = np.zeros((16, 16), np.bool_)
    mask[:, 8:] = True
    reads = ways.Reads.of(np.array([[0, 0], [8, 4], [0, 8]]), 16, 8)
    np.testing.assert_allclose(reads.curve(np.array([[1.5, 9.5]]), mask).read, np.array([0, 32, 96]) / 128)
    assert reads.until(0.5, mask).tolist() == [[0, 0], [8, 4], [0, 8]]
    assert reads.until(0.25, mask).tolist() == [[0, 0], [8, 4]]


def test_any_beginning_of_evenly_lies_evenly(ways):
    corners = ways.evenly(64, 8)
    assert len({tuple(corner) for corner in corners.tolist()}) == 64
    for count in (4, 16):
        places, square = corners[:count], 64 // int(count**0.5)
        assert len({tuple(place) for place in (places // square).tolist()}) == count


def test_greedily_takes_the_densest_first_and_every_cell_in_the_end(ways):
    yx = np.random.default_rng(0).uniform(0, 128, size=(60, 2))
    corners = ways.greedily(yx, 128, 32, most=1000)
    curve = ways.Reads.of(corners, 128, 32).curve(yx)
    gained = np.diff(curve.found, prepend=0.0)
    assert (np.diff(gained) <= 1e-9).all()
    assert curve.found[-1] == 1.0
    steps = np.arange(0, 128 - 32 + 1, 4)
    most = max(((yx >= (y, x)) & (yx < (y + 32, x + 32))).all(axis=1).sum() for y in steps for x in steps)
    assert gained[0] * len(yx) == pytest.approx(most)


def test_distance_says_which_patches_hold_a_cell(ways):
    apart = ways.nearest(np.array([[0, 0], [0, 32], [64, 64]]), 32, np.array([[16.5, 30.5]]))
    assert (apart <= 16).tolist() == [True, False, False]
