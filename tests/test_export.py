"""Exports, read back by the keys that their consumers document; and the same pixels under the same coordinates."""

from __future__ import annotations

import shutil
import subprocess
import sys
from contextlib import closing
from dataclasses import replace

import anndata
import h5py
import numpy as np
import pytest
import tifffile
import torch

from patchdrive.models import load_model
from patchdrive.models.config import PatchDriveNetConfig
from patchdrive.models.model import patchdrivenet
from patchdrive.models.types import ModelSpec, OutputSpec
from patchdrive.pipeline import RunSettings, open_result, run
from patchdrive.pipeline.cli import main
from patchdrive.pipeline.coords import read_coords
from patchdrive.pipeline.export import export
from patchdrive.pipeline.glance import traits_of
from patchdrive.pipeline.verify import verify
from patchdrive.readers import MemoryImage, open_image
from patchdrive.readers.errors import SettingsError, StoreError


class Means:
    """The mean of each channel of a patch, in stored values; `gain` times as large."""

    def __init__(self, dtype="float32", gain=1.0):
        columns = OutputSpec(name="means", kind="vector", channels=("r", "g", "b"), dtype=dtype)
        self.spec = ModelSpec(name="means", channels=3, size=64, any_size=True, outputs=(columns,))
        self.digest, self._gain = f"means {dtype} {gain}", gain

    def __call__(self, pixels):
        return {"means": pixels.double().mean(dim=(2, 3)).float() * self._gain}

    def to(self, device):
        return self


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    """A tiled slide at 0.25 µm, noise in the middle of white, and its path."""
    path = tmp_path_factory.mktemp("slide") / "case.7 HE.tif"
    pixels = np.full((3000, 2600, 3), 244, np.uint8)
    pixels[400:2400, 300:2200] = np.random.default_rng(0).integers(60, 180, (2000, 1900, 3))
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb", resolution=(40000, 40000), resolutionunit="CENTIMETER")
    return path


@pytest.fixture(scope="module")
def store(slide, tmp_path_factory):
    """Features of patches of 64 pixels at 0.5 µm that overlap by 16; a row near the end skipped for nothing valid."""
    path = tmp_path_factory.mktemp("store") / "case.zarr"
    with closing(open_image(str(slide))) as image:
        report = run(image, Means(), path, settings=RunSettings(mpp=0.5, overlap=16))
    assert report.done == report.planned > 300
    return path


def mean_at(slide, x, y, side):
    """Of the level-0 pixels, by tifffile; as stored numbers."""
    return tifffile.imread(slide)[y : y + side, x : x + side].reshape(-1, 3).mean(axis=0)


