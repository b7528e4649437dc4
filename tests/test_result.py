"""What a run left, opened again. Pixel values encode their place, so a shift or a swap of axes names itself."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
import zarr

from patchdrive.models.config import PatchDriveNetConfig
from patchdrive.models.identity import Identity
from patchdrive.models.model import patchdrivenet
from patchdrive.models.types import ImageTraits, ModelSpec, OutputSpec
from patchdrive.pipeline.map_view import open_map
from patchdrive.pipeline.result import open_result
from patchdrive.pipeline.run import Nobody, run
from patchdrive.pipeline.settings import RunSettings
from patchdrive.readers import MemoryImage, Window
from patchdrive.readers.errors import StoreError

SETTINGS = RunSettings(patch_size=64, overlap=0, saliency="valid", batch_size=8, workers=1, memory=1 << 30)
SMALL = RunSettings(patch_size=16, overlap=0, saliency="valid", batch_size=64, workers=1, memory=1 << 30)


def place(height, width):
    """(height, width, 3) uint8: red = x mod 251, green = y mod 241, blue = 7."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x % 251, y % 241, np.full_like(x, 7)], axis=2).astype(np.uint8)


def scene(height=300, width=420):
    """A place picture with a hole of nodata."""
    pixels = place(height, width)
    pixels[40:200, 60:240] = 0
    return MemoryImage([pixels], nodata=0.0, mpp=(0.5, 0.5))


class Means:
    """A PatchModel: the mean of each channel."""

    spec = ModelSpec(
        name="means", channels=3, size=64, any_size=True, outputs=(OutputSpec(name="mean", kind="vector", channels=("r", "g", "b")),)
    )
    digest = "means"

    def __call__(self, pixels):
        return {"mean": pixels.mean(dim=(2, 3))}

    def to(self, _device):
        return self


class Thirds(Means):
    """A PatchModel: three classes by red, at stride 8."""

    spec = ModelSpec(
        name="thirds",
        channels=3,
        size=64,
        any_size=True,
        outputs=(
            OutputSpec(name="third", kind="classes", channels=("left", "middle", "right"), colors=("FF0000", "00FF00", "0000FF"), stride=8),
        ),
    )

    def __call__(self, pixels):
        red = torch.nn.functional.avg_pool2d(pixels[:, :1], 8) / 84
        near = torch.cat([(red.floor() == index).float() for index in range(3)], dim=1)
        return {"third": near * 0.7 + 0.1}


class Impatient(Nobody):
    """Stops after the first block."""

    def wants_stop(self):
        return True


@pytest.fixture(scope="module")
def means(tmp_path_factory):
    store = tmp_path_factory.mktemp("means") / "a.zarr"
    run(scene(), Means(), store, settings=SETTINGS)
    return store


@pytest.fixture(scope="module")
def thirds(tmp_path_factory):
    store = tmp_path_factory.mktemp("thirds") / "b.zarr"
    run(scene(), Thirds(), store, settings=SETTINGS)
    return store


@pytest.fixture(scope="module")
def driven(tmp_path_factory):
    store = tmp_path_factory.mktemp("driven") / "c.zarr"
    pixels = np.random.default_rng(0).integers(0, 255, (384, 512, 3)).astype(np.uint8)
    run(
        MemoryImage([pixels], mpp=(0.5, 0.5)),
        patchdrivenet(PatchDriveNetConfig(threshold=0.02)),
        store,
        settings=RunSettings(max_patches=9),
    )
    return store


def test_features_lie_where_the_patches_say(means):
    result = open_result(means)
    patches, features = result.patches, result.features
    assert len(patches) == len(features) > 10
    assert set(patches.state) == {"done"}
    image = scene()
    for row in range(len(patches)):
        y, x = int(patches.y[row]), int(patches.x[row])
        inside = Window(y=y, x=x, height=64, width=64).intersect(image.levels[0].window)
        pixels = np.zeros((64, 64, 3))
        pixels[: inside.height, : inside.width] = image.read(inside)
        np.testing.assert_allclose(features[row], pixels.mean(axis=(0, 1)), atol=1e-3)
        np.testing.assert_array_equal(patches.centres[row], (y + 32, x + 32))
    assert set(patches.side) == {64}
    np.testing.assert_array_equal(np.sort(patches.rank), np.arange(len(patches)))


def test_the_table_says_the_same_as_the_state_folder(means):
    result = open_result(means)
    codes = zarr.open_array(store=means / "tables" / "means_round0" / "obs" / "state" / "codes", mode="r")[:]
    np.testing.assert_array_equal(codes, result.rounds[0].codes)


def test_a_partial_run_shows_what_is_there(tmp_path):
    image = MemoryImage([place(16 * 40, 16 * 40)])
    run(image, Means(), tmp_path / "p.zarr", settings=SMALL, watcher=Impatient())
    result = open_result(tmp_path / "p.zarr")
    assert result.report is None
    assert dict(zip(*np.unique(result.patches.state, return_counts=True), strict=True)) == {"done": 1024, "planned": 576}
    np.testing.assert_array_equal(np.isnan(result.features).all(axis=1), result.patches.state == "planned")
    run(image, Means(), tmp_path / "p.zarr", settings=SMALL)
    assert set(open_result(tmp_path / "p.zarr").patches.state) == {"done"}


