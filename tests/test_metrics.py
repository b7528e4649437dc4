"""Metrics against their definitions, written out."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchdrive.pipeline.metrics import (
    Hits,
    Metric,
    auroc,
    average_precision,
    bootstrapped,
    class_metrics,
    hits_of,
    object_metrics,
    pixel_metrics,
)

SCORED = st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=12)


def unpack(scored):
    return np.array([score for score, _ in scored], np.float64), np.array([one for _, one in scored], np.bool_)


@given(SCORED)
def test_auroc_is_the_share_of_pairs_in_order(scored):
    scores, positive = unpack(scored)
    pairs = [float(a > b) + 0.5 * (a == b) for a, b in itertools.product(scores[positive], scores[~positive])]
    expected = float(np.mean(pairs)) if pairs else math.nan
    assert auroc(scores, positive) == pytest.approx(expected, nan_ok=True)


@given(SCORED, st.integers(0, 3))
def test_average_precision_is_the_area_under_its_steps(scored, missed):
    """From the highest threshold down: precision there, times what recall has grown by."""
    scores, positive = unpack(scored)
    total, area, before = int(positive.sum()) + missed, 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        taken = scores >= threshold
        recall = positive[taken].sum() / total if total else math.nan
        area += positive[taken].mean() * (recall - before)
        before = recall
    assert average_precision(scores, positive, total) == pytest.approx(area if total else math.nan, nan_ok=True)


def test_of_no_score():
    assert average_precision(np.zeros(0), np.zeros(0, np.bool_), 3) == 0.0
    assert math.isnan(average_precision(np.zeros(0), np.zeros(0, np.bool_)))


def test_classes():
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3], [0.2, 0.8]])
    found = class_metrics(probabilities, np.array([0, 0, 0, 1]))
    assert found == {"auroc": 1.0, "accuracy": 1.0, "balanced_accuracy": 1.0, "average_precision": 1.0}
    found = class_metrics(probabilities, np.array([0, 1, 0, 1]))
    assert found["accuracy"] == 0.75
    assert found["balanced_accuracy"] == 0.75
    assert found["auroc"] == 1.0
    three = np.eye(3)[[0, 1, 2, 1]]
    assert class_metrics(three, np.array([0, 1, 2, 0]))["accuracy"] == 0.75
    assert class_metrics(three, np.array([0, 1, 2, 0]))["balanced_accuracy"] == pytest.approx((0.5 + 1 + 1) / 3)


def test_each_target_is_found_once():
    found = np.array([[10.0, 10.0], [11.0, 10.0], [50.0, 50.0], [12.0, 10.0]])
    hits = hits_of(found, np.array([0.5, 0.9, 0.8, 0.1]), np.array([[10.0, 10.0], [14.0, 10.0], [90.0, 90.0]]), near=3.5, read=2)
    assert hits.right.tolist() == [False, True, False, True]  # the first comes too late
    assert hits.targets == 3
    metrics = object_metrics([hits], threshold=0.4)
    assert metrics["precision"] == pytest.approx(1 / 3)
    assert metrics["recall"] == pytest.approx(1 / 3)
    assert metrics["f1"] == pytest.approx(1 / 3)
    assert metrics["average_precision"] == pytest.approx((1 + 2 / 4) / 3)
    assert metrics["read"] == pytest.approx(2 / 3)


def test_nothing_found_and_nothing_there():
    nothing = Hits(scores=np.zeros(0), right=np.zeros(0, np.bool_), targets=0, read=0)
    assert all(math.isnan(value) for value in object_metrics([nothing], 0.5).values())
    missed = hits_of(np.zeros((0, 2)), np.zeros(0), np.array([[1.0, 1.0]]), near=4.0)
    assert object_metrics([missed, nothing], 0.5)["recall"] == 0.0
    assert hits_of(np.array([[1.0, 1.0]]), np.array([0.5]), np.zeros((0, 2)), near=4.0).right.tolist() == [False]


def test_pixels():
    found = pixel_metrics(np.array([[6, 2, 0], [0, 2, 0], [0, 0, 0]]))
    assert found["accuracy"] == 0.8
    assert found["mean_iou"] == pytest.approx((6 / 8 + 2 / 4) / 2)
    assert found["balanced_accuracy"] == pytest.approx((6 / 8 + 1) / 2)
    assert math.isnan(pixel_metrics(np.zeros((2, 2), np.int64))["accuracy"])


def test_intervals_hold_the_value_and_know_how_much_was_seen():
    def share(count: int) -> Metric:
        right = np.arange(count) % 4 > 0
        units = [np.array([index]) for index in range(count)]
        return bootstrapped(lambda rows: {"share": float(right[rows].mean())}, units, confidence=0.95, resamples=400, seed=1)["share"]

    few, many = share(20), share(2000)
    for metric, count in ((few, 20), (many, 2000)):
        assert metric.value == 0.75
        half = 1.96 * math.sqrt(0.75 * 0.25 / count)  # the binomial's, by the normal approximation
        assert metric.low == pytest.approx(0.75 - half, rel=0.25 * half / 0.75 + 0.05)
        assert metric.high == pytest.approx(0.75 + half, rel=0.25 * half / 0.75 + 0.05)
    assert share(20) == few


def test_what_belongs_together_is_drawn_together():
    """Of two images that are all right and all wrong, half of the draws hold only one of them."""
    right = np.repeat([True, False], 50)
    units = [np.arange(50), np.arange(50, 100)]
    metric = bootstrapped(lambda rows: {"share": float(right[rows].mean())}, units, confidence=0.9, resamples=200, seed=0)["share"]
    assert (metric.low, metric.value, metric.high) == (0.0, 0.5, 1.0)


def test_what_cannot_be_said_is_null():
    units = [np.array([0]), np.array([1])]
    metric = bootstrapped(lambda _: {"auroc": math.nan}, units, confidence=0.9, resamples=20, seed=0)["auroc"]
    assert metric.to_dict() == {"value": None, "low": None, "high": None}
    assert math.isnan(Metric.from_dict(metric.to_dict()).value)
    alone = bootstrapped(lambda rows: {"share": 0.5}, units[:1], confidence=0.9, resamples=20, seed=0)["share"]
    assert alone.to_dict() == {"value": 0.5, "low": None, "high": None}
    assert str(alone) == "0.500"
    some = Metric(value=0.5, low=0.25, high=0.75)
    assert Metric.from_dict(some.to_dict()) == some
    assert str(some) == "0.500 (0.250 to 0.750)"
