"""Images too large to hold: what is learned of them is what would be learned if they were held."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchdrive.models.answers import AnswerSpec
from patchdrive.models.config import PatchDriveNetConfig
from patchdrive.models.model import patchdrivenet
from patchdrive.models.search import Sampling
from patchdrive.models.step import step_losses
from patchdrive.pipeline.plan import target_grid
from patchdrive.pipeline.reads import read_frame
from patchdrive.pipeline.train import TrainSettings
from patchdrive.pipeline.train_batches import Loader, Palette
from patchdrive.pipeline.train_examples import Example
from patchdrive.pipeline.train_pieces import Change, Ground, Piece, turned_places, unturned_places
from patchdrive.pipeline.train_read import Shelf
from patchdrive.pipeline.train_slides import SlideLearner, SlideLoader
from patchdrive.readers import MemoryImage

CONFIG = PatchDriveNetConfig(
    width=16, patch_size=32, glance_downsample=4, max_patches=6, answers=(AnswerSpec(name="class", classes=("a", "b")),)
)
SETTINGS = TrainSettings(max_patches=4)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def loaders(height: int, width: int, config: PatchDriveNetConfig = CONFIG) -> tuple[Loader, SlideLoader, ThreadPoolExecutor]:
    """Of one image: noise with dark squares, and where they are."""
    rng = np.random.default_rng(3)
    pixels = rng.integers(150, 230, (height, width, 3), dtype=np.uint8)
    places = rng.integers(20, min(height, width) - 20, (4, 2))
    for y, x in places:
        pixels[y - 12 : y + 12, x - 12 : x + 12] = 70
    image = MemoryImage([pixels])
    grid = target_grid(image.levels[0], 1.0, 1.0)
    targets = places.astype(np.float64)
    example = Example(
        path=Path("a"),
        identity="",
        grid=grid,
        frame=read_frame(image.levels, grid, 32, "area"),
        channels=(0, 1, 2),
        targets=targets,
        label=1,
        ground=Ground(top=0, bottom=height, width=width, targets=(targets,)),
    )
    shelf, palette, pool = Shelf(lambda _: image), Palette(spec=config.encoder_spec, value_range=255), ThreadPoolExecutor(2)
    slides = SlideLoader(examples=(example,), palette=palette, glance_downsample=config.glance_downsample, shelf=shelf, pool=pool)
    return Loader(examples=(example,), palette=palette, shelf=shelf), slides, pool


@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 7), st.floats(0, 1), st.floats(0, 1))
def test_turned_back(height, width, turn, down, across):
    place = np.array([[down * height, across * width]])
    assert unturned_places(turned_places(place, height, width, turn), height, width, turn) == pytest.approx(place, abs=1e-9)


@pytest.mark.parametrize("turn", range(8))
@pytest.mark.parametrize("driver", ["saliency", "recurrent"])
def test_the_loss_is_that_of_an_image_in_memory(turn, driver):
    """And so is its gradient, whichever way the image is turned, its colours changed."""
    config = dataclasses.replace(CONFIG, driver=driver, per_step=2)
    memory, slides, pool = loaders(192, 256, config)
    piece = Piece(example=0, window=memory.examples[0].ground.window, change=Change(turn=turn, shift=(0.1, -0.1, 0.2), contrast=1.1))
    model = patchdrivenet(config).train()
    batch, sampling = memory.load((piece,)), Sampling(generator=torch.Generator().manual_seed(5))
    expected = step_losses(model.with_max_patches(4), batch.pixels, batch.wanted, sampling)
    torch.autograd.backward(torch.stack(list(expected.values())).sum())
    gradient = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    learner = SlideLearner(model=model, settings=SETTINGS)
    found = learner.terms(slides.load((piece,)), torch.Generator().manual_seed(5))
    torch.autograd.backward(torch.stack(list(found.values())).sum())
    pool.shutdown()
    assert found.keys() == expected.keys()
    assert {name: term.item() for name, term in found.items()} == pytest.approx(
        {name: term.item() for name, term in expected.items()}, rel=1e-4
    )
    for name, weight in model.named_parameters():
        if name in gradient:
            assert weight.grad is not None
            assert torch.allclose(weight.grad, gradient[name], rtol=1e-3, atol=1e-4), name


def test_answers_are_those_of_an_image_in_memory():
    """Of a size that no part of the model divides."""
    memory, slides, pool = loaders(203, 149)
    piece = Piece(example=0, window=memory.examples[0].ground.window)
    model = patchdrivenet(CONFIG).eval()
    with torch.inference_mode():
        expected = model(memory.load((piece,)).pixels)
        (slide,) = slides.load((piece,))
        found = slide.answered(model)
    pool.shutdown()
    assert torch.allclose(found.values["class"], expected.values["class"], atol=1e-5)
    assert torch.allclose(found.objects[0].yx, expected.objects[0].yx, atol=1e-3)


def test_a_mean_over_slides():
    _, slides, pool = loaders(128, 128)
    piece = Piece(example=0, window=slides.examples[0].ground.window)
    learner = SlideLearner(model=patchdrivenet(CONFIG), settings=dataclasses.replace(SETTINGS, constant_memory=True))
    batch = slides.load((piece, piece))
    draws = torch.Generator().manual_seed(1)
    one, other = (learner.terms(batch[:1], draws) for _ in range(2))
    both = learner.terms(batch, torch.Generator().manual_seed(1))
    pool.shutdown()
    for name, term in both.items():
        assert term.item() == pytest.approx((one[name].item() + other[name].item()) / 2, rel=1e-5)


def test_patches_of_another_level():
    """Drill-down looks at a middle level first: its patches are read there."""
    config = dataclasses.replace(CONFIG, driver="drill-down", zoom=2, max_patches=8)
    _, slides, pool = loaders(256, 320, config)
    (slide,) = slides.load((Piece(example=0, window=slides.examples[0].ground.window),))
    with slides.shelf.borrow(Path("a")) as image:
        pixels = image.read(image.levels[0].window).astype(np.float32)
    (patch,) = slide.read(np.array([[128.0, 160.0]]), 2.0)
    assert np.allclose(patch, pixels[96:160, 128:192].reshape(32, 2, 32, 2, 3).mean(axis=(1, 3)), atol=1e-3)
    terms = SlideLearner(model=patchdrivenet(config), settings=SETTINGS).terms((slide,), torch.Generator().manual_seed(0))
    pool.shutdown()
    assert all(torch.isfinite(term) for term in terms.values())
