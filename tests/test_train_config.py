"""The config of a training: what it refuses, by the field's name, before anything is opened."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from patchdrive.pipeline.toml_table import bounded, check_bounds, read_table
from patchdrive.pipeline.train_config import AIMS, read_config
from patchdrive.readers.errors import SettingsError

LEAST = """
task = "detect"
out = "trained"
[sources]
train = ["images"]
[labels]
objects = "points.csv"
"""


def config(tmp_path: Path, text: str):
    path = tmp_path / "train.toml"
    path.write_text(text)
    return read_config(path)


def test_the_least_that_does(tmp_path):
    held = config(tmp_path, LEAST)
    assert (held.task, held.sources.train, held.labels.objects, held.seed) == ("detect", ("images",), "points.csv", 0)
    assert held.out_folder == tmp_path / "trained"
    assert held.metric == AIMS["detect"].metrics[0]
    assert held.judged


def test_all_of_it(tmp_path):
    held = config(
        tmp_path,
        LEAST.replace('out = "trained"', 'out = "trained"\nseed = 3\ndevice = "cpu"\nworkers = 2')
        + """targets = ["tumour", "stroma"]
        [model]
        pixel_size = 0.5
        unit = "um"
        width = 32
        [pieces]
        side = 256
        with_targets = 1
        [augment]
        flips = false
        [training]
        steps = 10
        learning_rate = 1e-3
        losses = { evidence = 2 }
        [validation]
        by = "area"
        metric = "f1"
        patience = 3
        """,
    )
    assert held.model == {"pixel_size": 0.5, "unit": "um", "width": 32}
    assert held.pieces.with_targets == 1.0
    assert isinstance(held.pieces.with_targets, float)
    assert held.training.losses == {"evidence": 2.0}
    assert (held.metric, held.validation.patience, held.augment.flips, held.labels.targets) == ("f1", 3, False, ("tumour", "stroma"))
    assert not {"path", "out", "device", "workers"} & held.answer_fields().keys()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("task", "taks"), r"train.toml: taks is no field there; did you mean task\? There are task, out, seed"),
        (('task = "detect"\n', ""), 'train.toml: task is missing; it is "classify" or "detect" or "segment"'),
        (('"detect"', '"guess"'), r"""task is "classify" or "detect" or "segment", got 'guess'"""),
        (('out = "trained"', "out = 3"), "train.toml: out is a text, got 3"),
        (('out = "trained"', 'out = "trained"\nseed = -1'), "seed is at least 0, got -1"),
        (('out = "trained"', 'out = "trained"\nseed = true'), "seed is a whole number, got True"),
        (('["images"]', '"images"'), "sources.train is a list, each of it a text, got 'images'"),
        (('["images"]', '["images", 7]'), r"sources.train\[1\] is a text, got 7"),
        (('["images"]', "[]"), "train.toml: sources.train names no image"),
        (('objects = "points.csv"', ""), 'task = "detect" needs labels.objects or labels.pixels, which is missing'),
        (('objects = "points.csv"', 'objects = "a"\npixels = "b"'), "labels.objects or labels.pixels, and not both"),
        (('objects = "points.csv"', 'objects = "a"\nimages = "b"'), 'labels.images says nothing to task = "detect"'),
        (("[labels]", "[pieces]\nside = 20\n[labels]"), "pieces.side is at least 32 and at most 8192, got 20"),
        (("[labels]", "[pieces]\nsize = 20\n[labels]"), r"pieces.size is no field there; did you mean side\? There are side, with_targets"),
        (("[labels]", "pieces = 3\n[labels]"), "sources.pieces is no field there"),
        (("[sources]", "pieces = 3\n[sources]"), "pieces is a table, got 3"),
        (("[labels]", "[training]\nlearning_rate = 0\n[labels]"), "training.learning_rate is above 0, got 0"),
        (("[labels]", "[training]\nlearning_rate = nan\n[labels]"), "training.learning_rate is above 0, got nan"),
        (
            ("[labels]", "[training.losses]\nanswer = 2\n[labels]"),
            "training.losses.answer is no term of the loss of patchdrivenet; there are detection",
        ),
        (("[labels]", "[training.losses]\nanswers = 'much'\n[labels]"), "training.losses.answers is a number, got 'much'"),
        (("[labels]", "[augment]\nflips = 1\n[labels]"), "augment.flips is true or false, got 1"),
        (("[labels]", "[validation]\nmetric = 'auroc'\n[labels]"), "validation.metric of task = .detect. is one of average_precision, f1"),
        (
            ("[labels]", "[validation]\nshare = 0\npatience = 3\n[labels]"),
            "validation.patience and validation.metric need images to judge by",
        ),
        (("[labels]", "[validation]\nby = 'row'\n[labels]"), """validation.by is "image" or "area", got 'row'"""),
        (("[labels]", "validation = ['b']\n[validation]\nby = 'area'\n[labels]"), "leave sources.validation out"),
        (("[labels]", "[model]\nwidth = 30\n[labels]"), "train.toml: model: width is a positive multiple of 8, got 30"),
        (("[labels]", "[model]\nclasses = ['a']\n[labels]"), "model.classes is no field there"),
        (("[labels]", "[model]\npixel_size = 0.5\n[labels]"), "pixel_size and unit are given together"),
        (
            ("[labels]", "[model]\nname = 'segmenter'\n[labels]"),
            "model.name of task = .detect. is patchdrivenet or patchdrivenet-modular, got 'segmenter'",
        ),
        (("[labels]", "[model]\ndriver = 'taxi'\n[labels]"), "model: driver is one of saliency, grid"),
        (("[labels]", "[model]\nunit = 'mm'\n[labels]"), """model.unit is "um" or "ground", got 'mm'"""),
        (("[labels]", "[labels"), "is no TOML"),
    ],
)
def test_refuses(tmp_path, change, words):
    text = LEAST.replace(*change)
    assert text != LEAST
    with pytest.raises(SettingsError, match=words):
        config(tmp_path, text)


def test_refuses_of_other_tasks(tmp_path):
    def refused(words: str, labels: str, task: str = "segment", more: str = "") -> None:
        with pytest.raises(SettingsError, match=words):
            config(tmp_path, LEAST.replace("detect", task).replace('objects = "points.csv"', labels) + more)

    refused("labels.classes names the classes of pixels, two or more", 'pixels = "masks"')
    refused("labels.rest is one of classes", 'pixels = "masks"\nclasses = ["a", "b"]\nrest = "c"')
    refused("values has one value for each of classes", 'pixels = "masks"\nclasses = ["a", "b"]\nvalues = [1]')
    refused("classes names something twice", 'pixels = "masks"\nclasses = ["a", "a"]')
    refused("model.patch_size is no field there", 'pixels = "masks"\nclasses = ["a", "b"]', more="[model]\npatch_size = 64")
    refused(
        "training.losses.pixels is no term of the loss of segmenter; there are none to weigh",
        'pixels = "masks"\nclasses = ["a", "b"]',
        more="[training.losses]\npixels = 2",
    )
    refused("boxes are of the target", 'pixels = "masks"\nclasses = ["a", "b"]', more='[model]\nname = "patchdrivenet"\nboxes = true')
    refused("images are classified whole", 'images = "labels.csv"', "classify", '[validation]\nby = "area"')


def test_refuses_a_file_that_is_not_there(tmp_path):
    with pytest.raises(SettingsError, match=r"none.toml cannot be read: No such file"):
        read_config(tmp_path / "none.toml")


def test_nested_tables_and_bounds():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Inner:
        share: float | None = bounded(None, above=0, most=1)

        def __post_init__(self) -> None:
            check_bounds(self)

    assert read_table(Inner, {}, "") == Inner()
    assert read_table(Inner, {"share": 1}, "").share == 1.0
    with pytest.raises(SettingsError, match=r"x.toml: share is above 0 and at most 1, got 2"):
        read_table(Inner, {"share": 2}, "x.toml: ")
