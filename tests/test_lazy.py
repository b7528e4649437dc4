"""A lazy level is the level: the same pixels on every scheduler, in chunks of whole tiles, however many there are."""

from __future__ import annotations

import pickle

import dask.array as da
import numpy as np
import pytest
import zarr
from dask.base import tokenize
from hypothesis import given
from hypothesis import strategies as st

from patchdrive.readers import Level, MemoryImage
from patchdrive.readers.lazy import LevelMask, LevelPixels, chunk_of, lazy, lazy_mask
from patchdrive.readers.multiscale import MultiscaleImage

SHARDED = "omezarr/fractal_cardio_v05_sharded_levels1-3.ome.zarr"


def place(height, width):
    """(height, width, 2) uint16: row, column."""
    return np.stack(np.mgrid[:height, :width], axis=2).astype(np.uint16)


@pytest.fixture
def image():
    return MemoryImage([place(700, 900), place(350, 450)], tile=64)


@pytest.fixture
def real_image(real_file):
    return MultiscaleImage(real_file(SHARDED))


@pytest.fixture
def vast_image(tmp_path):
    """2^40 pixels in 2^20 tiles of 1 MiB, none of them written."""
    group = zarr.create_group(tmp_path / "vast.zarr")
    group.create_array("0", shape=(1 << 20, 1 << 20), chunks=(1024, 1024), dtype="u1", fill_value=7)
    axes = [{"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
    datasets = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1.0, 1.0]}]}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    return MultiscaleImage(tmp_path / "vast.zarr")


def level_of(height, width, tile_height, tile_width):
    return Level(
        index=0,
        height=height,
        width=width,
        downsample_y=1.0,
        downsample_x=1.0,
        tile_height=min(tile_height, height),
        tile_width=min(tile_width, width),
    )


@pytest.mark.parametrize("level", [0, 1])
def test_a_level_equals_read(image, level):
    array = lazy(image, level, tiles=2)
    assert array.dtype == image.dtype
    assert isinstance(array._meta, np.ndarray)
    np.testing.assert_array_equal(array.compute(scheduler="threads"), image.read(image.levels[level].window, level=level))


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_real_level_equals_read(real_image, level):
    array = lazy(real_image, level, tiles=1)
    assert array.npartitions > 1 or level > 0
    np.testing.assert_array_equal(array.compute(scheduler="threads"), real_image.read(real_image.levels[level].window, level=level))


def test_a_chunk_reads_whole_tiles_once(image, monkeypatch):
    windows = []
    read = MemoryImage.read
    monkeypatch.setattr(MemoryImage, "read", lambda self, window, **wanted: windows.append(window) or read(self, window, **wanted))
    lazy(image, tiles=8).compute(scheduler="synchronous")
    assert len(windows) == 4
    assert sum(window.height * window.width for window in windows) == 700 * 900
    assert all(window.y % 512 == 0 and window.x % 512 == 0 for window in windows)


def test_the_mask_has_the_chunks_of_the_pixels():
    pixels = place(700, 900)
    pixels[:100, :50] = 0
    image = MemoryImage([pixels], nodata=0, tile=64)
    mask = lazy_mask(image)
    assert mask.chunks == lazy(image).chunks[:2]
    assert mask.dtype == np.bool_
    np.testing.assert_array_equal(mask.compute(scheduler="threads"), image.read_mask(image.levels[0].window))
    assert not mask[:100, :50].any().compute(scheduler="threads")


def indices(size):
    ends = st.none() | st.integers(-size - 2, size + 2)
    steps = st.none() | st.integers(-3, 3).filter(bool)
    return st.integers(-size, size - 1) | st.builds(slice, ends, ends, steps)


@given(st.tuples(indices(13), indices(17), indices(2)), st.integers(1, 3))
def test_slices_as_numpy_does(index, given_axes):
    pixels = place(13, 17)
    image = MemoryImage([pixels])
    index = index[:given_axes]
    np.testing.assert_array_equal(LevelPixels(image=image, level=0)[index], pixels[index])
    np.testing.assert_array_equal(LevelMask(image=image, level=0)[index[:2]], np.ones((13, 17), np.bool_)[index[:2]])


