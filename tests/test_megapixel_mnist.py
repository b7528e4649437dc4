"""The benchmark's images are the papers' own: pinned by what is known of them."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
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
    from megapixel_canvas import PAPER, make_canvases  # noqa: PLC0415

    return make_canvases(PAPER, train=False, data=real_file(SCENE_FILE).parents[2])


def test_labels_have_the_priors_of_the_published_logs(canvases):
    """The share of the commonest class of the 1000 test images: what a constant answer reaches."""
    labels = canvases.labels()
    commonest = {task: np.bincount(labels[task]).max() / 1000 for task in ("majority", "max", "top")}
    assert commonest == {"majority": 0.111, "max": 0.274, "top": 0.129}
    assert set(labels["multi"].sum(axis=1)) == {2, 3}


def test_drawn_as_told(canvases):
    canvas = canvases.draw(0)
    assert canvas.shape == (1500, 1500)
    for (y, x), digit in zip(canvases.corners[0], canvases.chosen[0], strict=True):
        difference = canvas[y : y + 28, x : x + 28].astype(int) - canvases.stamps[digit]
        assert (difference == 0).all()
    boxes = canvases.ink_boxes()[0]
    for (top, left, bottom, right), (y, x) in zip(boxes, canvases.corners[0], strict=True):
        inked = np.argwhere(canvas[y : y + 28, x : x + 28])
        assert inked.min(axis=0).tolist() == [top - y, left - x]
        assert inked.max(axis=0).tolist() == [bottom - y - 1, right - x - 1]


def test_a_fixed_grid_cuts_most_digits(canvases):
    """46.6 % of the digits of 200 images lie whole in one cell of the 50-pixel grid that IPS reads."""
    boxes = canvases.ink_boxes()[:200]
    assert (boxes[..., :2] // 50 == (boxes[..., 2:] - 1) // 50).all(axis=2).mean() == pytest.approx(0.466)


@pytest.mark.parametrize(("images", "within"), [(40, 0.02), pytest.param(200, 5e-4, marks=pytest.mark.slow)])
def test_reads_at_peaks_hold_the_digits_whole(canvases, images: int, within: float):
    """Share of the digits that lie whole in one of the K most complex reads of 50 pixels: measured over 200 images."""
    from megapixel_reads import find_peaks, recall, thumbnail  # noqa: PLC0415

    peaks = [find_peaks(thumbnail(canvases.draw(index)), canvases.side) for index in range(images)]
    found = {count: recall(canvases, [peak.yx[:count] for peak in peaks], 50) for count in (5, 16, 48, 55)}
    assert found == pytest.approx({5: 0.951, 16: 0.968, 48: 0.997, 55: 1.0}, abs=within)


def test_thumbnail_is_the_mean_of_what_is_there(canvases):
    from megapixel_reads import thumbnail  # noqa: PLC0415

    canvas = canvases.draw(1)
    small = thumbnail(canvas)
    assert small.shape == (188, 188)
    assert small[50, 70] == pytest.approx(canvas[400:408, 560:568].mean() / 255)
    assert small[187, 3] == pytest.approx(canvas[1496:, 24:32].mean() / 255)


def test_fewer_images_are_other_images(canvases, real_file):
    """The stream is one: all digits are drawn before all places, so a scene of another size shares no more than its first digits."""
    from megapixel_canvas import PAPER, make_canvases  # noqa: PLC0415

    fewer = make_canvases(dataclasses.replace(PAPER, test=10), train=False, data=real_file(SCENE_FILE).parents[2])
    assert (fewer.digits == canvases.digits[:10]).all()
    assert (fewer.corners != canvases.corners[:10]).any()
