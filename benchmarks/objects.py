"""Objects: nuclei and trees found block by block are those of one pass over the whole image; and what a million polygons cost.

Nuclei: the masks of dsb2018, set into a mosaic with the nuclei that touch in different classes, run in map blocks of three sizes and
traced in windows of three sizes; each object is compared with that of GDAL's polygonizer over the whole mosaic. Trees: the boxes of
deepforest_neon in a mosaic, seen in overlapping patches by a detector that gives each box it sees, cut at the patch, and merged block by
block at three block sizes; compared with a loop over all pairs; and as the detection head of whole runs, patches of three overlaps.
Polygons: a slide of a million small nuclei, run once, exported to GeoJSON by `patchdrive export` in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import rasterio.features
import shapely
import tifffile
import torch
from numpy.typing import NDArray
from skimage.io import imread
from skimage.measure import label
from torch import Tensor

from patchdrive.models.types import ModelSpec, OutputSpec
from patchdrive.pipeline import RunSettings, open_result, run
from patchdrive.pipeline.boxes import Boxes, joined, overlapping, suppress_parts
from patchdrive.pipeline.objects import Tracing, object_maps
from patchdrive.readers import MemoryImage, open_image

DATA = Path(os.environ.get("PATCHDRIVE_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")) / "labelled"
CLASSES = 6
"""Of nuclei: as many as keep those apart that touch."""
BUDGETS = {"4GiB": 4 << 30, "1GiB": 1 << 30, "300MiB": 300 << 20}
"""Memory of a run; its map blocks follow from it."""
WINDOWS = (1 << 22, 1 << 20, 1 << 18)
"""Map pixels that are traced at a time."""
EDGES = (2048, 1024, 512)
"""Blocks whose boxes come together, pixels."""
PATCH, OVERLAP, RIVALS = 400, 200, 0.4
"""Of the detector of trees: pixels, pixels, and the IoU above which two boxes are one tree."""
PITCH = 20
"""From one of the million nuclei to the next, pixels."""


Masks = Sequence[tuple[tuple[int, int], list[NDArray[np.bool_]]]]


class Painted:
    """A PatchModel that gives the painted class map back."""

    digest = "painted"
    spec = ModelSpec(
        name="painted",
        channels=1,
        size=512,
        any_size=True,
        outputs=(OutputSpec(name="nuclei", kind="classes", channels=("none", *(f"nucleus {n}" for n in range(1, CLASSES + 1)))),),
    )

    def __call__(self, pixels: Tensor) -> Mapping[str, Tensor]:
        return {"nuclei": torch.cat([(pixels == 30 * kind).float() for kind in range(CLASSES + 1)], dim=1)}

    def to(self, _device: str) -> Painted:
        return self


def masks() -> Masks:
    """Size of each image, and the mask of each of its nuclei."""
    folders = sorted((DATA / "dsb2018" / "stage1_train").iterdir())
    images = [[imread(path) > 0 for path in sorted((folder / "masks").glob("*.png"))] for folder in folders]
    return [(found[0].shape, found) for found in images]


def painted_apart(size: tuple[int, int], found: list[NDArray[np.bool_]]) -> NDArray[np.uint8]:
    """Nuclei in classes such that those that touch differ."""
    classes = np.zeros(size, np.uint8)
    for mask in found:
        rows, columns = np.nonzero(mask)
        top, left = max(0, rows.min() - 1), max(0, columns.min() - 1)
        near = (slice(top, rows.max() + 2), slice(left, columns.max() + 2))
        inside, around = np.pad(mask[near], 1), np.zeros_like(mask[near])
        for dy, dx in ((0, 1), (2, 1), (1, 0), (1, 2)):
            around |= inside[dy : dy + around.shape[0], dx : dx + around.shape[1]]
        taken = set(classes[near][around].tolist())
        classes[near][mask[near]] = next(kind for kind in range(1, CLASSES + 1) if kind not in taken)
    return classes


def mosaic(images: list[NDArray[np.uint8]], side: int) -> NDArray[np.uint8]:
    """Images on shelves, again and again, 3 pixels apart, until the square is full."""
    canvas = np.zeros((side, side), np.uint8)
    top, left, shelf, index = 0, 0, 0, 0
    while top < side:
        image = images[index % len(images)]
        if left and left + image.shape[1] > side:
            top, left, shelf = top + shelf + 3, 0, 0
            continue
        part = image[: max(0, side - top), : side - left]
        canvas[top : top + part.shape[0], left : left + part.shape[1]] = part
        left, shelf, index = left + image.shape[1] + 3, max(shelf, image.shape[0]), index + 1
    return canvas


def run_over(classes: NDArray[np.uint8], folder: Path, memory: int) -> tuple[Path, int]:
    """A store of the classes, painted into a tiled TIFF, and the side of its map blocks."""
    path, store = folder / "mosaic.tif", folder / f"{memory}.zarr"
    if not path.exists():
        tifffile.imwrite(path, classes * np.uint8(30), tile=(512, 512), compression="deflate", photometric="minisblack")
    with closing(open_image(str(path))) as image:
        report = run(image, Painted(), store, settings=RunSettings(saliency="valid", memory=memory, device="cpu"))
    assert report.status == "done", report
    sizes = json.loads((store.with_suffix(".patchdrive") / "sizes.json").read_text())
    return store, int(sizes["edge"])


def whole_pass(classes: NDArray[np.uint8]) -> dict[tuple[int, int, int], Any]:
    """GDAL's polygons of the whole map, by class and upper left corner of their outlines."""
    shapes = rasterio.features.shapes(classes, mask=classes > 0, connectivity=4)
    return {key(int(value) - 1, polygon): polygon for polygon, value in ((shapely.geometry.shape(one), value) for one, value in shapes)}


