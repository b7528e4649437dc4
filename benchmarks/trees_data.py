"""Trees on real land: the labelled plots, and a georeferenced scene of other land with two of them in it.

The land around is real too, brought to the scene's pixel size, in squares that fade into each other; a plot fades into it in the seam
around it, mirrored outwards, and keeps its own pixels. Nobody labelled the trees of the land around.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.transform import from_origin
from skimage.io import imread

DATA = Path(os.environ.get("PATCHDRIVE_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
GSD = 0.1
"""Metres per pixel, of the plots and of the scene."""
SIDE, SQUARE, SEAM = 4096, 512, 32
"""Of the scene, of a square of the land around, and how far a piece reaches over its own border, pixels."""
LEARN, JUDGE = ("HARV", "OSBS", "SJER"), ("SOAP", "YELL")
"""Sites of the National Ecological Observatory Network: Massachusetts, Florida, foothills of California; its mountains, Yellowstone."""
EPSG, EAST, NORTH = 32612, 541_000.0, 4_978_000.0
"""Of the scene: UTM zone 12 N, and its upper left corner; the plot of Yellowstone comes from there."""
_AROUND = {
    "fields (drone, 0.35 m)": ("rs/rio-tiler/pix4d_alpha_nodata.tif", 0.45),
    "snow and forest (0.6 m)": ("rs/rasterio/cogeo.tif", 0.2),
    "desert (0.6 m)": ("rs/misc/m_3211605_ne_11_060_20200415.tif", 0.1),
    "sea (0.6 m)": ("rs/rio-cogeo/image_no_overview.tif", 0.25),
}
"""File, and share of the squares, by name."""
_OVERVIEWS = (2, 4, 8, 16, 32)

Place = tuple[slice, slice]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plot:
    """An image and the crowns in it."""

    name: str
    """Its site and number."""
    pixels: NDArray[np.uint8]
    """(height, width, 3)."""
    boxes: NDArray[np.float64]
    """(n, 4) y, x, bottom and right edges of crowns, pixels."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scene:
    """The scene, and what is known of it."""

    pixels: NDArray[np.uint8]
    """(SIDE, SIDE, 3)."""
    source: NDArray[np.str_]
    """(SIDE / SQUARE, SIDE / SQUARE) what each square is of, but for what plots cover."""
    names: tuple[str, ...]
    """Of the plots."""
    places: tuple[Place, ...]
    """Where each plot lies, rows and columns."""
    boxes: tuple[NDArray[np.float64], ...]
    """Of each plot, (n, 4) y, x, bottom and right edges of its crowns, scene pixels."""


def read_plots(sites: Sequence[str]) -> list[Plot]:
    """The labelled plots of these sites, by name."""
    folder = DATA / "labelled" / "deepforest_neon"
    found = []
    for path in sorted([*folder.glob("*.tif"), *folder.glob("*.png")]):
        site = next((site for site in sites if site in path.stem), None)
        if site is not None:
            name = path.stem if path.stem.startswith(site) else site
            found.append(Plot(name=name, pixels=np.ascontiguousarray(imread(path)[:, :, :3]), boxes=_boxes_of(path)))
    return found


def world_of(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, 4) edges in scene pixels, y, x, bottom, right, as left, bottom, right and top edges in metres of the scene's CRS."""
    top, left, bottom, right = boxes.T
    return np.stack([EAST + GSD * left, NORTH - GSD * bottom, EAST + GSD * right, NORTH - GSD * top], axis=1)


