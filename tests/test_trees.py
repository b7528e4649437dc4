"""What the benchmark on tree crowns is made of: average precision, pieces with their boxes, and the scene."""

from __future__ import annotations

import importlib
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from patchdrive.readers import Window, open_image

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def module(monkeypatch):
    """A module of the benchmark; they are run, not installed."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


def boxes(*rows):
    return np.array(rows, np.float64).reshape(-1, 4)


class TestAveragePrecision:
    def test_is_one_for_what_is_right_and_zero_for_what_is_not(self, module):
        score = module("trees_score")
        crowns = boxes((0, 0, 10, 10), (20, 20, 40, 30))
        for fit in (score.overlap, score.centred):
            right = score.quality([score.Found(boxes=crowns, score=np.array([0.2, 0.9]))], [crowns], fit)
            assert (right.average_precision, right.precision, right.recall, right.score) == (1, 1, 1, 0.2)
            wrong = score.quality([score.Found(boxes=crowns + 50, score=np.array([0.2, 0.9]))], [crowns], fit)
            assert wrong.average_precision == 0
            assert score.quality([score.Found(boxes=boxes(), score=np.zeros(0))], [crowns], fit).recall == 0

    def test_a_crown_is_taken_once_and_precision_is_the_best_to_be_had(self, module):
        score = module("trees_score")
        crowns = boxes((0, 0, 10, 10), (0, 20, 10, 30), (0, 40, 10, 50))
        found = score.Found(boxes=crowns[[0, 0, 1, 1]] + 0.5, score=np.array([0.9, 0.8, 0.7, 0.1]))
        told = score.quality([found], [crowns], score.overlap)
        assert told.average_precision == pytest.approx(1 / 3 + 1 / 3 * 2 / 3)  # right, wrong, right, wrong, and one missed
        assert (told.precision, told.recall, told.score) == (pytest.approx(2 / 3), pytest.approx(2 / 3), 0.7)

    def test_plots_are_ranked_together(self, module):
        score = module("trees_score")
        crowns = boxes((0, 0, 10, 10))
        surer_and_wrong = score.Found(boxes=crowns + 50, score=np.array([0.9]))
        right = score.Found(boxes=crowns, score=np.array([0.5]))
        told = score.quality([surer_and_wrong, right], [crowns, crowns], score.overlap)
        assert told.average_precision == pytest.approx(0.5 * 0.5)

    def test_what_fits(self, module):
        score = module("trees_score")
        crown = boxes((0, 0, 10, 10))
        near, small, far = boxes((0, 4, 10, 14)), boxes((4, 4, 6, 6)), boxes((0, 6, 10, 16))
        assert score.overlap(near, crown)[0, 0] == pytest.approx(60 / 140)
        assert score.overlap(small, crown)[0, 0] == score.overlap(far, crown)[0, 0] == 0
        assert score.centred(small, crown)[0, 0] == 1
        assert score.centred(near, crown)[0, 0] == pytest.approx(0.2)
        assert score.centred(far, crown)[0, 0] == 0

    def test_only_what_is_centred_in_the_plot_counts(self, module):
        score = module("trees_score")
        found = score.Found(boxes=boxes((0, 0, 10, 10), (0, 6, 10, 16), (0, 20, 4, 24)), score=np.arange(3.0))
        assert found.within((slice(0, 10), slice(10, 22))).score.tolist() == [1.0]


@pytest.mark.parametrize("made", ["_piece", "_four"])
def test_boxes_follow_their_crowns(module, made):
    """Crowns are bright on dark: whatever is cut, scaled, turned and lit, it is bright within a box and dark around it."""
    data, train = module("trees_data"), module("trees_train")
    pixels, crowns = np.full((400, 400, 3), 90, np.uint8), []
    for y in range(0, 380, 100):
        for x in range(0, 380, 80):
            pixels[y + 10 : y + 50, x + 20 : x + 45] = 160
            crowns.append((y + 10, x + 20, y + 50, x + 45))
    plot, rng, seen = data.Plot(name="HARV_0", pixels=pixels, boxes=boxes(*crowns)), np.random.default_rng(0), 0
    for _ in range(4):
        cut, found = train._four([plot], rng) if made == "_four" else train._piece([plot], 320, rng)
        assert cut.shape == (320, 320, 3)
        tile = 160 if made == "_four" else 320
        for top, left, bottom, right in found.round().astype(int).tolist():
            if min(top % tile, left % tile) < 4 or max(top % tile + bottom - top, left % tile + right - left) > tile - 4:
                continue  # cut, or with nothing around it
            around = cut[top - 3 : bottom + 3, left - 3 : right + 3].astype(float).copy()
            assert around[4:-4, 4:-4].std(axis=(0, 1)).max() < 1
            inside = around[4:-4, 4:-4].mean()
            around[2:-2, 2:-2] = np.nan
            assert np.nanmax(around) < inside - 20
            seen += 1
    assert seen > 15


def test_the_plots_are_those_that_are_labelled(module, monkeypatch, real_file):
    data = module("trees_data")
    monkeypatch.setattr(data, "DATA", real_file("labelled/deepforest_neon").parents[1])
    learn, judge = data.read_plots(data.LEARN), data.read_plots(data.JUDGE)
    assert [plot.name for plot in judge] == ["YELL", "SOAP_061"]
    assert [len(plot.boxes) for plot in judge] == [279, 37]
    assert (len(learn), sum(len(plot.boxes) for plot in learn)) == (8, 250)
    for plot in [*learn, *judge]:
        assert (plot.boxes[:, :2] >= 0).all()
        assert (plot.boxes[:, 2:] <= plot.pixels.shape[:2]).all()


def test_the_scene_is_where_it_says(module, monkeypatch, tmp_path, real_file):
    data = module("trees_data")
    monkeypatch.setattr(data, "DATA", real_file("labelled/deepforest_neon").parents[1])
    monkeypatch.setattr(data, "SIDE", 1024)
    monkeypatch.setattr(data, "_AROUND", {"fields": ("rs/rio-tiler/pix4d_alpha_nodata.tif", 1.0)})
    (plot,) = data.read_plots(("SOAP",))
    scene = data.compose([plot], seed=3)
    data.write_scene(tmp_path / "scene.tif", scene)
    (rows, columns), (crowns,) = scene.places[0], scene.boxes
    with closing(open_image(tmp_path / "scene.tif")) as image:
        assert (image.crs.to_epsg(), len(image.levels)) == (data.EPSG, 6)
        window = Window(y=rows.start, x=columns.start, height=400, width=400)
        np.testing.assert_array_equal(image.read(window, level=0), plot.pixels)  # no pixel of a plot is another's
        left, bottom, right, top = data.world_of(crowns[:1])[0]
        assert image.transform * (crowns[0, 1], crowns[0, 0]) == pytest.approx((left, top))
        assert image.transform * (crowns[0, 3], crowns[0, 2]) == pytest.approx((right, bottom))
    np.testing.assert_array_equal(crowns - np.array([rows.start, columns.start] * 2), plot.boxes)
