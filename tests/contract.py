"""What every reader promises, as tests. A new reader inherits `ImageContract` and writes two fixtures: `image` and `expected`."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from patchdrive.readers import Image, Window
from patchdrive.readers.errors import WindowError


def some_windows(height: int, width: int, *, seed: int = 0, count: int = 6) -> list[Window]:
    """The whole level where it is small, its corners, and seeded windows that start and end anywhere."""
    rng = np.random.default_rng(seed)
    windows = [
        Window(y=0, x=0, height=min(height, 700), width=min(width, 700)),
        Window(y=height - 1, x=width - 1, height=1, width=1),
        Window(y=max(0, height - 300), x=max(0, width - 300), height=min(300, height), width=min(300, width)),
    ]
    for _ in range(count):
        y, x = int(rng.integers(0, height)), int(rng.integers(0, width))
        windows.append(
            Window(y=y, x=x, height=int(rng.integers(1, min(600, height - y) + 1)), width=int(rng.integers(1, min(600, width - x) + 1)))
        )
    return windows


class ImageContract:
    """Inherit, and give `image` (an open Image) and `expected` (one (y, x, c) array per level, from an outside oracle)."""

    tolerance = 0
    """Largest difference to the oracle; 0 where the codec allows."""

    @pytest.fixture
    def image(self) -> Image:
        raise NotImplementedError

    @pytest.fixture
    def expected(self) -> Sequence[NDArray[Any]]:
        raise NotImplementedError

    def test_is_an_image(self, image: Image) -> None:
        assert isinstance(image, Image)
        assert image.dtype.isnative
        assert len(set(image.channels)) == len(image.channels) > 0
        assert image.mpp is None or image.transform is None

    def test_color_profile_is_icc_or_none(self, image: Image) -> None:
        profile = image.color_profile
        assert profile is None or (isinstance(profile, bytes) and profile[36:40] == b"acsp")
        assert (profile is not None) == ("patchdrive.color_profile" in image.properties)

    def test_levels_are_a_pyramid(self, image: Image, expected: Sequence[NDArray[Any]]) -> None:
        assert [(level.height, level.width) for level in image.levels] == [array.shape[:2] for array in expected]
        assert [level.index for level in image.levels] == list(range(len(image.levels)))
        assert image.levels[0].downsample_y == image.levels[0].downsample_x == 1.0
        for finer, coarser in zip(image.levels, image.levels[1:], strict=False):
            assert coarser.downsample_y >= finer.downsample_y
            assert coarser.downsample_x >= finer.downsample_x
        for level in image.levels:
            assert 0 < level.tile_height <= level.height
            assert 0 < level.tile_width <= level.width

    def test_read_equals_expected(self, image: Image, expected: Sequence[NDArray[Any]]) -> None:
        for level, array in zip(image.levels, expected, strict=True):
            for window in some_windows(level.height, level.width, seed=level.index):
                pixels = image.read(window, level=level.index)
                assert pixels.dtype == image.dtype == array.dtype
                assert pixels.shape == (window.height, window.width, len(image.channels))
                wanted = array[window.within(level.window)]
                if self.tolerance:
                    assert np.abs(pixels.astype(np.float64) - wanted).max() <= self.tolerance
                else:
                    np.testing.assert_array_equal(pixels, wanted)

    def test_channels_are_taken_in_the_order_asked(self, image: Image) -> None:
        window = some_windows(image.levels[0].height, image.levels[0].width)[0]
        order = list(reversed(range(len(image.channels))))
        np.testing.assert_array_equal(image.read(window, channels=order), image.read(window)[:, :, order])

    def test_out_is_filled_and_returned(self, image: Image) -> None:
        window = some_windows(image.levels[0].height, image.levels[0].width)[0]
        out = np.empty((window.height, window.width, len(image.channels)), image.dtype)
        assert image.read(window, out=out) is out
        np.testing.assert_array_equal(out, image.read(window))
        with pytest.raises(ValueError, match="out is"):
            image.read(window, out=np.empty((1, 1, 1), np.complex64))

    def test_overhanging_window_is_refused(self, image: Image) -> None:
        for level in image.levels:
            for window in (
                Window(y=-1, x=0, height=2, width=1),
                Window(y=0, x=0, height=1, width=level.width + 1),
                Window(y=level.height, x=0, height=1, width=1),
            ):
                with pytest.raises(WindowError, match="overhangs"):
                    image.read(window, level=level.index)
                with pytest.raises(WindowError, match="overhangs"):
                    image.read_mask(window, level=level.index)

    def test_mask_has_the_windows_shape(self, image: Image) -> None:
        for level in image.levels:
            window = some_windows(level.height, level.width)[0]
            mask = image.read_mask(window, level=level.index)
            assert mask.dtype == np.bool_
            assert mask.shape == (window.height, window.width)
            assert image.has_mask or mask.all()

    def test_pickles_as_its_source(self, image: Image) -> None:
        again = pickle.loads(pickle.dumps(image))
        try:
            assert again.source == image.source
            assert again.identity == image.identity
            assert again.levels == image.levels
            window = some_windows(image.levels[-1].height, image.levels[-1].width)[0]
            np.testing.assert_array_equal(again.read(window, level=len(image.levels) - 1), image.read(window, level=len(image.levels) - 1))
        finally:
            again.close()

    def test_same_pixels_from_eight_threads(self, image: Image) -> None:
        windows = some_windows(image.levels[0].height, image.levels[0].width, seed=3, count=12)
        alone = [image.read(window) for window in windows]
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(image.read, windows))
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_array_equal(one, other)
