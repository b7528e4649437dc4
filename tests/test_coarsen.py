"""Coarser levels of maps: what they hold, where they lie, and that a kill or a second process changes nothing."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import zarr
from affine import Affine
from examples import Light
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pyproj import CRS

from patchdrive.models import load_model
from patchdrive.pipeline import RunSettings, open_result, run
from patchdrive.pipeline import coarsen as coarsening
from patchdrive.pipeline.coarsen import bands_of
from patchdrive.pipeline.glance import traits_of
from patchdrive.pipeline.pyramid import halve
from patchdrive.readers import MemoryImage


def twin(plane, reduction, none=None, valid=None):
    """Pixel by pixel."""
    height, width = plane.shape
    out = np.zeros((-(-height // 2), -(-width // 2)), plane.dtype)
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            places = [(min(2 * y + dy, height - 1), min(2 * x + dx, width - 1)) for dy in (0, 1) for dx in (0, 1)]
            four = [float(plane[place]) for place in places]
            if reduction == "nearest":
                out[y, x] = four[0]
            elif reduction == "max":
                out[y, x] = max(four)
            else:
                there = [value for value, place in zip(four, places, strict=True) if value != none and (valid is None or valid[place])]
                mean = sum(there) / len(there) if there else none or 0
                out[y, x] = np.rint(mean) if plane.dtype.kind in "iu" else mean
    return out


planes = arrays(np.uint8, st.tuples(st.integers(1, 7), st.integers(1, 7)), elements=st.sampled_from([0, 1, 2, 100, 253, 254, 255]))


@given(planes, st.sampled_from(["mean", "nearest", "max"]), st.sampled_from([None, 255, 0]))
def test_halving_equals_its_twin(plane, reduction, none):
    wanted = twin(plane, reduction, none)
    np.testing.assert_array_equal(halve(plane, reduction, none=none), wanted)
    np.testing.assert_array_equal(halve(np.stack([plane, plane[::-1]]), reduction, none=none)[0], wanted)


@given(planes)
def test_what_is_not_valid_is_left_out_of_the_mean(plane):
    valid = plane % 2 == 0
    np.testing.assert_array_equal(halve(plane[None], "mean", valid=valid)[0], twin(plane, "mean", valid=valid))


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32, np.float32])
def test_an_image_keeps_its_dtype(dtype):
    plane = (np.random.default_rng(0).random((9, 12)) * 1000).astype(dtype)
    np.testing.assert_allclose(halve(plane, "mean"), twin(plane, "mean"), rtol=1e-6)
    assert halve(plane, "mean").dtype == dtype


def scene(*, mpp=None):
    """(1300, 1030, 3): noise, nothing valid in the first 101 rows."""
    pixels = np.random.default_rng(0).integers(1, 255, (1300, 1030, 3)).astype(np.uint8)
    pixels[:101] = 0
    place = {"mpp": mpp} if mpp else {"transform": Affine(10, 0, 5e5, 0, -10, 5e6), "crs": CRS.from_epsg(32633)}
    return MemoryImage([pixels], nodata=0.0, **place)


def model_of(name, image):
    return Light() if name == "classes" else load_model("identity", traits_of(image))


def make(folder, name="classes", image=None, **options):
    image = image or scene()
    run(image, model_of(name, image), folder / "s.zarr", settings=RunSettings(saliency="valid", overlap=0), **options)
    return open_result(folder / "s.zarr")


def tree(root):
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def small_bands(monkeypatch):
    """Many bands of a small map, each of several squares and strips."""
    monkeypatch.setattr(coarsening, "COARSE", 256)
    monkeypatch.setattr("patchdrive.pipeline.map_arrays.COARSE", 128)
    monkeypatch.setattr(coarsening, "_ROWS", 100)


@pytest.mark.parametrize("name", ["identity", "classes"])
@pytest.mark.parametrize("mpp", [None, (0.5, 0.25)], ids=["scene", "slide"])
def test_every_level_is_half_the_finer_one(tmp_path, name, mpp, small_bands):
    result = make(tmp_path, name, scene(mpp=mpp))
    views = [*result.maps.values(), result.saliency, result.thumbnail_map]
    assert max(len(view.coarser) for view in views) == 2
    for view in views:
        finer = view.array[:]
        valid = view.validity.array[:] == 1 if view.validity is not None else None
        for level in view.coarser:
            reduction = "mean" if view.path.parent.name == "images" else "max" if view.name.endswith("_valid") else "nearest"
            none = 255 if view.kind in {"probability", "label"} and not view.name.endswith("_valid") else None
            wanted = halve(finer, reduction, none=none, valid=valid)
            np.testing.assert_array_equal(level[:], wanted)
            assert len(np.unique(wanted)) > 1
            finer, valid = wanted, None if valid is None else halve(valid, "max")


def test_every_level_says_where_it_lies(tmp_path):
    result = make(tmp_path)
    group = zarr.open_group(result.maps["light"].path, mode="r")
    ome, layout = group.attrs["ome"]["multiscales"][0], group.attrs["multiscales"]["layout"]
    assert ome["type"] == "nearest"
    for index, (dataset, entry) in enumerate(zip(ome["datasets"], layout, strict=True)):
        side, level = 2**index, group[str(index)]
        scale, shift = dataset["coordinateTransformations"]
        assert (dataset["path"], scale["scale"], shift["translation"]) == (f"{index}/map", [side, side], [(side - 1) / 2, (side - 1) / 2])
        assert entry["asset"] == str(index)
        assert entry.get("derived_from") == (str(index - 1) if index else None)
        assert entry["spatial:transform"] == level["map"].attrs["spatial:transform"] == [10 * side, 0, 5e5, 0, -10 * side, 5e6]
        assert tuple(entry["spatial:shape"]) == level["map"].shape
        assert level["x"][0] == 5e5 + 5 * side
        assert level["y"][0] == 5e6 - 5 * side


def test_a_stop_and_a_kill_cost_a_band_and_change_no_byte(tmp_path, small_bands, monkeypatch):
    make(tmp_path / "whole")
    bands = bands_of(tmp_path / "whole" / "s.zarr", [])
    assert len(bands) > 8

    class Stop:
        asked = 0

        def began(self, rows, left): ...
        def committed(self, rows): ...

        def wants_stop(self):
            records = len(list((tmp_path / "cut" / "s.patchdrive").glob("coarse/*/*/*.json")))
            return records >= 3

    report = run(scene(), Light(), tmp_path / "cut" / "s.zarr", settings=RunSettings(saliency="valid", overlap=0), watcher=Stop())
    assert report.status == "partial"
    assert len(list((tmp_path / "cut" / "s.patchdrive").glob("coarse/*/*/*.json"))) == 3

    halved = []

    def dies(*arguments, **options):
        halved.append(1)
        if len(halved) == 20:
            raise KeyboardInterrupt
        return halve(*arguments, **options)

    monkeypatch.setattr(coarsening, "halve", dies)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "cut")
    monkeypatch.setattr(coarsening, "halve", halve)
    make(tmp_path / "cut")
    assert tree(tmp_path / "cut" / "s.zarr") == tree(tmp_path / "whole" / "s.zarr")


def test_what_no_record_names_is_in_the_contents_and_the_bands_are_not(tmp_path):
    result = make(tmp_path)
    contents = json.loads((tmp_path / "s.patchdrive" / "contents.json").read_text())
    chunks = {name for name in tree(result.path) if "/map/c/" in name and "light" in name}
    assert chunks
    assert not chunks & contents.keys()


def test_channels_called_red_green_and_blue_are_shown_so(tmp_path):
    assert make(tmp_path, "identity", scene(mpp=(0.5, 0.5))).maps["image"].colors == ("FF0000", "00FF00", "0000FF")
