"""verify: every kind of damage is found and named, the way out that is named heals it, and a good store is good to the byte."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import zarr

from patchdrive.models.config import PatchDriveNetConfig
from patchdrive.models.model import patchdrivenet
from patchdrive.models.types import ModelSpec, OutputSpec
from patchdrive.pipeline import budget, metadata
from patchdrive.pipeline.cli import main
from patchdrive.pipeline.journal import Journal, StoreInUseError
from patchdrive.pipeline.mend import mend
from patchdrive.pipeline.plan import Plan, map_blocks
from patchdrive.pipeline.run import run
from patchdrive.pipeline.settings import RunSettings
from patchdrive.pipeline.verify import verify
from patchdrive.pipeline.watcher import Nobody
from patchdrive.readers import MemoryImage
from patchdrive.readers.errors import ReadError, SettingsError, StoreError

EVERY = 1 << 20
"""More than there are patches: all of them are computed again."""
SMALL = RunSettings(patch_size=16, overlap=0, saliency="valid", batch_size=8, workers=1, memory=1 << 30, device="cpu")
MAPS = RunSettings(patch_size=64, overlap=24, saliency="valid", blend="gaussian", batch_size=4, workers=1, memory=1 << 30, device="cpu")


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(7).integers(1, 255, (height, width, 3)).astype(np.uint8)


class Torn(MemoryImage):
    """A picture with a hole of nodata, of which one place cannot be decoded."""

    def __init__(self, pixels):
        holed = pixels.copy()
        holed[200:300, 100:300] = 0  # not seen small, so that patches are planned there
        super().__init__([holed, pixels[::8, ::8]], nodata=0.0, mpp=(0.5, 0.5))

    def read(self, window, **named):
        if named.get("level", 0) == 0 and window.y <= 10 < window.y_end and window.x <= 10 < window.x_end:
            raise ReadError("the first tile is torn")
        return super().read(window, **named)


class Means:
    """A PatchModel: two vectors."""

    spec = ModelSpec(
        name="means",
        channels=3,
        size=64,
        any_size=True,
        outputs=(
            OutputSpec(name="mean", kind="vector", channels=("r", "g", "b"), dtype="float16"),
            OutputSpec(name="spread", kind="vector", channels=("r", "g", "b")),
        ),
    )
    digest = "means"

    def __call__(self, pixels):
        return {"mean": pixels.mean(dim=(2, 3)), "spread": pixels.std(dim=(2, 3))}

    def to(self, _device):
        return self


class Sociable(Means):
    """Answers otherwise in other company and at another place of its batch, as quantised layers and tails of products do."""

    digest = "sociable"

    def __call__(self, pixels):
        given = super().__call__(pixels)
        place = torch.arange(len(pixels))[:, None] / 64
        return {"mean": given["mean"] + place, "spread": given["spread"] + pixels.mean() / 256}


class Maps(Means):
    """A PatchModel: classes at stride 8, and an image at stride 4, with a halo."""

    spec = ModelSpec(
        name="maps",
        channels=3,
        size=64,
        any_size=True,
        outputs=(
            OutputSpec(name="kind", kind="classes", channels=("low", "high"), stride=8, halo=8),
            OutputSpec(name="grey", kind="image", channels=("grey",), stride=4, halo=8),
        ),
    )
    digest = "maps"

    def __call__(self, pixels):
        grey = pixels.mean(dim=1, keepdim=True)
        # Not the same from every patch that sees a place, so that the order of the sums shows.
        grey = grey + torch.linspace(0, 1, grey.shape[-1]) ** 2
        high = torch.sigmoid((torch.nn.functional.avg_pool2d(grey, 8) - 128) / 10)
        return {"kind": torch.cat([1 - high, high], dim=1), "grey": torch.nn.functional.avg_pool2d(grey, 4)}


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def tree(store: Path) -> dict[str, str]:
    return {path.relative_to(store).as_posix(): digest_of(path) for path in sorted(store.rglob("*")) if path.is_file()}


def everything(store: Path) -> dict[str, str]:
    return tree(store) | {f"state/{name}": digest for name, digest in tree(store.with_suffix(".patchdrive")).items()}


class Job:
    """A finished run, and how it was made."""

    def __init__(self, store: Path, image, model, settings: RunSettings) -> None:
        self.store, self.image, self.model, self.settings = store, image, model, settings

    def run(self, **named):
        return run(self.image, self.model, self.store, settings=self.settings, **named)

    def verify(self, **named):
        return verify(self.store, self.image, self.model, **named)

    def copy(self, folder: Path) -> Job:
        for path in self.store.parent.iterdir():
            shutil.copytree(path, folder / path.name) if path.is_dir() else shutil.copyfile(path, folder / path.name)
        return Job(folder / self.store.name, self.image, self.model, self.settings)

    @property
    def state(self) -> Path:
        return self.store.with_suffix(".patchdrive")

    @property
    def done(self) -> Path:
        return self.store.with_suffix(".done.json")


@pytest.fixture(scope="module", autouse=True)
def _small_blocks():
    """Blocks of 64 cells of the finest map, 256 target pixels: several of them, of a small image, whose maps have coarser levels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budget, "_EDGES", (64,))
        patch.setattr(metadata, "_LEAST_SIDE", 48)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory, _small_blocks) -> dict[str, Job]:
    def job(name, image, model, settings):
        held = Job(tmp_path_factory.mktemp(name) / f"{name}.zarr", image, model, settings)
        held.run()
        return held

    jobs = {
        "features": job("features", Torn(noise(600, 1000)), Means(), SMALL),
        "driven": job("driven", MemoryImage([noise(384, 512)], mpp=(0.5, 0.5)), driver(), RunSettings(max_patches=9, device="cpu")),
    }
    jobs["maps"] = job("maps", Torn(noise(600, 1000)), Maps(), MAPS)
    return jobs


