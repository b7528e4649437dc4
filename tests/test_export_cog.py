"""Maps of scenes as GeoTIFFs: values, place, nodata, names and overviews, read back by rasterio."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from rasterio.transform import rowcol

from patchdrive.models import load_model
from patchdrive.models.types import ModelSpec, OutputSpec
from patchdrive.pipeline import RunSettings, open_result, run
from patchdrive.pipeline.export import export
from patchdrive.pipeline.glance import traits_of
from patchdrive.readers import MemoryImage, open_image
from patchdrive.readers.errors import StoreError

PLACE = Affine(10.0, 0.0, 500000.0, 0.0, -10.0, 5000000.0)
ROTATED = Affine.translation(500000.0, 5000000.0) * Affine.rotation(30) * Affine.scale(10.0, -10.0)


def scene(folder, *, transform=PLACE, crs="EPSG:32633"):
    """A scene of 1300 x 1700 with nothing in its first 200 columns, and one bright pixel at row 777, column 888."""
    pixels = np.random.default_rng(0).integers(100, 4000, (3, 1300, 1700)).astype(np.uint16)
    pixels[:, :, :200] = 0
    pixels[:, 777, 888] = 60000
    path = folder / "scene.tif"
    about = {"driver": "GTiff", "height": 1300, "width": 1700, "count": 3, "dtype": "uint16", "nodata": 0, "tiled": True, "crs": crs}
    with rasterio.open(path, "w", **about, transform=transform) as dataset:
        dataset.write(pixels)
    return path


class Classes:
    """A segmenter of two classes: bright or not."""

    digest = "classes"
    spec = ModelSpec(
        name="light",
        channels=3,
        size=256,
        any_size=True,
        outputs=(OutputSpec(name="light", kind="classes", channels=("dark", "bright"), colors=("102030", "FFEE00")),),
    )

    def __call__(self, pixels):
        bright = (pixels[:, :1] > 50000).float() * 0.8 + 0.1
        return {"light": torch.cat([1 - bright, bright], dim=1)}

    def to(self, device):
        return self


def exported(folder, model=None, **place):
    """Paths by map name, and the store they were made of."""
    with closing(open_image(str(scene(folder, **place)))) as image:
        run(image, model or load_model("identity", traits_of(image)), folder / "scene.zarr", settings=RunSettings(overlap=0))
    written = export(folder / "scene.zarr", "cog", folder / "cog")
    return {path.stem.removeprefix("scene_"): path for path in written}, open_result(folder / "scene.zarr")


@pytest.mark.parametrize("place", [{}, {"transform": ROTATED}, {"crs": None}], ids=["north up", "rotated", "no CRS"])
def test_an_image_has_its_values_its_mask_and_its_place(tmp_path, place):
    paths, result = exported(tmp_path, **place)
    assert set(paths) == {"saliency", "image"}
    with rasterio.open(paths["image"]) as dataset:
        held, wanted = dataset.read(masked=True), result.maps["image"].values()
        np.testing.assert_array_equal(held.data[~wanted.mask], wanted.data[~wanted.mask])
        np.testing.assert_array_equal(held.mask, wanted.mask)
        assert held.mask[:, :, :200].all()
        assert not held.mask[:, :, 200:].any()
        transform = place.get("transform", PLACE)
        assert dataset.transform.almost_equals(transform)
        assert (None if dataset.crs is None else dataset.crs.to_epsg()) == (None if "crs" in place else 32633)
        x, y = transform * (888.5, 777.5)  # the middle of the bright pixel
        assert (held[:, *rowcol(dataset.transform, x, y)] == 60000).all()
        assert dataset.descriptions == tuple(result.maps["image"].channels)


def test_labels_and_probabilities_keep_their_meaning(tmp_path):
    paths, result = exported(tmp_path, Classes())
    assert set(paths) == {"saliency", "light", "light_probability"}
    with rasterio.open(paths["light"]) as dataset:
        label = dataset.read(1)
        np.testing.assert_array_equal(label, result.maps["light"].array[:])
        assert (label[777, 888], label[777, 889], label[0, 0], dataset.nodata) == (1, 0, 255, 255)
        assert [dataset.colormap(1)[value] for value in (0, 1)] == [(0x10, 0x20, 0x30, 255), (0xFF, 0xEE, 0x00, 255)]
        assert {key: value for key, value in dataset.tags(1).items() if key.startswith("class_")} == {
            "class_0": "dark",
            "class_1": "bright",
        }
        coarse = dataset.read(1, out_shape=(325, 425))
        assert set(np.unique(coarse)) <= {0, 1, 255}
    with rasterio.open(paths["light_probability"]) as dataset:
        (scale,) = dataset.scales
        held = np.where(dataset.read_masks(1) > 0, dataset.read(1) * scale, np.nan)
        np.testing.assert_allclose(held, result.maps["light_probability"].values()[0], atol=1e-6)


def test_files_are_cloud_optimised_and_nothing_else_is_left(tmp_path):
    paths, _ = exported(tmp_path)
    with rasterio.open(paths["image"]) as dataset:
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert dataset.overviews(1) == [2, 4]
        assert dataset.block_shapes[0] == (512, 512)
    assert sorted((tmp_path / "cog").iterdir()) == sorted(paths.values())


def test_a_slide_is_refused(tmp_path):
    image = MemoryImage([np.ones((300, 300, 3), np.uint8)], mpp=(0.5, 0.5))
    run(image, load_model("identity", traits_of(image)), tmp_path / "s.zarr", settings=RunSettings(saliency="valid"))
    with pytest.raises(StoreError, match="without a place on a map"):
        export(tmp_path / "s.zarr", "cog", tmp_path / "cog")
    assert not (tmp_path / "cog").exists()