def key(kind: int, polygon: Any) -> tuple[int, int, int]:
    y, x = min((y, x) for x, y in polygon.exterior.coords)
    return kind, int(y), int(x)


def least_iou(some: Mapping[Any, Any], others: Mapping[Any, Any]) -> tuple[int, float]:
    """How many objects are in both, and the least intersection over union of one."""
    both = [one for one in some if one in others]
    here, there = np.array([some[one] for one in both]), np.array([others[one] for one in both])
    return len(both), float((shapely.area(shapely.intersection(here, there)) / shapely.area(shapely.union(here, there))).min())


def nuclei(held: Masks, side: int, folder: Path) -> list[dict[str, Any]]:
    images = [painted_apart(size, found) for size, found in held]
    classes = mosaic(images, side)
    masks_given, apart = sum(len(found) for _, found in held), sum(int(label(one, background=0, connectivity=1).max()) for one in images)
    wanted = whole_pass(classes)
    parts = int(label(classes, background=0, connectivity=1).max())
    found = []
    for name, memory in BUDGETS.items():
        store, edge = run_over(classes, folder, memory)
        (traced,) = object_maps(open_result(store), Tracing(maps=("nuclei",), background=("none",)))
        for most in WINDOWS:
            start = time.perf_counter()
            objects = {
                key(kind - 1, polygon): polygon
                for batch in traced.objects(most=most)
                for kind, polygon in zip(batch.kind.tolist(), batch.geometry, strict=True)
            }
            seconds = time.perf_counter() - start
            both, least = least_iou(objects, wanted)
            found.append(
                {
                    "masks": masks_given,
                    "masks_in_parts": apart,
                    "side": side,
                    "memory": name,
                    "block": edge,
                    "window": most,
                    "components": parts,
                    "whole_pass": len(wanted),
                    "objects": len(objects),
                    "in_both": both,
                    "least_iou": least,
                    "valid": bool(shapely.is_valid(list(objects.values())).all()),
                    "seconds": round(seconds, 3),
                }
            )
    return found


def trees() -> list[tuple[int, int, int, int]]:
    """(y, x, height, width) of all trees, the plots set side by side."""
    boxes, left, top, shelf = [], 0, 0, 0
    for path in sorted((DATA / "deepforest_neon").glob("*.xml")):
        root = ET.parse(path).getroot()
        height, width = (int(root.findtext(f"size/{name}") or 0) for name in ("height", "width"))
        if left + width > 2000:
            top, left, shelf = top + shelf, 0, 0
        for box in root.iter("bndbox"):
            x, y, right, bottom = (int(float(box.findtext(name) or 0)) for name in ("xmin", "ymin", "xmax", "ymax"))
            if right > x and bottom > y:
                boxes.append((top + y, left + x, bottom - y, right - x))
        left, shelf = left + width, max(shelf, height)
    return boxes


def seen(boxes: NDArray[np.float64], y: int, x: int) -> Boxes:
    """What the detector gives of a patch: boxes of which it sees half or more, cut at its border; the share that it sees is the score."""
    top, left = np.maximum(boxes[:, 0], y), np.maximum(boxes[:, 1], x)
    high = np.minimum(boxes[:, 0] + boxes[:, 2], y + PATCH) - top
    wide = np.minimum(boxes[:, 1] + boxes[:, 3], x + PATCH) - left
    share = np.maximum(high, 0) * np.maximum(wide, 0) / (boxes[:, 2] * boxes[:, 3])
    kept = share >= 0.5
    columns = (column[kept] for column in (top, left, high, wide, share))
    y0, x0, height, width, score = columns
    return Boxes(y=y0, x=x0, height=height, width=width, score=score, kind=np.zeros(int(kept.sum()), np.int64))


