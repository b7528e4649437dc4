"""Cells on real tissue: share of the labelled cells read against share of the pixels read, for four ways to choose patches.

A PatchDriveNet is trained on the train images of BRCA-M2C. Its val images are four of the 64 pieces of a slide sewn of real tissue
(`cells_data`), and the slide goes through the pipeline: with the trained model's saliency, with the untrained model's (the Laplacian of
Gaussian), with the tissue's, and with patches that lie evenly or at random. The curves are read at equal pixels, over the slide, and
within the labelled pieces alone, where it does not help to know which piece is labelled. The tissue around them has cells that nobody
labelled, so there is no precision to measure. All of it again with every piece brought to one mean and spread of colour.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells_data import KINDS, LABELLED, SIDE, Labelled, Mosaic, read_labelled, sew, write_slide
from cells_picture import draw
from cells_train import GLANCE, PATCH, Trained, config_of, train_driver
from cells_ways import Corners, Reads, at_random, by_coords, by_model, by_tissue, evenly, greedily, mean_and_spread, nearest
from numpy.typing import NDArray

from patchdrive.models.model import patchdrivenet

SHARES = (0.005, 0.01, 0.02, 0.05, 0.10, 0.20)
"""Of the slide's pixels, or of those of the labelled pieces."""
SPEND, SPEND_WITHIN = 0.05, 0.10
"""Of the slide's pixels, and of those of the labelled pieces, at which the patches themselves are looked at."""
MOST = SIDE**2 // PATCH**2 // 4
"""Patches that every way gives: a quarter of the pixels, where none overlap."""
LEARNED, LOG, TISSUE, EVEN, RANDOM, KNOWN = (
    "learned saliency",
    "Laplacian of Gaussian",
    "tissue, best first",
    "tissue, evenly",
    "random",
    "labels known, greedily",
)
_SEED = 20261122  # of the mosaic


def choose(slide: Path, drivers: Sequence[Trained], yx: NDArray[np.float64], folder: Path) -> dict[str, list[Reads]]:
    """Every way's patches, once for each of its seeds, each from a run of the pipeline; but for `KNOWN`, which reads nothing."""
    chosen: dict[str, list[Corners]] = {
        LEARNED: [by_model(slide, one.model, folder / f"learned-{seed}.zarr", most=MOST) for seed, one in enumerate(drivers)],
        LOG: [by_model(slide, patchdrivenet(config_of(0)), folder / "log.zarr", most=MOST)],
        TISSUE: [by_tissue(slide, folder / "tissue.zarr", side=PATCH, most=MOST)],
        EVEN: [by_coords(slide, evenly(SIDE, PATCH)[:MOST], folder / "even.zarr", side=PATCH)],
        RANDOM: [],
        KNOWN: [greedily(yx, SIDE, PATCH, most=MOST)],
    }
    for seed in range(len(drivers)):
        corners = at_random(SIDE, PATCH, np.random.default_rng(seed))[:MOST]
        chosen[RANDOM].append(by_coords(slide, corners, folder / f"random-{seed}.zarr", side=PATCH))
    return {name: [Reads.of(corners, SIDE, PATCH) for corners in many] for name, many in chosen.items()}


def check_nested(slide: Path, driver: Trained, reads: Reads, folder: Path) -> list[dict[str, Any]]:
    """Runs with fewer patches, whose patches must be the first of the long run's.

    Raises:
        RuntimeError: they are others, and a curve is not what runs with other `--max-patches` read.
    """
    found = []
    for share in SHARES[:-1]:
        count = round(share * SIDE**2 / PATCH**2)
        corners = by_model(slide, driver.model, folder / "fewer.zarr", most=count)
        if not np.array_equal(corners, reads.corners[:count]):
            raise RuntimeError(f"--max-patches {count} does not read the first {count} patches of --max-patches {MOST}")
        found.append({"max_patches": count, "read": float((reads.first < count).mean())})
    return found


