"""Reading of pieces: the pixels that a run would feed, in bounded memory, and their labels at the same place."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import shapely
import torch

from patchdrive.models.step import Wanted
from patchdrive.models.types import ModelSpec, OutputSpec
from patchdrive.pipeline import train_read
from patchdrive.pipeline.feed import FeedSettings, feed
from patchdrive.pipeline.plan import Layout, Saliency, feature_blocks, plan_grid, target_grid
from patchdrive.pipeline.reads import read_frame
from patchdrive.pipeline.timings import Timings
from patchdrive.pipeline.train import TrainingBatch
from patchdrive.pipeline.train_batches import Loader, Palette, ahead, measure
from patchdrive.pipeline.train_examples import Example
from patchdrive.pipeline.train_masks import PolygonLabels
from patchdrive.pipeline.train_pieces import Change, Ground, Piece
from patchdrive.pipeline.train_read import Shelf, read_window
from patchdrive.readers import MemoryImage, Window
from patchdrive.readers.errors import ReadError

SPEC = ModelSpec(name="any", channels=3, size=64, scale=1 / 255, mean=(0.5,) * 3, std=(0.25,) * 3, fill=255.0, outputs=(
    OutputSpec(name="a", kind="vector", channels=("a",)),
))  # fmt: skip


def placed(height=200, width=170, *, nodata=None) -> MemoryImage:
    """Red and green say the place."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([y % 251, x % 241, (y + x) % 7], axis=2).astype(np.uint8)
    return MemoryImage([pixels, np.ascontiguousarray(pixels[::2, ::2])], nodata=nodata)


@pytest.mark.parametrize("step", [1.0, 2.0, 1.7, 0.6])
@pytest.mark.parametrize("band", [1 << 22, 999])
def test_what_is_read_is_what_a_run_feeds(step, band, monkeypatch):
    """Every patch of a grid, by the feed and by the window."""
    monkeypatch.setattr(train_read, "_BAND", band)
    image = placed(nodata=0)
    grid = target_grid(image.levels[0], step, step)
    everywhere = Saliency(map=np.ones((1, 1), np.float32), mask=np.ones((1, 1), np.bool_), level=target_grid(image.levels[0], 200, 170))
    plan = plan_grid(grid, everywhere, Layout(side=64, stride=64))
    frame = read_frame(image.levels, grid, 64, "area")
    settings = FeedSettings(frame=frame, channels=(0, 1, 2), fill=255.0, batch_size=4, pool_bytes=2**22, workers=1)
    seen = 0
    for batch in feed(image, plan, feature_blocks(plan), settings, Timings()):
        for place, row in zip(batch.places.tolist(), batch.rows.tolist(), strict=True):
            window = Window(y=int(plan.y[row]), x=int(plan.x[row]), height=64, width=64)
            pixels, valid = read_window(image, frame, window, (0, 1, 2), 255.0)
            assert pixels.dtype == batch.pixels.dtype
            assert np.allclose(pixels, batch.pixels[place], atol=1e-3)
            assert batch.valid is None or (valid == batch.valid[place]).all()
            seen += 1
    assert seen == len(plan) >= 4


def test_what_lies_outside_is_the_fill():
    image = placed()
    frame = read_frame(image.levels, target_grid(image.levels[0], 2.0, 2.0), 64, "area")
    for window in (Window(y=-40, x=-40, height=30, width=30), Window(y=500, x=0, height=9, width=9)):
        pixels, valid = read_window(image, frame, window, (0,), 7.0)
        assert (pixels == 7).all()
        assert not valid.any()
    pixels, valid = read_window(image, frame, Window(y=-2, x=80, height=4, width=9), (1,), 7.0)
    assert valid[2:, :5].all()
    assert valid.sum() == 10
    assert pixels[2, 0, 0] == image.read(Window(y=0, x=80, height=1, width=1), level=1)[0, 0, 1]


def example(image: MemoryImage, *, targets=(), sizes=None, pixels=None, label=None) -> Example:
    grid = target_grid(image.levels[0], 1.0, 1.0)
    held = np.array(targets, np.float64).reshape(-1, 2)
    return Example(
        path=Path("a"),
        identity="",
        grid=grid,
        frame=read_frame(image.levels, grid, 64, "area"),
        channels=(0, 1, 2),
        targets=held,
        sizes=None if sizes is None else np.array(sizes, np.float64),
        label=label,
        pixels=pixels,
        ground=Ground(top=0, bottom=grid.height, width=grid.width, targets=(held,)),
    )


