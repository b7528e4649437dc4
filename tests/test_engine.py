"""The engine: several lanes, out of memory, holes, a source that hangs, several processes; one answer whatever the way to it."""

from __future__ import annotations

import gc
import hashlib
import json
import threading
import time
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from patchdrive.models.config import PatchDriveNetConfig
from patchdrive.models.model import patchdrivenet
from patchdrive.models.types import ModelSpec, OutputSpec
from patchdrive.pipeline.budget import Footprint
from patchdrive.pipeline.devices import Devices, pick_devices
from patchdrive.pipeline.engine import lane
from patchdrive.pipeline.glance import glance, make_plan
from patchdrive.pipeline.lanes import Stop
from patchdrive.pipeline.plan import feature_blocks, map_blocks
from patchdrive.pipeline.probe import probe
from patchdrive.pipeline.run import run
from patchdrive.pipeline.settings import RunSettings
from patchdrive.pipeline.shard import Shard
from patchdrive.pipeline.timings import Timings
from patchdrive.pipeline.verify import verify
from patchdrive.pipeline.work import prepare
from patchdrive.readers import MemoryImage, Window
from patchdrive.readers.errors import BudgetError, ReadError, SettingsError, StalledError
from patchdrive.readers.tiles import tile_decoder


def tree(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def slide(side=2000, **more):
    pixels = np.random.default_rng(0).integers(40, 200, (side, side, 3)).astype(np.uint8)
    return MemoryImage([pixels, np.ascontiguousarray(pixels[::8, ::8])], mpp=(0.5, 0.5), tile=250, **more)


class Means:
    """The mean of each channel; out of memory above `most` patches at once, as `allocator` says it."""

    def __init__(self, most=10**9, error=torch.OutOfMemoryError):
        columns = OutputSpec(name="means", kind="vector", channels=("r", "g", "b"))
        self.spec = ModelSpec(name="means", channels=3, size=32, any_size=True, outputs=(columns,))
        self.digest = "means"
        self.seen: list[int] = []
        self._most, self._error = most, error

    def __call__(self, pixels):
        self.seen.append(len(pixels))
        if len(pixels) > self._most:
            raise self._error("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return {"means": pixels.double().mean(dim=(2, 3)).float()}

    def to(self, device):
        return self


class Thirds:
    """A map model at stride 4: each channel's share, as classes."""

    digest = "thirds"
    spec = ModelSpec(
        name="thirds",
        channels=3,
        size=64,
        any_size=True,
        outputs=(OutputSpec(name="share", kind="classes", channels=("r", "g", "b"), stride=4),),
    )

    def __call__(self, pixels):
        small = torch.nn.functional.avg_pool2d(pixels, 4)
        return {"share": small / small.sum(dim=1, keepdim=True)}

    def to(self, device):
        return self


EVERYWHERE = RunSettings(saliency="valid")


@pytest.mark.parametrize("model", [Means(), Thirds()], ids=["table", "maps"])
def test_several_lanes_write_the_bytes_of_one(tmp_path, model):
    image = slide()
    settings = replace(EVERYWHERE, memory=60 * 2**20)
    one = run(image, model, tmp_path / "one.zarr", settings=settings)
    three = run(image, model, tmp_path / "three.zarr", settings=replace(settings, device="cpu,cpu,cpu", memory=180 * 2**20))
    assert one.planned == three.planned == three.done > 900
    assert tree(tmp_path / "one.zarr") == tree(tmp_path / "three.zarr")


@pytest.mark.parametrize("model", [Means(), Thirds()], ids=["table", "maps"])
@pytest.mark.parametrize("nodata", [None, 100.0])
def test_patches_that_stay_in_their_tiles_leave_the_same_blocks(model, nodata):
    image, settings, devices = slide(nodata=nodata), replace(EVERYWHERE, patch_size=64, overlap=32), Devices("cpu")
    view = glance(image, settings)
    plan = make_plan(view, model.spec, settings)
    work = prepare(view, model, plan, settings, recorded=None, devices=devices)
    blocks = feature_blocks(plan) if model.spec.vectors else map_blocks(plan, edge=512, halo=0)
    ways = [replace(work, feed=replace(work.feed, uncut=uncut)) for uncut in (False, True)]
    cut, uncut = (list(lane(image, plan, blocks, Stop(), work=way, here=devices.place(model)[0], timings=Timings())) for way in ways)
    assert len(cut) == len(uncut) > 1
    for one, other in zip(cut, uncut, strict=True):
        assert (one.dropped, one.rows.tolist()) == (other.dropped, other.rows.tolist())
        for name in one.features:
            np.testing.assert_array_equal(one.features[name], other.features[name])
        for name in one.maps:
            np.testing.assert_array_equal(one.maps[name].values, other.maps[name].values)
            np.testing.assert_array_equal(one.maps[name].valid, other.maps[name].valid)


class LikeCuda(Devices):
    """What is planned for a CUDA device, on a machine that may have none: nothing is computed."""

    def __init__(self):
        super().__init__("cpu")
        self.each = (torch.device("cuda:0"),)
        self.held = []

    def footprint(self, model, *, side, dtype):
        return Footprint(fixed=2**20, patch=2**20)

    def most(self, footprint, share, *, held=0):
        self.held.append(held)
        return 128


@pytest.mark.parametrize(
    ("overlap", "mpp", "memory", "uncut"),
    [(32, None, 2**30, True), (0, None, 2**30, False), (32, 0.7, 2**30, False), (32, None, 300 * 2**20, False)],
    ids=["overlap", "none", "resampled", "little memory"],
)
def test_patches_stay_uncut_where_they_overlap_and_their_tiles_have_room(overlap, mpp, memory, uncut):
    settings = replace(EVERYWHERE, patch_size=64, overlap=overlap, mpp=mpp, memory=memory)
    image, devices = slide(), LikeCuda()
    view, model = glance(image, settings), Thirds()
    plan = make_plan(view, model.spec, settings)
    work = prepare(view, model, plan, settings, recorded=None, devices=devices)
    assert (work.feed.uncut, work.feed.pinned) == (uncut, True)
    tiles = work.feed.frame.tiles_per_patch(tile_decoder(image, 0).grid(level=0))
    slot = 256 * 256 * 4
    if uncut:
        assert devices.held == [2 * work.feed.pool_bytes]
        assert work.feed.batch_size * tiles * slot <= work.feed.pool_bytes <= memory // 8
        assert work.feed.pool_bytes.bit_count() == 1
    else:
        assert devices.held == [0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("overlap", [0, 32])
@pytest.mark.parametrize("nodata", [None, 100.0])
def test_a_cuda_device_gives_what_the_cpu_gives(tmp_path, overlap, nodata):
    settings = replace(EVERYWHERE, patch_size=64, overlap=overlap)
    for device in ("cpu", "cuda"):
        run(slide(nodata=nodata), Thirds(), tmp_path / f"{device}.zarr", settings=replace(settings, device=device, all_classes=True))
    cpu, cuda = (
        zarr.open_array(store=tmp_path / f"{device}.zarr" / "images/share_probability/0/map", mode="r")[:] for device in ("cpu", "cuda")
    )
    np.testing.assert_allclose(cpu.astype(int), cuda.astype(int), atol=1)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError, MemoryError])
def test_out_of_memory_halves_the_batch_and_records_it(tmp_path, error):
    model = Means(most=5, error=error)
    report = run(slide(), model, tmp_path / "s.zarr", settings=EVERYWHERE)
    assert (report.status, report.batch_size) == ("done", 4)
    assert report.done == report.planned
    sizes = json.loads((tmp_path / "s.patchdrive" / "sizes.json").read_text())
    assert (sizes["batch_size"], sizes["was"]) == (4, [32, 16, 8])
    assert set(model.seen) == {2, 4, 8, 16, 32}  # 2 and 4: probed
    run(slide(), Means(), tmp_path / "t.zarr", settings=EVERYWHERE)
    held, wanted = (zarr.open_array(store=tmp_path / name / "tables/means_round0/X", mode="r")[:] for name in ("s.zarr", "t.zarr"))
    np.testing.assert_allclose(held, wanted, rtol=1e-6)


def test_not_even_one_patch_fits(tmp_path):
    with pytest.raises(BudgetError, match=r"2 patches at once do not fit on cpu"):
        run(slide(), Means(most=0), tmp_path / "s.zarr", settings=EVERYWHERE)


def test_another_error_of_the_model_is_not_taken_for_memory(tmp_path):
    class Broken(Means):
        def __call__(self, pixels):
            if len(pixels) > 4:
                raise RuntimeError("shapes do not match")
            return super().__call__(pixels)

    with pytest.raises(RuntimeError, match="shapes do not match"):
        run(slide(), Broken(), tmp_path / "s.zarr", settings=EVERYWHERE)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("patchdrive")]


