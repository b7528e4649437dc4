"""A slide and two scenes with a mark at a known place, what patchdrive leaves of them, and `expected.json`: what a reader must find.

make_stores.py OUT

Marks and nodata end at pixels that no level of a map divides: so they are found to the pixel in each.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import tifffile
from affine import Affine
from marks import HIGH, STEPS, STRIDE, mark_of

from patchdrive.pipeline.result import open_result

SIDE = 64
"""Of the patches of tables, target pixels: a mark is one patch high and two wide, so the mean of their centres is its own."""


def main(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    images = [write(out) for write in (slide, utm, degrees)]
    (out / "expected.json").write_text(json.dumps({"images": [{**image, "stores": stores_of(image, out)} for image in images]}, indent=1))


def slide(out: Path) -> dict[str, Any]:
    """Three channels of bytes; a pixel is 0.5 µm high and 0.4 wide, so at 0.5 mpp columns are 1.25 of level 0."""
    image = {
        "source": "slide.ome.tif",
        "height": 3001,
        "width": 4003,
        "dtype": "uint8",
        "channels": ["red", "green", "blue"],
        "mpp": [0.5, 0.4],
        "transform": None,
        "epsg": None,
        "downsample": [1.0, 1.25],
        "mark": {"y": 640, "x": 1280, "height": 64, "width": 160},
        "mark_values": mark_of("uint8", 3),
        "invalid": None,
        "pixel_size": ["--mpp", "0.5"],
    }
    pixels = place(image, most=200)
    size = {"PhysicalSizeY": 0.5, "PhysicalSizeX": 0.4, "PhysicalSizeYUnit": "µm", "PhysicalSizeXUnit": "µm"}
    kept = {"tile": (256, 256), "compression": "deflate", "photometric": "rgb"}
    tifffile.imwrite(out / image["source"], pixels, ome=True, metadata={"axes": "YXS", **size}, **kept)
    return {**image, "samples": samples(image, pixels)}


def utm(out: Path) -> dict[str, Any]:
    """Three bands of 16 bits in metres, north up, pixels 10 wide and 12 high, with nodata in a corner."""
    return scene(
        out, "utm.tif", "uint16", ["red", "green", "blue"], 32633, Affine(10, 0, 500000, 0, -12, 5000000), size=(1501, 2003), nodata=0
    )


def degrees(out: Path) -> dict[str, Any]:
    """One band of floats in degrees, with NaN in a corner."""
    return scene(
        out, "degrees.tif", "float32", ["height"], 4326, Affine(0.002, 0, 13.1, 0, -0.001, 52.7), size=(701, 905), nodata=float("nan")
    )


def scene(
    out: Path, name: str, dtype: str, channels: Sequence[str], epsg: int, transform: Affine, *, size: tuple[int, int], nodata: float
) -> dict[str, Any]:
    image = {
        "source": name,
        "height": size[0],
        "width": size[1],
        "dtype": dtype,
        "channels": list(channels),
        "mpp": None,
        "transform": list(transform)[:6],
        "epsg": epsg,
        "downsample": [1.0, 1.0],
        "mark": {"y": 320, "x": 576, "height": 64, "width": 128},
        "mark_values": mark_of(dtype, len(channels)),
        "invalid": {"y": 0, "x": 0, "height": 256, "width": 192},
        "pixel_size": [],
    }
    pixels = place(image, most=4000 if dtype == "uint16" else 200)
    pixels[box(image["invalid"])] = nodata
    kind = {"driver": "GTiff", "dtype": dtype, "count": len(channels), "height": size[0], "width": size[1], "nodata": nodata}
    with rasterio.open(out / name, "w", **kind, crs=f"EPSG:{epsg}", transform=transform, tiled=True, compress="deflate") as file:
        file.write(pixels.transpose(2, 0, 1))
        for band, channel in enumerate(channels, 1):
            file.set_band_description(band, channel)
    return {**image, "samples": samples(image, pixels)}


def place(image: Mapping[str, Any], *, most: int) -> np.ndarray:
    """(height, width, channel): grey that says where it is, between 20 and `most`, and the mark."""
    y, x = np.mgrid[: image["height"], : image["width"]]
    grey = 20 + (x * 7 + y * 131) % (most - 20)
    pixels = np.repeat(grey[:, :, None], len(image["channels"]), axis=2).astype(image["dtype"])
    pixels[box(image["mark"])] = image["mark_values"]
    return pixels


def box(area: Mapping[str, int]) -> tuple[slice, slice]:
    return slice(area["y"], area["y"] + area["height"]), slice(area["x"], area["x"] + area["width"])


def samples(image: Mapping[str, Any], pixels: np.ndarray) -> list[dict[str, Any]]:
    """Level-0 positions of the centres of some pixels of the target grid, and what the nearest pixel of the image holds there."""
    down_y, down_x = image["downsample"]
    rows, columns = int(image["height"] / down_y), int(image["width"] / down_x)
    at = [(rows - 1, columns - 1), (rows - 1, 3), (300, columns - 1), (rows // 3, columns // 2), (2 * rows // 3, columns // 7)]
    places = [((row + 0.5) * down_y, (column + 0.5) * down_x) for row, column in at]
    return [{"y": y, "x": x, "values": pixels[int(y), int(x)].tolist()} for y, x in places]


def stores_of(image: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Run over the image for maps and for tables, and over a slide by a driving model; what must be in each store."""
    common = ["--saliency", "marks:salient"]
    maps = run(image, out, "maps", ["--model", "identity", "--model", "marks:Found", "--all-classes", *common])
    tables = run(image, out, "tables", ["--model", "descriptor", "--patch-size", str(SIDE), *common])
    stores = {
        "maps": stored(out, maps, [*looks(image), *model_maps(image)], []),
        "tables": stored(out, tables, [*looks(image), *painted(image)], [descriptor_table(image, tables)]),
    }
    if image["transform"] is None:  # untrained, so that nobody knows what it finds
        report = run(image, out, "drive", ["--model", "patchdrivenet", "--max-patches", "8"])
        found = len(open_result(report["store"]).objects["objects"])
        names = ("images/saliency", "images/detection", "images/scores")
        colours = [entry("images/thumbnail", "uint8", 3), entry("images/patchdrivenet_colors", "uint8", 3)]
        unmarked = [*(entry(name, "uint8", 1, fill=255) for name in names), *colours, entry("labels/patchdrivenet_colors_valid", "uint8")]
        rows = [
            {"path": "tables/patchdrivenet_round0", "rows": report["planned"], "done": report["done"], "column": None},
            {"path": "tables/patchdrivenet_objects", "rows": found, "done": 0, "column": None},
        ]
        stores["drive"] = stored(out, report, unmarked, rows)
    return stores


