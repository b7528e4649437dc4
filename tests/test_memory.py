"""The reference reader keeps its own contract; pixel values encode their place, so a shift names itself."""

from __future__ import annotations

import numpy as np
import pytest
from contract import ImageContract

from patchdrive.readers import MemoryImage, Window
from patchdrive.readers.errors import FormatError


def place(height: int, width: int, level: int = 0) -> np.ndarray:
    """(height, width, 3) uint8: red = x mod 251, green = y mod 241, blue = level."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x % 251, y % 241, np.full_like(x, level)], axis=2).astype(np.uint8)


class TestMemoryImage(ImageContract):
    @pytest.fixture
    def expected(self):
        return [place(531, 707), place(133, 177, 1)]

    @pytest.fixture
    def image(self, expected):
        return MemoryImage(expected, mpp=(0.5, 0.5))

    def test_downsample_is_the_exact_ratio(self, image):
        assert image.levels[1].downsample_y == 531 / 133


def test_mask_is_false_only_where_every_channel_is_nodata():
    pixels = np.array([[[0, 0], [0, 5]], [[7, 0], [7, 7]]], np.uint16)
    mask = MemoryImage([pixels], nodata=0).read_mask(Window(y=0, x=0, height=2, width=2))
    np.testing.assert_array_equal(mask, [[False, True], [True, True]])


def test_nan_is_invalid_without_being_declared():
    pixels = np.array([[[np.nan], [1.0]]], np.float32)
    mask = MemoryImage([pixels]).read_mask(Window(y=0, x=0, height=1, width=2))
    np.testing.assert_array_equal(mask, [[False, True]])


@pytest.mark.parametrize("levels", [[], [np.zeros((4, 4))], [np.zeros((4, 4, 1)), np.zeros((2, 2, 3))]])
def test_levels_that_are_no_pyramid_are_refused(levels):
    with pytest.raises(FormatError):
        MemoryImage(levels)
