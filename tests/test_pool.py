"""The pool of tiles as a machine: whatever is claimed stays where it is, and nothing is decoded while it is held."""

from __future__ import annotations

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from patchdrive.pipeline.pool import TilePool
from patchdrive.readers.tiles import TileGrid

GRID = TileGrid(height=40, width=60, tile_height=10, tile_width=10)


def pool_of(capacity, uses):
    return TilePool(GRID, channels=1, dtype=np.dtype(np.uint8), masked=False, capacity=capacity, uses=uses)


class PoolMachine(RuleBasedStateMachine):
    """Claims and releases in any order, against a dictionary of what each slot holds."""

    def __init__(self):
        super().__init__()
        self.pool = pool_of(7, np.full((GRID.rows, GRID.columns), 1000, np.int32))
        self.content = {}
        self.claims = []

    def slot(self, tile):
        return self.pool.slots.reshape(-1)[tile]

    @rule(tiles=st.lists(st.integers(0, 23), min_size=1, max_size=7, unique=True))
    def claim(self, tiles):
        held = set().union(*self.claims)
        missing = self.pool.claim(tiles)
        assert (missing is None) == (len(held.union(tiles)) > 7)
        if missing is None:
            return
        assert held.isdisjoint(missing)
        assert self.pool.decoding == set(missing)
        for tile in missing:
            assert self.content.get(self.slot(tile)) not in held
            self.content[self.slot(tile)] = tile
        self.pool.decoding.clear()
        self.claims.append(tiles)

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def release(self, data):
        self.pool.release(self.claims.pop(data.draw(st.integers(0, len(self.claims) - 1))))

    @invariant()
    def what_is_claimed_stays(self):
        for tiles in self.claims:
            assert all(self.content[self.slot(tile)] == tile for tile in tiles)


PoolMachine.TestCase.settings = settings(deadline=None, max_examples=60)
TestPoolMachine = PoolMachine.TestCase


def test_a_tile_nobody_needs_any_more_gives_its_slot_away_first():
    uses = np.zeros((GRID.rows, GRID.columns), np.int32)
    uses[0, :4] = [2, 1, 2, 1]
    pool = pool_of(3, uses)
    assert pool.claim([0, 1]) == [0, 1]
    second = pool.slots[0, 1]
    pool.release([0, 1])
    assert pool.claim([2, 3]) == [2, 3]
    assert second in pool.slots[0, 2:4], "the freshest free slot"
    pool.release([2, 3])
    assert pool.claim([0, 2]) == [], "both are needed once more, and still there"


def test_there_is_never_more_room_than_the_plan_can_use():
    uses = np.zeros((GRID.rows, GRID.columns), np.int32)
    uses[1, 2:5] = 1
    assert len(pool_of(1000, uses).pixels) == 3
