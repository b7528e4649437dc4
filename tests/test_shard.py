"""Several processes on one image write one store, and it is the store that one process writes."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchdrive.models.identity import Identity
from patchdrive.models.types import ImageTraits
from patchdrive.pipeline.glance import glance, make_plan
from patchdrive.pipeline.journal import StoreInUseError
from patchdrive.pipeline.run import run
from patchdrive.pipeline.settings import RunSettings
from patchdrive.pipeline.shard import WHOLE, Shard
from patchdrive.pipeline.store import ResultStore, Sizes
from patchdrive.readers import MemoryImage
from patchdrive.readers.errors import SettingsError, StoreError

JOBS = ("features", "maps", "drive")


def tree(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@given(things=st.integers(0, 1000), count=st.integers(1, 40))
def test_shares_are_contiguous_even_and_hold_everything_once(things, count):
    shares = [Shard(index, count).share(things) for index in range(count)]
    assert [thing for share in shares for thing in share] == list(range(things))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_shard_is_read_from_text_and_refused_where_there_is_none():
    assert Shard.parse("2/4") == Shard(2, 4)
    assert str(Shard(2, 4)) == "2/4"
    for text in ("4/4", "-1/4", "1", "a/b", "1/0", "1/4/2", ""):
        with pytest.raises(SettingsError, match=r"i/n"):
            Shard.parse(text)


@pytest.fixture(scope="module")
def processes():
    """Begins `count` processes on a job; gives their reports, None for one that was killed."""
    script = Path(__file__).with_name("shard_processes.py")
    with subprocess.Popen([sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:

        def begin(folder, job, count, who=-1, after=0):
            folder.mkdir(exist_ok=True)
            print(job, count, who, after, folder, file=parent.stdin, flush=True)
            assert parent.stdout.readline() == "ended\n"
            paths = [folder / f"{index}.json" for index in range(count)]
            reports = [json.loads(path.read_text()) if path.exists() else None for path in paths]
            for path in paths:
                path.unlink(missing_ok=True)
            return reports

        yield begin
        parent.stdin.close()


@pytest.fixture(scope="module")
def alone(processes, tmp_path_factory):
    """What one process leaves, by job."""
    held = {}

    def of(job):
        if job not in held:
            folder = tmp_path_factory.mktemp(job)
            (report,) = processes(folder, job, 1)
            assert report["status"] == "done", report
            held[job] = (tree(folder / "s.zarr"), report["planned"])
            assert len(list((folder / "s.patchdrive" / "commits").rglob("*.json"))) >= 2
        return held[job]

    return of


def finished(folder, job, alone):
    """The store is whole, equals one process's, and each of its files is named once, with its digest."""
    wanted, planned = alone(job)
    assert tree(folder / "s.zarr") == wanted
    report = json.loads((folder / "s.done.json").read_text())
    assert (report["status"], report["planned"], report["done"]) == ("done", planned, planned)
    state = folder / "s.patchdrive"
    records = [json.loads(path.read_text())["files"] for path in (*state.glob("commits/*/*.json"), *state.glob("coarse/*/*/*.json"))]
    named = [*records, json.loads((state / "contents.json").read_text())]
    assert sum(map(len, named)) == len(wanted)
    assert {name: digest for names in named for name, digest in names.items()} == wanted


@pytest.mark.parametrize("job", [pytest.param("features", marks=pytest.mark.slow), "maps", "drive"])
def test_four_processes_begun_at_once_leave_what_one_leaves(tmp_path, processes, alone, job):
    reports = processes(tmp_path, job, 4)
    assert all(report["status"] in {"done", "partial"} for report in reports), reports
    assert sum(report["status"] == "done" for report in reports) >= 1
    finished(tmp_path, job, alone)
    assert not list((tmp_path / "s.patchdrive" / "scratch").iterdir())


@pytest.mark.parametrize(("job", "after"), [("features", 1), ("maps", 0), ("drive", 0), ("drive", 1)])
def test_one_of_them_is_killed_and_begun_again(tmp_path, processes, alone, job, after):
    reports = processes(tmp_path, job, 3, 2, after)
    assert reports[2] is None or job == "drive"  # the others of a drive may have done its blocks before it came to them
    assert all(report["status"] in {"done", "partial"} for report in reports[:2]), reports
    if job == "drive":
        finished(tmp_path, job, alone)  # a drive waits for what it asked for, and computes what nobody does
    processes(tmp_path, job, 3)
    finished(tmp_path, job, alone)


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS)
def test_a_run_changes_hands(tmp_path, processes, alone, job):
    """Three shards, one dies; then four others go on; then one process."""
    processes(tmp_path, job, 3, 1, 1)
    processes(tmp_path, job, 4, 2, 1)
    processes(tmp_path, job, 1)
    finished(tmp_path, job, alone)


