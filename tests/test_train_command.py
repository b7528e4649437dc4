"""`patchdrive train` from end to end, on images that a test can write and a small model can learn."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from safetensors import safe_open
from skimage.io import imsave

from patchdrive.models import load_model
from patchdrive.models.model import PatchDrive
from patchdrive.models.segmenter import Segmenter
from patchdrive.pipeline.checkpoints import Checkpoint, load_checkpoint
from patchdrive.pipeline.cli import main
from patchdrive.pipeline.train_config import TrainConfig, read_config
from patchdrive.pipeline.train_job import Outcome, train_from
from patchdrive.pipeline.train_pieces import Change, draw_pieces
from patchdrive.pipeline.train_setup import set_up
from patchdrive.readers.errors import SettingsError, StoreError


@pytest.fixture(autouse=True)
def one_thread():
    before, interval = torch.get_num_threads(), sys.getswitchinterval()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    sys.setswitchinterval(interval)


class Until:
    """A Watcher that wants to stop after some steps."""

    def __init__(self, steps: int | None = None) -> None:
        self.steps, self.seen, self.began_with = steps, 0, (0, 0)

    def began(self, rows: int, left: int) -> None:
        self.began_with = (rows, left)

    def committed(self, rows: int) -> None:
        self.seen += rows

    def wants_stop(self) -> bool:
        return self.steps is not None and self.seen >= self.steps


def go(config: TrainConfig, steps: int | None = None, *, overwrite: bool = False) -> tuple[Outcome, Until, list[str]]:
    watcher, said = Until(steps), []
    return train_from(config, say=said.append, watcher=watcher, overwrite=overwrite), watcher, said


def write_config(folder: Path, text: str) -> Path:
    path = folder / "train.toml"
    path.write_text(text)
    return path


# Images with a class each.

CLASSIFY = """
task = "classify"
out = "out"
workers = 2
device = "cpu"
[sources]
train = ["images"]
[labels]
images = "labels.csv"
[model]
width = 16
max_patches = 2
patch_size = 32
glance_downsample = 4
[augment]
brightness = 0.05
[training]
steps = 8
batch_size = 2
learning_rate = 4e-3
max_patches = 2
checkpoint_every = 3
[validation]
every = 4
share = 0.25
resamples = 20
metric = "accuracy"
"""


def squares(folder: Path, count: int = 12, side: int = 64) -> None:
    """Half of them, PNG and TIFF, have a dark square in them."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    rows = ["source,label"]
    for index in range(count):
        image = rng.integers(200, 220, (side, side, 3), dtype=np.uint8)
        if index % 2:
            y, x = rng.integers(4, side - 36, 2)
            image[y : y + 32, x : x + 32] = 60
        name = f"{index}.{'png' if index % 3 else 'tif'}"
        imsave(folder / "images" / name, image, check_contrast=False)
        rows.append(f"{name},{'dark' if index % 2 else 'plain'}")
    (folder / "labels.csv").write_text("\n".join(rows))


