"""Which pieces a step sees, and that pixels and labels are turned alike. No file is read."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchdrive.pipeline.train_pieces import Drawing, Ground, draw_pieces, inside, judged_pieces, turned, turned_places
from patchdrive.readers import Window


def ground(height=1000, width=800, *, targets=((100.5, 200.5),), top=0, worth=None) -> Ground:
    held = (np.array(targets, np.float64).reshape(-1, 2),)
    return Ground(top=top, bottom=top + height, width=width, targets=held, worth=worth)


def drawing(side=256, **more) -> Drawing:
    return Drawing(seed=5, batch_size=8, side=side, channels=3, **more)


def test_a_step_is_drawn_from_its_number_alone():
    grounds = [ground(), ground(500, 500)]
    first = [draw_pieces(grounds, drawing(brightness=0.2), step) for step in range(6)]
    again = [draw_pieces(grounds, drawing(brightness=0.2), step) for step in reversed(range(6))]
    assert first == again[::-1]
    assert len({pieces[0].window for pieces in first}) == 6


@given(
    st.integers(1, 700), st.integers(1, 700), st.integers(0, 90), st.integers(32, 400), st.floats(0, 1), st.floats(0, 1), st.integers(0, 50)
)
def test_a_piece_around_a_target_holds_it(height, width, top, side, down, across, step):
    """And lies in the image where it fits, around all of it where it does not."""
    place = (top + down * (height - 1), across * (width - 1))
    held = ground(height, width, targets=[place], top=top)
    for piece in draw_pieces([held], drawing(side, with_targets=1.0), step):
        assert inside(np.array([place]), piece.window).all()
        for begin, end, first, last in (
            (piece.window.y, piece.window.y_end, held.top, held.bottom),
            (piece.window.x, piece.window.x_end, 0, width),
        ):
            assert first <= begin <= end <= last if last - first >= side else begin <= first <= last <= end


def test_half_of_the_pieces_hold_no_target():
    grounds = [ground(4000, 4000, targets=[(2000, 2000), (700, 3000)])]
    holds = [inside(grounds[0].targets[0], piece.window).any() for step in range(100) for piece in draw_pieces(grounds, drawing(), step)]
    assert 0.42 < np.mean(holds) < 0.58


def test_kinds_are_drawn_by_lot():
    """Of two kinds, one of them a hundred times as frequent, each is what half of the pieces are drawn around."""
    often, rare = np.full((1000, 2), 500.0), np.array([[3500.0, 3500.0]])
    both = Ground(top=0, bottom=4000, width=4000, targets=(often, rare))
    pieces = [piece for step in range(50) for piece in draw_pieces([both], drawing(with_targets=1.0), step)]
    assert 0.4 < np.mean([inside(rare, piece.window).any() for piece in pieces]) < 0.6


def test_pieces_without_targets_are_drawn_where_it_is_worth_it():
    worth = np.array([[3000.0, 500.0]])
    held = ground(4000, 4000, targets=[(100, 100)], worth=worth)
    pieces = [piece for step in range(10) for piece in draw_pieces([held], drawing(with_targets=0.0), step)]
    assert all(inside(worth, piece.window).all() for piece in pieces)


def test_images_are_seen_once_before_any_comes_again():
    grounds = [ground(40 + index, 50) for index in range(12)]
    seen = [piece.example for step in range(3) for piece in draw_pieces(grounds, drawing(None), step)]
    assert sorted(seen[:12]) == sorted(seen[12:]) == list(range(12))
    assert seen[:12] != seen[12:]
    piece = draw_pieces(grounds, drawing(None), 0)[0]
    assert piece.window == grounds[piece.example].window


@pytest.mark.parametrize("turn", range(8))
def test_labels_turn_with_pixels(turn):
    pixels = np.zeros((5, 9), np.uint8)
    pixels[1, 6] = 1
    after = turned(pixels, turn)
    (y, x) = turned_places(np.array([[1.5, 6.5]]), 5, 9, turn)[0]
    assert after[int(y), int(x)] == 1
    assert (y % 1, x % 1) == (0.5, 0.5)


def test_turns_are_eight():
    pixels = np.arange(6).reshape(2, 3)
    assert len({turned(pixels, turn).tobytes() + bytes(turned(pixels, turn).shape) for turn in range(8)}) == 8
    places = np.random.default_rng(0).uniform(0, 2, (3, 2))
    assert np.array_equal(turned_places(places, 2, 3, 0), places)


def test_no_change_is_no_change():
    pieces = draw_pieces([ground()], drawing(flips=False, turns=False), 0)
    assert {(piece.change.turn, piece.change.shift, piece.change.contrast) for piece in pieces} == {(0, (), 1.0)}
    turns = {piece.change.turn for step in range(9) for piece in draw_pieces([ground()], drawing(turns=False), step)}
    assert turns == {0, 4}


def test_what_is_judged_tiles_the_image():
    held = ground(2500, 1100, top=300)
    pieces = judged_pieces([held], side=256, most=64, seed=0)
    covered = np.zeros((3000, 1100), np.int64)
    for piece in pieces:
        covered[piece.window.y : piece.window.y_end, piece.window.x : piece.window.x_end] += 1
    assert (covered[300:2800] == 1).all()
    assert covered.sum() == 2500 * 1100
    assert max(piece.window.height for piece in pieces) <= 1024


def test_of_many_pieces_half_hold_targets():
    places = [(y, 500) for y in range(100, 20000, 2000)]
    held = ground(20000, 20000, targets=places)
    pieces = judged_pieces([held], side=256, most=12, seed=0)
    assert len(pieces) == 12
    assert sum(inside(held.targets[0], piece.window).any() for piece in pieces) == 6
    assert judged_pieces([held], side=256, most=12, seed=0) == pieces
    few = judged_pieces([ground(20000, 20000, targets=places[:2])], side=256, most=12, seed=0)
    assert sum(inside(np.array(places[:2]), piece.window).any() for piece in few) == 2
    assert len(few) == 12


def test_images_are_judged_whole():
    pieces = judged_pieces([ground(30, 40), ground(5000, 30)], side=None, most=1, seed=0)
    assert [piece.window for piece in pieces] == [
        Window(y=0, x=0, height=30, width=40),
        Window(y=0, x=0, height=5000, width=30),
    ]
