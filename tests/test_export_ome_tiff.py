"""Maps as pyramidal OME-TIFFs: values, names, pixel sizes and levels as stored."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
import tifffile
from examples import Light

from patchdrive.models import load_model
from patchdrive.pipeline import RunSettings, open_result, run
from patchdrive.pipeline.export import export
from patchdrive.pipeline.glance import traits_of
from patchdrive.readers import MemoryImage, open_image


def slide():
    """(1500, 1230, 3) at 0.25 µm, nothing valid in the first 100 rows, a mark at row 1401, column 1111."""
    pixels = np.random.default_rng(0).integers(1, 120, (1500, 1230, 3)).astype(np.uint8)
    pixels[:100] = 0
    pixels[1401, 1111] = 250
    return MemoryImage([pixels], nodata=0.0, mpp=(0.25, 0.25))


@pytest.mark.parametrize("model", [None, Light()], ids=["image", "classes"])
def test_levels_names_and_pixel_sizes_are_read_back(tmp_path, model):
    image = slide()
    run(image, model or load_model("identity", traits_of(image)), tmp_path / "s.zarr", settings=RunSettings(saliency="valid", overlap=0))
    result = open_result(tmp_path / "s.zarr")
    written = export(tmp_path / "s.zarr", "ome-tiff", tmp_path / "out")
    assert sorted((tmp_path / "out").iterdir()) == sorted(written)
    for path in written:
        name = path.name.removesuffix(".ome.tif").partition("_")[2]
        view = result.maps.get(name, result.saliency)
        with tifffile.TiffFile(path) as file:
            assert file.is_ome
            levels = [level.asarray().reshape(-1, *level.shape[-2:]) for level in file.series[0].levels]
        assert len(levels) == 1 + len(view.coarser)
        for level, stored in zip(levels, (view.array, *view.coarser), strict=True):
            np.testing.assert_array_equal(level, stored[:].reshape(level.shape))
        with closing(open_image(str(path))) as opened:
            assert opened.mpp == pytest.approx([0.25 * down for down in view.downsample])
            if view.kind != "label" and len(view.channels) == 3:
                assert opened.channels == view.channels


def test_a_mark_is_where_it_was(tmp_path):
    image = slide()
    run(image, Light(), tmp_path / "s.zarr", settings=RunSettings(saliency="valid", overlap=0))
    export(tmp_path / "s.zarr", "ome-tiff", tmp_path / "out")
    (path,) = (tmp_path / "out").glob("*_light.ome.tif")
    label = tifffile.imread(path)
    assert (label[1401, 1111], label[1401, 1112], label[0, 0]) == (1, 0, 255)
