"""Suppression of boxes and centres: what a loop over all pairs gives, in one part or in many."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchdrive.pipeline.boxes import Boxes, joined, near, overlapping, suppress, suppress_parts
from patchdrive.readers.errors import SettingsError


def rows_of(boxes):
    """[(y, x, height, width, score, class)], in order."""
    columns = (boxes.y, boxes.x, boxes.height, boxes.width, boxes.score, boxes.kind)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def boxes_of(rows):
    columns = np.array(rows, np.float64).reshape(-1, 6).T
    return Boxes(y=columns[0], x=columns[1], height=columns[2], width=columns[3], score=columns[4], kind=columns[5].astype(np.int64))


def iou(one, other):
    high = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    wide = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    shared = max(high, 0) * max(wide, 0)
    return shared / (one[2] * one[3] + other[2] * other[3] - shared)


def twin(rows, most):
    """Greedy, over all pairs."""
    kept = []
    for row in sorted(rows, key=lambda row: (-row[4], *row[:4], row[5])):
        if all(other[5] != row[5] or iou(other, row) <= most for other in kept):
            kept.append(row)
    return kept


# Sides and thresholds whose quotients are exact, few scores for many ties.
row = st.tuples(*(st.integers(0, 60),) * 2, *(st.integers(1, 16),) * 2, st.sampled_from([0.25, 0.5, 0.75]), st.integers(0, 1))
many = st.lists(row, max_size=40)
thresholds = st.sampled_from([0.0, 0.25, 0.5])


def parted(rows, edges):
    """The boxes that begin between two edges, part by part, each in two: for blocks side by side pass one row."""
    edges = [*sorted(edges), 1000]
    left = sorted(rows)
    for edge in edges:
        now, left = [one for one in left if one[0] < edge], [one for one in left if one[0] >= edge]
        yield boxes_of(now[::2]), min([edge, *(one[0] for one in now)])
        yield boxes_of(now[1::2]), edge


@settings(max_examples=50, deadline=None)
@given(rows=many, most=thresholds)
def test_kept_boxes_are_those_of_a_loop_over_all_pairs(rows, most):
    boxes = boxes_of(rows)
    assert rows_of(boxes.taken(suppress(boxes, overlapping(most)))) == [(*map(float, one[:5]), one[5]) for one in twin(rows, most)]


@settings(max_examples=50, deadline=None)
@given(rows=many, most=thresholds, edges=st.lists(st.integers(0, 80), max_size=6))
def test_however_they_come_the_same_are_kept_in_the_same_order(rows, most, edges):
    whole = rows_of(joined(list(suppress_parts([(boxes_of(rows), 0.0)], overlapping(most)))))
    parts = rows_of(joined(list(suppress_parts(parted(rows, edges), overlapping(most)))))
    assert parts == whole
    assert sorted(whole) == sorted((*map(float, one[:5]), one[5]) for one in twin(rows, most))


@settings(max_examples=50, deadline=None)
@given(rows=many, radius=st.sampled_from([1.0, 4.0, 10.0]), edges=st.lists(st.integers(-10, 80), max_size=6))
def test_centres_that_are_near_each_other_are_one(rows, radius, edges):
    given_rows = [(one[0], one[1], one[4], one[5]) for one in rows]
    kept = []
    for y, x, score, kind in sorted(given_rows, key=lambda one: (-one[2], *one)):
        if all(other[3] != kind or (other[0] - y) ** 2 + (other[1] - x) ** 2 >= radius**2 for other in kept):
            kept.append((float(y), float(x), score, kind))
    columns = np.array(given_rows, np.float64).reshape(-1, 4)
    boxes = Boxes.around(columns[:, :2], radius, columns[:, 2], columns[:, 3].astype(np.int64))

    def seen(found):
        return [(*centre, score, kind) for centre, score, kind in zip(found.centres.tolist(), found.score, found.kind, strict=True)]

    assert seen(boxes.taken(suppress(boxes, near(radius)))) == kept
    parts = suppress_parts(parted(rows_of(boxes), edges), near(radius))
    assert sorted(seen(joined(list(parts)))) == sorted(kept)


def test_who_is_kept_may_hang_on_a_chain_across_all_parts():
    """Each rivals the next; the last is the best, and decides down to the first."""
    chain = [(10.0 * k, 0.0, 20.0, 10.0, 0.01 * k, 0) for k in range(50)]
    boxes = boxes_of(chain)
    parts = ((boxes.taken(np.array([k])), 10.0 * k) for k in range(50))
    kept = joined(list(suppress_parts(parts, overlapping(0.25))))
    assert sorted(kept.y.tolist()) == [10.0 * k for k in range(1, 50, 2)]


def test_groups_are_given_out_once_the_parts_have_passed_them():
    boxes = boxes_of([(100.0 * k, 0.0, 20.0, 10.0, 0.5, 0) for k in range(9)])
    parts = ((boxes.taken(np.array([k])), 100.0 * k + 50) for k in range(9))
    assert [len(some) for some in suppress_parts(parts, overlapping(0.5))] == [1] * 9 + [0]


def test_what_cannot_be_is_refused():
    boxes = boxes_of([(5.0, 0.0, 2.0, 2.0, 0.5, 0)])
    with pytest.raises(SettingsError, match=r"above row 10 any more, and one begins at 5"):
        list(suppress_parts([(boxes.taken(np.zeros(1, np.bool_)), 10.0), (boxes, 20.0)], overlapping(0.5)))
    with pytest.raises(SettingsError, match="below 1, got 1"):
        overlapping(1.0)
    with pytest.raises(SettingsError, match="above 0, got 0"):
        near(0.0)


def test_no_boxes():
    none = boxes_of([])
    assert len(suppress(none, overlapping(0.5))) == 0
    assert list(map(len, suppress_parts([(none, 0.0)], overlapping(0.5)))) == [0, 0]