@pytest.fixture(scope="module")
def classified(tmp_path_factory) -> Path:
    """A finished training, and its images."""
    folder = tmp_path_factory.mktemp("classified")
    squares(folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    go(read_config(write_config(folder, CLASSIFY)))
    torch.set_num_threads(threads)
    return folder


def test_what_training_leaves(classified):
    out = classified / "out"
    told = json.loads((out / "train.json").read_text())
    assert (told["status"], told["steps"], told["metric"]) == ("done", 8, "accuracy")
    assert len(told["images"]["train"]) == 8
    assert len(told["images"]["held_out"]) == 4
    assert not set(told["images"]["train"]) & set(told["images"]["held_out"])
    assert told["config"]["training"]["steps"] == 8
    assert told["model"]["answers"] == [{"name": "class", "classes": ["dark", "plain"], "many": False}]
    metrics = json.loads((out / "metrics.json").read_text())
    assert [look["step"] for look in metrics["looks"]] == [4, 8]
    assert set(metrics["looks"][0]["metrics"]) == {"auroc", "accuracy", "balanced_accuracy", "average_precision"}
    assert told["metrics"] == next(look["metrics"] for look in metrics["looks"] if look["step"] == told["best"])
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    model = load_model(f"patchdrivenet:{out / 'weights.safetensors'}")
    assert isinstance(model, PatchDrive)
    assert model.values == {"class": ("dark", "plain")}
    assert (model.config.target, model.maps) == ("", ())
    with torch.inference_mode():
        answer = model(torch.zeros(1, 3, 64, 64)).values["class"]
    assert answer.sum().item() == pytest.approx(1.0)
    assert {entry.name for entry in out.iterdir() if not entry.name.startswith("lease")} == {
        "weights.safetensors", "checkpoint.safetensors", "metrics.json", "curves.png", "train.json",
    }  # fmt: skip


@pytest.mark.parametrize("stops", [(1, 1), (5,), (7,)])
def test_stopped_and_gone_on_with_gives_the_same_weights(classified, tmp_path, stops):
    """Whatever the steps it was stopped after, and whether or not they are checkpoints' or looks'."""
    config = read_config(write_config(classified, CLASSIFY.replace('"out"', f'"{tmp_path}"').replace("workers = 2", "workers = 1")))
    left = 8
    for steps in stops:
        outcome, watcher, said = go(config, steps)
        assert outcome.status == "partial"
        assert watcher.began_with == (8, left)
        left -= watcher.seen
        assert not (tmp_path / "train.json").exists()
    outcome, watcher, said = go(config)
    assert (outcome.status, watcher.seen) == ("done", left)
    assert any("goes on after step" in line for line in said)
    for name in ("weights.safetensors", "metrics.json"):
        assert (tmp_path / name).read_bytes() == (classified / "out" / name).read_bytes()
    ours, theirs = (load_checkpoint(folder / "checkpoint.safetensors", facts_of(folder)) for folder in (tmp_path, classified / "out"))
    assert ours is not None
    assert theirs is not None
    assert ours.tensors.keys() == theirs.tensors.keys()
    assert all(torch.equal(ours.tensors[name], theirs.tensors[name]) for name in ours.tensors)
    assert len(ours.tensors["history.total"]) == 8


def facts_of(out: Path):
    with safe_open(out / "checkpoint.safetensors", framework="pt") as file:
        return json.loads(file.metadata()["patchdrive.training"])["facts"]


def test_lost_after_a_checkpoint(classified, tmp_path):
    """A kill between two checkpoints costs the steps since the last one, and nothing else."""
    config = read_config(write_config(classified, CLASSIFY.replace('"out"', f'"{tmp_path}"')))

    class Killer(Until):
        def committed(self, rows: int) -> None:
            super().committed(rows)
            if self.seen == 5:
                raise InterruptedError

    with pytest.raises(InterruptedError):
        train_from(config, say=lambda _: None, watcher=Killer())
    _, watcher, _ = go(config)
    assert watcher.began_with == (8, 4)  # the look after step 4 was the last checkpoint
    assert (tmp_path / "weights.safetensors").read_bytes() == (classified / "out" / "weights.safetensors").read_bytes()


def test_a_finished_training_is_not_done_again(classified, capsys):
    path = write_config(classified, CLASSIFY)
    before = {entry.name: entry.read_bytes() for entry in (classified / "out").iterdir() if "lease" not in entry.name}
    assert main(["train", str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["status"], told["steps"]) == ("done", 8)
    assert {entry.name: entry.read_bytes() for entry in (classified / "out").iterdir() if "lease" not in entry.name} == before


def test_another_training_is_refused(classified, capsys):
    other = write_config(classified, CLASSIFY.replace("steps = 8", "steps = 9").replace("share = 0.25", "share = 0.5"))
    assert main(["train", str(other)]) == 2
    said = capsys.readouterr().err
    assert "holds another training: config.training.steps was 8, now 9; config.validation.share was 0.25, now 0.5; images was" in said
    assert "--overwrite" in said
    how = read_config(write_config(classified, CLASSIFY.replace("workers = 2", "workers = 1")))
    assert go(how)[0].status == "done"  # what says only how to train may change


def test_another_seed_gives_other_weights(classified, tmp_path):
    config = read_config(write_config(classified, CLASSIFY.replace('"out"', f'"{tmp_path}"\nseed = 1')))
    go(config)
    assert (tmp_path / "weights.safetensors").read_bytes() != (classified / "out" / "weights.safetensors").read_bytes()


def test_files_that_are_not_ours(classified, tmp_path):
    config = read_config(write_config(classified, CLASSIFY.replace('"out"', f'"{tmp_path}"').replace("steps = 8", "steps = 1")))
    (tmp_path / "weights.safetensors").write_bytes(b"somebody's")
    with pytest.raises(StoreError, match=r"weights.safetensors is there without the checkpoint"):
        go(config)
    assert (tmp_path / "weights.safetensors").read_bytes() == b"somebody's"
    (tmp_path / "checkpoint.safetensors").write_bytes(b"torn")
    with pytest.raises(StoreError, match="cannot be read as a checkpoint"):
        go(config)
    assert go(config, overwrite=True)[0].status == "done"
    (tmp_path / "weights.safetensors").unlink()
    with pytest.raises(StoreError, match="was taken away"):
        go(config)


def test_a_checkpoint_is_whole_or_not_there(tmp_path, monkeypatch):
    held = Checkpoint(facts={"a": 1}, state={}, tensors={"x": torch.ones(3)})
    held.save(tmp_path / "checkpoint.safetensors")
    monkeypatch.setattr("patchdrive.pipeline.checkpoints.os.fsync", lambda _: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        Checkpoint(facts={"a": 1}, state={}, tensors={"x": torch.zeros(3)}).save(tmp_path / "checkpoint.safetensors")
    found = load_checkpoint(tmp_path / "checkpoint.safetensors", {"a": 1})
    assert found is not None
    assert found.tensors["x"].tolist() == [1, 1, 1]
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint.safetensors"]
    assert load_checkpoint(tmp_path / "none", {}) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("labels.csv", "none.csv"), "labels.images .*none.csv cannot be read"),
        (('["images"]', '["nowhere"]'), "nowhere: no such file or folder"),
        (("[labels]", '[labels]\nclasses = ["dark", "bright"]'), r"has the labels \['dark', 'plain'\], and labels.classes are"),
        (('["images"]', '["images/1.png"]'), "to tell classes apart there must be two"),
        (("[training]", "[pieces]\nsaliency = 'nothing'\n[training]"), "nothing"),
        (('device = "cpu"', 'device = "abacus"'), "'abacus' is not a device"),
    ],
)
def test_refused_before_a_step(classified, tmp_path, capsys, change, words):
    text = CLASSIFY.replace('"out"', f'"{tmp_path / "new"}"').replace(*change)
    assert main(["train", str(write_config(classified, text))]) == 2
    assert re.search(words, capsys.readouterr().err)