SETTINGS = RunSettings(saliency="valid", patch_size=64, overlap=0, workers=1, memory=1 << 30)
MODEL = Identity(ImageTraits())


@pytest.fixture
def view():
    pixels = np.random.default_rng(0).integers(0, 255, (300, 400, 3)).astype(np.uint8)
    return glance(MemoryImage([pixels]), SETTINGS)


def opened(path, shard=WHOLE, *, overwrite=False, facts="a"):
    return ResultStore.open(path, MODEL.spec, {"facts": facts}, overwrite=overwrite, all_classes=False, shard=shard)


def begin(result, view, batch_size=8):
    result.put_view(view)
    plan = make_plan(view, MODEL.spec, SETTINGS)
    return result.begin_round(plan, view.frame(plan.grid), Sizes(batch_size=batch_size, edge=128))


def test_shares_orphans_and_sizes(tmp_path, view):
    one = opened(tmp_path / "s.zarr", Shard(0, 3))
    round_ = begin(one, view)
    assert len(round_.blocks) == 12
    assert [block.index for block in round_.todo] == [0, 1, 2, 3]
    other = opened(tmp_path / "s.zarr", Shard(1, 3))
    theirs = begin(other, view, batch_size=4)
    assert other.sizes() == Sizes(batch_size=8, edge=128)  # who comes first says
    assert [block.index for block in theirs.todo] == [4, 5, 6, 7]
    assert [block.index for block in one.orphans(round_)] == [8, 9, 10, 11]
    assert [block.index for block in other.orphans(theirs)] == [9, 10, 11, 8]
    other.__exit__(None, None, None)
    assert [block.index for block in one.orphans(round_)] == [4, 5, 6, 7, 8, 9, 10, 11]
    assert not one.whole(round_)

    assert one.shrink(Sizes(batch_size=4, edge=128)) == Sizes(batch_size=4, edge=128)
    assert one.shrink(Sizes(batch_size=1, edge=128)).batch_size == 1
    assert one.shrink(Sizes(batch_size=2, edge=128)).batch_size == 1  # another was further
    assert json.loads((tmp_path / "s.patchdrive" / "sizes.json").read_text()) == {"batch_size": 1, "edge": 128, "was": [8, 4]}
    assert one.sizes() == Sizes(batch_size=1, edge=128)
    one.__exit__(None, None, None)


def test_what_does_not_go_together_is_refused(tmp_path, view):
    one = opened(tmp_path / "s.zarr", Shard(0, 2))
    begin(one, view)
    with pytest.raises(StoreInUseError, match="in use by another process"):
        opened(tmp_path / "s.zarr", Shard(0, 2))
    with pytest.raises(StoreInUseError, match="does not go with shard 1/3"):
        opened(tmp_path / "s.zarr", Shard(1, 3))
    with pytest.raises(StoreInUseError, match="in use"):
        opened(tmp_path / "s.zarr")
    with pytest.raises(StoreError, match='facts was "a", now "b"'):
        opened(tmp_path / "s.zarr", Shard(1, 2), facts="b")
    with pytest.raises(StoreInUseError, match="cannot be started anew while other shards of it are at work"):
        opened(tmp_path / "s.zarr", Shard(1, 2), overwrite=True)
    shutil.rmtree(tmp_path / "s.zarr")
    with pytest.raises(StoreInUseError, match="cannot be started anew"):
        opened(tmp_path / "s.zarr", Shard(1, 2))
    one.__exit__(None, None, None)
    with opened(tmp_path / "s.zarr", Shard(1, 2), overwrite=True, facts="b") as again:
        assert len(begin(again, view).todo) == 6


def test_the_first_of_two_that_finish_has_said_it(tmp_path, view):
    with opened(tmp_path / "s.zarr", Shard(0, 2)) as one, opened_after(one, view, tmp_path / "s.zarr") as other:
        for result in (one, other):
            for round_ in result._rounds:
                for block in round_.blocks:
                    result._journal.commit(0, block.index, {"planned": len(block.owned), "skipped": 0, "failed": 0, "dropped": []})
        assert one.finish({"who": "one"}) == {"who": "one"}
        assert other.finish({"who": "other"}) == {"who": "one"}
        assert other.report == {"who": "one"}


def opened_after(one, view, path):
    begin(one, view)
    other = opened(path, Shard(1, 2))
    begin(other, view)
    return other


def test_how_a_run_is_shared_is_not_part_of_its_answer(tmp_path):
    image = MemoryImage([np.random.default_rng(0).integers(0, 255, (300, 400, 3)).astype(np.uint8)])
    partial = run(image, MODEL, tmp_path / "s.zarr", settings=replace(SETTINGS, shard=Shard(1, 2)))
    assert (partial.status, partial.done) == ("done", partial.planned)  # one block, and it is the second's
    assert run(image, MODEL, tmp_path / "s.zarr", settings=SETTINGS) == partial
