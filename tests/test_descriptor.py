"""The descriptor's columns are what their formulas say, for each patch alone, and finite whatever comes in."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from patchdrive.models import measures
from patchdrive.models.descriptor import Descriptor
from patchdrive.models.types import ImageTraits, PatchModel

SLIDE = ImageTraits()
SCENE = ImageTraits(channels=("B02", "B03", "B04", "B08"), dtype="uint16", kind="scene")
ELEVATION = ImageTraits(channels=("height",), dtype="float32", kind="scene")
HYPERSPECTRAL = ImageTraits(channels=tuple(f"b{i}" for i in range(31)), dtype="uint8", kind="scene")
FLUORESCENCE = ImageTraits(channels=("dapi", "fitc"), dtype="uint16")
ALL = [SLIDE, SCENE, ELEVATION, HYPERSPECTRAL, FLUORESCENCE]


def describe(traits: ImageTraits, stored: torch.Tensor) -> dict[str, torch.Tensor]:
    """Column name to [n], for stored pixels (n, y, x, c)."""
    model = Descriptor(traits)
    vectors = model(model.spec.normalise(stored))["descriptor"]
    return dict(zip(model.spec.outputs[0].channels, vectors.unbind(1), strict=True))


def speckle(count: int, size: int, channels: int, *, seed: int = 0) -> torch.Tensor:
    """(count, size, size, channels) uint8."""
    return torch.randint(0, 256, (count, size, size, channels), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def stained(amounts: tuple[float, float, float], size: int = 64) -> torch.Tensor:
    """(1, size, size, 3) uint8 of evenly stained tissue; the inverse of optical density, row by row of Ruifrok's table."""
    table = np.array(measures._STAINS)
    density = np.array(amounts) @ (table / np.linalg.norm(table, axis=1, keepdims=True))
    colour = np.clip(np.rint(256 * 10**-density - 1), 0, 255).astype(np.uint8)
    return torch.from_numpy(np.broadcast_to(colour, (1, size, size, 3)).copy())


@pytest.mark.parametrize("traits", ALL, ids=lambda traits: f"{traits.kind}{len(traits.channels)}")
@pytest.mark.parametrize(("count", "size"), [(1, 1), (2, 7), (3, 16), (1, 31), (2, 64), (1, 130)])
def test_shape_for_any_batch_channels_and_size(traits, count, size):
    model = Descriptor(traits)
    assert isinstance(model, PatchModel)
    vectors = model(torch.rand(count, len(traits.channels), size, size))["descriptor"]
    assert vectors.shape == (count, len(model.spec.outputs[0].channels))
    assert vectors.dtype == torch.float32
    assert torch.isfinite(vectors).all()


@pytest.mark.parametrize(("traits", "width"), [(SLIDE, 60), (SCENE, 28 + 6 + 26), (ELEVATION, 33), (HYPERSPECTRAL, 217 + 24 + 26)])
def test_columns_are_named_once_and_number_what_the_text_says(traits, width):
    names = Descriptor(traits).spec.outputs[0].channels
    assert len(names) == len(set(names)) == width


def test_spec_follows_the_image():
    assert (Descriptor(SLIDE).spec.pixel_size, Descriptor(SLIDE).spec.unit) == (0.5, "um")
    assert (Descriptor(SCENE).spec.pixel_size, Descriptor(SCENE).spec.unit) == (None, None)
    assert Descriptor(SLIDE).spec.fill == 255.0
    assert Descriptor(SCENE).spec.scale == 1 / 65535
    assert Descriptor(SLIDE).digest != Descriptor(SCENE).digest


@pytest.mark.parametrize("traits", ALL, ids=lambda traits: f"{traits.kind}{len(traits.channels)}")
@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 0.5, 1e30, -1e30, math.inf, -math.inf, math.nan])
def test_finite_whatever_comes_in(traits, value):
    model = Descriptor(traits)
    noise = torch.rand(1, len(traits.channels), 32, 32, generator=torch.Generator().manual_seed(1))
    for pixels in (torch.full_like(noise, value), torch.where(noise > 0.5, noise, value), noise * value):
        assert torch.isfinite(model(pixels)["descriptor"]).all()


def test_patches_do_not_know_of_each_other():
    model = Descriptor(SLIDE)
    pixels = model.spec.normalise(speckle(5, 48, 3))
    together = model(pixels)["descriptor"]
    order = torch.tensor([3, 0, 4, 1, 2])
    assert torch.equal(model(pixels[order])["descriptor"], together[order])
    assert torch.equal(torch.cat([model(patch[None])["descriptor"] for patch in pixels]), together)


