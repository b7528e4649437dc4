"""Quality is local, so tiles with their halo are the whole; and it says of known images what anyone would."""

from __future__ import annotations

import math

import numpy as np
import openslide
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchdrive.models.quality import HALO, STRIDE, Quality
from patchdrive.models.types import ImageTraits, PatchModel

SLIDE = ImageTraits()
FLUORESCENCE = ImageTraits(channels=("dapi", "fitc"), dtype="uint16")
SCENE = ImageTraits(channels=("B02", "B03", "B04", "B08"), dtype="uint16", kind="scene")
FLOATS = ImageTraits(channels=("a", "b"), dtype="float32", kind="scene")
ALL = [SLIDE, FLUORESCENCE, SCENE, FLOATS]


def judge(traits: ImageTraits, stored: torch.Tensor) -> dict[str, torch.Tensor]:
    """Map name to [n, S / 8, S / 8], for stored pixels (n, y, x, c)."""
    model = Quality(traits)
    return {name: values[:, 0] for name, values in model(model.spec.normalise(stored)).items()}


def even(value: int | tuple[int, ...], *, noise: float = 0.0, size: int = 64) -> torch.Tensor:
    """(1, size, size, 3) uint8 of one colour, with seeded Gaussian noise."""
    colour = torch.tensor(value, dtype=torch.float32).expand(1, size, size, 3)
    return (colour + noise * torch.randn(1, size, size, 3, generator=torch.Generator().manual_seed(0))).clamp(0, 255).to(torch.uint8)


def blurred(stored: torch.Tensor, sigma: float) -> torch.Tensor:
    """(n, y, x, c) uint8, by a Gaussian."""
    radius = math.ceil(4 * sigma)
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    kernel = (weights / weights.sum()).view(1, 1, -1, 1)
    maps = stored.permute(0, 3, 1, 2).float().flatten(0, 1).unsqueeze(1)
    maps = torch.nn.functional.pad(maps, (radius,) * 4, mode="replicate")
    maps = torch.nn.functional.conv2d(torch.nn.functional.conv2d(maps, kernel), kernel.transpose(2, 3))
    return maps.view(stored.shape[0], stored.shape[3], *stored.shape[1:3]).permute(0, 2, 3, 1).round().to(torch.uint8)


@pytest.mark.parametrize("traits", ALL, ids=lambda traits: f"{traits.kind}-{traits.dtype}-{len(traits.channels)}")
@pytest.mark.parametrize(("count", "size"), [(1, 8), (2, 56), (3, 128)])
def test_shapes_and_range(traits, count, size):
    model = Quality(traits)
    assert isinstance(model, PatchModel)
    maps = model(torch.randn(count, len(traits.channels), size, size, generator=torch.Generator().manual_seed(size)))
    assert tuple(maps) == tuple(output.name for output in model.spec.outputs)
    for values in maps.values():
        assert values.shape == (count, 1, size // STRIDE, size // STRIDE)
        assert values.min() >= 0
        assert values.max() <= 1


@pytest.mark.parametrize("traits", ALL, ids=lambda traits: f"{traits.kind}-{traits.dtype}-{len(traits.channels)}")
@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 1e30, -1e30, math.inf, math.nan])
def test_finite_whatever_comes_in(traits, value):
    noise = torch.rand(1, len(traits.channels), 32, 32, generator=torch.Generator().manual_seed(1))
    for pixels in (torch.full_like(noise, value), torch.where(noise > 0.5, noise, value)):
        for values in Quality(traits)(pixels).values():
            assert torch.isfinite(values).all()