def test_dask_slices_and_arithmetic(image):
    pixels = image.read(image.levels[0].window)
    array = lazy(image, tiles=2)
    np.testing.assert_array_equal(array[5:600:7, 3, ::-1].compute(scheduler="threads"), pixels[5:600:7, 3, ::-1])
    np.testing.assert_array_equal(array[:, [1, 800, 2]].compute(scheduler="threads"), pixels[:, [1, 800, 2]])
    coarse = da.coarsen(np.mean, array, {0: 7, 1: 9}).compute(scheduler="threads")
    np.testing.assert_allclose(coarse, pixels.reshape(100, 7, 100, 9, 2).mean(axis=(1, 3)))


@given(
    height=st.integers(1, 200_000),
    width=st.integers(1, 200_000),
    tile_height=st.sampled_from([1, 7, 240, 256, 512, 4096, 10**6]),
    tile_width=st.sampled_from([64, 240, 256, 512, 4096, 10**6]),
    pixel_bytes=st.sampled_from([1, 3, 26, 64]),
    tiles=st.integers(1, 64),
)
def test_chunks_are_whole_tiles_of_a_bearable_size(height, width, tile_height, tile_width, pixel_bytes, tiles):
    level = level_of(height, width, tile_height, tile_width)
    rows, columns = chunk_of(level, pixel_bytes, tiles)
    assert rows == height or (rows < height and rows % level.tile_height == 0)
    assert columns == width or (columns < width and columns % level.tile_width == 0)
    size = rows * columns * pixel_bytes
    assert size <= 64 << 20 or (rows, columns) == (level.tile_height, level.tile_width)
    assert size >= 1 << 20 or (rows, columns) == (height, width)


def test_chunks_are_as_asked_within_the_bounds():
    assert chunk_of(level_of(100_000, 100_000, 240, 256), 3, 8) == (1920, 2048)
    assert chunk_of(level_of(100_000, 100_000, 1, 100_000), 3, 8) == (8, 100_000)
    with pytest.raises(ValueError, match="tiles=0"):
        chunk_of(level_of(10, 10, 10, 10), 1, 0)


def test_a_million_chunks_are_two_layers_and_a_few_kilobytes(vast_image):
    array = lazy(vast_image, tiles=1)
    assert array.npartitions == 1 << 20
    assert len(array.dask.layers) == 2
    assert not any(layer.is_materialized() for name, layer in array.dask.layers.items() if not name.startswith("original-"))
    assert len(pickle.dumps(array)) < 100_000
    assert (array[-3:, -3:].compute(scheduler="synchronous") == 7).all()


def test_names_follow_the_pixels(image):
    again = MemoryImage([place(700, 900), place(350, 450)], tile=64)
    assert lazy(image).name == lazy(again).name
    assert tokenize(LevelPixels(image=image, level=0)) == tokenize(LevelPixels(image=again, level=0))
    other = MemoryImage([place(700, 900) + 1, place(350, 450)], tile=64)
    names = [lazy(image).name, lazy(image, 1).name, lazy(image, tiles=16).name, lazy_mask(image).name, lazy(other).name]
    assert len(set(names)) == len(names)


def test_on_processes(real_image):
    array = lazy(real_image, tiles=1)
    values = array.max(axis=(0, 1)).compute(scheduler="processes", num_workers=1)
    np.testing.assert_array_equal(values, real_image.read(real_image.levels[0].window).max(axis=(0, 1)))


def test_on_a_distributed_cluster(real_image):
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster,
        distributed.Client(cluster),
    ):
        array = lazy(real_image, 1, tiles=1)
        np.testing.assert_array_equal(array.compute(), real_image.read(real_image.levels[1].window, level=1))
