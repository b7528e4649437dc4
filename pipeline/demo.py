"""The demo: a slide and a scene with known answers, a PatchDriveNet trained in a minute, and the main job run on both.

Everything lands in one folder. What is already there is kept, so the same command goes on where it was stopped.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from rasterio.windows import Window as RasterWindow
from scipy.spatial import KDTree

from patchdrive.models import load_model
from patchdrive.models.config import PatchDriveNetConfig
from patchdrive.models.model import PatchDrive, patchdrivenet
from patchdrive.models.segmenter import Segmenter, SegmenterConfig, save_segmenter, segmentation_loss
from patchdrive.models.step import Wanted
from patchdrive.models.weights import save_patchdrivenet
from patchdrive.pipeline.feed import FeedSettings, feed
from patchdrive.pipeline.glance import glance, patch_grid, pick_channels, traits_of
from patchdrive.pipeline.infer import infer
from patchdrive.pipeline.plan import Layout, Plan, feature_blocks, plan_grid
from patchdrive.pipeline.reads import read_frame
from patchdrive.pipeline.report import write_report
from patchdrive.pipeline.result import open_result
from patchdrive.pipeline.run import run
from patchdrive.pipeline.run_report import RunReport
from patchdrive.pipeline.settings import RunSettings
from patchdrive.pipeline.store import store_name
from patchdrive.pipeline.synthetic import SlideTruth, draw_canvas, draw_landscape, scene_field, training_field, write_scene, write_slide
from patchdrive.pipeline.synthetic_scene import CLASSES, NO_LABEL
from patchdrive.pipeline.timings import Timings
from patchdrive.pipeline.train import TrainingBatch, TrainSettings, train
from patchdrive.readers import Image, open_image

SLIDE_SEED, SCENE_SEED, TRAINING_SEED = 7, 7, 1000
SLIDE_SIDE = 20480
SCENE_SHAPE = (4096, 5120)
MAX_PATCHES = 320
NEAR = 32.0
"""A thing is found where something was reported within this many level-0 pixels of it."""
_COLORS = ("2F6DB5", "1E7D3A", "E3C565", "8C8C8C", "F4F4F4")


def demo(out: Path) -> int:
    """Make, train, run, compare, show; the return value is the exit code."""
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    with _step(f"a slide of {SLIDE_SIDE} x {SLIDE_SIDE} px with 40 targets and 160 look-alikes"):
        truth = _slide(out / "slide.tif")
    with _step("a scene of {} x {} px, four bands, with a land cover to find".format(*SCENE_SHAPE)):
        _scene(out / "scene.tif")
    with _step("training PatchDriveNet on pieces of other slides"):
        _train_drive(out / "patchdrivenet.safetensors")
    with _step("training a small segmenter on pieces of other scenes"):
        _train_segmenter(out / "segmenter.safetensors")

    stores = out / "stores"
    with _step(f"patchdrive run {out}/slide.tif --model patchdrivenet:{out}/patchdrivenet.safetensors --max-patches {MAX_PATCHES}"):
        drive = _run(out / "slide.tif", f"patchdrivenet:{out / 'patchdrivenet.safetensors'}", stores, RunSettings(max_patches=MAX_PATCHES))
    with _step(f"patchdrive run {out}/scene.tif --model segmenter:{out}/segmenter.safetensors"):
        scene = _run(out / "scene.tif", f"segmenter:{out / 'segmenter.safetensors'}", stores, RunSettings(patch_size=512))
    with _step("pages with pictures"):
        pages = [write_report(Path(report.store)) for report in (drive, scene)]

    _compare(truth, drive, out / "slide.tif", out / "patchdrivenet.safetensors")
    print(f"\nland cover: {_accuracy(Path(scene.store), out / 'scene.labels.tif'):.1%} of the scene's pixels are labelled right")
    print("\nopen these:", *pages, sep="\n  ")
    return 0


@contextmanager
def _step(title: str) -> Iterator[None]:
    print(f"* {title} ", end="", flush=True)
    begin = time.monotonic()
    yield
    print(f"({time.monotonic() - begin:.1f} s)", flush=True)


def _slide(path: Path) -> SlideTruth:
    truth = path.with_suffix(".truth.json")
    if not truth.exists():
        write_slide(path, side=SLIDE_SIDE, seed=SLIDE_SEED).save(truth)
    return SlideTruth.load(truth)


def _scene(path: Path) -> None:
    if not path.exists():
        draft = path.with_name("draft.tif")
        made = write_scene(draft, height=SCENE_SHAPE[0], width=SCENE_SHAPE[1], seed=SCENE_SEED)
        made.labels.replace(path.with_name("scene.labels.tif"))
        draft.replace(path)


def _train_drive(path: Path, *, steps: int = 450) -> None:
    if path.exists():
        return
    model = patchdrivenet(PatchDriveNetConfig(pixel_size=0.5, unit="um"))
    train(model, _fields(steps), TrainSettings(steps=steps, average=0.99))
    save_patchdrivenet(model, path)


def _fields(count: int, *, batch: int = 2, side: int = 1024) -> Iterator[TrainingBatch]:
    """Random pieces of three slides that are not the demo's; one in four has no target at all."""
    canvases = [draw_canvas(TRAINING_SEED + index) for index in range(3)]
    rng = np.random.default_rng(TRAINING_SEED)
    for _ in range(count):
        pixels, targets = [], []
        for _ in range(batch):
            wanted = 0 if rng.random() < 0.25 else 6
            field, yx, _ = training_field(canvases[int(rng.integers(len(canvases)))], rng, side=side, targets=wanted, lookalikes=10)
            pixels.append(torch.from_numpy(field).permute(2, 0, 1))
            targets.append(torch.from_numpy(yx).to(torch.float32).reshape(-1, 2))
        label = torch.tensor([int(len(yx) > 0) for yx in targets])
        yield TrainingBatch(pixels=torch.stack(pixels), wanted=Wanted(targets=targets, answers={"class": label}))