@pytest.mark.parametrize("traits", ALL, ids=lambda traits: f"{traits.kind}-{traits.dtype}-{len(traits.channels)}")
@settings(max_examples=8, deadline=None)
@given(y=st.integers(0, 10), x=st.integers(0, 10), core=st.integers(1, 6), seed=st.integers(0, 99))
def test_a_tile_with_its_halo_is_the_whole(traits, y, x, core, seed):
    whole = torch.rand(1, len(traits.channels), 160, 160, generator=torch.Generator().manual_seed(seed))
    model, margin = Quality(traits), HALO // STRIDE
    side = (core + 2 * margin) * STRIDE
    top, left = min(y * STRIDE, 160 - side), min(x * STRIDE, 160 - side)
    expected, tile = model(whole), model(whole[:, :, top : top + side, left : left + side])
    for name, values in tile.items():
        rows, columns = (slice(start // STRIDE + margin, start // STRIDE + margin + core) for start in (top, left))
        inner = values[:, :, margin : margin + core, margin : margin + core]
        torch.testing.assert_close(inner, expected[name][:, :, rows, columns], atol=1e-5, rtol=0)


def test_patches_do_not_know_of_each_other():
    model = Quality(SLIDE)
    pixels = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    together = model(pixels)
    for index in range(4):
        for name, values in model(pixels[index : index + 1]).items():
            torch.testing.assert_close(values[0], together[name][index], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (even(255), 0), (even(243, noise=1.5), 0), (even((250, 244, 238), noise=1.5), 0),
        (even(0), 0), (even(4, noise=2), 0),
        (even((225, 170, 205)), 1), (even((150, 90, 160), noise=10), 1), (even((0, 0, 60), noise=5), 1), (even((20, 90, 20)), 1),
    ],
    ids=["white", "glass", "warm-glass", "black", "dark-field", "eosin", "nuclei", "dapi", "fitc"],
)  # fmt: skip
def test_tissue_is_neither_white_glass_nor_black(stored, expected):
    values = judge(SLIDE, stored)["tissue"]
    assert ((values > 0.9) if expected else (values < 0.1)).all()


def test_a_scene_says_valid_bright_and_textured():
    stored = torch.zeros(1, 64, 192, 4, dtype=torch.int32)
    stored[:, :, 64:128] = 6000
    stored[:, :, 128:] = 300 + 1200 * (torch.arange(64) % 2).view(1, 1, 64, 1)
    maps = judge(SCENE, stored.to(torch.uint16))
    nothing, cloud, town = ({name: values[0, 4, column].item() for name, values in maps.items()} for column in (3, 12, 20))
    assert (nothing["valid"], cloud["valid"], town["valid"]) == (0.0, 1.0, 1.0)
    assert nothing["bright"] < 0.01
    assert cloud["bright"] > 0.99
    assert town["bright"] < 0.1
    assert cloud["texture"] < 0.01
    assert town["texture"] > 0.8


def test_nan_is_not_valid():
    stored = torch.ones(1, 16, 16, 2)
    stored[:, :8, :8] = math.nan
    torch.testing.assert_close(judge(FLOATS, stored)["valid"], torch.tensor([[[0.0, 1], [1, 1]]]))


@pytest.mark.parametrize(("name", "level"), [("wsi/CMU-1-Small-Region.svs", 0), ("wsi/test3-DAPI-2-(387).ndpi", 1)], ids=["HE", "DAPI"])
def test_real_tissue_is_found_and_blur_is_seen(real_file, name, level):
    with openslide.OpenSlide(real_file(name)) as slide:
        width, height = slide.level_dimensions[level]
        full = np.asarray(slide.read_region((0, 0), level, (width // 16 * 16, height // 16 * 16)).convert("RGB"))
    pixels = full.reshape(full.shape[0] // 2, 2, full.shape[1] // 2, 2, 3).mean((1, 3)).round().astype(np.uint8)
    sharp = torch.from_numpy(pixels)[None]
    maps = judge(SLIDE, sharp)
    found = maps["tissue"] > 0.5
    assert 0.3 < found.float().mean() < 0.8
    assert maps["focus"][found].median() > 0.9
    assert judge(SLIDE, blurred(sharp, 1.5))["focus"][found].median() < 0.05
