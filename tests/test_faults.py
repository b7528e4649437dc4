"""What happens when something goes wrong: a full disk, a torn source, a model that fails, two runs at once.

The faults themselves, and what is asked of every run that meets one, are those of `make bench NAME=faults`: each is done to the real
program in a process of its own. Here are the quick ones; the others, and what needs no process, beside them.
"""

from __future__ import annotations

import errno
import importlib
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch

from patchdrive.models.types import ModelSpec, OutputSpec
from patchdrive.pipeline.run import run
from patchdrive.pipeline.settings import RunSettings
from patchdrive.readers import MemoryImage
from patchdrive.readers.errors import ModelError, StoreError

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
QUICK = (
    "disk full amid blocks", "a tile that hangs", "a model that raises", "SIGTERM twice",
)  # fmt: skip
SLOW = (
    "output read-only amid blocks", "no such folder", "two runs at once", "nobody reads stdout",
    "disk full", "read-only output", "too many open files", "source deleted while read", "source deleted between runs",
    "source replaced between runs", "a model out of memory above 16",
    "a tile that fails", "a tile that fails, at the glance", "a model that never fits", "a model that gives NaN", "SIGKILL",
    "SIGKILL, then another machine", "another machine, while it runs", "SIGSTOP, taken over, SIGCONT", "a clock that jumps",
    "source cut short while read", "source overwritten while read", "source that may not be read", "a glance that hangs",
)  # fmt: skip


@pytest.fixture(scope="module")
def faults():
    """The benchmark, which is run and not installed."""
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("faults")


@pytest.fixture(scope="module")
def lab(faults):
    with TemporaryDirectory() as folder, faults.Lab(Path(folder)) as found:  # pytest's own folders are closed to other users
        yield found


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "name",
    [
        *QUICK,
        *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW),
    ],
)
def test_it_is_told_and_nothing_is_lost(faults, lab, name):
    (case,) = (case for case in faults.CASES if case.name == name)
    row = faults.tried(case, lab, quick=True)
    if row.skipped:
        pytest.skip(row.skipped)
    assert row.wrong == []
    assert row.exits
    assert row.store
    assert row.again


def test_every_fault_is_a_test(faults):
    assert sorted(case.name for case in faults.CASES) == sorted((*QUICK, *SLOW))


class Means:
    """The mean of each channel; `broken` makes one batch go wrong."""

    spec = ModelSpec(
        name="means", channels=3, size=32, any_size=True, outputs=(OutputSpec(name="means", kind="vector", channels=("r", "g", "b")),)
    )
    digest = "means"

    def __init__(self, broken=None):
        self._broken, self._batches = broken, 0

    def __call__(self, pixels):
        self._batches += 1
        values = pixels.double().mean(dim=(2, 3)).float()
        return {"means": self._broken(values) if self._broken and self._batches == 50 else values}

    def to(self, device):
        return self


SETTINGS = RunSettings(saliency="valid", batch_size=32, device="cpu")


def slide(seed=0):
    pixels = np.random.default_rng(seed).integers(40, 200, (1600, 1600, 3)).astype(np.uint8)
    return MemoryImage([pixels, np.ascontiguousarray(pixels[::8, ::8])], mpp=(0.5, 0.5), tile=200)


def test_another_image_in_the_same_place_is_refused_by_its_identity(tmp_path):
    run(slide(), Means(), tmp_path / "s.zarr", settings=SETTINGS)
    with pytest.raises(StoreError, match=r"holds another run: source\.identity was .*--overwrite"):
        run(slide(1), Means(), tmp_path / "s.zarr", settings=SETTINGS)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_features_that_are_no_numbers_stop_the_run_with_the_blocks_before_kept(tmp_path, value):
    with pytest.raises(ModelError, match=r"means.*not finite for patch 1\d\d\d of the plan, in block 1"):
        run(slide(), Means(lambda values: values.where(values < 0, value)), tmp_path / "s.zarr", settings=SETTINGS)
    assert [path.name for path in (tmp_path / "s.patchdrive/commits/0").iterdir()] == ["00000000.json"]
    report = run(slide(), Means(), tmp_path / "s.zarr", settings=SETTINGS)
    assert report.done == report.planned == 2500


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "free some space"), (errno.EDQUOT, "free some space"), (errno.EROFS, "make it writable again"),
        (errno.EMFILE, "ulimit -n"), (errno.EIO, "the disk is there and sound"),
    ],
)  # fmt: skip
def test_what_the_disk_says_is_told_with_a_way_out(tmp_path, monkeypatch, number, words):
    replace, failing = Path.replace, [False]

    def fails(path, target):
        if failing[0] and "means_round0" in str(target):
            raise OSError(number, os.strerror(number))
        return replace(path, target)

    def begin_to_fail(values):
        failing[0] = True
        return values

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(StoreError, match=f"{os.strerror(number)}.*{words}.*the same command goes on"):
        run(slide(), Means(begin_to_fail), tmp_path / "s.zarr", settings=SETTINGS)
    failing[0] = False
    assert run(slide(), Means(), tmp_path / "s.zarr", settings=SETTINGS).status == "done"
