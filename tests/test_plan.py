"""Plans are pure: every fact here is checked against counting pixels one by one."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchdrive.pipeline import plan as plan_module
from patchdrive.pipeline import ranks as ranks_module
from patchdrive.pipeline import squares as squares_module
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
from patchdrive.pipeline.ranks import best_first
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


def all_at_once(grid: Level, coarse: Saliency, layout: Layout) -> Plan:
    """The twin of `plan_grid`: every candidate in one matrix, sorted afterwards."""
    ys, xs = positions(grid.height, layout), positions(grid.width, layout)
    core, level = layout.side - 2 * layout.halo, coarse.level

    def spans(first: np.ndarray, fine: float, by: float, extent: int) -> list[tuple[int, int]]:
        begin = np.clip(np.floor((first + layout.halo) * fine / by + 1e-6), 0, extent - 1)
        end = np.clip(np.ceil((first + layout.halo + core) * fine / by - 1e-6), begin + 1, extent)
        return list(zip(begin.astype(int).tolist(), end.astype(int).tolist(), strict=True))

    rows = spans(ys, grid.downsample_y, level.downsample_y, level.height)
    columns = spans(xs, grid.downsample_x, level.downsample_x, level.width)
    by_rows = np.stack([coarse.map[a:b].sum(axis=0, dtype=np.float64) for a, b in rows])
    area = np.outer([b - a for a, b in rows], [b - a for a, b in columns])
    score = np.stack([by_rows[:, a:b].sum(axis=1) for a, b in columns], axis=1) / area
    worth = np.array([[bool((coarse.map[a:b, c:d] >= 0.5).any()) for c, d in columns] for a, b in rows])
    row, column = np.nonzero(worth)
    return sorted_whole(ys[row], xs[column], score[row, column].astype(np.float32), layout.side, grid)


def sorted_whole(y: np.ndarray, x: np.ndarray, score: np.ndarray, side: int, grid: Level) -> Plan:
    order = np.lexsort((x, y, x // SQUARE, y // SQUARE))
    rank = np.empty(len(y), np.int64)
    rank[np.argsort(-score[order], kind="stable")] = np.arange(len(y))
    return Plan(y=y[order], x=x[order], score=score[order], rank=rank, side=side, grid=grid)


def greedy(grid: Level, coarse: Saliency, layout: Layout, count: int, spacing: int) -> Plan:
    """The twin of `plan_topk`: all candidates sorted, each compared with all that were taken."""
    every = all_at_once(grid, coarse, Layout(side=layout.side, stride=max(1, layout.side // 4), halo=layout.halo))
    taken: list[int] = []
    for row in np.lexsort((every.x, every.y, -every.score)).tolist():
        apart = [max(abs(every.y[row] - every.y[other]), abs(every.x[row] - every.x[other])) for other in taken]
        if len(taken) < count and all(distance >= spacing for distance in apart):
            taken.append(row)
    return sorted_whole(every.y[taken], every.x[taken], every.score[taken], layout.side, grid)


def some_saliency(level0: Level, seed: int) -> Saliency:
    """Noise, a plateau of equal scores, or almost nothing."""
    rng = np.random.default_rng(seed)
    values = rng.random((min(level0.height, int(rng.integers(1, 60))), min(level0.width, int(rng.integers(1, 60)))))
    values[values > 0.6] = (0.9, 0.7, 1.0)[seed % 3]
    return saliency(level0, values * (rng.random(values.shape) < (1.0, 0.05)[seed % 2]))


@pytest.fixture(params=[1 << 18, 7], ids=["at once", "few at a time"])
def at_once(request, monkeypatch):
    for module in (plan_module, ranks_module, squares_module):
        monkeypatch.setattr(module, "AT_ONCE", request.param)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("seed", range(12))
def test_square_by_square_gives_the_plan_of_all_at_once(seed):
    rng = np.random.default_rng(seed)
    level0 = base(int(rng.integers(1, 12000)), int(rng.integers(1, 12000)))
    grid = target_grid(level0, *rng.choice([1.0, 1.0, 2.0003, 0.7], 2).tolist())
    halo, side = int(rng.choice([0, 16])), int(rng.choice([128, 250, 600]))
    layout = Layout(side=side, stride=int(rng.integers(90, side - 2 * halo + 1)), halo=halo)
    coarse = some_saliency(level0, seed)
    assert plan_grid(grid, coarse, layout).digest == all_at_once(grid, coarse, layout).digest


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("spacing", [50, 120, 301])
def test_the_best_few_are_those_of_all_candidates_sorted(seed, spacing):
    level0 = base(1500 + 300 * seed, 2600 - 200 * seed)
    grid, coarse, layout = target_grid(level0, 1.0, 1.0), some_saliency(level0, seed), Layout(side=200, stride=200)
    for count in (1, 9, 400):
        plan = plan_topk(grid, coarse, layout, count=count, spacing=spacing)
        assert plan.digest == greedy(grid, coarse, layout, count, spacing).digest


@given(
    scores=st.lists(st.sampled_from([0.0, -0.0, 1.0, 0.5, -2.0, 1e-40, float("nan"), float("inf"), float("-inf")]) | st.floats(width=32))
)
def test_best_first_is_a_stable_sort_of_the_scores(scores):
    score = np.array(scores, np.float32)
    np.testing.assert_array_equal(best_first(score), np.argsort(-score, kind="stable"))


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


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("edge", [128, 512, 1024])
@pytest.mark.parametrize("halo", [0, 16])
@pytest.mark.parametrize("seed", range(6))
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
        assert block.rows.dtype == block.owned.dtype == np.int64


def test_feature_blocks_are_consecutive_rows():
    grid = target_grid(base(100, 100), 1.0, 1.0)
    plan = ordered(np.arange(2500) % 90, np.arange(2500) // 90, np.ones(2500, np.float32), 4, grid)
    assert [len(block.rows) for block in feature_blocks(plan)] == [1024, 1024, 452]


def test_a_block_holds_no_rows_and_travels_with_its_own():
    grid = target_grid(base(3000, 3000), 1.0, 1.0)
    plan = plan_grid(grid, saliency(base(3000, 3000), np.ones((3, 3))), Layout(side=100, stride=60))
    for block in (feature_blocks(plan)[1], map_blocks(plan, edge=512, halo=0)[7]):
        data = pickle.dumps(block)
        assert len(data) < 8 * 2 * len(block.rows) + 1000  # not the other blocks' rows, nor the plan
        again = pickle.loads(data)
        assert (again.index, again.window) == (block.index, block.window)
        assert again.rows.tolist() == block.rows.tolist()
        assert again.owned.tolist() == block.owned.tolist()


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
