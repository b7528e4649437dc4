"""Scores and features of patches as maps: each patch's cell holds what the patch has, and lies where the patch lies."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from affine import Affine
from examples import Means
from pyproj import CRS

from patchdrive.models.together import together
from patchdrive.pipeline import RunSettings, open_result, run
from patchdrive.pipeline.components import feature_colors
from patchdrive.pipeline.metadata import frame_of
from patchdrive.pipeline.paint import SCORES, Painting, painted_maps
from patchdrive.pipeline.plan import ordered, target_grid_of
from patchdrive.readers import MemoryImage


def image(**place):
    pixels = np.random.default_rng(0).integers(60, 250, (700, 900, 3)).astype(np.uint8)
    pixels[:, :130] = 0
    pixels[400:500, 500:600, 0] = 255
    return MemoryImage([pixels], nodata=0.0, **place)


@pytest.mark.parametrize("overlap", [0, 32, 48])
def test_each_cell_holds_what_its_patch_has_and_lies_where_it_lies(tmp_path, overlap):
    run(image(mpp=(0.5, 0.25)), Means(), tmp_path / "s.zarr", settings=RunSettings(saliency="valid", overlap=overlap))
    result = open_result(tmp_path / "s.zarr")
    assert set(result.painted) == {"scores", "means_colors"}
    assert not set(result.painted) & set(result.maps)
    found = feature_colors(result.tables["means"])
    colors, scores = result.painted["means_colors"], result.painted["scores"]
    assert len(np.unique(found.colors[0])) > 50
    (down, across), (up, left) = scores.downsample, scores.translation
    centres = result.patches.centres
    cells = np.rint((centres - 0.5 - (up, left)) / (down, across)).astype(int)
    np.testing.assert_allclose(cells * (down, across) + (up, left) + 0.5, centres)  # a cell's centre is the patch's
    assert (down, across) == (64 - overlap, 64 - overlap)
    stored = scores.array[0]
    assert set(np.unique(stored)) <= {255, *np.rint(result.patches.score * 254).astype(int)}
    np.testing.assert_array_equal(stored[cells[:, 0], cells[:, 1]], np.rint(result.patches.score * 254))
    assert (stored != 255).sum() == len(centres)
    np.testing.assert_array_equal(colors.array[:][:, cells[found.rows[0], 0], cells[found.rows[0], 1]].T, found.colors[0])
    assert colors.validity.array[:].sum() == len(found.rows[0])


def test_a_scene_s_cells_have_their_place_in_the_world(tmp_path):
    place = {"transform": Affine(10, 0, 5e5, 0, -10, 5e6), "crs": CRS.from_epsg(32633)}
    run(image(**place), Means(), tmp_path / "s.zarr", settings=RunSettings(saliency="valid", overlap=32))
    scores = open_result(tmp_path / "s.zarr").painted["scores"]
    assert scores.transform == Affine(320, 0, 5e5 + 160, 0, -320, 5e6 - 160)


def test_a_run_without_a_patch_has_nothing_painted(tmp_path):
    empty = MemoryImage([np.zeros((200, 300, 3), np.uint8)], nodata=0.0, mpp=(0.5, 0.5))
    run(empty, Means(), tmp_path / "s.zarr", settings=RunSettings(saliency="valid"))
    assert open_result(tmp_path / "s.zarr").painted == {}


def plan_at(places, scores, side, downsample=1.0):
    grid = target_grid_of(int(1000 / downsample), int(1500 / downsample), downsample, downsample)
    y, x = (np.array(column, np.int64) for column in zip(*places, strict=True))
    return ordered(y, x, np.array(scores, np.float32), side, grid)


def twin(painting):
    """Cell by cell: the last round's, and of those the highest score."""
    frame = painting.frame
    out = np.full((frame.height, frame.width), 255, np.uint8)
    for plan, (stride_y, stride_x) in zip(painting.plans, painting.strides, strict=True):
        for row in np.argsort(plan.score, kind="stable"):
            middle = plan.centres[row]
            high, wide = round(stride_y / frame.downsample_y), round(stride_x / frame.downsample_x)
            y = math.floor((middle[0] - stride_y / 2 - frame.shift_y) / frame.downsample_y + 0.500001)
            x = math.floor((middle[1] - stride_x / 2 - frame.shift_x) / frame.downsample_x + 0.500001)
            y, x = min(max(0, y), frame.height - high), min(max(0, x), frame.width - wide)
            out[y : y + high, x : x + wide] = np.rint(plan.score[row] * 254)
    return out


def test_rounds_of_several_sizes_and_places_that_fit_no_grid():
    generator = np.random.default_rng(1)
    wide = plan_at(generator.integers(-30, 240, (12, 2)), generator.random(12), 64, downsample=4.0)
    fine = plan_at(generator.integers(-30, 1000, (90, 2)), generator.random(90), 64)
    frame = frame_of(wide.grid, None, None, None)
    painting = Painting.of([wide, fine], {}, frame, 1.0)
    assert (painting.frame.height, painting.frame.width) == (16, 24)
    painted = np.zeros((16, 24), np.uint8)
    for top in (0, 7, 14):
        for (_, rows, columns), values in painting.parts(SCORES, top, 7):
            painted[rows, columns] = values[0]
    np.testing.assert_array_equal(painted, twin(painting))
    assert [one.path for one in painted_maps([])] == ["images/scores"]


def test_several_tables_are_painted_each(tmp_path):
    other = Means()
    other.spec, other.digest = replace(Means.spec, name="others"), "others"
    run(image(mpp=(0.5, 0.5)), together([Means(), other]), tmp_path / "s.zarr", settings=RunSettings(saliency="valid"))
    painted = open_result(tmp_path / "s.zarr").painted
    assert set(painted) == {"scores", "means_colors", "others_colors"}
    np.testing.assert_array_equal(painted["means_colors"].array[:], painted["others_colors"].array[:])


def test_patches_half_a_cell_off_go_to_cells_of_their_own_and_none_is_lost():
    plan = plan_at([(y, 32 + 64 * x) for x in range(14) for y in (-20, 959)], np.full(28, 0.5), 64)
    painting = Painting.of([plan], {}, frame_of(plan.grid, None, None, None), 1.0)
    squares = [values for _, values in painting.parts(SCORES, 0, painting.frame.height)]
    assert sum(int((values != 255).sum()) for values in squares) == 28
