"""Pixels in, pixels out, whatever the image."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from patchdrive.models.identity import Identity
from patchdrive.models.types import ImageTraits, PatchModel


def place(height: int, width: int, channels: int, dtype: str) -> np.ndarray:
    """(height, width, channels): channel c is (x * 7 + y * 241 + c) mod 65521, so a shift names itself."""
    y, x = np.mgrid[:height, :width]
    return np.stack([(x * 7 + y * 241 + c) % 65521 for c in range(channels)], axis=2).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize(("count", "channels", "size"), [(1, 1, 1), (2, 3, 17), (3, 7, 64)])
def test_gives_back_every_stored_value(dtype, count, channels, size):
    model = Identity(ImageTraits(channels=tuple(f"b{c}" for c in range(channels)), dtype=dtype))
    stored = np.stack([np.roll(place(size, size, channels, dtype), n) for n in range(count)])
    image = model(model.spec.normalise(torch.from_numpy(stored)))["image"]
    assert image.shape == (count, channels, size, size)
    np.testing.assert_array_equal(image.permute(0, 2, 3, 1).numpy().astype(dtype), stored)


def test_says_what_it_gives():
    traits = ImageTraits(channels=("B02", "B03", "B04", "B08"), dtype="uint16", kind="scene")
    model = Identity(traits)
    assert isinstance(model, PatchModel)
    assert model.to(torch.device("cpu")) is model
    (output,) = model.spec.outputs
    assert (output.name, output.kind, output.channels, output.dtype) == ("image", "image", traits.channels, "uint16")
    assert (output.stride, output.halo, model.spec.any_size, model.spec.resampling) == (1, 0, True, "nearest")
    assert model.spec.pixel_size is None


def test_digest_follows_the_image():
    assert Identity(ImageTraits()).digest == Identity(ImageTraits()).digest
    assert Identity(ImageTraits()).digest != Identity(ImageTraits(dtype="uint16")).digest
