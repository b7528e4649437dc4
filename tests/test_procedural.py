"""The image that the benchmarks read at 100 gigapixels keeps the contract of every reader, and its tiles are its pixels."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
from contract import ImageContract

from patchdrive.readers import Window
from patchdrive.readers.errors import FormatError
from patchdrive.readers.tiles import DecodesTiles, tile_decoder

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def procedural(monkeypatch):
    """The module; benchmarks are run, not installed."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("procedural")


def pixel_by_pixel(height: int, width: int, level: int, channels: int) -> np.ndarray:
    """The formula of the docstring, nothing else."""
    y, x, channel = np.mgrid[:height, :width, :channels]
    row = y % 241 + 37 * (y // 512) + 5 * level
    column = (channel + 1) * (x % 251) + 11 * (x // 512)
    return ((row + column) % 256).astype(np.uint8)


class TestProcedural(ImageContract):
    @pytest.fixture(params=[1, 3])
    def channels(self, request):
        return request.param

    @pytest.fixture
    def image(self, procedural, channels):
        return procedural.Procedural(1301, 2050, channels=channels, coarsest=512)

    @pytest.fixture
    def expected(self, channels):
        return [pixel_by_pixel(*size, level, channels) for level, size in enumerate([(1301, 2050), (326, 513), (82, 129)])]

    def test_tiles_are_its_pixels(self, image, expected):
        assert isinstance(image, DecodesTiles)
        for level in image.levels[:2]:
            decoder = tile_decoder(image, level.index)
            assert decoder is image
            grid = decoder.grid(level=level.index)
            places = [(row, column) for row in range(grid.rows) for column in range(grid.columns)]
            order = list(reversed(range(len(image.channels))))
            out = [np.empty((512, 512, len(order)), np.uint8) for _ in places]
            valid = [np.zeros((512, 512), bool) for _ in places]
            assert decoder.decode(places, level=level.index, channels=order, out=out, valid=valid) == ()
            for place, pixels, mask in zip(places, out, valid, strict=True):
                window = grid.window(*place)
                wanted = expected[level.index][window.within(level.window)][:, :, order]
                np.testing.assert_array_equal(pixels[: window.height, : window.width], wanted)
                assert mask.all()


def test_100_gigapixels_are_described_at_once_and_read_anywhere(procedural):
    image = procedural.Procedural(316228, 316228)
    assert [level.height for level in image.levels] == [316228, 79057, 19765, 4942, 1236]
    far = image.read(Window(y=316228 - 300, x=316228 - 2, height=300, width=2))
    y, x = 316227, 316226
    assert far[299, 0, 0] == (y % 241 + 37 * (y // 512) + x % 251 + 11 * (x // 512)) % 256
    assert len(np.unique(far)) > 100


def test_what_is_no_image_is_refused(procedural):
    for size, channels in (((0, 9), 1), ((9, 9), 2)):
        with pytest.raises(FormatError, match="1 or 3 channels"):
            procedural.Procedural(*size, channels=channels)
