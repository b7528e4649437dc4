"""Tree crowns in a scene: how good boxes are against patches read, by a model that drives and by dense tiling with the same encoder.

A PatchDriveNet with boxes is trained on the plots of three sites of deepforest_neon (HARV, OSBS, SJER). The plots of two others, SOAP and
YELL, lie in a georeferenced scene of other land, which goes through the pipeline: read where the model asks, with more and more patches;
read densely by the same weights, and by weights trained for that; read in the order of the Laplacian of Gaussian, and at random; and not
read at all, but for the glance. Average precision is measured within the plots: nobody labelled the land around.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from trees_data import EPSG, GSD, JUDGE, LEARN, SIDE, SQUARE, Place, Scene, compose, read_plots, world_of, write_scene
from trees_picture import draw
from trees_score import Boxes, Fit, Found, centred, overlap, quality
from trees_train import GLANCE, PATCH, Trained, train_crowns
from trees_ways import Reading, by_complexity, dense, exported, glance_alone, read, shuffled

from patchdrive.models.model import PatchDrive

DENSE = (SIDE // PATCH) ** 2
"""Patches of the dense grid."""
MOST = (64, 128, 256, 512, 1024)
"""Patches that a run may read; the dense grid reads all."""
GLANCE_ONLY, LEARNED, LOG, RANDOM, TILED, TRAINED = (
    "glance alone",
    "learned saliency",
    "Laplacian of Gaussian",
    "random",
    "dense tiling, same weights",
    "dense tiling, trained for it",
)
_SEED = 20261122  # of the scene
_FITS: Mapping[str, Fit] = {"iou": overlap, "centre": centred}


def carry_out(path: Path, driven: PatchDrive, tiled: PatchDrive, folder: Path, *, seed: int) -> dict[str, list[Reading]]:
    """Every way's runs, with more and more patches."""
    ways: dict[str, tuple[PatchDrive, Sequence[int]]] = {
        GLANCE_ONLY: (glance_alone(driven), (1,)),
        LEARNED: (driven, MOST),
        LOG: (by_complexity(driven), MOST),
        RANDOM: (shuffled(driven, seed), MOST),
        TILED: (dense(driven), (DENSE,)),
        TRAINED: (tiled, (DENSE,)),
    }
    found: dict[str, list[Reading]] = {}
    for name, (model, counts) in ways.items():
        store = folder / (name.replace(" ", "-").replace(",", "") + ".zarr")
        found[name] = [read(path, model, store, most=most) for most in counts]
        print(f"  {name}: {sum(one.seconds for one in found[name]):.0f} s", file=sys.stderr, flush=True)
    return found


def measure(reading: Reading, scene: Scene) -> dict[str, Any]:
    """Of one run: patches read, in all and in the plots, and how good its boxes are in the plots."""
    parts = [reading.found.within(place) for place in scene.places]
    inside = [_centred_in(reading.centres, place) for place in scene.places]
    told: dict[str, Any] = {
        "patches": len(reading.centres),
        "share_of_dense": len(reading.centres) / DENSE,
        "share_of_dense_in_plots": sum(inside) / sum(_centred_in(_grid(), place) for place in scene.places),
        "share_of_patches_by_source": _sources(reading.centres, scene, sum(inside)),
        "boxes_in_plots": sum(len(part.score) for part in parts),
        "seconds": reading.seconds,
    }
    for name, fit in _FITS.items():
        told[name] = asdict(quality(parts, scene.boxes, fit))
        by_plot = zip(scene.names, parts, scene.boxes, strict=True)
        told[f"{name}_by_plot"] = {plot: asdict(quality([part], [boxes], fit)) for plot, part, boxes in by_plot}
    return told


def check_world(store: Path, reading: Reading, scene: Scene) -> float:
    """Average precision of the boxes that `patchdrive export` gives to a GIS, in metres of the scene's CRS.

    Raises:
        RuntimeError: they are in another CRS, or not the same things as in pixels.
    """
    crs, boxes, score = exported(store)
    if crs != EPSG:
        raise RuntimeError(f"{store}: exported in EPSG:{crs}, not in {EPSG}")
    if len(boxes) != len(reading.found.score) or not np.allclose(boxes, world_of(reading.found.boxes), atol=1e-3):
        raise RuntimeError(f"{store}: the boxes exported are not those found")
    corners = [world_of(np.array([[y.start, x.start, y.stop, x.stop]], np.float64))[0] for y, x in scene.places]
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    parts = [
        Found(boxes=boxes[kept], score=score[kept]) for low in corners for kept in [((centre >= low[:2]) & (centre < low[2:])).all(axis=1)]
    ]
    return quality(parts, [world_of(one) for one in scene.boxes], overlap).average_precision