@pytest.mark.parametrize("turn", range(8))
def test_pixels_targets_and_masks_are_changed_alike(turn):
    image = placed()
    pixels = image.read(image.levels[0].window).copy()
    pixels[60, 75] = 255
    image = MemoryImage([pixels])
    square = PolygonLabels(polygons=(shapely.box(75, 60, 76, 61),), classes=(1,), rest=0)
    held = example(image, targets=[(60.5, 75.5), (5.0, 5.0)], sizes=[(10, 20), (1, 1)], pixels=square, label=3)
    loader = Loader(examples=(held,), palette=Palette(spec=SPEC, value_range=255), shelf=Shelf(lambda _: image))
    piece = Piece(example=0, window=Window(y=40, x=50, height=64, width=80), change=Change(turn=turn))
    batch = loader.load((piece, piece))
    assert {name: answer.tolist() for name, answer in batch.wanted.answers.items()} == {"class": [3, 3]}
    assert batch.wanted.targets is not None
    assert batch.wanted.sizes is not None
    (target,) = batch.wanted.targets[0].tolist()
    assert batch.wanted.sizes[0].tolist() == [[20, 10] if turn % 2 else [10, 20]]
    y, x = (int(place) for place in target)
    assert batch.pixels[0, :, y, x].tolist() == [255, 255, 255]
    assert (batch.pixels[0] == 255).all(dim=0).sum() == 1
    assert batch.wanted.mask is not None
    assert batch.wanted.mask[0, y, x] == 1
    assert batch.wanted.mask.sum() == 2


def test_pieces_of_different_size_are_filled_up():
    image = placed()
    square = PolygonLabels(polygons=(shapely.box(0, 0, 9, 9),), classes=(1,), rest=0)
    held = example(image, pixels=square)
    loader = Loader(examples=(held,), palette=Palette(spec=SPEC, value_range=255), shelf=Shelf(lambda _: image))
    pieces = [Piece(example=0, window=Window(y=0, x=0, height=height, width=width)) for height, width in ((20, 30), (40, 10))]
    batch = loader.load(pieces)
    assert batch.pixels.shape == (2, 3, 40, 30)
    assert (batch.pixels[0, :, 20:] == 255).all()
    mask = batch.wanted.mask
    assert mask is not None
    assert (mask[0, 20:] == -1).all()
    assert (mask[1, :, 10:] == -1).all()
    assert set(mask[1, :, :10].flatten().tolist()) == {0, 1}


def test_colours_change_in_units_of_the_model_and_stay_in_range():
    pixels = np.full((40, 40, 3), (100, 250, 0), np.uint8)
    pixels[:, 20:] = 13
    image = MemoryImage([pixels], nodata=13)
    loader = Loader(examples=(example(image),), palette=Palette(spec=SPEC, value_range=255), shelf=Shelf(lambda _: image))
    window = Window(y=0, x=0, height=40, width=40)
    batch = loader.load((Piece(example=0, window=window, change=Change(shift=(0.1, 0.2, -0.1), contrast=1.2)),))
    mean, std = 0.5 * 255, 0.25 * 255
    assert batch.pixels[0, 0, 0, 0].item() == pytest.approx((100 - mean) * 1.2 + mean + 0.1 * std, abs=1e-3)
    assert batch.pixels[0, 1:, 0, 0].tolist() == [255, 0]
    assert (batch.pixels[0, :, :, 20:] == 255).all()  # what is invalid stays the fill


def test_brightness_is_that_of_valid_pixels():
    rng = np.random.default_rng(0)
    pixels = rng.integers(1000, 3000, (60, 60, 3)).astype(np.uint16)
    pixels[:, 30:] = 7
    image = MemoryImage([pixels], nodata=7)
    shelf = Shelf(lambda _: image)
    found = measure((example(image),), [Piece(example=0, window=Window(y=0, x=0, height=60, width=90))], shelf)
    assert found.mean == pytest.approx(pixels[:, :30].mean(axis=(0, 1)))
    assert found.std == pytest.approx(pixels[:, :30].std(axis=(0, 1)))


class Counted:
    """An image that knows whether it is open, and that nobody else has it."""

    opened = 0

    def __init__(self, path: Path) -> None:
        self.path, self.open, self.held = path, True, False
        Counted.opened += 1

    def close(self) -> None:
        assert self.open
        self.open = False


def test_images_are_kept_open_and_lent_to_one_at_a_time(monkeypatch):
    monkeypatch.setattr(Counted, "opened", 0)
    shelf = Shelf(Counted, most=2)
    paths = [Path(str(index)) for index in range(3)]
    with shelf.borrow(paths[0]) as one, shelf.borrow(paths[0]) as other:
        assert one is not other
    with shelf.borrow(paths[0]) as again:
        assert again in (one, other)
    assert Counted.opened == 2
    with shelf.borrow(paths[1]) as first, shelf.borrow(paths[2]) as second:
        pass
    assert sum(image.open for image in (one, other, first, second)) == 2
    shelf.close()
    assert not any(image.open for image in (one, other, first, second))


def test_batches_come_in_order_and_threads_end():
    asked = []

    def make(step: int) -> TrainingBatch:
        asked.append(step)
        return TrainingBatch(pixels=torch.full((1,), step), wanted=Wanted())

    before = threading.active_count()
    assert [int(batch.pixels) for batch in ahead(make, range(3, 20), workers=4)] == list(range(3, 20))
    batches = ahead(make, range(1000), workers=2)
    next(batches)
    batches.close()
    assert len(asked) < 40
    assert threading.active_count() == before


def test_an_error_comes_in_its_turn():
    def make(step: int) -> TrainingBatch:
        if step == 2:
            raise ReadError("torn")
        return TrainingBatch(pixels=torch.full((1,), step), wanted=Wanted())

    batches = ahead(make, range(5), workers=3)
    assert [int(next(batches).pixels) for _ in range(2)] == [0, 1]
    with pytest.raises(ReadError, match="torn"):
        next(batches)