def test_moments_and_quantiles_are_numpys():
    stored = torch.randint(0, 65536, (1, 64, 64, 4), generator=torch.Generator().manual_seed(2)).to(torch.uint16)
    columns = describe(SCENE, stored)
    values = stored.numpy()[0].astype(np.float64) / 65535
    for index, band in enumerate(SCENE.channels):
        quarter = values[:, :, index].reshape(16, 4, 16, 4).mean((1, 3))
        assert columns[f"{band}_mean"].item() == pytest.approx(values[:, :, index].mean(), rel=1e-5)
        assert columns[f"{band}_std"].item() == pytest.approx(values[:, :, index].std(), rel=1e-5)
        assert columns[f"{band}_min"].item() == pytest.approx(values[:, :, index].min(), abs=1e-6)
        assert columns[f"{band}_max"].item() == pytest.approx(values[:, :, index].max(), abs=1e-6)
        assert columns[f"{band}_q50"].item() == pytest.approx(np.quantile(quarter, 0.5, method="nearest"), abs=1e-3)


def test_vegetation_has_a_high_normalised_difference():
    scene = torch.full((2, 32, 32, 4), 1000, dtype=torch.int32).to(torch.uint16)
    scene[0, :, :, 3] = 4000
    difference = describe(SCENE, scene)["nd_B04_B08_mean"]
    torch.testing.assert_close(difference, torch.tensor([-0.6, 0.0]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("index", range(3))
def test_a_stain_is_found_as_itself(index):
    amounts = tuple(0.6 if which == index else 0.0 for which in range(3))
    columns = describe(SLIDE, stained(amounts))
    for which, name in enumerate(("hematoxylin", "eosin", "dab")):
        assert columns[f"{name}_mean"].item() == pytest.approx(amounts[which], abs=0.02)
        assert columns[f"{name}_share"].item() == float(which == index)
    assert columns["tissue_share"].item() == 1.0


def test_white_glass_is_nothing():
    columns = describe(SLIDE, torch.full((1, 64, 64, 3), 255, dtype=torch.uint8))
    for name in ("od_red_mean", "hematoxylin_mean", "tissue_share", "dark_share", "saturation_mean", "coherence", "orientation_0"):
        assert columns[name].item() == pytest.approx(0.0, abs=1e-6)
    assert columns["lightness_mean"].item() == pytest.approx(1.0, abs=1e-4)


def test_blur_lowers_focus():
    sharp = speckle(1, 96, 3).permute(0, 3, 1, 2).float()
    blurred = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(sharp, (2, 2, 2, 2), mode="replicate"), 5, 1)
    stored = torch.cat([sharp, blurred]).permute(0, 2, 3, 1).to(torch.uint8)
    columns = describe(SLIDE, stored)
    for name in ("focus_laplacian", "focus_ratio", "log_energy_1", "log_energy_2"):
        assert columns[name][0] > columns[name][1] + 0.05


def test_a_quarter_turn_rolls_the_orientations_and_keeps_the_rest():
    torch.manual_seed(3)
    pixels = torch.rand(1, 1, 64, 64).cumsum(3)
    turned = Descriptor(ELEVATION)(torch.rot90(pixels, 1, (2, 3)))["descriptor"][0]
    names = Descriptor(ELEVATION).spec.outputs[0].channels
    columns = dict(zip(names, Descriptor(ELEVATION)(pixels)["descriptor"][0].tolist(), strict=True))
    after = dict(zip(names, turned.tolist(), strict=True))
    for name in names:
        if name.startswith("orientation"):
            assert after[f"orientation_{(int(name[-1]) + 4) % 8}"] == pytest.approx(columns[name], abs=1e-3)
        else:
            sign = -1 if name in {"coherence_cos", "coherence_sin"} else 1
            assert after[name] == pytest.approx(sign * columns[name], rel=1e-4, abs=1e-4)
    assert columns["coherence_cos"] > 0.2


def test_stripes_are_coherent_and_point_across():
    stripes = (128 + 100 * torch.sin(torch.arange(64) / 4)).to(torch.uint8)
    columns = describe(SLIDE, stripes.view(1, 1, 64, 1).expand(1, 64, 64, 3).contiguous())
    assert columns["coherence"].item() > 0.99
    assert columns["coherence_cos"].item() > 0.99
    assert columns["orientation_0"].item() > 0.99
    assert sum(columns[f"orientation_{k}"].item() for k in range(8)) == pytest.approx(1.0, abs=1e-5)


def test_neighbour_shares_sum_to_one():
    columns = describe(SLIDE, speckle(3, 40, 3))
    torch.testing.assert_close(sum(columns[f"lbp_{k}"] for k in range(9)), torch.ones(3))
    assert describe(SLIDE, torch.full((1, 40, 40, 3), 7, dtype=torch.uint8))["lbp_0"].item() == 1.0


def test_oklab_of_known_colours():
    colours = torch.tensor([[1.0, 1, 1], [1, 0, 0], [0, 0, 1], [0, 0, 0]]).view(4, 3, 1, 1)
    expected = torch.tensor([[1.0, 0, 0], [0.628, 0.2249, 0.1258], [0.452, -0.0325, -0.3115], [0, 0, 0]])
    torch.testing.assert_close(measures.oklab(colours).view(4, 3), expected, atol=1e-3, rtol=0)
