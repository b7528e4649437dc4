"""Many tiles in one call: every reader's `decode` against its `read`, and what is torn named alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchdrive.readers import MemoryImage, Window, open_image
from patchdrive.readers.errors import ReadError
from patchdrive.readers.tiles import AlignedReads, DecodesTiles, TileGrid, read_level, tile_decoder

FILES = [
    ("wsi/CMU-1-Small-Region.svs", "tiff"),
    ("wsi/CMU-1-Small-Region.svs", "slide"),
    ("wsi/panimg/no_dzi.tif", "tiff"),
    ("wsi/boxes.tiff", "tiff"),
    ("wsi/OS-1-detail.ome.tif", "tiff"),
    ("wsi/test3-DAPI-2-(387).ndpi", "slide"),
    ("rs/misc/rgb16.tif", "raster"),
    ("rs/misc/dem.tif", "raster"),
    ("rs/rasterio/cogeo.tif", "raster"),
    ("omezarr/fractal_cardio_v05_sharded_levels1-3.ome.zarr", "multiscale"),
]


@pytest.fixture(scope="module", params=FILES, ids=[f"{name}-{reader}" for name, reader in FILES])
def image(request, real_file):
    name, reader = request.param
    opened = open_image(real_file(name), reader=reader)
    yield opened
    opened.close()


def test_tiles_hold_what_read_gives(image):
    rng = np.random.default_rng(0)
    for level in image.levels:
        decoder = tile_decoder(image, level.index)
        grid = decoder.grid(level=level.index)
        assert (grid.height, grid.width) == (level.height, level.width)
        tiles = [(row, column) for row in range(grid.rows) for column in range(grid.columns)]
        some = [tiles[0], tiles[-1], *(tiles[at] for at in rng.integers(0, len(tiles), 4))]
        channels = list(range(len(image.channels)))[::-1]
        slab = np.full((len(some), grid.tile_height, grid.tile_width, len(channels)), 7, image.dtype)
        valid = np.zeros(slab.shape[:3], np.bool_)
        assert decoder.decode(some, level=level.index, channels=channels, out=slab, valid=valid) == ()
        for at, tile in enumerate(some):
            window = grid.window(*tile)
            inside = (slice(window.height), slice(window.width))
            np.testing.assert_array_equal(slab[at][inside], image.read(window, level=level.index, channels=channels))
            np.testing.assert_array_equal(valid[at][inside], image.read_mask(window, level=level.index))


def test_a_whole_level_by_threads_is_the_level(image):
    level = image.levels[-1]
    np.testing.assert_array_equal(read_level(image, level.index, workers=3), image.read(level.window, level=level.index))


def test_a_tiff_decodes_its_own_tiles_and_others_are_read_along_theirs(real_file):
    own = open_image(real_file("wsi/CMU-1-Small-Region.svs"), reader="tiff")
    assert isinstance(own, DecodesTiles)
    assert tile_decoder(own, 0) is own
    assert (own.grid(level=0).tile_height, own.grid(level=0).tile_width) == (240, 240)
    other = open_image(real_file("wsi/test3-DAPI-2-(387).ndpi"))
    grid = tile_decoder(other, 0).grid(level=0)
    assert (grid.tile_height, grid.tile_width) == (128, 3968), "tiles of 8 rows are read sixteen at a time"


def test_small_tiles_of_a_tiff_are_read_several_at_a_time(real_file):
    image = open_image(real_file("wsi/boxes.tiff"), reader="tiff")
    decoder = tile_decoder(image, 0)
    assert isinstance(decoder, AlignedReads)
    assert decoder.grid(level=0).tile_height == 128


class Torn(MemoryImage):
    """An image two of whose tiles cannot be decoded."""

    def read(self, window, *, level=0, channels=None, out=None):
        if window.intersect(Window(y=95, x=64, height=10, width=10)) is not None:
            raise ReadError("torn")
        return super().read(window, level=level, channels=channels, out=out)


def test_of_tiles_read_together_only_the_torn_ones_are_named():
    pixels = np.arange(300 * 300, dtype=np.uint32).reshape(300, 300, 1)
    image = Torn([pixels], tile=50)
    decoder = tile_decoder(image, 0)
    grid = decoder.grid(level=0)
    assert grid.tile_height == 150
    out = np.zeros((2, 150, 150, 1), np.uint32)
    torn = decoder.decode([(0, 0), (1, 1)], level=0, channels=[0], out=out, valid=None)
    assert [part.window for part in torn] == [Window(y=50, x=50, height=50, width=50), Window(y=100, x=50, height=50, width=50)]
    assert {part.reason for part in torn} == {"torn"}
    wanted = pixels[:150, :150].copy()
    wanted[50:150, 50:100] = 0
    np.testing.assert_array_equal(out[0], wanted)
    np.testing.assert_array_equal(out[1], pixels[150:, 150:])


@given(height=st.integers(1, 400), width=st.integers(1, 400), tile_height=st.integers(1, 90), tile_width=st.integers(1, 90), data=st.data())
@settings(deadline=None)
def test_tiles_lie_on_the_level_exactly_once_and_a_window_touches_those_it_meets(height, width, tile_height, tile_width, data):
    grid = TileGrid(height=height, width=width, tile_height=tile_height, tile_width=tile_width)
    count = np.zeros((height, width), int)
    windows = {(row, column): grid.window(row, column) for row in range(grid.rows) for column in range(grid.columns)}
    for window in windows.values():
        count[window.y : window.y_end, window.x : window.x_end] += 1
    assert (count == 1).all()
    y, x = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    asked = Window(y=y, x=x, height=data.draw(st.integers(1, height - y)), width=data.draw(st.integers(1, width - x)))
    assert grid.touched(asked) == [tile for tile, window in windows.items() if window.intersect(asked) is not None]
