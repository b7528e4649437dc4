"""Plans are pure: every fact here is checked against counting pixels one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchdrive.pipeline.plan import (
    SQUARE,
    Layout,
    Plan,
    Saliency,
    coverage,
    feature_blocks,
    map_blocks,
    ordered,
    plan_grid,
    plan_topk,
    positions,
    target_grid,
)
from patchdrive.readers import Level


def base(height: int, width: int) -> Level:
    return Level(index=0, height=height, width=width, downsample_y=1.0, downsample_x=1.0, tile_height=256, tile_width=256)


def saliency(level0: Level, values: np.ndarray, mask: np.ndarray | None = None) -> Saliency:
    height, width = values.shape
    level = Level(
        index=0,
        height=height,
        width=width,
        downsample_y=level0.height / height,
        downsample_x=level0.width / width,
        tile_height=height,
        tile_width=width,
    )
    return Saliency(map=values.astype(np.float32), mask=np.ones(values.shape, bool) if mask is None else mask, level=level)


@given(extent=st.integers(1, 5000), side=st.integers(1, 700), overlap=st.integers(0, 600), halo=st.integers(0, 200))
def test_cores_cover_the_axis_and_none_is_beyond_it(extent, side, overlap, halo):
    if not 2 * halo <= overlap < side:
        return
    first = positions(extent, Layout(side=side, stride=side - overlap, halo=halo)) + halo
    seen = np.zeros(extent, bool)
    for begin in first.tolist():
        assert begin < extent or begin == 0
        seen[begin : begin + side - 2 * halo] = True
    assert seen.all()


@given(
    height=st.integers(1, 9000),
    width=st.integers(1, 9000),
    downsample=st.floats(1, 9),
    side=st.sampled_from([64, 97, 256]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_grid_takes_every_patch_that_touches_something_worth_reading(height, width, downsample, side, seed):
    level0 = base(height, width)
    rng = np.random.default_rng(seed)
    coarse = saliency(level0, rng.random((min(height, 7), min(width, 9))) * 0.7)
    grid = target_grid(level0, downsample, downsample)
    plan = plan_grid(grid, coarse, Layout(side=side, stride=side))
    taken = set(zip(plan.y.tolist(), plan.x.tolist(), strict=True))
    for y in range(0, grid.height, side):
        for x in range(0, grid.width, side):
            rows = touched(y, side, downsample, coarse.level.downsample_y, coarse.level.height)
            columns = touched(x, side, downsample, coarse.level.downsample_x, coarse.level.width)
            worth = bool((coarse.map[np.ix_(rows, columns)] >= 0.5).any())
            assert ((y, x) in taken) == worth


def touched(first: int, side: int, fine: float, coarse: float, extent: int) -> list[int]:
    """Coarse pixels that share area with [first, first + side), one by one."""
    low, high = first * fine, (first + side) * fine
    hit = [i for i in range(extent) if min(high, (i + 1) * coarse) - max(low, i * coarse) > 1e-5]
    return hit or [extent - 1]


def test_rows_are_ordered_by_square_then_row_major():
    rng = np.random.default_rng(0)
    grid = target_grid(base(20000, 20000), 1.0, 1.0)
    y, x = rng.integers(-50, 20000, 500), rng.integers(-50, 20000, 500)
    plan = ordered(y, x, rng.random(500).astype(np.float32), 64, grid)
    keys = [(a // SQUARE, b // SQUARE, a, b) for a, b in zip(plan.y.tolist(), plan.x.tolist(), strict=True)]
    assert keys == sorted(keys)
    assert (np.diff(plan.score[np.argsort(plan.rank)]) <= 0).all()


def test_topk_takes_the_best_and_keeps_its_distance():
    level0 = base(4000, 4000)
    values = np.random.default_rng(1).random((40, 40))
    plan = plan_topk(target_grid(level0, 1.0, 1.0), saliency(level0, values), Layout(side=200, stride=200), count=25, spacing=300)
    assert len(plan) == 25
    apart = np.maximum(np.abs(plan.y[:, None] - plan.y), np.abs(plan.x[:, None] - plan.x))
    assert apart[~np.eye(25, dtype=bool)].min() >= 300
    every = plan_grid(target_grid(level0, 1.0, 1.0), saliency(level0, values), Layout(side=200, stride=50))
    assert plan.score.max() == every.score.max()


def test_coverage_counts_valid_area_once():
    level0 = base(1000, 1000)
    mask = np.zeros((10, 10), bool)
    mask[:, :5] = True
    coarse = saliency(level0, np.ones((10, 10)), mask)
    grid = target_grid(level0, 1.0, 1.0)
    left = ordered(np.array([0, 0]), np.array([0, 0]), np.ones(2, np.float32), 500, grid)
    assert coverage([left], coarse) == 0.5
    assert coverage([left, left], coarse) == 0.5


@given(seed=st.integers(0, 200), halo=st.sampled_from([0, 16]), edge=st.sampled_from([512, 1024]))
@settings(max_examples=40, deadline=None)
def test_map_blocks_hold_every_patch_that_touches_them_and_own_each_once(seed, halo, edge):
    rng = np.random.default_rng(seed)
    grid = target_grid(base(int(rng.integers(300, 4000)), int(rng.integers(300, 4000))), 1.0, 1.0)
    side, count = 256, 60
    y = rng.integers(-halo, grid.height - halo, count)
    x = rng.integers(-halo, grid.width - halo, count)
    plan = ordered(y, x, np.ones(count, np.float32), side, grid)
    blocks = map_blocks(plan, edge=edge, halo=halo)
    assert sorted(row for block in blocks for row in block.owned.tolist()) == list(range(count))
    for block in blocks:
        assert grid.window.contains(block.window)
        core = side - 2 * halo
        expected = [
            row
            for row in range(count)
            if plan.y[row] + halo < block.window.y_end
            and plan.y[row] + halo + core > block.window.y
            and plan.x[row] + halo < block.window.x_end
            and plan.x[row] + halo + core > block.window.x
        ]
        assert block.rows.tolist() == expected


def test_feature_blocks_are_consecutive_rows():
    grid = target_grid(base(100, 100), 1.0, 1.0)
    plan = ordered(np.arange(2500) % 90, np.arange(2500) // 90, np.ones(2500, np.float32), 4, grid)
    assert [len(block.rows) for block in feature_blocks(plan)] == [1024, 1024, 452]


def test_an_empty_plan_has_no_blocks():
    level0 = base(1000, 1000)
    grid = target_grid(level0, 1.0, 1.0)
    plan = plan_grid(grid, saliency(level0, np.zeros((10, 10))), Layout(side=64, stride=64))
    assert len(plan) == 0
    assert feature_blocks(plan) == map_blocks(plan, edge=512, halo=0) == ()


def test_saves_and_loads_to_the_same_digest(tmp_path):
    level0 = base(5000, 4000)
    plan = plan_grid(target_grid(level0, 2.0003, 1.5), saliency(level0, np.ones((5, 4))), Layout(side=256, stride=200))
    plan.save(tmp_path / "plan.npz")
    assert Plan.load(tmp_path / "plan.npz").digest == plan.digest


@pytest.mark.parametrize("downsample", [1.0, 2.1907, 4.0003])
def test_centres_lie_in_the_middle_of_each_patch(downsample):
    grid = target_grid(base(9000, 9000), downsample, downsample)
    plan = ordered(np.array([10]), np.array([20]), np.ones(1, np.float32), 256, grid)
    np.testing.assert_allclose(plan.centres, [[(10 + 128) * downsample, (20 + 128) * downsample]])