def compose(plots: Sequence[Plot], *, seed: int) -> Scene:
    """The scene.

    Args:
        plots: one in each of the scene's quarters, the largest in the first.
        seed: of where they lie there, and of the squares around.
    """
    rng = np.random.default_rng(seed)
    count = SIDE // SQUARE
    names = np.repeat(list(_AROUND), np.diff(np.rint(np.cumsum([0.0, *(share for _, share in _AROUND.values())]) * count**2).astype(int)))
    source = rng.permutation(names).reshape(count, count)
    land = {name: _squares(DATA / file, rng) for name, (file, _) in _AROUND.items()}
    canvas = np.zeros((SIDE, SIDE, 3), np.float32)
    for index, name in enumerate(source.ravel()):
        row, column = divmod(index, count)
        squares = land[str(name)]
        _paint(canvas, squares[int((source.ravel()[:index] == name).sum()) % len(squares)], row * SQUARE, column * SQUARE)
    places, boxes = [], []
    half = SIDE // 2
    for index, plot in enumerate(sorted(plots, key=lambda plot: -plot.pixels.size)):
        height, width = plot.pixels.shape[:2]
        y, x = (int(rng.integers(SEAM, half - side - SEAM)) for side in (height, width))
        y, x = y + half * (index % 2), x + half * ((index + 1) // 2 % 2)
        _paint(canvas, plot.pixels, y, x)
        places.append((slice(y, y + height), slice(x, x + width)))
        boxes.append(plot.boxes + np.array([y, x, y, x]))
    return Scene(
        pixels=np.rint(canvas).astype(np.uint8),
        source=source,
        names=tuple(plot.name for plot in sorted(plots, key=lambda plot: -plot.pixels.size)),
        places=tuple(places),
        boxes=tuple(boxes),
    )


def write_scene(path: Path, scene: Scene) -> None:
    """A tiled GeoTIFF with overviews, without loss, and the crowns beside it in metres of its CRS, as GeoJSON."""
    profile = {"driver": "GTiff", "height": SIDE, "width": SIDE, "count": 3, "dtype": "uint8", "photometric": "rgb"}
    layout = {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate", "interleave": "pixel"}
    with rasterio.open(path, "w", crs=f"EPSG:{EPSG}", transform=from_origin(EAST, NORTH, GSD, GSD), **profile, **layout) as file:
        file.write(scene.pixels.transpose(2, 0, 1))
        file.build_overviews(_OVERVIEWS, Resampling.average)
    features = [
        {
            "type": "Feature",
            "properties": {"plot": name},
            "geometry": {"type": "Polygon", "coordinates": [[[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]]},
        }
        for name, boxes in zip(scene.names, scene.boxes, strict=True)
        for x0, y0, x1, y1 in world_of(boxes).tolist()
    ]
    crs = {"type": "name", "properties": {"name": f"urn:ogc:def:crs:EPSG::{EPSG}"}}
    path.with_suffix(".geojson").write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": features}))


def _boxes_of(image: Path) -> NDArray[np.float64]:
    """(n, 4) from the .xml or .csv beside an image; what has no area is left out."""
    if image.with_suffix(".xml").exists():
        found = ET.parse(image.with_suffix(".xml")).getroot().iter("bndbox")
        rows = [[float(box.findtext(name) or "nan") for name in ("ymin", "xmin", "ymax", "xmax")] for box in found]
    else:
        lines = image.with_suffix(".csv").read_text().splitlines()[1:]
        rows = [[float(edge) for edge in (cells[2], cells[1], cells[4], cells[3])] for cells in (line.split(",") for line in lines)]
    boxes = np.array(rows, np.float64)
    return boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]


def _squares(path: Path, rng: np.random.Generator) -> list[NDArray[np.uint8]]:
    """All squares of a scene at GSD that are valid throughout, shuffled, turned and mirrored."""
    with rasterio.open(path) as file:
        metres = abs(file.transform.a), abs(file.transform.e)
        shape = round(file.height * metres[1] / GSD), round(file.width * metres[0] / GSD)
        pixels = file.read((1, 2, 3), out_shape=(3, *shape), resampling=Resampling.cubic).transpose(1, 2, 0)
        valid = file.dataset_mask(out_shape=shape) > 0
    squares = [
        pixels[y : y + SQUARE, x : x + SQUARE]
        for y in range(0, shape[0] - SQUARE + 1, SQUARE)
        for x in range(0, shape[1] - SQUARE + 1, SQUARE)
        if valid[y : y + SQUARE, x : x + SQUARE].all()
    ]
    turned = [np.rot90(squares[index], int(rng.integers(4))) for index in rng.permutation(len(squares))]
    return [square[::-1] if rng.integers(2) else square for square in turned]


def _paint(canvas: NDArray[np.float32], piece: NDArray[np.uint8], y: int, x: int) -> None:
    """Over what is there: the piece at its place, and SEAM pixels further, mirrored and fading."""
    height, width = piece.shape[:2]
    sides = [
        np.minimum(1.0, np.minimum(ramp + 0.5, side + 2 * SEAM - ramp - 0.5) / SEAM)
        for side in (height, width)
        for ramp in [np.arange(side + 2 * SEAM)]
    ]
    weight = (sides[0][:, None] * sides[1])[:, :, None].astype(np.float32)
    padded = np.pad(piece, ((SEAM, SEAM), (SEAM, SEAM), (0, 0)), mode="symmetric")
    top, left = max(0, SEAM - y), max(0, SEAM - x)
    under = canvas[max(0, y - SEAM) : y + height + SEAM, max(0, x - SEAM) : x + width + SEAM]
    rows, columns = slice(top, top + under.shape[0]), slice(left, left + under.shape[1])
    under += weight[rows, columns] * (padded[rows, columns] - under)