def _train_segmenter(path: Path, *, steps: int = 160, batch: int = 4, side: int = 128) -> None:
    if path.exists():
        return
    config = SegmenterConfig(channels=4, classes=CLASSES, colors=_COLORS, width=16, size=256, scale=1e-4, mean=(0.08,) * 4, std=(0.08,) * 4)
    model = Segmenter(config, seed=0).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=4e-3, total_steps=steps, pct_start=0.1)
    land = draw_landscape(TRAINING_SEED, 2048, 2048)
    rng = np.random.default_rng(TRAINING_SEED)
    for _ in range(steps):
        fields = [scene_field(land, rng, side=side) for _ in range(batch)]
        pixels = torch.from_numpy(np.stack([field.astype(np.float32) for field, _ in fields]))
        labels = torch.from_numpy(np.stack([field_labels for _, field_labels in fields]).astype(np.int64))
        loss = segmentation_loss(model.logits(config.spec.normalise(pixels)), labels)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    save_segmenter(model.eval(), path)


def _run(source: Path, model: str, out: Path, settings: RunSettings) -> RunReport:
    image = open_image(source)
    return run(image, load_model(model, traits_of(image)), out / store_name(image), settings=settings)


def _compare(truth: SlideTruth, drive: RunReport, slide: Path, weights: Path) -> None:
    """Print what was found, beside as many patches drawn at random and beside every patch of the tissue.

    Both are judged by the trained patch encoder and its evidence head. Dense tiling takes every 64-px patch at a stride of 16;
    only those near a planted disc are computed, since no other can change the two shares.
    """
    image, model = open_image(slide), load_model(f"patchdrivenet:{weights}")
    assert isinstance(model, PatchDrive)
    view = glance(image, RunSettings())
    size = model.encoder.spec.size
    tiling = plan_grid(patch_grid(view.image, model.encoder.spec, RunSettings()), view.saliency, Layout(side=size, stride=size // 4))
    drawn = np.random.default_rng(0).permutation(len(tiling))[: drive.planned]
    beside = np.nonzero(_near(tiling.centres, np.concatenate([truth.targets_yx, truth.lookalikes_yx])))[0]
    driven = open_result(drive.store)
    ways = (
        ("PatchDriveNet", driven.rounds[0].plan, driven.objects["objects"].yx),
        ("random patches", some := tiling.take(drawn), _hits(image, model, some)),
        ("dense tiling", tiling, _hits(image, model, tiling.take(beside))),
    )
    print(f"\n{'':16}{'patches':>9}{'of the pixels':>15}{'targets found':>15}{'look-alikes taken':>19}")
    for name, plan, hits in ways:
        read = _share_read(plan, truth.side)
        found, mistaken = (_near(places, hits).mean() for places in (truth.targets_yx, truth.lookalikes_yx))
        print(f"{name:16}{len(plan):>9}{read:>15.2%}{found:>15.1%}{mistaken:>19.1%}")
    print(f"PatchDriveNet also saw the slide at 1/{model.glance_downsample}: {1 / model.glance_downsample**2:.1%} of the pixels.")


def _hits(image: Image, model: PatchDrive, plan: Plan) -> NDArray[np.float64]:
    """(n, 2) centres of the patches that the evidence head takes for a target."""
    timings, spec = Timings(), model.encoder.spec
    settings = FeedSettings(
        frame=read_frame(image.levels, plan.grid, plan.side, spec.resampling),
        channels=pick_channels(image, spec),
        fill=spec.fill,
        batch_size=64,
        pool_bytes=256 * 2**20,
        workers=2,
    )
    taken = [np.zeros((0, 2))]
    with closing(feed(image, plan, feature_blocks(plan), settings, timings)) as batches:
        for value in infer(model.encoder, batches, torch.device("cpu"), timings):
            if value.outputs:
                with torch.inference_mode():
                    (vectors,) = value.outputs.values()
                    evidence = torch.sigmoid(model.evidence(torch.from_numpy(vectors)))[:, 0].numpy()
                taken.append(plan.centres[value.batch.rows[evidence >= 0.5]])
    return np.concatenate(taken)


def _share_read(plan: Plan, side: int, *, cell: int = 4) -> float:
    """Share of a square slide's pixels inside some patch, counted on cells of `cell` pixels; overlaps count once."""
    change = np.zeros((side // cell + 1, side // cell + 1), np.int32)
    y, x = (np.clip(corner // cell, 0, side // cell) for corner in (plan.y, plan.x))
    y_end, x_end = (np.clip((corner + plan.side) // cell, 0, side // cell) for corner in (plan.y, plan.x))
    for sign, rows, columns in ((1, y, x), (-1, y, x_end), (-1, y_end, x), (1, y_end, x_end)):
        np.add.at(change, (rows, columns), sign)
    return float((change.cumsum(axis=0).cumsum(axis=1)[:-1, :-1] > 0).mean())


def _near(places: NDArray[np.float64], hits: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(n,) True where some hit lies within NEAR of a place."""
    if not len(hits):
        return np.zeros(len(places), np.bool_)
    distance, _ = KDTree(hits).query(places)
    return np.asarray(distance <= NEAR)


def _accuracy(store: Path, labels: Path) -> float:
    """Share of the labelled pixels whose class the map has right, strip by strip."""
    found = open_result(store).maps["landcover"].array
    right = known = 0
    with rasterio.open(labels) as truth:
        for y in range(0, truth.height, 512):
            rows = min(512, truth.height - y)
            wanted = truth.read(1, window=RasterWindow(0, y, truth.width, rows))
            mask = wanted != NO_LABEL
            right += int(np.count_nonzero((np.asarray(found[y : y + rows]) == wanted) & mask))
            known += int(np.count_nonzero(mask))
    return right / known