def measure(ways: Mapping[str, Sequence[Reads]], mosaic: Mosaic) -> dict[str, Any]:
    """Each way's shares of cells at equal pixels: mean and standard deviation over its seeds."""
    labelled = mosaic.inside(LABELLED)
    found: dict[str, Any] = {}
    for name, many in ways.items():
        over, within = ([each.curve(mosaic.yx, mask) for each in many] for mask in (None, labelled))
        found[name] = {
            "seeds": len(many),
            "slide": {str(share): mean_and_spread([curve.at(share) for curve in over]) for share in SHARES},
            "within": {str(share): mean_and_spread([curve.at(share) for curve in within]) for share in SHARES},
            "within_each": _within_each(many, mosaic),
            "kinds_within": _kinds(many, mosaic),
            "where": None if name == KNOWN else _where(many, mosaic),
            "aim": None if name == KNOWN else _aim(many, mosaic, labelled),
        }
    for one in found.values():
        one["learned_is_better_by"] = {
            part: {share: _ratio(found[LEARNED][part][share], value) for share, value in one[part].items()} for part in ("slide", "within")
        }
    return found


def _within_each(many: Sequence[Reads], mosaic: Mosaic, share: float = SPEND_WITHIN) -> dict[str, Any]:
    """Within each labelled image alone, a tenth of its pixels read."""
    return {
        name: mean_and_spread([each.curve(mosaic.yx[mosaic.image == index], mosaic.inside_image(index)).at(share) for each in many])
        for index, name in enumerate(mosaic.names)
    }


def _kinds(many: Sequence[Reads], mosaic: Mosaic, share: float = SPEND_WITHIN) -> dict[str, Any]:
    """Cells of each kind, a tenth of the labelled pieces' pixels read."""
    mask = mosaic.inside(LABELLED)
    return {
        name: mean_and_spread([each.curve(mosaic.yx[mosaic.kind == kind], mask).at(share) for each in many])
        for kind, name in KINDS.items()
        if (mosaic.kind == kind).any()
    }