class Torn(MemoryImage):
    """Its tile at (500, 750) of level 0 cannot be decoded."""

    def read(self, window, *, level=0, channels=None, out=None):
        if level == 0 and window.intersect(Window(y=500, x=750, height=250, width=250)):
            raise ReadError("tile (2, 3) of level 0 is torn")
        return super().read(window, level=level, channels=channels, out=out)


@pytest.mark.parametrize("patch_size", [100, 130])
@pytest.mark.parametrize("mpp", [0.5, 1.1])
def test_what_becomes_of_a_torn_tile_is_said_by_on_error(tmp_path, patch_size, mpp):
    pixels = np.full((2000, 2000, 3), 100, np.uint8)
    image = Torn([pixels, np.ascontiguousarray(pixels[::8, ::8])], mpp=(0.5, 0.5), tile=250)
    settings = replace(EVERYWHERE, patch_size=patch_size, mpp=mpp)
    reports = {
        how: run(image, Means(), tmp_path / f"{how}.zarr", settings=replace(settings, on_error=how)) for how in ("fail", "skip", "mask")
    }
    fail, skip, mask = reports["fail"], reports["skip"], reports["mask"]
    reason = "tile (2, 3) of level 0 is torn"
    assert (fail.status, fail.failed, fail.skipped) == ("failed", fail.reasons[f"failed: {reason}"], 0)
    assert (skip.status, skip.skipped, skip.failed) == ("done", fail.failed, 0)
    assert mask.status == "done"
    assert mask.failed == 0
    assert mask.masked[reason] + mask.skipped == fail.failed  # those wholly inside the tile have nothing left
    assert mask.masked[reason] > 0
    for report in reports.values():
        assert report.planned == report.done + report.skipped + report.failed
    held = zarr.open_array(store=tmp_path / "mask.zarr" / "tables/means_round0/X", mode="r")[:]
    computed = np.isfinite(held).all(axis=1)
    assert computed.sum() == mask.done
    assert held[computed].min() < 90  # the fill of 0 is in them