def driver():
    torch.manual_seed(0)
    return patchdrivenet(PatchDriveNetConfig(threshold=0.02))


@pytest.fixture(params=["features", "maps"])
def job(request, made, tmp_path) -> Job:
    return made[request.param].copy(tmp_path)


@pytest.fixture
def features(made, tmp_path) -> Job:
    return made["features"].copy(tmp_path)


@pytest.fixture(params=[pytest.param("features", marks=pytest.mark.slow), "maps", "driven"])
def whole(request, made) -> Job:
    return made[request.param]


def test_a_good_store_is_good_to_the_byte_and_stays_as_it_is(whole):
    before = everything(whole.store)
    verdict = whole.verify(sample=EVERY)
    assert verdict.problems == ()
    assert verdict.good
    assert verdict.finished
    assert verdict.files == len(tree(whole.store))
    assert verdict.patches == json.loads(whole.done.read_text())["planned"]
    assert everything(whole.store) == before


def test_there_are_several_blocks_and_dropped_rows(made):
    for name in ("features", "maps"):
        report = json.loads(made[name].done.read_text())
        assert report["failed"] > 0, name
        assert report["skipped"] > 0 or name == "maps"
        assert len(list(made[name].state.glob("commits/0/*.json"))) > 2, name


def test_a_sample_is_seeded_and_of_the_size_asked_for(whole):
    verdict = whole.verify(sample=5, seed=3)
    assert (verdict.patches, verdict.problems) == (5, ())
    assert verify(whole.store, sample=0).good  # neither source nor model is needed


@pytest.mark.parametrize("wrong", [{"sample": -1}, {"seed": -1}])
def test_a_sample_or_a_seed_below_zero_is_refused(whole, wrong):
    with pytest.raises(SettingsError, match="zero or more"):
        whole.verify(**wrong)


def data_file(job: Job) -> Path:
    """The largest file that some block placed."""
    names = json.loads((job.state / "commits" / "0" / "00000001.json").read_text())["files"]
    return max((job.store / name for name in names), key=lambda path: path.stat().st_size)