class TestTrident:
    def test_files_are_where_its_loaders_look(self, store, tmp_path):
        written = export(store, "trident", tmp_path)
        job = tmp_path / "20x_64px_16px_overlap"
        assert written == [job / "patches" / "case.7 HE_patches.h5", job / "features_means" / "case.7 HE.h5"]
        assert all(path.is_file() for path in written)
        assert not [path for path in tmp_path.rglob("*") if ".partial" in path.name or path.name.startswith(".draft-")]

    def test_features_lie_on_the_pixels_that_coords_name(self, slide, store, tmp_path):
        patches, features = export(store, "trident", tmp_path)
        with h5py.File(features) as file:
            coords, values, about = file["coords"][:], file["features"][:], dict(file["coords"].attrs)
            assert file["features"].chunks == (min(1024, len(values)), 3)
            assert (file["features"].attrs["encoder"], file["features"].attrs["name"]) == ("means", "case.7 HE")
        assert (coords.dtype, values.dtype) == (np.int64, np.float32)
        assert len(coords) == len(values) == open_result(store).report["done"]
        for row in (0, len(coords) // 2, len(coords) - 1):
            x, y = coords[row]
            if x + about["patch_size_level0"] <= 2600 and y + about["patch_size_level0"] <= 3000:
                np.testing.assert_allclose(values[row], mean_at(slide, x, y, about["patch_size_level0"]), atol=0.01)
        assert {key: about[key] for key in ("patch_size", "patch_size_level0", "overlap", "level0_width", "level0_height")} == {
            "patch_size": 64, "patch_size_level0": 128, "overlap": 16, "level0_width": 2600, "level0_height": 3000,
        }  # fmt: skip
        assert (about["level0_magnification"], about["target_magnification"], about["mpp"]) == (40, 20, pytest.approx(0.5))
        with h5py.File(patches) as file:
            np.testing.assert_array_equal(file["coords"][:], coords)
            assert file["coords"].attrs["name"] == "case.7 HE"


class TestClam:
    def test_both_files_hold_the_same_features(self, slide, store, tmp_path):
        h5, pt = export(store, "clam", tmp_path)
        assert (h5, pt) == (tmp_path / "means/h5_files/case.7 HE.h5", tmp_path / "means/pt_files/case.7 HE.pt")
        tensor = torch.load(pt, weights_only=True)
        with h5py.File(h5) as file:
            coords, about = file["coords"][:], dict(file["coords"].attrs)
            assert (file["features"].dtype, file["features"].chunks, coords.dtype) == (np.float32, (32, 3), np.int32)
            np.testing.assert_array_equal(file["features"][:], tensor.numpy())
        assert (about["patch_level"], about["patch_size"], about["name"]) == (0, 128, "case.7 HE")
        assert (about["level_dim"].tolist(), about["downsample"].tolist()) == ([2600, 3000], [1.0, 1.0])
        row = len(coords) // 3
        np.testing.assert_allclose(tensor[row], mean_at(slide, *coords[row], 128), atol=0.01)
        assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["case.7 HE.h5", "case.7 HE.pt"]


class TestStamp:
    def test_coordinates_are_micrometres_and_features_half_precision(self, slide, store, tmp_path):
        (path,) = export(store, "stamp", tmp_path)
        assert path == tmp_path / "means" / "case.7 HE.h5"
        with h5py.File(path) as file:
            coords, values, about = file["coords"][:], file["feats"][:], dict(file.attrs)
        assert (coords.dtype, values.dtype) == (np.float32, np.float16)
        assert about["stamp_version"] == "2.0.0"  # STAMP refuses files of a version newer than itself
        assert (about["unit"], about["tile_size_um"], about["tile_size_px"], about["feat_type"]) == ("um", pytest.approx(32.0), 64, "tile")
        row = len(coords) // 2
        x, y = np.rint(coords[row] / 0.25).astype(int)
        np.testing.assert_allclose(values[row], mean_at(slide, x, y, 128), atol=0.1)

    def test_a_feature_that_does_not_fit_is_refused_and_leaves_nothing(self, tmp_path):
        pixels = np.random.default_rng(0).integers(60, 180, (500, 500, 3)).astype(np.uint8)
        image = MemoryImage([pixels], mpp=(0.5, 0.5))
        run(image, Means(gain=1000.0), tmp_path / "s.zarr", settings=RunSettings(saliency="valid"))
        with pytest.raises(StoreError, match="does not fit float16"):
            export(tmp_path / "s.zarr", "stamp", tmp_path / "out")
        assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_rows_that_were_not_computed_are_left_out(tmp_path):
    pixels = np.random.default_rng(0).integers(60, 180, (600, 600, 3)).astype(np.uint8)
    pixels[128:320, 128:320] = 0
    coarse = np.full((75, 75, 3), 100, np.uint8)  # it knows nothing of the hole
    image = MemoryImage([pixels, coarse], nodata=0.0, mpp=(0.5, 0.5))
    report = run(image, Means(), tmp_path / "s.zarr", settings=RunSettings(saliency="test_export:everywhere"))
    assert report.skipped > 0
    _, features = export(tmp_path / "s.zarr", "trident", tmp_path / "out")
    with h5py.File(features) as file:
        assert len(file["features"]) == len(file["coords"]) == report.done
        assert np.isfinite(file["features"][:]).all()


def everywhere(pixels, mask):
    return np.ones(mask.shape, np.float32)


@pytest.mark.parametrize("form", ["trident", "clam", "stamp", "anndata", "geojson"])
def test_a_store_without_a_single_patch_is_exported_empty(tmp_path, form):
    image = MemoryImage([np.full((600, 600, 3), 244, np.uint8)], mpp=(0.5, 0.5))
    assert run(image, Means(), tmp_path / "s.zarr", settings=RunSettings()).planned == 0
    for path in export(tmp_path / "s.zarr", form, tmp_path / "out"):
        assert path.stat().st_size > 0
        if path.suffix == ".h5":
            with h5py.File(path) as file:
                assert {len(file[name]) for name in file} == {0}


def test_pixels_that_are_no_squares(tmp_path):
    pixels = np.random.default_rng(0).integers(60, 180, (640, 1280, 3)).astype(np.uint8)
    image = MemoryImage([pixels], mpp=(0.5, 0.25))
    run(image, Means(), tmp_path / "square.zarr", settings=RunSettings(saliency="valid", mpp=0.5))
    (path,) = export(tmp_path / "square.zarr", "stamp", tmp_path / "stamp")
    with h5py.File(path) as file:
        assert np.unique(file["coords"][:] / 32.0).tolist() == list(range(10))  # both axes: 320 µm in patches of 32
        assert file.attrs["tile_size_um"] == pytest.approx(32.0)
    for form in ("trident", "clam"):
        with pytest.raises(StoreError, match=r"0\.25 x 0\.5 µm, and this form knows square ones alone"):
            export(tmp_path / "square.zarr", form, tmp_path / "job")
    run(image, Means(), tmp_path / "oblong.zarr", settings=RunSettings(saliency="valid"))
    with pytest.raises(StoreError, match=r"16 x 32 µm, and this form knows squares alone"):
        export(tmp_path / "oblong.zarr", "stamp", tmp_path / "job")


def test_a_job_folder_holds_one_choice_of_patches(store, tmp_path):
    export(store, "trident", tmp_path)
    written = export(store, "trident", tmp_path)
    with h5py.File(written[0], "r+") as file:
        file["coords"][0] += 1
    with pytest.raises(StoreError, match="other patches of this slide"):
        export(store, "trident", tmp_path)


def test_an_export_that_is_ended_takes_its_drafts_away(store, tmp_path):
    script = f"""
import os, signal, sys
from patchdrive.pipeline import export_ome_tiff
from patchdrive.pipeline.cli import main
whole = export_ome_tiff._write
def ended(view, mpp, path, *, finished):
    whole(view, mpp, path, finished=finished)
    os.kill(os.getpid(), signal.SIGTERM)
export_ome_tiff._write = ended
sys.exit(main(["export", {str(store)!r}, "--to", "ome-tiff", "-o", {str(tmp_path)!r}]))
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 75
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_read_or_written_is_told_without_a_traceback(store, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["export", str(store), "--to", "geojson", "-o", str(tmp_path / "file")]) == 2
    assert "choose another folder" in capsys.readouterr().err
    copy = tmp_path / store.name
    shutil.copytree(store, copy)
    shutil.copytree(store.with_suffix(".patchdrive"), copy.with_suffix(".patchdrive"))
    chunk = next((copy / "tables").glob("*/X/c/0/0"))
    held = bytearray(chunk.read_bytes())
    held[len(held) // 2] ^= 1
    chunk.write_bytes(held)
    assert main(["export", str(copy), "--to", "trident", "-o", str(tmp_path / "out")]) == 2
    assert "patchdrive verify" in capsys.readouterr().err


def test_what_a_form_cannot_hold_is_refused(tmp_path):
    pixels = np.random.default_rng(0).integers(60, 180, (600, 600, 3)).astype(np.uint8)
    maps, bare = MemoryImage([pixels], mpp=(0.5, 0.5)), MemoryImage([pixels])
    run(maps, load_model("identity", traits_of(maps)), tmp_path / "maps.zarr", settings=RunSettings(saliency="valid"))
    run(bare, Means(), tmp_path / "bare.zarr", settings=RunSettings(saliency="valid"))
    for form in ("trident", "clam", "stamp"):
        with pytest.raises(StoreError, match=r"maps\.zarr holds no features"):
            export(tmp_path / "maps.zarr", form, tmp_path / "out")
        with pytest.raises(StoreError, match=r"--mpp-override"):
            export(tmp_path / "bare.zarr", form, tmp_path / "out")
    with pytest.raises(SettingsError, match=r"no form 'csv'.*trident"):
        export(tmp_path / "bare.zarr", "csv", tmp_path / "out")


def test_the_command_line_names_the_files(store, tmp_path, capsys):
    assert main(["export", str(store), "--to", "clam", "-o", str(tmp_path)]) == 0
    assert [line.rpartition(".")[2] for line in capsys.readouterr().out.splitlines()] == ["h5", "pt"]
    assert main(["export", str(store), str(store), "--to", "clam", "-o", str(tmp_path)]) == 2
    assert "called case.7 HE" in capsys.readouterr().err


def test_an_h5ad_is_what_anndata_opens(store, tmp_path):
    (path,) = export(store, "anndata", tmp_path)
    assert path.name == "case.7 HE_means.h5ad"
    held, result = anndata.read_h5ad(path), open_result(store)
    np.testing.assert_array_equal(held.X, result.features)
    np.testing.assert_array_equal(held.obsm["spatial"], result.patches.centres[:, ::-1])
    assert list(held.var_names) == ["r", "g", "b"]
    assert list(held.obs_names[:2]) == ["0_0", "0_1"]
    for column in ("y", "x", "score", "rank", "round"):
        np.testing.assert_array_equal(held.obs[column], getattr(result.patches, column))
    assert held.uns["patchdrive"]["model"] == "means float32 1.0"
    held[:5].copy().write_h5ad(tmp_path / "again.h5ad")


def test_an_h5ad_holds_every_round_and_only_rows_that_are_done(tmp_path):
    pixels = np.random.default_rng(0).integers(40, 200, (2000, 2000, 3)).astype(np.uint8)
    image = MemoryImage([pixels, np.ascontiguousarray(pixels[::8, ::8])], mpp=(0.5, 0.5), tile=250)
    run(image, patchdrivenet(PatchDriveNetConfig(max_patches=8)), tmp_path / "s.zarr", settings=RunSettings())
    (path,) = export(tmp_path / "s.zarr", "anndata", tmp_path / "out")
    held, result = anndata.read_h5ad(path), open_result(tmp_path / "s.zarr")
    np.testing.assert_array_equal(held.X, result.features[result.patches.state == "done"])


class TestCoords:
    """Patches that somebody else chose."""

    @pytest.mark.parametrize("form", ["trident", "clam"])
    def test_what_was_exported_and_taken_again_gives_the_same_features(self, slide, store, tmp_path, form):
        written = export(store, form, tmp_path / "job")
        folder = written[0].parent.parent  # with `patches` or `h5_files` in it
        with closing(open_image(str(slide))) as image:
            settings = RunSettings(mpp=0.5, coords=str(folder))
            report = run(image, Means(), tmp_path / "again.zarr", settings=settings)
            assert run(image, Means(), tmp_path / "again.zarr", settings=settings).to_dict() == report.to_dict()
            assert run(image, Means(), tmp_path / "again.zarr", settings=replace(settings, coords=str(written[0]))).status == "done"
            assert verify(tmp_path / "again.zarr", image, Means()).good
        then, now = open_result(store), open_result(tmp_path / "again.zarr")
        np.testing.assert_array_equal(then.patches.centres, now.patches.centres)
        np.testing.assert_array_equal(then.features, now.features)
        assert (now.patches.score == 1).all()

    def test_other_coordinates_are_another_run(self, slide, store, tmp_path):
        _, features = export(store, "trident", tmp_path)
        with closing(open_image(str(slide))) as image:
            run(image, Means(), tmp_path / "s.zarr", settings=RunSettings(mpp=0.5, coords=str(features)))
            with h5py.File(features, "r+") as file:
                file["coords"][3] += 2
            with pytest.raises(StoreError, match=r"settings\.coords was"):
                run(image, Means(), tmp_path / "s.zarr", settings=RunSettings(mpp=0.5, coords=str(features)))

    @pytest.mark.parametrize(
        ("change", "settings", "said"),
        [
            ({}, {"mpp": 0.25}, r"128 level-0 pixels wide, and 64 pixels .* are 64;.*fit at 2 level-0"),
            ({"coords": [[5000, 0]]}, {}, r"1 patches lie outside the image, the first at level-0 pixel \(0, 5000\)"),
            ({"coords": [[0.5, 1.0]]}, {}, r"integer, \(n, 2\)"),
            ({"coords": [1, 2]}, {}, r"integer, \(n, 2\)"),
            ({"patch_size_level0": None}, {}, "does not say how large"),
            ({"patch_size_level0": 0}, {}, "cannot be"),
            ({"patch_size_level0": "wide"}, {}, "cannot be read"),
            ({"coords": np.array([[2**64 - 1, 0]], np.uint64)}, {}, "lie outside the image"),
            ({"coords": None}, {}, "cannot be read"),
            ({}, {"select": "topk", "max_patches": 3}, "leave select topk out"),
        ],
    )
    def test_what_cannot_be_is_refused_before_anything_is_written(self, slide, tmp_path, change, settings, said):
        path = tmp_path / "c.h5"
        with h5py.File(path, "w") as file:
            coords = change.get("coords", [[0, 0], [128, 256]])
            if coords is not None:
                file["coords"] = np.array(coords)
                if change.get("patch_size_level0", 128) is not None:
                    file["coords"].attrs["patch_size_level0"] = change.get("patch_size_level0", 128)
        with closing(open_image(str(slide))) as image, pytest.raises(SettingsError, match=said):
            run(image, Means(), tmp_path / "s.zarr", settings=RunSettings(**{"mpp": 0.5, "coords": str(path), **settings}))
        assert list(tmp_path.iterdir()) == [path]

    def test_a_folder_without_the_slide_and_a_model_of_maps_are_refused(self, slide, tmp_path):
        with closing(open_image(str(slide))) as image:
            with pytest.raises(SettingsError, match=r"none for case\.7 HE: case\.7 HE_patches\.h5"):
                run(image, Means(), tmp_path / "s.zarr", settings=RunSettings(coords=str(tmp_path)))
            with pytest.raises(SettingsError, match="identity gives maps"):
                run(image, load_model("identity", traits_of(image)), tmp_path / "s.zarr", settings=RunSettings(coords=str(tmp_path)))

    def test_clam_says_pixels_of_a_level_and_its_downsample(self, tmp_path):
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file["coords"] = np.array([[7, 9]])
            file["coords"].attrs.update({"patch_size": 256, "patch_level": 1, "downsample": (4.0, 4.0)})
        coords = read_coords(str(tmp_path), "/slides/x.svs")
        assert (coords.side, coords.yx.tolist(), coords.path.name) == (1024.0, [[9, 7]], "x.h5")