def test_a_hole_is_a_hole_in_the_map(tmp_path):
    pixels = np.full((1000, 1000, 3), 100, np.uint8)
    image = Torn([pixels, np.ascontiguousarray(pixels[::8, ::8])], mpp=(0.5, 0.5), tile=250)
    report = run(image, Thirds(), tmp_path / "s.zarr", settings=replace(EVERYWHERE, on_error="mask", saliency="test_engine:everywhere"))
    assert report.status == "done"
    label = zarr.open_array(store=tmp_path / "s.zarr" / "labels/share/0/map", mode="r")[:]
    hole = np.zeros((250, 250), np.bool_)
    hole[126:187, 188:250] = True  # every cell that lies wholly in the torn tile (500:750, 750:1000)
    np.testing.assert_array_equal(label[hole], 255)
    assert (label[:125] != 255).all()


def everywhere(pixels, mask):
    return np.ones(mask.shape, np.float32)


def test_a_source_that_hangs_is_given_up(tmp_path):
    gate = threading.Event()

    class Hanging(MemoryImage):
        def read(self, window, *, level=0, channels=None, out=None):
            if level == 0 and window.y >= 1000:
                gate.wait()
            return super().read(window, level=level, channels=channels, out=out)

    pixels = np.random.default_rng(0).integers(40, 200, (2000, 2000, 3)).astype(np.uint8)
    levels = [pixels, np.ascontiguousarray(pixels[::8, ::8])]
    begin = time.monotonic()
    with pytest.raises(StalledError, match=r"has not given a tile for 1 s .*--patience"):
        run(Hanging(levels, tile=250), Means(), tmp_path / "s.zarr", settings=replace(EVERYWHERE, patience=1.0))
    assert time.monotonic() - begin < 30
    gate.set()
    report = run(MemoryImage(levels, tile=250), Means(), tmp_path / "s.zarr", settings=EVERYWHERE)
    assert report.status == "done"