def stored(out: Path, report: Mapping[str, Any], maps: Sequence[Mapping[str, Any]], tables: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One store. Every map and table of it must be expected, so that none goes unread."""
    store = Path(report["store"])
    there = {str(path.parent.relative_to(store)) for path in store.glob("*/*/zarr.json")}
    known = {held["path"] for held in (*maps, *tables)}
    if there != known:
        sys.exit(f"{store} holds {sorted(there - known)} that nobody expects, and lacks {sorted(known - there)}: tell make_stores.py")
    folder = out / "spatialdata" / store.parent.name
    ended = patchdrive("export", store, "--to", "spatialdata", "-o", folder)
    exported = str(Path(ended.strip()).relative_to(out))
    return {"path": str(store.relative_to(out)), "spatialdata": exported, "maps": maps, "tables": tables}


def run(image: Mapping[str, Any], out: Path, folder: str, options: Sequence[str]) -> dict[str, Any]:
    """The JSON line of `patchdrive run`."""
    fixed = ["-o", out / folder, "--device", "cpu", "--overwrite", "--json"]
    report: dict[str, Any] = json.loads(patchdrive("run", out / image["source"], *options, *image["pixel_size"], *fixed))
    assert report["status"] == "done", report
    return report


def patchdrive(*words: object) -> str:
    """What a command of patchdrive prints."""
    command = [str(Path(sys.executable).with_name("patchdrive")), *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout


def looks(image: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The maps that every store has. Thumbnails stretch what is not of bytes: only of several channels is the mark still known."""
    mark = image["mark_values"] if image["dtype"] == "uint8" else [255, 0, 0]
    thumbnail = entry("images/thumbnail", "uint8", 3, mark=mark if len(image["channels"]) == 3 else None)
    return [entry("images/saliency", "uint8", 1, fill=255, mark=[STEPS]), thumbnail]


def model_maps(image: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Those of `identity` and of `marks.Found`."""
    fine, coarse = image["downsample"], [STRIDE * down for down in image["downsample"]]
    mark = image["mark_values"]
    return [
        entry("images/image", image["dtype"], len(mark), downsample=fine, mark=mark),
        entry("images/found_probability", "uint8", 1, downsample=coarse, fill=255, mark=[STEPS]),
        entry("images/found_classes", "uint8", 2, downsample=coarse, fill=255, mark=[0, STEPS]),
        entry("labels/found", "uint8", downsample=coarse, fill=255, mark=[1]),
        entry("labels/image_valid", "uint8", downsample=fine),
    ]


def painted(image: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Those of one pixel per patch."""
    patch = [SIDE * down for down in image["downsample"]]
    return [
        entry("images/scores", "uint8", 1, downsample=patch, fill=255, mark=[STEPS]),
        entry("images/descriptor_colors", "uint8", 3, downsample=patch),
        entry("labels/descriptor_colors_valid", "uint8", downsample=patch),
    ]


def entry(
    path: str,
    dtype: str,
    channels: int | None = None,
    *,
    downsample: list[float] | None = None,
    fill: int | None = None,
    mark: list[float] | None = None,
) -> dict[str, Any]:
    """A map: its dtype, channels (None: labels), level-0 pixels per pixel (None: as the run decides), nodata, a marked pixel as stored."""
    return {
        "path": path,
        "dtype": dtype,
        "channels": channels,
        "downsample": downsample,
        "fill": fill,
        "mark": mark,
        "scale_factor": 1 / STEPS if channels is not None and fill is not None else None,
        "gaps": mark is not None and fill is not None,
    }


def descriptor_table(image: Mapping[str, Any], report: Mapping[str, Any]) -> dict[str, Any]:
    """The column and the value in it by which the patches on the mark are known."""
    high, first = HIGH[image["dtype"]], f"{image['channels'][0]}_mean"
    known = {
        "uint8": ("od_red_mean", -np.log10((HIGH["uint8"] + 1) / 256)),
        "uint16": (first, high / np.iinfo(np.uint16).max),
        "float32": (first, high),
    }
    column, value = known[image["dtype"]]
    rows = {"rows": report["planned"], "done": report["done"]}
    return {"path": "tables/descriptor_round0", **rows, "column": column, "value": float(value)}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
