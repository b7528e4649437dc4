"""Training of system A: that it learns, repeats itself, and says what it did."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from patchdrive.models.config import PatchDriveNetConfig
from patchdrive.models.model import patchdrivenet
from patchdrive.models.step import LossWeights, Wanted
from patchdrive.pipeline.train import TrainingBatch, TrainSettings, train
from patchdrive.readers.errors import SettingsError

CONFIG = PatchDriveNetConfig(width=16, max_patches=8)


def batches(seed: int = 0, *, batch: int = 2, side: int = 256) -> Iterator[TrainingBatch]:
    """Grey noise with up to two dark squares of 40 pixels, and with one brighter square that is no target."""
    rng = np.random.default_rng(seed)
    while True:
        pixels, targets = rng.integers(180, 220, (batch, side, side, 3), dtype=np.uint8), []
        for image in pixels:
            places = rng.permutation([(64, 64), (64, 192), (192, 64), (192, 192)])[: rng.integers(1, 4)] + rng.integers(-20, 21, 2)
            for i, (y, x) in enumerate(places):
                image[y - 20 : y + 20, x - 20 : x + 20] = 250 if i == 0 else 90
            targets.append(torch.from_numpy(places[1:]).to(torch.float32))
        label = torch.tensor([int(len(yx) > 0) for yx in targets])
        yield TrainingBatch(pixels=torch.from_numpy(pixels).permute(0, 3, 1, 2), wanted=Wanted(targets=targets, answers={"class": label}))


@pytest.mark.slow  # 20 s; `make demo` trains too
def test_learns_to_find_dark_squares() -> None:
    model = patchdrivenet(CONFIG)
    report = train(model, batches(), TrainSettings(steps=120, learning_rate=5e-3, max_patches=6))
    assert report.steps == len(report.history) == 120
    assert report.history[-1]["total"] < report.history[0]["total"] / 3
    found = right = wanted = 0
    for batch in itertools.islice(batches(1), 8):
        with torch.inference_mode():
            output = model(batch.pixels)
        assert batch.wanted.targets is not None
        for objects, targets in zip(output.objects, batch.wanted.targets, strict=True):
            apart = torch.cdist(objects.yx, targets).numpy()
            found, wanted = found + len(objects.yx), wanted + len(targets)
            right += int((apart < 16).any(axis=0).sum())
    assert wanted >= 10
    assert right >= 0.9 * wanted
    assert found <= 1.2 * wanted


@pytest.mark.parametrize("average", [None, pytest.param(0.9, marks=pytest.mark.slow)])
def test_same_seed_same_weights(average: float | None) -> None:
    def trained(seed: int) -> str:
        model = patchdrivenet(CONFIG)
        train(model, batches(), TrainSettings(steps=3, average=average, seed=seed, max_patches=4))
        return model.digest

    assert trained(0) == trained(0)
    assert trained(0) != trained(1)


@pytest.mark.slow  # 10 s
def test_average_is_between_start_and_end() -> None:
    start, plain, averaged = (patchdrivenet(CONFIG) for _ in range(3))
    train(plain, batches(), TrainSettings(steps=4, max_patches=4))
    train(averaged, batches(), TrainSettings(steps=4, max_patches=4, average=0.999))
    for name, weight in averaged.named_parameters():
        moved, moved_on_average = plain.get_parameter(name) - start.get_parameter(name), weight - start.get_parameter(name)
        assert moved_on_average.norm() < moved.norm()


def test_says_what_it_did() -> None:
    model = patchdrivenet(CONFIG)
    steps: list[int] = []
    two = itertools.islice(batches(), 2)
    report = train(model, two, TrainSettings(steps=5), lambda step, losses: steps.append(step) if losses["total"] > 0 else None)
    assert (report.steps, steps) == (2, [0, 1])
    assert set(report.history[0]) == {"detection", "offset", "saliency", "evidence", "answers", "selection", "entropy", "budget", "total"}
    assert model.config == CONFIG
    assert not model.training


def test_image_without_targets_or_classes() -> None:
    model = patchdrivenet(PatchDriveNetConfig(width=16, answers=()))
    empty = TrainingBatch(pixels=next(batches()).pixels, wanted=Wanted(targets=[torch.zeros(0, 2)] * 2))
    report = train(model, [empty], TrainSettings(steps=1, max_patches=4))
    assert "answers" not in report.history[0]
    assert np.isfinite(report.history[0]["total"])


def test_refusals() -> None:
    with pytest.raises(SettingsError, match="at least one step"):
        TrainSettings(steps=0)
    with pytest.raises(SettingsError, match="at least one batch"):
        train(patchdrivenet(CONFIG), [], TrainSettings())
    with pytest.raises(SettingsError, match="no longer finite"):
        train(patchdrivenet(CONFIG), batches(), TrainSettings(steps=3, losses=LossWeights(detection=float("inf"))))
