"""The benchmark's images are the papers' own: pinned by what is known of them."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

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


@pytest.mark.usefixtures("benchmark_modules")
class TestTraining:
    def test_a_shifted_read_shows_what_lies_there(self):
        from megapixel_training import bend  # noqa: PLC0415

        cuts = torch.rand(3, 48, 48, generator=torch.Generator().manual_seed(0))
        shift = torch.tensor([[0.0, 0.0], [3.0, -2.0], [-1.0, 2.0]])
        for cut, (y, x), seen in zip(cuts, shift.int().tolist(), bend(cuts, shift, torch.zeros(3, 2, 2)), strict=True):
            torch.testing.assert_close(seen, cut[8 + y : 40 + y, 8 + x : 40 + x], atol=1e-4, rtol=0)

    def test_draws_the_best_the_attended_and_some_by_chance(self):
        from megapixel_reads import Reads  # noqa: PLC0415
        from megapixel_training import Mixture, draw_reads  # noqa: PLC0415

        count = np.array([20, 4])
        blank = np.zeros((2, 20, 1, 1), np.uint8)
        reads = Reads(cuts=blank, yx=blank, score=blank, look=blank, count=count, thumbnails=blank, side=1)
        bank = np.tile(np.arange(20, dtype=np.float32), (2, 1))
        seen = set()
        for seed in range(30):
            drawn = draw_reads(reads, bank, np.arange(2), Mixture(complex=2, attended=3, chance=2), np.random.default_rng(seed))
            assert {0, 1, 17, 18, 19} <= set(drawn.slots[0].tolist())
            assert len(set(drawn.slots[0].tolist())) == 7
            seen |= set(drawn.slots[0].tolist())
            assert drawn.valid[0].all()
            assert set(drawn.slots[1][drawn.valid[1]].tolist()) == {0, 1, 2, 3}
        assert seen == set(range(20))

    def test_noisy_or_is_its_formula(self):
        from megapixel_network import Answers  # noqa: PLC0415
        from megapixel_training import Drawn, Recipe, loss_of  # noqa: PLC0415

        evidence = torch.randn(2, 3, 10, generator=torch.Generator().manual_seed(0))
        tasks = {task: torch.zeros(2, 10) for task in ("majority", "max", "top", "multi")}
        answers = Answers(tasks=tasks, evidence=evidence, attention=torch.ones(2, 3) / 3)
        valid = np.array([[True, True, True], [True, True, False]])
        drawn = Drawn(images=np.arange(2), slots=np.zeros((2, 3), np.int64), valid=valid)
        present = (torch.rand(2, 10, generator=torch.Generator().manual_seed(1)) > 0.5).long()
        labels = {task: torch.zeros(2, dtype=torch.long) for task in ("majority", "max", "top")} | {"multi": present}
        absent = torch.ones(2, 10)
        for image, slots in enumerate(valid):
            for slot in np.flatnonzero(slots):
                absent[image] *= 1 - torch.sigmoid(evidence[image, slot])
        wanted = torch.nn.functional.binary_cross_entropy(1 - absent, present.float())
        of_the_rest = (3 * np.log(10) + 3 * np.log(2)) / 4  # logits of zero
        assert loss_of(answers, labels, drawn, Recipe()).item() == pytest.approx(of_the_rest + wanted.item(), rel=1e-5)