def test_images_without_a_label_are_named(classified, tmp_path):
    rows = (classified / "labels.csv").read_text().splitlines()
    (classified / "some.csv").write_text("\n".join(rows[:-4]))
    config = read_config(write_config(classified, CLASSIFY.replace("labels.csv", "some.csv").replace('"out"', f'"{tmp_path}"')))
    with pytest.raises(SettingsError, match=r"says nothing of 4 of 12 images: .* and others; label them"):
        go(config)


def test_training_ends_when_it_gets_no_better(classified, tmp_path):
    text = CLASSIFY.replace('"out"', f'"{tmp_path}"').replace("steps = 8", "steps = 400").replace("every = 4", "every = 1\npatience = 2")
    outcome, watcher, _ = go(read_config(write_config(classified, text.replace("learning_rate = 4e-3", "learning_rate = 1e-7"))))
    assert outcome.status == "done"
    assert outcome.ended.startswith("accuracy was not better than")
    assert watcher.seen == outcome.steps == 3


def test_images_too_large_to_hold_are_driven(classified, tmp_path, monkeypatch):
    """The same command, each patch read where the model drives; and stopped, it goes on to the same weights."""
    monkeypatch.setattr("patchdrive.pipeline.train_setup.MOST_WHOLE", 1000)
    texts = [CLASSIFY.replace('"out"', f'"{tmp_path / name}"').replace("steps = 8", "steps = 3") for name in ("one", "other")]
    one, other = (read_config(write_config(classified, text)) for text in texts)
    outcome, _, _ = go(one)
    assert outcome.metrics["accuracy"].value > 0
    assert go(other, 2)[0].status == "partial"
    assert go(other)[0].status == "done"
    assert (tmp_path / "one" / "weights.safetensors").read_bytes() == (tmp_path / "other" / "weights.safetensors").read_bytes()
    monkeypatch.setattr("patchdrive.pipeline.train_examples.MOST_SEEN", 200)
    with pytest.raises(SettingsError, match=r"has 256 pixels of the model's glance, .* larger model.glance_downsample than 4"):
        go(read_config(write_config(classified, texts[0].replace("one", "two"))))