def test_patience_may_be_as_long_as_anybody_likes(tmp_path):
    report = run(slide(600), Means(), tmp_path / "s.zarr", settings=replace(EVERYWHERE, patience=1e300))
    assert report.status == "done"


def test_how_busy_the_device_was(tmp_path):
    class Slow(Means):
        def __call__(self, pixels):
            time.sleep(0.1)  # per batch of 64 small patches: reading them takes a hundredth of it
            return super().__call__(pixels)

    report = run(slide(1000), Slow(), tmp_path / "s.zarr", settings=replace(EVERYWHERE, batch_size=64))
    assert 0.5 < report.device_busy <= 1
    assert report.device_busy == pytest.approx(report.seconds["infer"] / report.seconds["compute"], abs=1e-3)


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_an_image_and_the_last_one_finishes_it(tmp_path, count):
    whole = run(slide(), Means(), tmp_path / "whole.zarr", settings=EVERYWHERE)
    reports = [
        run(slide(), Means(), tmp_path / "s.zarr", settings=replace(EVERYWHERE, shard=Shard(index, count))) for index in range(count)
    ]
    assert [report.status for report in reports] == ["partial"] * (count - 1) + ["done"]
    assert reports[-1].done == whole.done
    assert tree(tmp_path / "s.zarr") == tree(tmp_path / "whole.zarr")


def test_a_drive_does_the_blocks_that_nobody_does(tmp_path):
    model = patchdrivenet(PatchDriveNetConfig(max_patches=6))
    run(slide(), model, tmp_path / "whole.zarr", settings=RunSettings())
    report = run(slide(), model, tmp_path / "s.zarr", settings=RunSettings(shard=Shard(1, 3)))
    assert report.status == "done"
    assert tree(tmp_path / "s.zarr") == tree(tmp_path / "whole.zarr")


def test_an_error_in_one_lane_is_told_within_seconds_though_another_hangs(tmp_path):
    gate, hung = threading.Event(), threading.Event()

    class Half(MemoryImage):
        def read(self, window, *, level=0, channels=None, out=None):
            if level == 0 and window.y >= 1000:
                hung.set()
                gate.wait()
            return super().read(window, level=level, channels=channels, out=out)

    class Raising(Means):
        def __call__(self, pixels):
            if len(pixels) > 4:
                hung.wait(30)
                raise ZeroDivisionError
            return super().__call__(pixels)

    pixels = np.random.default_rng(0).integers(40, 200, (2000, 2000, 3)).astype(np.uint8)
    image = Half([pixels, np.ascontiguousarray(pixels[::8, ::8])], mpp=(0.5, 0.5), tile=250)
    begin = time.monotonic()
    with pytest.raises(ZeroDivisionError):
        run(image, Raising(), tmp_path / "s.zarr", settings=replace(EVERYWHERE, device="cpu,cpu"))
    assert time.monotonic() - begin < 20
    gate.set()


def test_what_did_not_fit_is_let_go(tmp_path):
    alive, refused = [], set()

    class Large(Means):
        def __call__(self, pixels):
            if len(pixels) > 8:
                held = torch.empty(1000)
                alive.append(weakref.ref(held))
                refused.add(len(pixels))
                raise torch.OutOfMemoryError("too large")
            assert not any(one() is not None for one in alive)
            return super().__call__(pixels)

    gc.collect()
    gc.disable()
    try:
        run(slide(), Large(), tmp_path / "s.zarr", settings=EVERYWHERE)
    finally:
        gc.enable()
    assert refused == {16, 32}  # each once, or twice: a second batch may have begun


