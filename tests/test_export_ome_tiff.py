"""Maps as pyramidal OME-TIFFs: values, names, pixel sizes, and every level what halving the finer one gives."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from patchdrive.models import load_model
from patchdrive.models.types import ModelSpec, OutputSpec
from patchdrive.pipeline import RunSettings, open_result, run
from patchdrive.pipeline.export import export
from patchdrive.pipeline.glance import traits_of
from patchdrive.pipeline.pyramid import halve, level_sizes
from patchdrive.readers import MemoryImage, open_image


def twin(plane, kind):
    """Pixel by pixel."""
    height, width = plane.shape
    out = np.zeros((-(-height // 2), -(-width // 2)), plane.dtype)
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            four = [float(plane[min(2 * y + dy, height - 1), min(2 * x + dx, width - 1)]) for dy in (0, 1) for dx in (0, 1)]
            if kind == "label":
                out[y, x] = four[0]
                continue
            known = [value for value in four if kind != "probability" or value != 255]
            mean = sum(known) / len(known) if known else 255.0
            out[y, x] = np.rint(mean) if plane.dtype.kind in "iu" else mean
    return out


@given(
    arrays(np.uint8, st.tuples(st.integers(1, 7), st.integers(1, 7)), elements=st.sampled_from([0, 1, 2, 100, 253, 254, 255])),
    st.sampled_from(["probability", "label", "image"]),
)
def test_halving_equals_its_twin(plane, kind):
    wanted = twin(plane, kind)
    np.testing.assert_array_equal(halve(plane, kind), wanted)
    np.testing.assert_array_equal(halve(np.stack([plane, plane[::-1]]), kind)[0], wanted)


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.float32])
def test_an_image_keeps_its_dtype(dtype):
    plane = (np.random.default_rng(0).random((9, 12)) * 1000).astype(dtype)
    np.testing.assert_allclose(halve(plane, "image"), twin(plane, "image"), rtol=1e-6)
    assert halve(plane, "image").dtype == dtype


def test_sizes_of_levels():
    assert level_sizes(2000, 700) == [(2000, 700), (1000, 350), (500, 175)]
    assert level_sizes(512, 3) == [(512, 3)]
    assert level_sizes(1, 513) == [(1, 513), (1, 257)]


class Classes:
    """Dark, or bright."""

    digest = "classes"
    spec = ModelSpec(
        name="light", channels=3, size=128, any_size=True, outputs=(OutputSpec(name="light", kind="classes", channels=("dark", "bright")),)
    )

    def __call__(self, pixels):
        bright = pixels[:, :1] / 255
        return {"light": torch.cat([1 - bright, bright], dim=1)}

    def to(self, device):
        return self


def slide():
    """(1500, 1230, 3) at 0.25 µm, nothing valid in the first 100 rows, a mark at row 1401, column 1111."""
    pixels = np.random.default_rng(0).integers(1, 120, (1500, 1230, 3)).astype(np.uint8)
    pixels[:100] = 0
    pixels[1401, 1111] = 250
    return MemoryImage([pixels], nodata=0.0, mpp=(0.25, 0.25))


@pytest.mark.parametrize("model", [None, Classes()], ids=["image", "classes"])
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
        finer = view.array[:].reshape(-1, view.height, view.width)
        assert len(levels) == len(level_sizes(view.height, view.width))
        for level in levels:
            np.testing.assert_array_equal(level, finer)
            finer = halve(finer, view.kind)
        with closing(open_image(str(path))) as opened:
            assert opened.mpp == pytest.approx([0.25 * down for down in view.downsample])
            if view.kind != "label" and len(view.channels) == 3:
                assert opened.channels == view.channels


def test_a_mark_is_where_it_was(tmp_path):
    image = slide()
    run(image, Classes(), tmp_path / "s.zarr", settings=RunSettings(saliency="valid", overlap=0))
    export(tmp_path / "s.zarr", "ome-tiff", tmp_path / "out")
    (path,) = (tmp_path / "out").glob("*_light.ome.tif")
    label = tifffile.imread(path)
    assert (label[1401, 1111], label[1401, 1112], label[0, 0]) == (1, 0, 255)
