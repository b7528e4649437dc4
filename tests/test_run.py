"""The promises of a run, on images in memory: identity, accounting, resume, one answer whatever the way to it."""

from __future__ import annotations

import hashlib
import json
import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path

import anndata
import numpy as np
import pytest
import torch
import yaozarrs
import zarr
from affine import Affine
from pyproj import CRS

from patchdrive.models.config import PatchDriveNetConfig
from patchdrive.models.identity import Identity
from patchdrive.models.model import patchdrivenet
from patchdrive.models.types import ModelSpec, OutputSpec
from patchdrive.pipeline.glance import traits_of
from patchdrive.pipeline.run import Nobody, run
from patchdrive.pipeline.settings import RunSettings
from patchdrive.pipeline.verify import verify
from patchdrive.readers import MemoryImage, Window, open_image
from patchdrive.readers.errors import BudgetError, ModelError, PatchdriveError, ReadError, ResolutionError, SettingsError, StoreError


def tree(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def noise(height, width, channels=3, dtype=np.uint8, seed=0):
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return (rng.standard_normal((height, width, channels)) * 1000).astype(dtype)
    return rng.integers(0, np.iinfo(dtype).max, (height, width, channels), dtype, endpoint=True)


def slide(height=1500, width=1300, mpp=0.5, seed=0):
    """Brown noise in the middle of white, with one coarse level."""
    pixels = np.full((height, width, 3), 245, np.uint8)
    inner = noise(height // 2, width // 2, seed=seed) // 2 + np.array([90, 40, 80], np.uint8)
    pixels[height // 4 : height // 4 + height // 2, width // 4 : width // 4 + width // 2] = inner
    coarse = pixels[: height // 4 * 4, : width // 4 * 4].reshape(height // 4, 4, width // 4, 4, 3).mean(axis=(1, 3)).astype(np.uint8)
    return MemoryImage([pixels, coarse], mpp=None if mpp is None else (mpp, mpp), tile=240)


class Means:
    """A PatchModel anyone can check: the mean of each channel, in stored values."""

    def __init__(self, size=128, dtype="float32", gain=1.0):
        columns = OutputSpec(name="means", kind="vector", channels=("r", "g", "b"), dtype=dtype)
        self.spec = ModelSpec(name="means", channels=3, size=size, any_size=True, outputs=(columns,))
        self.digest = f"means-{size}-{dtype}-{gain}"
        self._gain = gain

    def __call__(self, pixels):
        return {"means": pixels.mean(dim=(2, 3)) * self._gain}

    def to(self, device):
        return self


EVERYWHERE = RunSettings(saliency="test_run:everywhere")


def everywhere(pixels, mask):
    return mask.astype(np.float32)


def read_map(store: Path, name: str) -> np.ndarray:
    return zarr.open_array(store=store / name / "0" / "map", mode="r")[:]


@pytest.mark.parametrize("blend", ["box", "hann", "gaussian", "pyramid"])
@pytest.mark.parametrize(("dtype", "channels"), [(np.uint8, 3), (np.uint16, 1), (np.float32, 2), (np.int16, 1)])
def test_identity_in_identity_out(tmp_path, blend, dtype, channels):
    pixels = noise(531, 707, channels, dtype)
    image = MemoryImage([pixels], tile=100)
    settings = RunSettings(saliency="test_run:everywhere", patch_size=97, overlap=41, blend=blend)
    report = run(image, Identity(traits_of(image)), tmp_path / "i.zarr", settings=settings)
    assert report.status == "done"
    np.testing.assert_array_equal(read_map(tmp_path / "i.zarr", "images/image").transpose(1, 2, 0), pixels)
    assert (read_map(tmp_path / "i.zarr", "labels/image_valid") == 1).all()


@pytest.mark.parametrize(
    ("name", "blend"), [("wsi/panimg/no_dzi.tif", "hann"), ("rs/misc/rgb16.tif", "pyramid"), ("rs/misc/dem.tif", "gaussian")]
)
def test_identity_of_real_files(tmp_path, real_file, name, blend):
    image = open_image(real_file(name))
    pixels, valid = image.read(image.levels[0].window), image.read_mask(image.levels[0].window)
    settings = RunSettings(saliency="test_run:everywhere", patch_size=97, overlap=41, blend=blend)
    run(image, Identity(traits_of(image)), tmp_path / "i.zarr", settings=settings)
    np.testing.assert_array_equal(read_map(tmp_path / "i.zarr", "images/image").transpose(1, 2, 0)[valid], pixels[valid])
    np.testing.assert_array_equal(read_map(tmp_path / "i.zarr", "labels/image_valid") == 1, valid)


@pytest.mark.parametrize("size", [(1, 1), (5, 300), (97, 97), (98, 96)])
def test_identity_of_images_smaller_than_a_patch(tmp_path, size):
    pixels = noise(*size)
    image = MemoryImage([pixels])
    run(
        image,
        Identity(traits_of(image)),
        tmp_path / "i.zarr",
        settings=RunSettings(saliency="test_run:everywhere", patch_size=97, overlap=41),
    )
    np.testing.assert_array_equal(read_map(tmp_path / "i.zarr", "images/image").transpose(1, 2, 0), pixels)


def test_identity_keeps_what_is_valid_and_says_what_is_not(tmp_path):
    pixels = noise(400, 300, 1, np.float32)
    pixels[50:200, 60:150] = -9999
    image = MemoryImage([pixels], nodata=-9999.0)
    settings = RunSettings(saliency="valid", patch_size=64, overlap=16)
    report = run(image, Identity(traits_of(image)), tmp_path / "i.zarr", settings=settings)
    valid = pixels[..., 0] != -9999
    np.testing.assert_array_equal(read_map(tmp_path / "i.zarr", "labels/image_valid") == 1, valid)
    np.testing.assert_array_equal(read_map(tmp_path / "i.zarr", "images/image")[0][valid], pixels[..., 0][valid])
    assert report.planned == report.done + report.skipped + report.failed


def test_features_are_those_of_each_patch(tmp_path):
    image = slide()
    report = run(image, Means(), tmp_path / "s.zarr", settings=RunSettings(saliency="tissue"))
    assert (report.status, report.failed) == ("done", 0)
    table = anndata.read_zarr(tmp_path / "s.zarr" / "tables" / "means_round0")
    assert table.n_obs == report.planned > 10
    assert set(table.obs["state"]) == {"done"}
    pixels = image.read(image.levels[0].window).astype(np.float64)
    for row in range(table.n_obs):
        y, x = int(table.obs["y"].iloc[row]), int(table.obs["x"].iloc[row])
        patch = np.zeros((128, 128, 3))
        part = pixels[y : y + 128, x : x + 128]
        patch[: part.shape[0], : part.shape[1]] = part
        np.testing.assert_allclose(table.X[row], patch.mean(axis=(0, 1)), rtol=1e-5)
        np.testing.assert_allclose(table.obsm["spatial"][row], [x + 64, y + 64])


def test_every_image_of_a_store_is_strict_ome_zarr(tmp_path):
    image = slide(mpp=0.25)
    run(image, Identity(traits_of(image)), tmp_path / "s.zarr", settings=EVERYWHERE)
    for group in ("images/saliency", "images/thumbnail", "images/image", "labels/image_valid"):
        yaozarrs.validate_zarr_store(tmp_path / "s.zarr" / group)
    ome = json.loads((tmp_path / "s.zarr/images/saliency/zarr.json").read_text())["attributes"]["ome"]
    scale, shift = ome["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    assert scale["scale"] == [1.0, 8.0, 8.0]  # 32 level-0 pixels of 0.25 µm
    assert shift["translation"] == [0.0, 31 / 2 * 0.25, 31 / 2 * 0.25]


class StopAfter(Nobody):
    """Wishes to stop after a number of blocks."""

    def __init__(self, blocks):
        self._left = blocks

    def committed(self, rows):
        self._left -= 1

    def wants_stop(self):
        return self._left <= 0


def test_the_answer_does_not_depend_on_workers_memory_or_resume(tmp_path):
    image = slide(3000, 3100)
    model = Means(size=32)
    tissue = RunSettings(saliency="tissue", batch_size=16)
    whole = run(image, model, tmp_path / "a.zarr", settings=tissue)
    frugal = RunSettings(saliency="tissue", batch_size=16, workers=5, memory=60 * 2**20)
    run(image, model, tmp_path / "b.zarr", settings=frugal)
    assert tree(tmp_path / "b.zarr") == tree(tmp_path / "a.zarr")
    part = run(image, model, tmp_path / "c.zarr", settings=tissue, watcher=StopAfter(1))
    assert part.status == "partial"
    assert 0 < part.done < whole.done == part.planned
    rest = run(image, model, tmp_path / "c.zarr", settings=RunSettings(saliency="tissue"))  # the batch size is remembered
    assert (rest.status, rest.planned, rest.done) == ("done", whole.planned, whole.done)
    assert tree(tmp_path / "c.zarr") == tree(tmp_path / "a.zarr")
    again = run(image, model, tmp_path / "c.zarr", settings=tissue)
    assert again == rest


def test_changed_settings_are_refused_with_their_names(tmp_path):
    image = slide()
    run(image, Means(), tmp_path / "s.zarr", settings=RunSettings(saliency="tissue"))
    before = tree(tmp_path / "s.zarr")
    with pytest.raises(StoreError, match=r"settings.patch_size was null, now 256.*--overwrite"):
        run(image, Means(), tmp_path / "s.zarr", settings=RunSettings(saliency="tissue", patch_size=256))
    with pytest.raises(StoreError, match=r"model\.digest"):
        run(image, Means(gain=2.0), tmp_path / "s.zarr", settings=RunSettings(saliency="tissue"))
    assert tree(tmp_path / "s.zarr") == before
    report = run(image, Means(gain=2.0), tmp_path / "s.zarr", settings=RunSettings(saliency="tissue"), overwrite=True)
    assert report.status == "done"


def test_a_store_without_its_state_is_not_written_into(tmp_path):
    (tmp_path / "s.zarr").mkdir()
    (tmp_path / "s.zarr" / "precious").write_text("x")
    with pytest.raises(StoreError, match="move it away"):
        run(slide(), Means(), tmp_path / "s.zarr")


def test_a_budget_that_holds_nothing_is_refused_with_what_would(tmp_path):
    image = slide()
    with pytest.raises(BudgetError, match=r"give --memory (\d+)MiB") as error:
        run(image, Means(), tmp_path / "s.zarr", settings=RunSettings(saliency="tissue", memory=2**20))
    enough = int(str(error.value).split("--memory ")[1].split("MiB")[0])
    report = run(image, Means(), tmp_path / "t.zarr", settings=RunSettings(saliency="tissue", memory=enough * 2**20))
    assert report.status == "done"


class Torn(MemoryImage):
    """Its tile at (720, 480) cannot be decoded."""

    def read(self, window, *, level=0, channels=None, out=None):
        if level == 0 and window.intersect(Window(y=720, x=480, height=240, width=240)):
            raise ReadError("tile (3, 2) of level 0 is torn")
        return super().read(window, level=level, channels=channels, out=out)


def test_what_cannot_be_computed_is_counted_and_named(tmp_path):
    whole = slide()
    image = Torn([whole.read(level.window, level=level.index) for level in whole.levels], mpp=(0.5, 0.5), tile=240)
    report = run(image, Means(), tmp_path / "s.zarr", settings=RunSettings(saliency="tissue"))
    assert report.status == "failed"
    assert report.failed > 0
    assert report.planned == report.done + report.skipped + report.failed
    assert report.reasons == {"failed: tile (3, 2) of level 0 is torn": report.failed}
    table = anndata.read_zarr(tmp_path / "s.zarr" / "tables" / "means_round0")
    failed = (table.obs["state"] == "failed").to_numpy()
    assert failed.sum() == report.failed
    assert np.isnan(table.X[failed]).all()
    assert np.isfinite(table.X[~failed]).all()


def test_a_feature_that_overflows_its_dtype_is_an_error(tmp_path):
    with pytest.raises(ModelError, match="does not fit float16"):
        run(slide(), Means(dtype="float16", gain=1e6), tmp_path / "s.zarr", settings=RunSettings(saliency="tissue"))


def test_pixel_sizes_that_cannot_be_are_refused_before_any_work(tmp_path):
    model = Means()
    with pytest.raises(ResolutionError, match=r"0.5 µm.*0.25 would invent detail.*--upsample"):
        run(slide(mpp=0.5), model, tmp_path / "a.zarr", settings=RunSettings(mpp=0.25))
    with pytest.raises(ResolutionError, match="--mpp-override"):
        run(slide(mpp=None), model, tmp_path / "b.zarr", settings=RunSettings(mpp=0.5))
    with pytest.raises(SettingsError, match="--mpp"):
        run(slide(), model, tmp_path / "c.zarr", settings=RunSettings(gsd=10))
    report = run(slide(mpp=None), model, tmp_path / "d.zarr", settings=RunSettings(mpp=1.0, mpp_override=0.5))
    assert report.status == "done"
    report = run(slide(mpp=0.5), model, tmp_path / "e.zarr", settings=RunSettings(mpp=0.25, upsample=True))
    assert report.status == "done"


def test_a_patch_of_another_size_is_brought_to_what_the_model_eats(tmp_path):
    class Fixed(Means):
        def __init__(self):
            super().__init__()
            self.spec = ModelSpec(name="fixed", channels=3, size=64, outputs=self.spec.outputs)

        def __call__(self, pixels):
            assert pixels.shape[2:] == (64, 64)
            return super().__call__(pixels)

    run(slide(), Fixed(), tmp_path / "s.zarr", settings=RunSettings(saliency="tissue", patch_size=256))
    table = anndata.read_zarr(tmp_path / "s.zarr" / "tables" / "fixed_round0")
    assert set(np.diff(np.unique(table.obsm["spatial"][:, 0]))) == {256.0}


def test_a_model_that_breaks_its_word_is_named(tmp_path):
    class Liar(Means):
        def __call__(self, pixels):
            return {"means": torch.zeros(len(pixels), 7)}

    with pytest.raises(ModelError, match=r"shape \(\d+, 7\), its spec says \(\d+, 3\)"):
        run(slide(), Liar(), tmp_path / "s.zarr", settings=RunSettings(saliency="tissue"))


def test_a_scene_is_placed_in_xarray_and_rioxarray(tmp_path):
    rioxarray = pytest.importorskip("rioxarray")
    xarray = pytest.importorskip("xarray")
    transform = Affine(10, 0, 500000, 0, -10, 5000000)
    image = MemoryImage([noise(600, 700, 4, np.uint16)], transform=transform, crs=CRS.from_epsg(32633), nodata=0)
    run(image, Identity(traits_of(image)), tmp_path / "s.zarr", settings=RunSettings(patch_size=256))
    assert rioxarray is not None
    for name, pixel in (("images/image", 10), ("images/saliency", 10)):
        opened = xarray.open_zarr(tmp_path / "s.zarr" / name, group="0", consolidated=False, decode_coords="all")
        assert opened["map"].rio.crs.to_epsg() == 32633
        assert opened["map"].rio.bounds() == (500000, 5000000 - 6000, 500000 + 7000, 5000000)
        assert opened["map"].rio.transform() == Affine(pixel, 0, 500000, 0, -pixel, 5000000)


@pytest.mark.parametrize("model", ["means", "identity"])
def test_a_store_that_is_gone_is_computed_again(tmp_path, model):
    image = slide()
    model = Means() if model == "means" else Identity(traits_of(image))
    settings = RunSettings(saliency="tissue", patch_size=128)
    whole = run(image, model, tmp_path / "s.zarr", settings=settings)
    before = tree(tmp_path / "s.zarr")
    shutil.rmtree(tmp_path / "s.zarr")
    again = run(image, model, tmp_path / "s.zarr", settings=settings)
    assert (again.planned, again.done) == (whole.planned, whole.done)
    assert tree(tmp_path / "s.zarr") == before
    shutil.rmtree(tmp_path / "s.zarr")
    shutil.rmtree(tmp_path / "s.patchdrive")  # a report without a run is nobody's
    run(image, model, tmp_path / "s.zarr", settings=settings)
    assert tree(tmp_path / "s.zarr") == before


class Ramp:
    """A map model that gives back its first channel, at a stride and with a halo."""

    def __init__(self, stride, halo):
        output = OutputSpec(name="ramp", kind="image", channels=("v",), stride=stride, halo=halo)
        self.spec = ModelSpec(name="ramp", channels=1, size=96, any_size=True, outputs=(output,))
        self.digest = f"ramp-{stride}-{halo}"
        self._stride = stride

    def __call__(self, pixels):
        return {"ramp": torch.nn.functional.avg_pool2d(pixels, self._stride)}

    def to(self, device):
        return self


@pytest.mark.parametrize(("stride", "halo"), [(32, 0), (1, 16), (8, 16)])
def test_the_best_patches_of_a_map_lie_on_its_cells_and_reach_the_border(tmp_path, stride, halo):
    pixels = np.tile(np.arange(512, dtype=np.float32), (512, 1))[..., None]
    settings = RunSettings(saliency="test_run:everywhere", select="topk", max_patches=2000, spacing=1)
    report = run(MemoryImage([pixels]), Ramp(stride, halo), tmp_path / "r.zarr", settings=settings)
    assert report.status == "done"
    wanted = pixels[..., 0].reshape(512 // stride, stride, 512 // stride, stride).mean(axis=(1, 3))
    np.testing.assert_allclose(read_map(tmp_path / "r.zarr", "images/ramp")[0], wanted, atol=1e-3)
    assert (read_map(tmp_path / "r.zarr", "labels/ramp_valid") == 1).all()


class Smooth(Ramp):
    """The mean of 9 x 9 pixels, zeros beyond the patch: right 4 pixels away from its border."""

    def __init__(self):
        super().__init__(1, 0)
        self.digest = "smooth"

    def __call__(self, pixels):
        return {"ramp": torch.nn.functional.avg_pool2d(pixels, 9, stride=1, padding=4)}


def test_a_halo_of_the_users_choice_leaves_no_seam(tmp_path):
    pixels = np.random.default_rng(0).random((300, 340, 1), np.float32)
    image, settings = MemoryImage([pixels]), RunSettings(saliency="test_run:everywhere", patch_size=64)
    run(image, Smooth(), tmp_path / "halo.zarr", settings=replace(settings, halo=4), names=["test_run:Smooth"])
    wanted = torch.nn.functional.avg_pool2d(torch.from_numpy(pixels[None, ..., 0]), 9, stride=1, padding=4)[0].numpy()
    np.testing.assert_array_equal(read_map(tmp_path / "halo.zarr", "images/ramp")[0], wanted)
    assert verify(tmp_path / "halo.zarr", image=image).problems == ()
    run(image, Smooth(), tmp_path / "none.zarr", settings=settings)
    run(image, Smooth(), tmp_path / "none.zarr", settings=replace(settings, halo=0))  # what it has anyway
    assert (read_map(tmp_path / "none.zarr", "images/ramp")[0] != wanted).any()
    with pytest.raises(StoreError, match=r"settings\.halo was 4, now 5"):
        run(image, Smooth(), tmp_path / "halo.zarr", settings=replace(settings, halo=5))


@pytest.mark.parametrize(
    ("model", "halo", "said"),
    [
        (Ramp(8, 16), 4, "multiples of its stride 8"),
        (Ramp(8, 16), 48, "something left between the halos"),
        (Means(), 4, "leave --halo out"),
        (patchdrivenet(PatchDriveNetConfig()), 4, "joins its patches itself"),
    ],
    ids=["stride", "nothing left", "vectors", "drives"],
)
def test_a_halo_that_does_not_go_with_the_model_is_refused(tmp_path, model, halo, said):
    image = MemoryImage([np.ones((200, 200, model.spec.channels if hasattr(model, "spec") else 3), np.float32)])
    with pytest.raises(PatchdriveError, match=said):
        run(image, model, tmp_path / "r.zarr", settings=RunSettings(saliency="valid", halo=halo))
    assert not list(tmp_path.iterdir())


def test_topk_of_an_image_smaller_than_the_halo(tmp_path):
    settings = RunSettings(saliency="test_run:everywhere", select="topk", max_patches=5)
    report = run(MemoryImage([np.ones((10, 10, 1), np.float32)]), Ramp(1, 16), tmp_path / "r.zarr", settings=settings)
    assert report.planned == report.done > 0


def test_a_model_that_answers_nan_leaves_none(tmp_path):
    class Doubt(Ramp):
        def __init__(self):
            super().__init__(1, 0)
            output = OutputSpec(name="c", kind="classes", channels=("a", "b"))
            self.spec = ModelSpec(name="doubt", channels=1, size=96, any_size=True, outputs=(output,))

        def __call__(self, pixels):
            return {"c": torch.cat([pixels, 1 - pixels], dim=1).where(pixels < 0.5, torch.nan)}

    pixels = np.zeros((100, 100, 1), np.float32)
    pixels[:50] = 1.0
    run(MemoryImage([pixels]), Doubt(), tmp_path / "d.zarr", settings=RunSettings(saliency="test_run:everywhere", overlap=0))
    labels = read_map(tmp_path / "d.zarr", "labels/c")
    assert (labels[:50] == 255).all()
    assert (labels[50:] == 1).all()
    assert (read_map(tmp_path / "d.zarr", "images/c_probability")[0, :50] == 255).all()


def test_a_fill_of_nan_resumes(tmp_path):
    class Holed(Means):
        def __init__(self):
            super().__init__()
            self.spec = replace(self.spec, fill=float("nan"))

    image = MemoryImage([noise(300, 300, 3, np.float32)])
    settings = replace(EVERYWHERE, patch_size=100)
    first = run(image, Holed(), tmp_path / "s.zarr", settings=settings)
    assert run(image, Holed(), tmp_path / "s.zarr", settings=settings) == first
    with pytest.raises(ModelError, match="NaN, which uint8"):
        run(slide(), Holed(), tmp_path / "t.zarr", settings=EVERYWHERE)
    json.loads((tmp_path / "s.zarr" / "zarr.json").read_text(), parse_constant=pytest.fail)


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (1200, 1023), (2049, 1024)])
def test_a_thumbnail_shows_all_of_the_image(tmp_path, size):
    image = MemoryImage([np.full((*size, 3), 90, np.uint8)])
    run(image, Means(), tmp_path / "s.zarr", settings=EVERYWHERE)
    assert (read_map(tmp_path / "s.zarr", "images/thumbnail") == 90).all()


def test_a_watcher_of_a_drive_may_train(tmp_path):
    class Trainer(Nobody):
        def committed(self, rows):
            assert not torch.is_inference_mode_enabled()

    model = patchdrivenet(PatchDriveNetConfig(max_patches=4))
    run(slide(), model, tmp_path / "s.zarr", settings=RunSettings(), watcher=Trainer())


def test_resampling_stays_under_a_small_budget(tmp_path):
    """Peak of what is allocated while patches of eight times coarser pixels are cut by many threads."""
    image = MemoryImage([noise(4096, 4096)], mpp=(0.25, 0.25))
    settings = RunSettings(saliency="test_run:everywhere", mpp=2.0, patch_size=256, workers=8, memory=200 * 2**20)
    tracemalloc.start()
    try:
        report = run(image, Means(), tmp_path / "s.zarr", settings=settings)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert report.status == "done"
    assert peak < 1.1 * settings.memory


def test_pixels_far_coarser_than_the_level_need_no_more_memory_than_the_level(tmp_path):
    image = slide(1500, 1300)
    tracemalloc.start()
    try:
        report = run(image, Means(), tmp_path / "s.zarr", settings=replace(EVERYWHERE, mpp=300, memory=100 * 2**20))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (report.status, report.planned) == ("done", 1)
    assert peak < 110 * 2**20
    with pytest.raises(ResolutionError, match="hold all of the image"):
        run(image, Means(), tmp_path / "t.zarr", settings=replace(EVERYWHERE, mpp=5000))
    with pytest.raises(SettingsError, match="finite"):
        RunSettings(mpp=float("inf"))


def test_options_that_would_do_nothing_are_refused(tmp_path):
    for settings, words in (
        (RunSettings(max_patches=5), "--select topk"),
        (RunSettings(blend="hann"), "--blend"),
        (RunSettings(all_classes=True), "--all-classes"),
    ):
        with pytest.raises(SettingsError, match=words):
            run(slide(), Means(), tmp_path / "s.zarr", settings=settings)
    with pytest.raises(SettingsError, match="chooses its patches itself"):
        run(slide(), patchdrivenet(PatchDriveNetConfig()), tmp_path / "s.zarr", settings=RunSettings(select="topk", max_patches=5))