@pytest.mark.slow  # 20 s
def test_learns_classes_and_runs(tmp_path, capsys):
    squares(tmp_path, count=32)
    text = CLASSIFY.replace("steps = 8", "steps = 60").replace("every = 4", "every = 20").replace("batch_size = 2", "batch_size = 4")
    outcome, _, _ = go(read_config(write_config(tmp_path, text)))
    assert outcome.metrics["accuracy"].value >= 0.9
    weights = f"patchdrivenet:{tmp_path / 'out' / 'weights.safetensors'}"
    image = tmp_path / "images" / "1.png"
    assert main(["run", str(image), "-o", str(tmp_path / "stores"), "--model", weights, "--device", "cpu"]) == 0
    assert "done" in capsys.readouterr().out


@pytest.mark.slow  # 20 s: two processes
def test_a_signal_leaves_a_checkpoint(tmp_path):
    """SIGTERM ends it with 75 after a checkpoint; the same command goes on to the same weights; SIGKILL costs no more than steps."""
    squares(tmp_path)
    path = write_config(tmp_path, CLASSIFY.replace("steps = 8", "steps = 90").replace("every = 4", "every = 45"))
    command = [sys.executable, "-m", "patchdrive.pipeline.cli", "train", str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for number, code in ((signal.SIGKILL, -9), (signal.SIGTERM, 75)):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        deadline = time.monotonic() + 120
        size = -1
        while time.monotonic() < deadline:  # until a checkpoint of this process is there
            there = tmp_path / "out" / "checkpoint.safetensors"
            now = there.stat().st_mtime_ns if there.exists() else -1
            if size == -1 and number == signal.SIGTERM:
                size = now
            if now not in {-1, size}:
                break
            time.sleep(0.05)
        process.send_signal(number)
        process.communicate(timeout=120)
        assert process.returncode == code
    assert subprocess.run(command, check=False, env=environment).returncode == 0
    whole = read_config(write_config(tmp_path, path.read_text().replace('"out"', '"whole"')))
    go(whole)
    assert (tmp_path / "out" / "weights.safetensors").read_bytes() == (tmp_path / "whole" / "weights.safetensors").read_bytes()


# Objects in one large image.

DETECT = """
task = "detect"
out = "out"
device = "cpu"
[sources]
train = ["slide.tif"]
mpp_override = 0.25
[labels]
objects = "slide.csv"
targets = ["disc"]
[model]
pixel_size = 0.5
unit = "um"
width = 16
patch_size = 32
glance_downsample = 4
max_patches = 8
[pieces]
side = 128
[training]
steps = 4
batch_size = 2
max_patches = 4
[validation]
by = "area"
share = 0.3
every = 2
resamples = 20
pieces = 4
"""


def discs(folder: Path, *, side: int = 1536, count: int = 60) -> np.ndarray:
    """A tiled, pyramidal TIFF with dark discs of 32 pixels, and where they are; squares are something else."""
    rng = np.random.default_rng(1)
    pixels = rng.integers(170, 200, (side, side, 3), dtype=np.uint8)
    cells = rng.permutation((side // 96) ** 2)[: 2 * count]
    places = np.stack([cells // (side // 96), cells % (side // 96)], axis=1) * 96 + rng.integers(20, 76, (2 * count, 2))
    y, x = np.mgrid[-16:16, -16:16] + 0.5
    rows = ["x,y,label"]
    for index, (row, column) in enumerate(places.tolist()):
        there = pixels[row - 16 : row + 16, column - 16 : column + 16] if min(row, column) >= 16 else pixels[:0]
        round_one = index < count
        if there.shape[:2] == (32, 32):
            there[(np.hypot(y, x) < 15) if round_one else (np.abs(y) < 4)] = (90, 40, 100) if round_one else (240, 240, 240)
            rows.append(f"{column},{row},{'disc' if round_one else 'bar'}")
    (folder / "slide.csv").write_text("\n".join(rows))
    with tifffile.TiffWriter(folder / "slide.tif") as tiff:
        for step in (1, 2, 4):
            tiff.write(pixels[::step, ::step], tile=(256, 256), photometric="rgb", compression="deflate", subfiletype=min(step - 1, 1))
    return places[:count]


def test_points_on_a_large_image(tmp_path):
    discs(tmp_path)
    outcome, _, said = go(read_config(write_config(tmp_path, DETECT)))
    assert outcome.status == "done"
    assert set(outcome.metrics) == {"average_precision", "f1", "precision", "recall", "read"}
    told = json.loads((tmp_path / "out" / "train.json").read_text())
    named = (tmp_path / "slide.csv").read_text().count("disc")
    assert told["targets"]["train"] == named  # of the image; of its upper part fewer
    within = int(next(line for line in said if "objects in" in line).split()[1])
    assert 0.5 * named < within < named
    model = load_model(f"patchdrivenet:{tmp_path / 'out' / 'weights.safetensors'}")
    assert isinstance(model, PatchDrive)
    assert (model.config.pixel_size, model.config.unit, model.config.target, model.values) == (0.5, "um", "disc", {})


def test_only_what_is_labelled_is_shown(tmp_path):
    """Pieces lie around the area in which everything is labelled, what is beyond it is fill, and objects there are nobody's."""
    places = discs(tmp_path, side=1536, count=30)
    area = [[[200, 300], [900, 300], [900, 1100], [200, 1100], [200, 300]]]
    feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": area}, "properties": {}}
    (tmp_path / "areas").mkdir()
    (tmp_path / "areas" / "slide.geojson").write_text(json.dumps(feature))
    config = read_config(
        write_config(tmp_path, DETECT.replace("[model]", 'within = "areas"\n[model]').replace("share = 0.3", "share = 0.5"))
    )
    with closing(set_up(config, lambda _: None)) as setup:
        (upper,), (lower,) = setup.train, setup.held_out
        inside = ((places > (300, 200)) & (places < (1100, 900))).all(axis=1)
        assert upper.targets is not None
        assert len(upper.targets) == inside.sum()
        assert len(upper.ground.targets[0]) + len(lower.ground.targets[0]) == inside.sum()
        for step in range(4):
            pieces = draw_pieces([upper.ground], setup.drawing, step)
            for piece, pixels in zip(
                pieces, setup.loaders[0].load([replace(piece, change=Change()) for piece in pieces]).pixels, strict=True
            ):
                rows, columns = (2 * (np.arange(128) + at) + 1 for at in (piece.window.y, piece.window.x))  # of level 0
                known = ((rows > 300) & (rows < 1100))[:, None] & ((columns > 200) & (columns < 900))
                assert known.any()
                assert (pixels[:, ~torch.from_numpy(known)] == 255).all()
                assert (pixels[:, torch.from_numpy(known)] < 245).all()
        assert all(piece.window.y_end > 384 for piece in setup.pieces)
    feature["geometry"] = {"type": "Polygon", "coordinates": [[[x + 5000, y] for x, y in area[0]]]}
    (tmp_path / "areas" / "slide.geojson").write_text(json.dumps(feature))
    with pytest.raises(SettingsError, match=r"labels.within .*slide.geojson: none of its polygons lies on"):
        go(config)


def test_boxes_have_sizes(tmp_path):
    discs(tmp_path, side=768, count=12)
    rows = [row.split(",") for row in (tmp_path / "slide.csv").read_text().splitlines()[1:]]
    boxes = [f"{int(x) - 16},{int(y) - 16},{int(x) + 16},{int(y) + 16},{label}" for x, y, label in rows]
    (tmp_path / "boxes.csv").write_text("\n".join(["xmin,ymin,xmax,ymax,label", *boxes]))
    text = DETECT.replace("slide.csv", "boxes.csv").replace("[model]", "[model]\nboxes = true").replace("steps = 4", "steps = 2")
    go(read_config(write_config(tmp_path, text)))
    model = load_model(f"patchdrivenet:{tmp_path / 'out' / 'weights.safetensors'}")
    assert isinstance(model, PatchDrive)
    assert model.config.boxes
    held = load_checkpoint(tmp_path / "out" / "checkpoint.safetensors", facts_of(tmp_path / "out"))
    assert held is not None
    assert (held.tensors["history.size"] > 0).all()
    with pytest.raises(SettingsError, match=r"model.boxes = true learns how large objects are, and \d+ of \d+ in .* are points"):
        go(read_config(write_config(tmp_path, text.replace("boxes.csv", "slide.csv").replace('"out"', '"other"'))))


def test_objects_that_are_not_there(tmp_path):
    discs(tmp_path, side=512, count=4)
    with pytest.raises(SettingsError, match="no image to train on holds an object called dics"):
        go(read_config(write_config(tmp_path, DETECT.replace('["disc"]', '["dics"]'))))
    with pytest.raises(SettingsError, match=r'holds out images, and there is one; give validation.by = "area"'):
        go(read_config(write_config(tmp_path, DETECT.replace('by = "area"', ""))))


@pytest.mark.slow  # a minute
def test_learns_to_find_discs(tmp_path):
    discs(tmp_path)
    text = (
        DETECT.replace("steps = 4", "steps = 150\nlearning_rate = 5e-3")
        .replace("every = 2", "every = 75")
        .replace("side = 128", "side = 192")
    )
    outcome, _, _ = go(read_config(write_config(tmp_path, text.replace("max_patches = 8", "max_patches = 64"))))
    assert outcome.metrics["recall"].value > 0.7
    assert outcome.metrics["average_precision"].value > 0.7


# A class for each pixel.

SEGMENT = """
task = "segment"
out = "out"
device = "cpu"
[sources]
train = ["images"]
[labels]
pixels = "masks"
classes = ["light", "dark"]
values = [0, 255]
[model]
width = 8
dilations = [1, 2]
output = "shade"
[pieces]
side = 32
[training]
steps = 30
batch_size = 4
learning_rate = 1e-2
average = 0.8
[validation]
every = 30
resamples = 20
"""


def shades(folder: Path) -> None:
    """Noise in 16 bits that is darker in a box, and masks that say where."""
    rng = np.random.default_rng(2)
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for index in range(4):
        mask = np.zeros((80, 100), np.uint8)
        y, x = rng.integers(0, 50, 2)
        mask[y : y + 30, x : x + 40] = 255
        pixels = rng.integers(1500, 2500, (80, 100)) - 800 * (mask > 0)
        tifffile.imwrite(folder / "images" / f"{index}.tif", pixels.astype(np.uint16))
        imsave(folder / "masks" / f"{index}_mask.png", mask, check_contrast=False)


def test_masks_of_pixels(tmp_path):
    shades(tmp_path)
    outcome, _, _ = go(read_config(write_config(tmp_path, SEGMENT)))
    assert outcome.metrics["mean_iou"].value > 0.8
    model = load_model(f"segmenter:{tmp_path / 'out' / 'weights.safetensors'}")
    assert isinstance(model, Segmenter)
    assert (model.config.classes, model.config.channels) == (("light", "dark"), 1)
    assert model.config.mean[0] == pytest.approx(2000 / 65535, rel=0.3)


def test_masks_for_a_patchdrivenet(tmp_path):
    """Its map has a pixel for each of its glance."""
    shades(tmp_path)
    text = SEGMENT.replace(
        'width = 8\ndilations = [1, 2]\noutput = "shade"', 'name = "patchdrivenet-modular"\nwidth = 16\nglance_downsample = 2'
    )
    outcome, _, _ = go(
        read_config(write_config(tmp_path, text.replace("steps = 30", "steps = 80\nmax_patches = 2").replace("side = 32", "side = 48")))
    )
    assert outcome.metrics["mean_iou"].value > 0.7
    model = load_model(f"patchdrivenet:{tmp_path / 'out' / 'weights.safetensors'}")
    assert isinstance(model, PatchDrive)
    assert (model.config.segments, model.config.target, model.config.channels) == (("light", "dark"), "", 1)
    assert (model.config.name, model.config.mixer, model.config.patch_size) == ("patchdrivenet-modular", "neighbours", 32)
    assert model.config.mean == pytest.approx(2000 / 65535, rel=0.3)
    assert model.config.scale == 1 / 65535