def blocks(boxes: NDArray[np.float64], edge: int) -> Iterator[tuple[Boxes, float]]:
    """What is seen in the patches of each block, blocks row by row."""
    bottom, right = (int(extent) for extent in (boxes[:, :2] + boxes[:, 2:]).max(axis=0))
    steps = [range(0, extent, PATCH - OVERLAP) for extent in (bottom, right)]
    for block_y in range(0, bottom, edge):
        below = min([y for y in steps[0] if y >= block_y + edge], default=bottom)
        for block_x in range(0, right, edge):
            inside = [(y, x) for y in steps[0] for x in steps[1] if y // edge == block_y // edge and x // edge == block_x // edge]
            last = block_x + edge >= right
            if inside:
                yield joined([seen(boxes, y, x) for y, x in inside]), float(below if last else min(y for y, _ in inside))


def rows_of(boxes: Boxes) -> list[tuple[float, ...]]:
    columns = (boxes.y, boxes.x, boxes.height, boxes.width, boxes.score)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def box_iou(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    high = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    wide = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    shared = max(high, 0) * max(wide, 0)
    return shared / (one[2] * one[3] + other[2] * other[3] - shared)


def loop(rows: list[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """Greedy suppression over all pairs."""
    kept: list[tuple[float, ...]] = []
    for row in sorted(rows, key=lambda row: (-row[4], *row[:4])):
        if all(box_iou(other, row) <= RIVALS for other in kept):
            kept.append(row)
    return kept


def merged_trees() -> list[dict[str, Any]]:
    annotated = trees()
    boxes = np.array(annotated, np.float64)
    apart = loop([(*map(float, box), 1.0) for box in annotated])  # what is left where the trees themselves overlap that much
    everything = rows_of(joined([part for part, _ in blocks(boxes, 1 << 20)]))
    wanted = loop(everything)
    found = []
    for edge in EDGES:
        start = time.perf_counter()
        kept = rows_of(joined(list(suppress_parts(blocks(boxes, edge), overlapping(RIVALS)))))
        best = [max(box_iou((*map(float, box), 1.0), one) for one in kept) for box in annotated]
        found.append(
            {
                "block": edge,
                "annotated": len(annotated),
                "annotated_apart": len(apart),
                "detected": len(everything),
                "whole_pass": len(wanted),
                "merged": len(kept),
                "same": sorted(kept) == sorted(wanted),
                "trees_with_iou_1": int(np.sum(np.array(best) == 1.0)),
                "least_iou_of_a_tree": round(min(best), 3),
                "seconds": round(time.perf_counter() - start, 3),
            }
        )
    return found


class Forester:
    """A detection head that knows the trees: an image of places, y and x in its two channels, tells it where a patch lies."""

    digest = "forester"

    def __init__(self, boxes: NDArray[np.float64]) -> None:
        self._boxes, most = boxes, 256
        output = OutputSpec(name="trees", kind="boxes", channels=("tree",), most=most, iou=RIVALS)
        self.spec = ModelSpec(name="forester", channels=2, size=PATCH, outputs=(output,), resampling="nearest")

    def __call__(self, pixels: Tensor) -> Mapping[str, Tensor]:
        given = torch.zeros(len(pixels), self.spec.outputs[0].most, 6)
        for slots, patch in zip(given, pixels, strict=True):
            y, x = (int(place) for place in patch[:, 0, 0])
            found = seen(self._boxes, y, x)
            columns = (found.y - y, found.x - x, found.height, found.width, found.score)
            slots[: len(found), :5] = torch.from_numpy(np.stack(columns, axis=1))
        return {"trees": given}

    def to(self, _device: str) -> Forester:
        return self


def trees_by_run(folder: Path) -> list[dict[str, Any]]:
    """The same trees through a whole run, patches of three overlaps."""
    annotated = trees()
    boxes = np.array(annotated, np.float64)
    bottom, right = (int(extent) for extent in (boxes[:, :2] + boxes[:, 2:]).max(axis=0))
    places = np.stack(np.meshgrid(np.arange(bottom), np.arange(right), indexing="ij"), axis=2).astype(np.uint16)
    found = []
    for overlap in (OVERLAP, PATCH // 4, 3 * PATCH // 4):
        store = folder / f"trees-{overlap}.zarr"
        image = MemoryImage([places], mpp=(0.1, 0.1), channels=("y", "x"))
        run(image, Forester(boxes), store, settings=RunSettings(saliency="valid", overlap=overlap, device="cpu"))
        result = open_result(store)
        corners = result.objects["trees"].corners.tolist()
        kept = [(top, left, low - top, far - left, 1.0) for top, left, low, far in corners]
        best = [max(box_iou((*map(float, box), 1.0), one) for one in kept) for box in annotated]
        found.append(
            {
                "overlap": overlap,
                "patches": len(result.patches.y),
                "annotated": len(annotated),
                "things": len(kept),
                "trees_with_iou_1": int(np.sum(np.array(best) > 1 - 1e-9)),
                "least_iou_of_a_tree": round(min(best), 3),
            }
        )
    return found


def small_nuclei(held: Masks) -> list[NDArray[np.bool_]]:
    """Masks of nuclei in one part that fit between two places of the pitch."""
    shapes = []
    for _, found in held:
        for mask in found:
            rows, columns = np.nonzero(mask)
            shape = mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            if max(shape.shape) < PITCH and min(shape.shape) > 4 and label(shape, connectivity=1).max() == 1:
                shapes.append(shape)
    return shapes


def many_polygons(held: Masks, count: int, folder: Path) -> dict[str, Any]:
    shapes, rng = small_nuclei(held), np.random.default_rng(0)
    across = round(count**0.5)
    canvas = np.zeros((across * PITCH, across * PITCH), np.uint8)
    for place, chosen in enumerate(rng.integers(0, len(shapes), across * across).tolist()):
        y, x = place // across * PITCH, place % across * PITCH
        shape = shapes[chosen]
        canvas[y : y + shape.shape[0], x : x + shape.shape[1]] = shape * np.uint8(1 + place % CLASSES)
    start = time.perf_counter()
    store, edge = run_over(canvas, folder, 4 << 30)
    ran, side = time.perf_counter() - start, canvas.shape[0]
    del canvas
    out = folder / "out"
    arguments = ["export", str(store), "--to", "geojson", "-o", str(out)]
    bare = child(arguments)  # writes the patches alone
    told = child([*arguments, "--objects", "nuclei", "--background", "none"])
    (path,) = out.glob("*_nuclei.geojson.gz")
    return {
        "polygons": across * across,
        "side": side,
        "block": edge,
        "run_seconds": round(ran, 1),
        "export_seconds": round(told[0], 1),
        "processor_seconds": round(told[1], 1),
        "peak_bytes": told[2],
        "peak_bytes_without_objects": bare[2],
        "file_bytes": path.stat().st_size,
        "features": int(
            subprocess.run(f"zcat {path} | grep -c '\"Feature\"'", shell=True, capture_output=True, text=True, check=True).stdout
        ),
    }


_TOLD = """
import sys, time
from pathlib import Path
from patchdrive.pipeline.cli import main
start = time.perf_counter()
code = main(sys.argv[1:])
peak = next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(code, time.perf_counter() - start, time.process_time(), peak)
"""


def child(arguments: list[str]) -> tuple[float, float, int]:
    """Of `patchdrive ...` in a process of its own: seconds, those of processors, peak bytes (VmHWM: `getrusage` begins with ours)."""
    done = subprocess.run([sys.executable, "-c", _TOLD, *arguments], capture_output=True, text=True, check=True)
    code, seconds, busy, peak = done.stdout.split()[-4:]
    if code != "0":
        raise SystemExit(f"{arguments} ended with {code}: {done.stderr}")
    return float(seconds), float(busy), int(peak) * 1024


def kept_promises(results: Mapping[str, Any]) -> list[str]:
    """What is not as it should be."""
    broken = [
        f"nuclei: {one}"
        for one in results["nuclei"]
        if not (one["components"] == one["whole_pass"] == one["objects"] == one["in_both"] and one["least_iou"] == 1.0 and one["valid"])
    ]
    broken += [f"trees: {one}" for one in results["trees"] if not one["same"]]
    if results["polygons"]["features"] != results["polygons"]["polygons"]:
        broken.append(f"polygons: {results['polygons']}")
    return broken


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small mosaic and 10,000 polygons")
    parser.add_argument("--side", type=int, help="of the mosaic of nuclei, pixels (default: 8192)")
    parser.add_argument("--polygons", type=int, help="to be streamed (default: 1,000,000)")
    given = parser.parse_args()
    side, count = given.side or (3000 if given.quick else 8192), given.polygons or (10_000 if given.quick else 1_000_000)
    results: dict[str, Any] = {}
    held = masks()
    with tempfile.TemporaryDirectory() as folder:
        for name in ("nuclei", "polygons"):
            (Path(folder) / name).mkdir()
        results["nuclei"] = nuclei(held, side, Path(folder) / "nuclei")
        for one in results["nuclei"]:
            print(one, flush=True)
        results["trees"] = merged_trees()
        for one in results["trees"]:
            print(one, flush=True)
        results["trees_by_run"] = trees_by_run(Path(folder))
        for one in results["trees_by_run"]:
            print(one, flush=True)
        results["polygons"] = many_polygons(held, count, Path(folder) / "polygons")
        print(results["polygons"])
    results["machine"] = {
        "cores": len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
    }
    out = Path(__file__).parent / "results" / ("objects-quick.json" if given.quick else "objects.json")
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(results, indent=1))
    broken = kept_promises(results)
    for one in broken:
        print(f"NOT KEPT: {one}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