def _where(many: Sequence[Reads], mosaic: Mosaic) -> dict[str, Any]:
    """By source, share of the patches centred in its pieces, of those that read SPEND of the slide."""
    shares: dict[str, list[float]] = {str(name): [] for name in np.unique(mosaic.source)}
    for each in many:
        row, column = ((each.until(SPEND) + PATCH // 2) * len(mosaic.source) // SIDE).T
        for name, found in shares.items():
            found.append(float((mosaic.source[row, column] == name).mean()))
    return {name: mean_and_spread(found) for name, found in shares.items()}


def _aim(many: Sequence[Reads], mosaic: Mosaic, labelled: NDArray[np.bool_]) -> dict[str, Any]:
    """Of the patches centred in labelled pieces that read SPEND_WITHIN of them: those without a labelled cell, those centred on one."""
    without, centred = [], []
    for each in many:
        corners = each.until(SPEND_WITHIN, labelled)
        apart = nearest(corners[labelled[tuple((corners + PATCH // 2).T)]], PATCH, mosaic.yx)
        without.append(float((apart > PATCH / 2).mean()))
        centred.append(float((apart <= PATCH / 4).mean()))
    return {"without_a_cell": mean_and_spread(without), "centred_on_one": mean_and_spread(centred)}


def _ratio(ours: tuple[float, float] | None, theirs: tuple[float, float] | None) -> float | None:
    return None if ours is None or theirs is None or not theirs[0] else ours[0] / theirs[0]


def show(name: str, found: Mapping[str, Any], mosaic: Mosaic) -> None:
    """The tables, in Markdown."""
    for part, title in (("slide", "of the slide's pixels"), ("within", "of the labelled pieces' pixels")):
        print(f"\n{name}: labelled cells read, by share {title} read\n\n| way | " + " | ".join(f"{share:.1%}" for share in SHARES) + " |")
        print("|---|" + "---|" * len(SHARES))
        for way, one in found.items():
            print(f"| {way} | " + " | ".join(_percent(value) for value in one[part].values()) + " |")
    sources = [str(source) for source in np.unique(mosaic.source)]
    print(f"\n{name}: where the patches lie that read {SPEND:.0%} of the slide; ", end="")
    print(
        f"of those that read {SPEND_WITHIN:.0%} of the labelled pieces, how many hold no labelled cell, and how many are centred on one\n"
    )
    print("| way | " + " | ".join(sources) + " | without | centred |\n|---|" + "---|" * (len(sources) + 2))
    area = (f"{(mosaic.source == source).mean():.1%}" for source in sources)
    print("| share of the slide | " + " | ".join(area) + " | | |")
    for way, one in found.items():
        if one["where"]:
            print(f"| {way} | " + " | ".join(_percent(value) for value in [*one["where"].values(), *one["aim"].values()]) + " |")


def _percent(value: tuple[float, float] | None) -> str:
    if value is None:
        return ""
    mean, spread = value
    return f"{mean:.1%}" + (f" ± {100 * spread:.1f}" if spread else "")


def tint_of(images: Sequence[Labelled]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel of some images."""
    pixels = np.concatenate([image.pixels.reshape(-1, 3) for image in images]).astype(np.float64)
    return pixels.mean(axis=0).tolist(), pixels.std(axis=0).tolist()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=("cell", *KINDS.values()), default="cell", help="which cells to train for, and to count")
    parser.add_argument("--steps", type=int, default=1000, help="of training")
    parser.add_argument("--seeds", type=int, default=3, help="of training")
    parser.add_argument("--quick", action="store_true", help="one seed, 60 steps, one mosaic: to see that it runs")
    parser.add_argument(
        "--work", type=Path, default=Path(__file__).parent / ".cache" / "cells", help="where slides, stores and pictures go"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    begin = time.perf_counter()
    learn, judge = ([image.only(given.target) for image in read_labelled(which)] for which in ("train", "val"))
    drivers = []
    for seed in range(1 if given.quick else given.seeds):
        drivers.append(train_driver(learn, steps=60 if given.quick else given.steps, seed=seed))
        print(f"  trained in {drivers[-1].seconds:.0f} s, saliency loss {drivers[-1].saliency_loss}", file=sys.stderr, flush=True)
    tints = {"colours as they are": None} if given.quick else {"colours as they are": None, "one tint": tint_of(learn)}
    results: dict[str, Any] = {}
    for name, tint in tints.items():
        folder = given.work / given.target / name.replace(" ", "-")
        folder.mkdir(parents=True, exist_ok=True)
        mosaic, slide = sew(judge, seed=_SEED, tint=tint), folder / "mosaic.tif"
        write_slide(slide, mosaic.pixels)
        ways = choose(slide, drivers, mosaic.yx, folder)
        runs = check_nested(slide, drivers[0], ways[LEARNED][0], folder) if tint is None else []
        found = measure(ways, mosaic)
        show(name, found, mosaic)
        draw(folder / "patches.png", mosaic, {way: ways[way][0] for way in (LEARNED, LOG)}, share=0.02, side=PATCH)
        print(f"\n  {folder / 'patches.png'}", file=sys.stderr, flush=True)
        results[name] = {"cells": len(mosaic.yx), "ways": found, "runs_with_fewer_patches": runs}
    out = Path(__file__).parent / "results" / ("cells" + f"-{given.target}" * (given.target != "cell") + "-quick" * given.quick + ".json")
    out.parent.mkdir(exist_ok=True)
    about = {"cores": len(os.sched_getaffinity(0)), "threads": 1, "python": platform.python_version(), "torch": torch.__version__}
    told = {
        "machine": about,
        "target": given.target,
        "training_images": [image.name for image in learn],
        "training_cells": sum(len(image.yx) for image in learn),
        "validation_images": [image.name for image in judge],
        "training": [{"seconds": one.seconds, "saliency_loss": one.saliency_loss} for one in drivers],
        "steps": 60 if given.quick else given.steps,
        "patch": PATCH,
        "glance_downsample": GLANCE,
        "seen_small": 1 / GLANCE**2,
        "slide": [SIDE, SIDE],
        "seconds": time.perf_counter() - begin,
        "mosaics": results,
    }
    out.write_text(json.dumps(told, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