def test_devices_are_named_and_refused_by_name():
    assert pick_devices("cpu,cpu") == (torch.device("cpu"),) * 2
    for names, words in (("gpu", "not a device"), ("cpu,cuda", "one kind|0 CUDA devices"), ("cuda:0,77", "CUDA devices")):
        with pytest.raises(SettingsError, match=words):
            pick_devices(names)


def test_a_footprint_is_a_line_through_two_batches():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 1), torch.nn.ReLU(), torch.nn.Conv2d(16, 16, 1))
            self.spec = ModelSpec(name="n", channels=3, size=64, outputs=(OutputSpec(name="v", kind="vector", channels=tuple("abcd")),))
            self.digest = "n"

        def forward(self, pixels):
            return {"v": self.layers(pixels).mean(dim=(2, 3))[:, :4]}

    net = Net().eval()
    found = probe(net, side=64, dtype=np.dtype(np.uint8), device=torch.device("cpu"))
    plane = 64 * 64
    least = plane * (3 + 3 * 4 + 2 * 16 * 4)  # stored, arranged, a layer's input and output
    assert least <= found.patch <= 2 * (least + 16 * 4 * plane)
    weights = sum(parameter.nbytes for parameter in net.parameters())
    assert weights <= found.fixed + 64 * 4  # the small things on the line itself
    assert Footprint(fixed=10, patch=3).most(20) == 3
    assert Footprint(fixed=10, patch=3).most(5) == 0


def test_runs_that_share_a_device_take_turns(tmp_path):
    at_work = threading.Semaphore(1)

    class Alone(Means):
        def __call__(self, pixels):
            assert at_work.acquire(blocking=False), "two batches at once"
            time.sleep(0.001)
            at_work.release()
            return super().__call__(pixels)

    devices, model, errors = Devices("cpu"), Alone(), []

    def one(name):
        try:
            run(slide(), model, tmp_path / f"{name}.zarr", settings=EVERYWHERE, devices=devices)
        except AssertionError as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert tree(tmp_path / "a.zarr") == tree(tmp_path / "b.zarr")


@pytest.mark.slow
def test_a_store_computed_in_shrinking_batches_verifies(tmp_path):
    class Shrinking(Means):
        def __call__(self, pixels):
            if len(self.seen) > 40:
                self._most = 8
            return super().__call__(pixels)

    run(slide(), Shrinking(), tmp_path / "s.zarr", settings=EVERYWHERE)
    records = [json.loads(path.read_text()) for path in sorted((tmp_path / "s.patchdrive" / "commits" / "0").glob("*.json"))]
    assert [record["batch_size"] for record in records] == [32, *[8] * (len(records) - 1)]
    verdict = verify(tmp_path / "s.zarr", slide(), Means(), sample=3000)
    assert not verdict.problems


@pytest.mark.parametrize("damage", ["edited", "gone"])
def test_a_damaged_root_is_written_again_and_nothing_else(tmp_path, damage):
    run(slide(), Means(), tmp_path / "s.zarr", settings=EVERYWHERE)
    before, root, model = tree(tmp_path / "s.zarr"), tmp_path / "s.zarr" / "zarr.json", Means()
    root.write_text(root.read_text().replace('"attributes": {', '"attributes": {"note": "mine",')) if damage == "edited" else root.unlink()
    verdict = verify(tmp_path / "s.zarr", slide(), Means())
    assert [problem.where for problem in verdict.problems] == ["s.zarr/zarr.json"]
    (tmp_path / "s.done.json").unlink()  # what mending does where no block is damaged
    report = run(slide(), model, tmp_path / "s.zarr", settings=EVERYWHERE)
    assert report.status == "done"
    assert len(model.seen) == 2  # probed, and no batch computed
    assert tree(tmp_path / "s.zarr") == before
