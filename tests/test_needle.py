"""The iso-ink haystack: distractors hold the same ink at the same radii, and complexity ranks by chance."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

SCENE_FILE = "labelled/mnist/t10k-images-idx3-ubyte.gz"


@pytest.fixture(scope="module")
def benchmark_modules() -> Iterator[None]:
    """Benchmarks are scripts: their folder is on the path while they run, and here."""
    folder = str(Path(__file__).resolve().parents[1] / "benchmarks")
    sys.path.insert(0, folder)
    yield
    sys.path.remove(folder)


@pytest.fixture(scope="module")
def canvases(benchmark_modules, real_file: Callable[[str], Path]):
    from needle_canvas import Haystack, make_haystacks  # noqa: PLC0415

    return make_haystacks(Haystack(images=12), data=real_file(SCENE_FILE).parents[2])


def test_a_distractor_is_its_digit_turned_band_by_band(canvases):
    y, x = np.mgrid[:28, :28] - 13.5
    radius = np.hypot(y, x)
    bands = [radius < 4, (radius >= 4) & (radius < 7), (radius >= 7) & (radius < 9.5), radius >= 9.5]
    for digit, distractor in zip(canvases.stamps[:200], canvases.scribbles[:200], strict=True):
        fits = [{turn for turn in range(4) if (np.rot90(digit, turn)[band] == distractor[band]).all()} for band in bands]
        assert all(fits)
        for inner, outer in pairwise(fits):
            assert any(one != other for one in inner for other in outer)
        profile = [np.bincount(radius.astype(int).ravel(), stamp.ravel()) for stamp in (digit, distractor)]
        np.testing.assert_array_equal(*profile)


def test_nothing_overlaps(canvases):
    for corners, others in zip(canvases.corners, canvases.scribble_corners, strict=True):
        everything = np.concatenate([corners, others])
        apart = np.abs(everything[:, None] - everything[None]).max(axis=2)
        assert apart[~np.eye(len(apart), dtype=bool)].min() >= 28


def test_all_digits_are_candidates_and_complexity_ranks_them_by_chance(canvases):
    from megapixel_reads import recall  # noqa: PLC0415
    from needle_reads import looked  # noqa: PLC0415

    peaks = [peak.yx for _, _, peak in looked(canvases)]
    assert recall(canvases, peaks, 32) >= 0.98
    best = recall(canvases, [yx[:50] for yx in peaks], 32)
    assert best == pytest.approx(50 / 205, abs=3 * (0.244 * 0.756 / 60) ** 0.5)


def test_a_pyramid_pixel_is_the_rounded_mean_of_four(benchmark_modules):
    from needle_reads import halve  # noqa: PLC0415

    pixels = np.random.default_rng(0).integers(0, 256, (6, 8), dtype=np.uint8)
    wanted = np.floor(pixels.reshape(3, 2, 4, 2).mean(axis=(1, 3)) + 0.5)
    np.testing.assert_array_equal(halve(pixels), wanted)