def flip(path: Path) -> None:
    held = bytearray(path.read_bytes())
    held[len(held) // 2] ^= 0x10
    path.write_bytes(held)


def flip_shard(job: Job) -> None:
    flip(data_file(job))


def lose_shard(job: Job) -> None:
    data_file(job).unlink()


def lose_record(job: Job) -> None:
    (job.state / "commits" / "0" / "00000001.json").unlink()


def tear_record(job: Job) -> None:
    (job.state / "commits" / "0" / "00000001.json").write_text("{")


def miscount_record(job: Job) -> None:
    path = job.state / "commits" / "0" / "00000001.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "failed": 5}))


def one_record_more(job: Job) -> None:
    record = json.loads((job.state / "commits" / "0" / "00000001.json").read_text())
    (job.state / "commits" / "0" / "00000999.json").write_text(json.dumps({**record, "files": {}}))


def say_other_counts(job: Job) -> None:
    job.done.write_text(json.dumps({**json.loads(job.done.read_text()), "done": 3}))


def foreign_chunk(job: Job) -> None:
    """A chunk in the place of a block that left it out, all of it fill: its record does not name it."""
    path = job.state / "commits" / "0" / "00000001.json"
    held = json.loads(path.read_text())
    del held["files"][data_file(job).relative_to(job.store).as_posix()]
    path.write_text(json.dumps(held))


def coarse_file(job: Job) -> Path:
    """A file of a coarser level of the saliency, which every store has."""
    return next((job.store / "images").glob("*/1/map/c/*/*/*"))


def flip_coarse(job: Job) -> None:
    flip(coarse_file(job))


def lose_coarse_record(job: Job) -> None:
    next(job.state.glob("coarse/images/*/1-00000.json")).unlink()


def tear_coarse_record(job: Job) -> None:
    next(job.state.glob("coarse/images/*/1-00000.json")).write_text("{}")


def painted(job: Job) -> Path:
    """What was painted of the scores, a level without a finer one."""
    return job.store / "images" / "scores" / "0" / "map" / "c" / "0" / "0" / "0"


def flip_painted(job: Job) -> None:
    flip(painted(job))


def lose_painted_record(job: Job) -> None:
    (job.state / "coarse" / "images" / "scores" / "0-00000.json").unlink()


def foreign_coarse_chunk(job: Job) -> None:
    coarse_file(job).with_name("999").write_bytes(b"1")


MENDED: dict[str, tuple[Callable[[Job], None], str, str]] = {
    "a flipped byte": (flip_shard, "changed", r"block 1, rows? \d+.*its bytes are not those that were written"),
    "a missing shard": (lose_shard, "missing", r"block 1, rows? \d+.*the file is not there"),
    "a missing record": (lose_record, "record", r"commits/0/00000001.json.*block 1.*there is no record of this block"),
    "a torn record": (tear_record, "record", r"commits/0/00000001.json.*it is not JSON"),
    "a record that miscounts": (miscount_record, "record", r"block 1.*counts 5 rows failed and names \d"),
    "a record too many": (one_record_more, "record", r"00000999.json: a record of a block that no plan has"),
    "another report": (say_other_counts, "report", r"done.json: it says done 3, the records give \d+"),
    "a flipped byte of a coarser level": (flip_coarse, "changed", r"/1/map/c/.*its bytes are not those that were written"),
    "a missing record of a coarser level": (lose_coarse_record, "record", r"coarse/images/.*no record of this band of level 1"),
    "a torn record of a coarser level": (tear_coarse_record, "record", r"coarse/images/.*which files the band placed"),
    "a chunk of a coarser level too many": (foreign_coarse_chunk, "foreign", r"/1/map/c/.*no record names this file"),
    "a flipped byte of a painted map": (flip_painted, "changed", r"scores/0/map/c/.*its bytes are not those that were written"),
    "a missing record of a painted map": (lose_painted_record, "record", r"coarse/images/scores/0-.*no record of this band of level 0"),
    "a chunk too many": (foreign_chunk, "foreign", r"block 1.*its block's record does not name it"),
}


@pytest.mark.parametrize(
    ("job", "name"),
    [
        (store, name)
        for name in MENDED
        for store in ("features", "maps")
        if ("painted" not in name or store == "features") and ("coarser" not in name or store == "maps")
    ],
    indirect=["job"],
)
def test_what_can_be_mended_is_found_named_and_mended(job, name):
    damage, kind, words = MENDED[name]
    whole = tree(job.store)
    damage(job)
    verdict = verify(job.store, sample=0)
    assert [problem.kind for problem in verdict.problems] == [kind]
    assert re.search(words, str(verdict.problems[0])), str(verdict.problems[0])
    assert "--mend" in str(verdict.problems[0])
    assert str(job.store.name) in str(verdict)

    blocks = mend(verdict)
    assert blocks == (0 if kind == "report" or name == "a record too many" or "coarser" in name or "painted" in name else 1)
    unfinished = verify(job.store, sample=0)
    assert unfinished.good, unfinished.problems
    assert not unfinished.finished
    seen = Seen()
    job.run(watcher=seen)
    assert seen.blocks == blocks
    assert tree(job.store) == whole
    assert job.verify(sample=20).good


class Seen(Nobody):
    def __init__(self):
        self.blocks = 0

    def committed(self, rows):
        self.blocks += 1


def edit_array(job: Job) -> None:
    path = next(job.store.rglob("0/map/zarr.json"))
    path.write_text(path.read_text().replace('"zarr_format": 3', '"zarr_format":  3'))


def edit_saliency(job: Job) -> None:
    flip(next(path for path in (job.store / "images" / "saliency" / "0" / "map").rglob("c/*/*/*")))


def edit_facts(job: Job) -> None:
    path = job.state / "run.json"
    path.write_text(path.read_text().replace('"patch_size": ', '"patch_size": 1'))


def edit_plan(job: Job) -> None:
    path = job.state / "plans" / "0.npz"
    plan = Plan.load(path)
    plan.y[3] += 1
    plan.save(path)


def tear_plan(job: Job) -> None:
    path = job.state / "plans" / "0.npz"
    path.write_bytes(path.read_bytes()[:100])


def lose_contents(job: Job) -> None:
    (job.state / "contents.json").unlink()


def put_a_note(job: Job) -> None:
    (job.store / "tables" / "note.txt").write_text("mine")


NOT_MENDED: dict[str, tuple[Callable[[Job], None], str, str]] = {
    "edited metadata": (edit_array, "changed", r"zarr.json: its bytes are not those that were written; .*--overwrite"),
    "another saliency": (edit_saliency, "changed", r"images/saliency/0/map/c/.*its bytes.*--overwrite"),
    "other facts": (edit_facts, "facts", r"zarr.json: it does not say the same of the run as run.json: settings differ.*--overwrite"),
    "another plan": (edit_plan, "plan", r"plans/0.npz: the plan is not the one that was begun.*--overwrite"),
    "a torn plan": (tear_plan, "plan", r"plans/0.npz: the plan cannot be read.*--overwrite"),
    "no contents": (lose_contents, "record", r"contents.json: it cannot be read.*--overwrite"),
    "a foreign file": (put_a_note, "foreign", r"tables/note.txt: no record names this file; it is not of this run: move it"),
}


@pytest.mark.parametrize("job", ["features", pytest.param("maps", marks=pytest.mark.slow)], indirect=True)
@pytest.mark.parametrize("name", NOT_MENDED)
def test_what_cannot_be_mended_is_named_with_its_way_out(job, name):
    damage, kind, words = NOT_MENDED[name]
    whole = tree(job.store)
    damage(job)
    verdict = verify(job.store, sample=0)
    assert verdict.problems[0].kind == kind
    assert re.search(words, str(verdict.problems[0])), str(verdict.problems[0])
    if name != "no contents":
        assert len(verdict.problems) == 1
    before = everything(job.store)
    with pytest.raises(StoreError, match="nothing was mended"):
        mend(verdict)
    assert everything(job.store) == before
    if kind == "foreign":
        (job.store / "tables" / "note.txt").unlink()
    else:
        job.run(overwrite=True)
    assert job.verify(sample=20).good
    assert tree(job.store) == whole


def recorded_anew(job: Job, file: Path) -> None:
    """Make the records agree with a file, as a forger or a wrong program would."""
    name = file.relative_to(job.store).as_posix()
    for path in (*job.state.glob("commits/*/*.json"), job.state / "contents.json"):
        held = json.loads(path.read_text())
        files = held.get("files", held)
        if name in files:
            files[name] = digest_of(file)
            path.write_text(json.dumps(held))


@pytest.mark.slow
def test_swapped_rows_are_found_by_the_record_and_without_it_by_computing(features):
    table = zarr.open_array(store=features.store / "tables" / "mean_round0" / "X", mode="r+")
    rows = table[1100], table[1200]
    table[1100], table[1200] = rows[1], rows[0]
    (problem,) = verify(features.store, sample=0).problems
    assert (problem.kind, problem.round, problem.block, problem.rows) == ("changed", 0, 1, (1024, 2047))
    recorded_anew(features, features.store / "tables" / "mean_round0" / "X" / "c" / "1" / "0")
    assert verify(features.store, sample=0).good
    verdict = features.verify(sample=EVERY)
    assert [(problem.kind, problem.rows) for problem in verdict.problems] == [("answer", (1100, 1100)), ("answer", (1200, 1200))]
    assert "3 of 3 values differ" in str(verdict.problems[0])
    assert mend(verdict) == 1
    features.run()
    assert features.verify(sample=100).good
    np.testing.assert_array_equal((table[1100], table[1200]), rows)


@pytest.mark.slow
def test_one_cell_of_a_map_is_found_by_computing(made, tmp_path):
    job = made["maps"].copy(tmp_path)
    array = zarr.open_array(store=job.store / "images" / "grey" / "0" / "map", mode="r+")
    array[0, 100, 130] = np.nextafter(array[0, 100, 130], np.float32(999))
    recorded_anew(job, next(path for path in (job.store / "images" / "grey" / "0" / "map").rglob("c/0/1/2")))
    verdict = job.verify(sample=EVERY)
    assert {problem.kind for problem in verdict.problems} == {"answer"}
    assert {problem.block for problem in verdict.problems} == {block_at(job, 400, 520)}
    assert "1 of 144 values differ" in str(verdict.problems[0])


def block_at(job: Job, y: int, x: int) -> int:
    edge = json.loads((job.state / "sizes.json").read_text())["edge"]
    blocks = map_blocks(Plan.load(job.state / "plans" / "0.npz"), edge=edge, halo=8)
    return next(block.index for block in blocks if block.window.y <= y < block.window.y_end and block.window.x <= x < block.window.x_end)


def test_states_are_those_of_the_records(features):
    codes = features.store / "tables" / "spread_round0" / "obs" / "state" / "codes"
    array = zarr.open_array(store=codes, mode="r+")
    assert array[500] == 1
    array[500] = 3
    (problem,) = verify(features.store, sample=0).problems
    assert (problem.kind, problem.cure) == ("changed", "mend")
    recorded_anew(features, codes / "c" / "0")
    verdict = verify(features.store, sample=0)
    assert "1 rows have another state than their records; row 500 is failed here and done there" in str(verdict.problems[0])
    whole = tree(features.store)
    assert mend(verdict) == 0
    features.run()
    assert {name for name, digest in tree(features.store).items() if whole[name] != digest} == {"tables/spread_round0/obs/state/codes/c/0"}


@pytest.mark.slow
def test_a_row_that_failed_must_fail_again(features):
    features.image = Mended(noise(600, 1000))
    problems = features.verify(sample=EVERY).problems
    assert len(problems) == json.loads(features.done.read_text())["failed"]
    assert all("it was failed when it was stored, and is" in str(problem) for problem in problems)
    assert {problem.cure for problem in problems} == {"mend"}


class Mended(Torn):
    """The same picture, no longer torn."""

    def read(self, window, **named):
        return MemoryImage.read(self, window, **named)


def test_company_changes_no_verdict(tmp_path):
    """A model whose answers depend on place and company is computed again in its very batches."""
    job = Job(tmp_path / "s.zarr", Torn(noise(600, 1000)), Sociable(), SMALL)
    job.run()
    verdict = job.verify(sample=40)
    assert (verdict.patches, verdict.problems) == (40, ())

    class Other(Sociable):
        def __call__(self, pixels):
            given = super().__call__(pixels)
            return {**given, "mean": given["mean"] + 1}

    job.model = Other()
    verdict = job.verify(sample=40)
    assert len(verdict.problems) > 20  # all but those that no model sees
    assert {problem.cure for problem in verdict.problems} == {"overwrite"}


class Impatient(Seen):
    """Stops after the first block."""

    def wants_stop(self):
        return self.blocks == 1


@pytest.mark.slow
def test_an_unfinished_store_is_good_as_far_as_it_goes(made, tmp_path):
    done = made["features"]
    job = Job(tmp_path / done.store.name, done.image, done.model, done.settings)
    job.run(watcher=Impatient())
    verdict = job.verify(sample=EVERY)
    assert (verdict.finished, verdict.patches, verdict.problems) == (False, 1024, ())
    assert "not finished" in str(verdict)
    next_chunk = job.store / "tables" / "mean_round0" / "X" / "c" / "1" / "0"
    next_chunk.parent.mkdir(parents=True, exist_ok=True)
    next_chunk.write_bytes(b"placed, and killed before its record")
    (job.store / "tables" / "note.txt").write_text("mine")
    (problem,) = job.verify(sample=0).problems
    assert (problem.kind, problem.where) == ("foreign", "features.zarr/tables/note.txt")


def test_a_record_cannot_name_files_outside(features):
    path = features.state / "commits" / "0" / "00000001.json"
    held = json.loads(path.read_text())
    held["files"]["../features.done.json"] = digest_of(features.done)
    path.write_text(json.dumps(held))
    (problem,) = verify(features.store, sample=0).problems
    assert "no file inside the store" in str(problem)
    mend(verify(features.store, sample=0))
    assert features.run().planned == len(Plan.load(features.state / "plans" / "0.npz"))


def test_two_records_of_one_file(features):
    path = features.state / "commits" / "0" / "00000001.json"
    held = json.loads(path.read_text())
    held["files"]["zarr.json"] = digest_of(features.store / "zarr.json")
    path.write_text(json.dumps(held))
    assert any("which another record names too" in str(problem) for problem in verify(features.store, sample=0).problems)


def test_another_source_or_model_is_refused(features):
    with pytest.raises(StoreError, match=r"is not what features.zarr was made of: its identity is"):
        verify(features.store, MemoryImage([noise(600, 1000)]), Means())
    other = Means()
    other.digest = "other"
    with pytest.raises(StoreError, match=r"means is not the model of features.zarr: its digest is other, recorded is means"):
        verify(features.store, features.image, other)
    source = features.state / "source.json"
    source.write_text(json.dumps({"source": "nowhere.svs", "reader": "tiff"}))
    with pytest.raises(
        StoreError, match=r"nowhere.svs, which features.zarr was made of, is not there; say where it lies now with --source"
    ):
        verify(features.store)
    with pytest.raises(StoreError, match=r"does not say by what name its model was loaded; say it with --model"):
        verify(features.store, features.image)


def test_no_store_is_refused(features, tmp_path):
    with pytest.raises(StoreError, match="is no store"):
        verify(tmp_path)
    shutil.move(features.state, tmp_path / "elsewhere")
    with pytest.raises(StoreError, match=r"has no features\.patchdrive/run\.json beside it"):
        verify(features.store)


def test_a_store_that_is_written_is_not_mended(features):
    flip_shard(features)
    verdict = verify(features.store, sample=0)
    journal = Journal(features.state)
    try:
        with pytest.raises(StoreInUseError):
            mend(verdict)
    finally:
        journal.close()
    assert features.done.exists()


def test_the_command_line(tmp_path, capsys):
    source = tmp_path / "a.tif"
    tifffile.imwrite(source, noise(512, 768), tile=(256, 256), photometric="rgb", resolution=(20000, 20000), resolutionunit="CENTIMETER")
    assert main(["run", str(source), "-o", str(tmp_path), "--saliency", "valid", "--patch-size", "64", "--device", "cpu", "--json"]) == 0
    store = Path(json.loads(capsys.readouterr().out)["store"])
    command = ["verify", str(store), "--workers", "1", "--memory", "1GiB"]  # source and model are those recorded
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["problems"], told["finished"], told["patches"]) == ([], True, 32)
    assert told["files"] == len(tree(store))

    moved = source.rename(tmp_path / "b.tif")
    assert main(command) == 2
    assert "is not there; say where it lies now with --source" in capsys.readouterr().err
    assert main([*command, "--source", str(moved), "--model", "descriptor", "--sample", "3", "--seed", "1"]) == 0
    assert "good; " in capsys.readouterr().out
    assert main(["verify", str(store), "--no-recompute"]) == 0
    capsys.readouterr()

    shard = next(store.glob("tables/*_round0/X/c/0/0"))
    flip(shard)
    assert main(["verify", str(store), "--no-recompute"]) == 3
    said = capsys.readouterr()
    assert len(said.err.splitlines()) == 1
    assert "round 0, block 0" in said.err
    assert "1 problem" in said.out
    assert main(["verify", str(store), "--no-recompute", "--mend"]) == 3
    assert "computes 1 block and finishes" in capsys.readouterr().err
    assert main(["run", str(moved), "-o", str(tmp_path), "--saliency", "valid", "--patch-size", "64", "--device", "cpu", "--json"]) == 0
    assert main([*command, "--source", str(moved)]) == 0


def test_a_foreign_folder_is_no_usage(tmp_path, capsys):
    assert main(["verify", str(tmp_path)]) == 2
    assert "is no store" in capsys.readouterr().err
