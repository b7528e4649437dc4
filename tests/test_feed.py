"""The feed against its slow twin: each patch cut from the whole level, padded, resampled by the definition, one at a time."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchdrive.models import load_model
from patchdrive.pipeline import RunSettings, run
from patchdrive.pipeline.feed import FeedSettings, feed
from patchdrive.pipeline.glance import traits_of
from patchdrive.pipeline.plan import feature_blocks, map_blocks, ordered, target_grid
from patchdrive.pipeline.reads import read_frame, tile_pixels, tile_uses, tiles_of
from patchdrive.pipeline.resample import resample, taps
from patchdrive.pipeline.timings import Timings
from patchdrive.readers import MemoryImage, Window
from patchdrive.readers.errors import ReadError
from patchdrive.readers.tiles import TileGrid, tile_decoder


def place(height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8: red = x mod 251, green = y mod 241, blue = their mix."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x % 251, y % 241, (3 * x + 7 * y) % 256], axis=2).astype(np.uint8)


def settings_for(image, plan, *, batch_size=7, pool_bytes=1 << 20, workers=2, resampling="area", fill=0.0, uncut=False, on_error="fail"):
    return FeedSettings(
        frame=read_frame(image.levels, plan.grid, plan.side, resampling),
        channels=tuple(range(len(image.channels))),
        fill=fill,
        batch_size=batch_size,
        pool_bytes=pool_bytes,
        workers=workers,
        uncut=uncut,
        on_error=on_error,
    )


def twin(image, plan, settings, row):
    """(pixels, valid) of one patch, with a canvas of the whole level around it."""
    level = settings.frame.level
    whole = image.read(level.window, level=level.index)
    mask = image.read_mask(level.window, level=level.index)
    pad = 2 * plan.side * int(np.ceil(max(settings.frame.step_y, settings.frame.step_x)))
    whole = np.pad(whole, ((pad, pad), (pad, pad), (0, 0)))
    mask = np.pad(mask, pad)
    lines = [
        taps(int(first) * step, step, plan.side, settings.frame.resampling)
        for first, step in ((plan.y[row], settings.frame.step_y), (plan.x[row], settings.frame.step_x))
    ]
    part = tuple(slice(line.first + pad, line.first + pad + line.extent) for line in lines)
    return resample(whole[part], mask[part], *lines, fill=settings.fill)


def some_plan(image, downsample, *, side=97, count=60, seed=0):
    rng = np.random.default_rng(seed)
    grid = target_grid(image.levels[0], downsample, downsample)
    y, x = rng.integers(-side // 2, grid.height, count), rng.integers(-side // 2, grid.width, count)
    return ordered(y, x, np.ones(count, np.float32), side, grid)


@pytest.mark.parametrize(
    ("downsample", "uncut"), [(0.45, False), (1.0, False), (1.7, False), (4.0, False), (4.7, False), (1.0, True), (4.0, True)]
)
@pytest.mark.parametrize("nodata", [None, 0.0])
def test_feed_equals_its_twin(downsample, uncut, nodata):
    pixels = place(800, 900)
    pixels[100:300, 50:400] = 0
    image = MemoryImage([pixels, np.ascontiguousarray(pixels[::4, ::4])], nodata=nodata, tile=100)
    plan = some_plan(image, downsample)
    settings = settings_for(image, plan, fill=9.0, uncut=uncut)
    seen = []
    for batch in feed(image, plan, feature_blocks(plan, rows=20), settings, Timings()):
        pixels = batch.pixels
        assert pixels.shape == batch.held.shape == (7, 97, 97, 3)
        for at, row in zip(batch.places.tolist(), batch.rows.tolist(), strict=True):
            wanted, valid = twin(image, plan, settings, row)
            np.testing.assert_array_equal(batch.valid[at] if batch.valid is not None else np.ones_like(valid), valid)
            np.testing.assert_allclose(pixels[at].astype(np.float64), wanted, atol=1e-3 if downsample not in {1.0, 4.0} else 0)
            seen.append(row)
        for drop in batch.dropped:
            assert drop.state == "skipped"
            assert not twin(image, plan, settings, drop.row)[1].any()
            seen.append(drop.row)
    assert sorted(seen) == list(range(len(plan)))


@given(st.lists(st.tuples(*[st.integers(-60, 260)] * 2, *[st.integers(1, 120)] * 2), min_size=1, max_size=20))
@settings(deadline=None)
def test_tiles_of_sources_are_those_their_windows_touch(boxes):
    grid = TileGrid(height=190, width=230, tile_height=40, tile_width=64)
    sources = np.array([(y, x, y + height, x + width) for y, x, height, width in boxes])
    tiles, level = tiles_of(sources, grid), Window(y=0, x=0, height=190, width=230)
    wanted = np.zeros((grid.rows, grid.columns), int)
    for (y, x, height, width), (top, left, bottom, right) in zip(boxes, tiles.tolist(), strict=True):
        inside = Window(y=y, x=x, height=height, width=width).intersect(level)
        touched = [] if inside is None else grid.touched(inside)
        assert [(row, column) for row in range(top, bottom) for column in range(left, right)] == touched
        for tile in touched:
            wanted[tile] += 1
    np.testing.assert_array_equal(tile_uses([tiles], grid), wanted)
    pixels = sum(grid.window(*tile).height * grid.window(*tile).width for tile in map(tuple, np.argwhere(wanted).tolist()))
    assert tile_pixels(wanted > 0, grid) == pixels


@pytest.mark.parametrize("workers", [1, 3, 16])
@pytest.mark.parametrize("pool_bytes", [1, 100_000, 1 << 22])
def test_no_row_is_lost_however_many_threads_share_however_little(workers, pool_bytes):
    pixels = place(400, 500)
    pixels[100:250, 50:300] = 0
    image = MemoryImage([pixels], nodata=0.0, tile=16)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # every interleaving that there is
    try:
        for seed in range(6):
            plan = some_plan(image, 1.0, side=64, count=80, seed=seed)
            blocks = map_blocks(plan, edge=256, halo=0)
            given_settings = settings_for(image, plan, workers=workers, pool_bytes=pool_bytes, batch_size=1 + seed)
            rows = []
            for batch in feed(image, plan, blocks, given_settings, Timings()):
                rows += [*batch.rows.tolist(), *(drop.row for drop in batch.dropped)]
            assert sorted(rows) == sorted(np.concatenate([block.rows for block in blocks]).tolist())
    finally:
        sys.setswitchinterval(interval)


def test_batches_do_not_depend_on_workers_or_memory():
    image = MemoryImage([place(700, 700)], nodata=0.0, tile=64)
    plan = some_plan(image, 1.3, count=90)
    blocks = map_blocks(plan, edge=512, halo=0)

    def everything(workers, pool_bytes):
        settings = settings_for(image, plan, workers=workers, pool_bytes=pool_bytes)
        return [(b.rows.tolist(), b.places.tolist(), b.last, b.pixels.tobytes()) for b in feed(image, plan, blocks, settings, Timings())]

    assert everything(1, 1) == everything(5, 1 << 24)


def test_each_tile_is_decoded_once_without_overlap():
    image = MemoryImage([place(1500, 1500)], tile=240)
    grid = target_grid(image.levels[0], 1.0, 1.0)
    y, x = np.meshgrid(np.arange(0, 1500, 256), np.arange(0, 1500, 256), indexing="ij")
    plan = ordered(y.ravel(), x.ravel(), np.ones(y.size, np.float32), 256, grid)
    timings = Timings()
    list(feed(image, plan, feature_blocks(plan), settings_for(image, plan, pool_bytes=1 << 25), timings))
    assert timings.bytes_of("decoded") == timings.bytes_of("needed") == 1500 * 1500 * 3


class Torn(MemoryImage):
    """An image one of whose tiles cannot be decoded."""

    def read(self, window, *, level=0, channels=None, out=None):
        if window.intersect(Window(y=200, x=200, height=10, width=10)) is not None:
            raise ReadError("tile (2, 2) of level 0 is torn")
        return super().read(window, level=level, channels=channels, out=out)


def test_a_torn_tile_fails_its_patches_and_no_other():
    image = Torn([place(600, 600)], tile=100)
    grid = target_grid(image.levels[0], 1.0, 1.0)
    y, x = np.meshgrid(np.arange(0, 600, 100), np.arange(0, 600, 100), indexing="ij")
    plan = ordered(y.ravel(), x.ravel(), np.ones(36, np.float32), 100, grid)
    batches = list(feed(image, plan, feature_blocks(plan), settings_for(image, plan), Timings()))
    dropped = [drop for batch in batches for drop in batch.dropped]
    assert [(drop.state, drop.reason) for drop in dropped] == [("failed", "tile (2, 2) of level 0 is torn")]
    assert sum(len(batch.rows) for batch in batches) == 35


class Broken(MemoryImage):
    """A reader with a bug."""

    def read(self, window, *, level=0, channels=None, out=None):
        raise ZeroDivisionError


def test_a_bug_in_a_worker_is_the_error_the_user_sees():
    image = Broken([place(100, 100)])
    plan = some_plan(image, 1.0, count=5)
    with pytest.raises(ZeroDivisionError):
        list(feed(image, plan, feature_blocks(plan), settings_for(image, plan), Timings()))


def test_stopping_early_leaves_no_thread(recwarn):
    image = MemoryImage([place(500, 500)])
    plan = some_plan(image, 1.0)
    batches = feed(image, plan, feature_blocks(plan, rows=10), settings_for(image, plan), Timings())
    next(batches)
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("patchdrive")]


def grid_plan(image, *, side, stride, offset=0):
    level = image.levels[0]
    y, x = np.meshgrid(np.arange(offset, level.height, stride), np.arange(offset, level.width, stride), indexing="ij")
    return ordered(y.ravel(), x.ravel(), np.ones(y.size, np.float32), side, target_grid(level, 1.0, 1.0))


@pytest.mark.parametrize(("side", "stride", "offset"), [(64, 64, 0), (64, 64, -13), (64, 32, 0), (90, 30, 7), (256, 128, 5), (64, 80, 3)])
@pytest.mark.parametrize("nodata", [None, 0.0])
@pytest.mark.parametrize("pool_bytes", [1, 1 << 24])
@pytest.mark.parametrize("uncut", [False, True])
def test_even_grids_equal_the_twin(side, stride, offset, nodata, pool_bytes, uncut):
    pixels = place(500, 630)
    pixels[130:330, 140:400] = 0
    image = MemoryImage([pixels], nodata=nodata, tile=64)
    plan = grid_plan(image, side=side, stride=stride, offset=offset)
    settings = settings_for(image, plan, fill=9.0, batch_size=11, pool_bytes=pool_bytes, uncut=uncut)
    padded, mask = np.pad(pixels, ((64, 300), (64, 300), (0, 0))), np.pad(image.read_mask(image.levels[0].window), ((64, 300), (64, 300)))
    seen = []
    for batch in feed(image, plan, map_blocks(plan, edge=512, halo=0), settings, Timings()):
        cut = batch.pixels
        for at, row in zip(batch.places.tolist(), batch.rows.tolist(), strict=True):
            part = (slice(plan.y[row] + 64, plan.y[row] + 64 + side), slice(plan.x[row] + 64, plan.x[row] + 64 + side))
            wanted = np.where(mask[part][..., None], padded[part], 9)
            np.testing.assert_array_equal(cut[at], wanted)
            np.testing.assert_array_equal(np.ones((side, side), np.bool_) if batch.valid is None else batch.valid[at], mask[part])
            seen.append(row)
        empty = np.setdiff1d(np.arange(11), batch.places)
        assert (cut[empty] == 9).all()
        seen += [drop.row for drop in batch.dropped]
    assert set(seen) == set(range(len(plan)))


def test_half_overlap_in_one_process_decodes_each_tile_once():
    image = MemoryImage([place(1500, 1500)], tile=128)
    plan = grid_plan(image, side=256, stride=128)
    timings = Timings()
    for _ in feed(image, plan, map_blocks(plan, edge=512, halo=0), settings_for(image, plan, pool_bytes=1 << 25), timings):
        pass
    assert timings.bytes_of("decoded") == timings.bytes_of("needed") == 1500 * 1500 * 3


def sent_tiles(batches):
    """What a device would cut, which is sent only tiles that are new to it, beside what is cut here: how many were sent, and slots."""
    sent, slab = 0, None
    for batch in batches:
        host = torch.from_numpy(batch.held.slab)
        slab = torch.zeros_like(host) if slab is None else slab
        for slot in batch.held.fresh.tolist():
            slab[slot].copy_(host[slot])
            sent += 1
        np.testing.assert_array_equal(batch.held.send(torch.device("cpu")).cut(slab).numpy(), batch.pixels)
    return sent, len(slab)


@pytest.mark.parametrize(("side", "stride", "batch_size"), [(64, 32, 5), (90, 30, 16), (100, 100, 3), (40, 10, 64)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_a_device_is_sent_each_tile_once(side, stride, batch_size, dtype):
    image = MemoryImage([place(400, 430).astype(dtype) * (257 if dtype == np.uint16 else 1)], tile=64)
    plan = grid_plan(image, side=side, stride=stride, offset=-8)
    settings = settings_for(image, plan, batch_size=batch_size, pool_bytes=1 << 26, uncut=True, fill=3.0)
    tiles = tile_decoder(image, 0).grid(level=0)
    sent, _ = sent_tiles(feed(image, plan, map_blocks(plan, edge=200, halo=0), settings, Timings()))
    assert sent == tiles.rows * tiles.columns > 9


def test_a_slot_that_gets_another_tile_is_sent_again():
    image = MemoryImage([place(2000, 2100)], tile=32, nodata=0.0)
    plan = some_plan(image, 1.0, side=64, count=200)
    settings = settings_for(image, plan, batch_size=4, pool_bytes=1, uncut=True)
    sent, slots = sent_tiles(feed(image, plan, feature_blocks(plan, rows=30), settings, Timings()))
    assert sent > 5 * slots


@pytest.mark.parametrize("on_error", ["fail", "mask", "skip"])
def test_torn_tiles_mean_the_same_to_uncut_patches(on_error):
    image = Torn([place(600, 600)], tile=100)
    plan = grid_plan(image, side=60, stride=30)
    cut, uncut = (
        told(feed(image, plan, feature_blocks(plan), settings_for(image, plan, uncut=uncut, on_error=on_error), Timings()))
        for uncut in (False, True)
    )
    assert cut == uncut
    assert any(dropped or holed for *_, dropped, holed in cut)


def told(batches):
    """All that batches say, as plain data."""
    return [
        (
            batch.pixels[batch.places].tobytes(),
            None if batch.valid is None else batch.valid[batch.places].tobytes(),
            batch.dropped,
            batch.holed,
        )
        for batch in batches
    ]


def test_patches_that_are_resampled_cannot_stay_uncut():
    image = MemoryImage([place(300, 300)])
    plan = some_plan(image, 1.7, count=5)
    with pytest.raises(ValueError, match="resampled"):
        list(feed(image, plan, feature_blocks(plan), settings_for(image, plan, uncut=True), Timings()))


def test_buffers_are_used_again():
    image = MemoryImage([place(700, 700)], tile=64)
    plan = some_plan(image, 1.0, count=90)
    held = [batch.pixels.ctypes.data for batch in feed(image, plan, feature_blocks(plan), settings_for(image, plan), Timings())]
    assert len(held) == 13
    assert len(set(held)) <= 3


@pytest.mark.parametrize("side", [97, 128, 255])
def test_enlarging_needs_no_more_room_than_it_says(side):
    image = MemoryImage([place(400, 400)], tile=128)
    plan = some_plan(image, 0.5, side=side, count=40)
    settings = settings_for(image, plan, pool_bytes=1, workers=1)
    assert sum(len(batch.rows) + len(batch.dropped) for batch in feed(image, plan, feature_blocks(plan), settings, Timings())) == 40


ENDS_BADLY = """
import sys
sys.path[:0] = {path!r}
import numpy as np
from test_feed import MemoryImage, Timings, feature_blocks, feed, place, settings_for, some_plan
from contextlib import closing
image = MemoryImage([place(500, 500)])
plan = some_plan(image, 1.0)
with closing(feed(image, plan, feature_blocks(plan), settings_for(image, plan), Timings())) as batches:
    for batch in batches:
        raise RuntimeError("the consumer's own")
"""


def test_an_error_of_the_consumer_ends_the_program():
    script = ENDS_BADLY.format(path=[str(Path(__file__).parent)])
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "the consumer's own" in ended.stderr


class Buggy:
    """A model that raises at its second batch."""

    def __init__(self):
        self._model, self.calls = load_model("identity", traits_of(MemoryImage([place(64, 64)]))), 0
        self.spec, self.digest = self._model.spec, self._model.digest

    def to(self, device):
        return self

    def __call__(self, pixels):
        self.calls += 1
        if self.calls == 2:
            raise RuntimeError("my model has a bug")
        return self._model(pixels)


def test_a_model_that_raises_leaves_no_thread(tmp_path):
    image = MemoryImage([place(1500, 1500)])
    settings = RunSettings(saliency="valid", patch_size=64, batch_size=4)
    with pytest.raises(RuntimeError, match="my model has a bug"):
        run(image, Buggy(), tmp_path / "a.zarr", settings=settings)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("patchdrive")]