def show(runs: Sequence[Mapping[str, Sequence[Mapping[str, Any]]]]) -> None:
    """The table, in Markdown: mean over seeds, and standard deviation where there are several."""
    print("\n| way | patches | of the dense grid | of it in the plots | AP, IoU 0.4 | AP, centre | precision, recall (IoU) | YELL | SOAP |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, readings in runs[0].items():
        for index in range(len(readings)):
            same = [run[name][index] for run in runs]
            yell, soap = ([one["iou_by_plot"][plot]["average_precision"] for one in same] for plot in sorted(same[0]["iou_by_plot"])[::-1])
            cells = [
                f"{same[0]['patches']}",
                f"{same[0]['share_of_dense']:.1%}",
                _mean([100 * one["share_of_dense_in_plots"] for one in same], 0) + " %",
                _mean([one["iou"]["average_precision"] for one in same]),
                _mean([one["centre"]["average_precision"] for one in same]),
                f"{_mean([one['iou']['precision'] for one in same], 2)}, {_mean([one['iou']['recall'] for one in same], 2)}",
                _mean(yell),
                _mean(soap),
            ]
            print(f"| {name} | " + " | ".join(cells) + " |")


def _mean(values: Sequence[float], digits: int = 3) -> str:
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 and np.ptp(values) else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def _centred_in(centres: Boxes, place: Place) -> int:
    low, high = np.array([[part.start, part.stop] for part in place]).T
    return int(((centres >= low) & (centres < high)).all(axis=1).sum())


def _grid() -> Boxes:
    """(DENSE, 2) centres of the dense grid's patches."""
    return np.stack(np.divmod(np.arange(DENSE), SIDE // PATCH), axis=1) * float(PATCH) + PATCH / 2


def _sources(centres: Boxes, scene: Scene, inside: int) -> dict[str, float]:
    """By what land is of, the share of the patches centred there."""
    outside = centres[[not any(_centred_in(one[None], place) for place in scene.places) for one in centres]]
    row, column = (outside // SQUARE).astype(np.int64).T
    names, counts = np.unique(scene.source[row, column], return_counts=True)
    return {"plots": inside / len(centres)} | {str(name): count / len(centres) for name, count in zip(names, counts.tolist(), strict=True)}


def _training(one: Trained) -> dict[str, Any]:
    return {"seconds": one.seconds, "losses": one.losses}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glance", type=int, default=GLANCE, help="patch pixels per glance pixel")
    parser.add_argument("--steps", type=int, default=600, help="of training")
    parser.add_argument("--seeds", type=int, default=1, help="of training")
    parser.add_argument("--quick", action="store_true", help="one seed, 20 steps: to see that it runs")
    parser.add_argument(
        "--work", type=Path, default=Path(__file__).parent / ".cache" / "trees", help="where the scene, stores and pictures go"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    begin = time.perf_counter()
    steps = 20 if given.quick else given.steps
    given.work.mkdir(parents=True, exist_ok=True)
    learn, path = read_plots(LEARN), given.work / "scene.tif"
    scene = compose(read_plots(JUDGE), seed=_SEED)
    write_scene(path, scene)
    about = {"cores": len(os.sched_getaffinity(0)), "threads": 1, "python": platform.python_version(), "torch": torch.__version__}
    told: dict[str, Any] = {
        "machine": about,
        "training_plots": [plot.name for plot in learn],
        "training_crowns": sum(len(plot.boxes) for plot in learn),
        "plots": {name: len(boxes) for name, boxes in zip(scene.names, scene.boxes, strict=True)},
        "steps": steps,
        "patch": PATCH,
        "glance_downsample": given.glance,
        "seen_small": 1 / given.glance**2,
        "scene": {"side": SIDE, "metres_per_pixel": GSD, "epsg": EPSG, "dense_patches": DENSE},
        "training": [],
        "average_precision_in_metres": [],
        "runs": [],
    }
    coarser = f"-glance-{given.glance}" if given.glance != GLANCE else ""
    out = Path(__file__).parent / "results" / f"trees{coarser}{'-quick' * given.quick}.json"
    out.parent.mkdir(exist_ok=True)
    for seed in range(1 if given.quick else given.seeds):
        driven, tiled = (train_crowns(learn, driver=driver, glance=given.glance, steps=steps, seed=seed) for driver in ("saliency", "grid"))
        print(f"  trained in {driven.seconds:.0f} and {tiled.seconds:.0f} s", file=sys.stderr, flush=True)
        readings = carry_out(path, driven.model, tiled.model, given.work, seed=seed)
        told["training"].append({"driven": _training(driven), "tiled": _training(tiled)})
        told["runs"].append({name: [measure(one, scene) for one in many] for name, many in readings.items()})
        told["average_precision_in_metres"].append(check_world(given.work / "learned-saliency.zarr", readings[LEARNED][-1], scene))
        out.write_text(json.dumps({**told, "seconds": time.perf_counter() - begin}, indent=1))  # a seed takes minutes
        if seed == 0:
            draw(given.work / "crowns.png", scene, {name: readings[name][index] for name, index in ((LEARNED, 2), (TILED, 0))}, side=PATCH)
    show(told["runs"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