def test_an_image_map_is_the_image_where_it_is_valid(tmp_path):
    image = scene()
    run(image, Identity(ImageTraits()), tmp_path / "i.zarr", settings=SETTINGS)
    view = open_result(tmp_path / "i.zarr").maps["image"]
    assert (view.kind, view.channels, view.downsample, view.translation) == ("image", ("red", "green", "blue"), (1.0, 1.0), (0.0, 0.0))
    window = Window(y=30, x=50, height=100, width=200)
    values = view.values(window)
    mask = image.read_mask(window)
    np.testing.assert_array_equal(~np.ma.getmaskarray(values)[0], mask)
    np.testing.assert_array_equal(values.data[:, mask], image.read(window).transpose(2, 0, 1)[:, mask])


def test_a_label_map_is_masked_where_nothing_was_named(thirds):
    view = open_result(thirds).maps["third"]
    assert (view.kind, view.channels, view.colors) == ("label", ("left", "middle", "right"), ("FF0000", "00FF00", "0000FF"))
    assert view.array.shape == (38, 53)
    np.testing.assert_allclose(view.downsample, 8.0)
    np.testing.assert_allclose(view.translation, 3.5)
    values = view.values()
    np.testing.assert_array_equal(values[0, :30], (np.arange(30) * 8 + 3.5) // 84)
    assert np.ma.getmaskarray(values)[8:24, 9:29].all()
    assert not np.ma.getmaskarray(values)[0].any()


def test_a_probability_map_is_nan_where_there_is_none(thirds):
    result = open_result(thirds)
    values = result.maps["third_probability"].values()
    named = ~np.ma.getmaskarray(result.maps["third"].values())
    np.testing.assert_array_equal(np.isfinite(values[0]), named)
    assert values.dtype == np.float32
    assert abs(float(values[0, 0, 3]) - 0.8) <= 1 / 254
    assert result.features is None


def test_values_of_a_window_are_those_of_the_whole(thirds):
    view = open_result(thirds).maps["third"]
    window = Window(y=3, x=7, height=11, width=20)
    np.testing.assert_array_equal(view.values(window), view.values()[3:14, 7:27])
    with pytest.raises(StoreError, match="overhang"):
        view.values(Window(y=30, x=0, height=20, width=10))


def test_windows_tile_a_map_once(tmp_path):
    run(MemoryImage([place(700, 1100)]), Identity(ImageTraits()), tmp_path / "i.zarr", settings=SETTINGS)
    view = open_result(tmp_path / "i.zarr").maps["image"]
    seen = np.zeros((view.height, view.width), int)
    windows = list(view.windows(most=1))
    for window in windows:
        seen[window.within(Window(y=0, x=0, height=view.height, width=view.width))] += 1
    assert len(windows) == 6
    assert (seen == 1).all()


def test_what_a_drive_returned_is_there(driven):
    result = open_result(driven)
    assert abs(sum(result.answers["class"].values()) - 1) < 1e-5
    found = result.objects["objects"]
    assert found.yx.shape == (len(found), 2)
    assert ((found.yx >= 0) & (found.yx <= result.size)).all()
    assert set(result.maps) == {"detection"}
    assert len(result.patches) == len(result.features) == result.report["planned"] == 9
    assert result.saliency.kind == "probability"


def test_opening_reads_no_array(means, tmp_path):
    copy = tmp_path / means.name
    shutil.copytree(means, copy)
    for chunk in copy.rglob("c"):
        if chunk.is_dir():
            shutil.rmtree(chunk)
    result = open_result(copy)
    assert result.size == (300, 420)
    assert result.mpp == (0.5, 0.5)
    assert set(result.maps) == set()
    assert result.thumbnail.shape[2] == 3


def test_a_store_without_its_state_keeps_its_features(means, tmp_path):
    copy = tmp_path / means.name
    shutil.copytree(means, copy)
    result = open_result(copy)
    np.testing.assert_array_equal(result.features, open_result(means).features)
    with pytest.raises(StoreError, match=r"a\.patchdrive beside it"):
        _ = result.patches


def test_what_is_no_store_is_refused_with_the_way_out(tmp_path, means):
    with pytest.raises(StoreError, match="not there"):
        open_result(tmp_path / "none.zarr")
    with pytest.raises(StoreError, match="no Zarr group"):
        open_result(tmp_path)
    zarr.create_group(tmp_path / "other.zarr")
    with pytest.raises(StoreError, match="no patchdrive store"):
        open_result(tmp_path / "other.zarr")
    newer = tmp_path / "newer.zarr"
    shutil.copytree(means, newer)
    document = json.loads((newer / "zarr.json").read_text())
    document["attributes"]["patchdrive"]["schema"] = 99
    (newer / "zarr.json").write_text(json.dumps(document))
    with pytest.raises(StoreError, match="layout 99"):
        open_result(newer)
    with pytest.raises(StoreError, match="no map"):
        open_map(means / "images" / "nothing")
