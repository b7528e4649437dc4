"""A synthetic satellite scene with known answers: land cover whose single pixels are ambiguous and whose neighbourhoods are not.

Lakes and rivers, forest, parcels of field and bare soil, towns; four bands of reflectance times 10,000 at 10 m in UTM 33N; a slanted swath
with nodata on both sides. Everything follows from the seed, and is rendered block by block.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
import rasterio.windows
from affine import Affine
from numpy.typing import NDArray

from patchdrive.pipeline.synthetic_texture import at_pixels, rough_field, smooth_field, wrapped
from patchdrive.readers.errors import SettingsError
from patchdrive.readers.geometry import Window

CLASSES = ("water", "forest", "field", "bare", "urban")
"""Names of labels 0 to 4."""
BANDS = ("blue", "green", "red", "nir")
"""Names of the channels."""
NO_LABEL = 255
"""Label outside the swath."""

WATER, FOREST, FIELD, BARE, URBAN = range(5)

_CELL = 8  # pixels per sample of the coarse fields
_BLOCK = 512  # pixels rendered at once
_PARCEL = (72.0, 112.0)  # pixels along and across a parcel
_GSD = 10.0
_CORNER = (399_960.0, 5_300_040.0)  # easting, northing
_REFLECTANCE = np.array(
    [[640, 560, 430, 380], [480, 700, 560, 2450], [640, 960, 860, 2650], [1050, 1350, 1700, 2250], [1250, 1400, 1500, 1900]], np.float32
)
_SPREAD = np.array([210, 250, 320, 500], np.float32)  # noise of a single pixel, by band
_CALM = np.array([0.5, 1.0, 1.0, 1.0, 1.0], np.float32)  # share of that noise, by class
_COUNT = 10  # values are multiples of it: reflectance in steps of 0.001, as sensors count
_RELIEF = np.array([0.03, 0.20, 0.06, 0.08, 0.30], np.float32)  # how much texture scales the reflectance, by class


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneTruth:
    """What a scene shows."""

    labels: Path
    """A COG of one uint8 band on the scene's pixels: index into `classes`, 255 outside the swath."""
    classes: tuple[str, ...]
    """Names of the labels."""
    seed: int
    """What the scene was drawn from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Landscape:
    """One drawn scene: everything `render_scene` needs, and nothing that grows with its pixels but coarse fields."""

    height: int
    """Rows."""
    width: int
    """Columns."""
    swath: bool
    """Whether a slanted collar of nodata lies on both sides."""
    height_field: NDArray[np.float32]
    """(height/8, width/8) terrain: water below 0."""
    forest_field: NDArray[np.float32]
    """(height/8, width/8): forest above 0."""
    town_field: NDArray[np.float32]
    """(height/8, width/8): towns above 0."""
    district: NDArray[np.float32]
    """(height/8, width/8): its sign turns the parcels."""
    parcels: NDArray[np.float32]
    """(64, 64, 5): reflectance each parcel adds, by band, and whether it is bare soil (1) or not (0)."""
    noise: NDArray[np.float32]
    """(512, 512, 4) of unit deviation."""
    relief: NDArray[np.float32]
    """(5, 512, 512) texture of each class, of unit deviation."""


def draw_landscape(seed: int, height: int, width: int, *, swath: bool = False) -> Landscape:
    """Decide everything about a scene.

    Raises:
        SettingsError: a side is shorter than 64 pixels.
    """
    if min(height, width) < 64:
        raise SettingsError(f"a synthetic scene has at least 64 pixels a side, got {height} x {width}")
    rng = np.random.default_rng([seed, height, width])
    shape = (-(-height // _CELL), -(-width // _CELL))
    scale = min(40.0, max(4.0, min(shape) / 6))
    terrain = rough_field(rng, shape, scale, octaves=4)
    river = np.abs(rough_field(rng, shape, 1.5 * scale)) - 0.035
    forest = rough_field(rng, shape, 0.8 * scale, octaves=4)
    town = rough_field(rng, shape, 0.45 * scale)
    parcels = np.concatenate([rng.normal(0.0, 90.0, (64, 64, 1)) * [0.5, 0.7, 0.8, 2.2], rng.random((64, 64, 1)) < 0.3], axis=2)
    streets = np.minimum(np.arange(512) % 17, 3)[:, None] + np.minimum(np.arange(512) % 13, 3) - 4.5
    roofs = rng.standard_normal((128, 128), dtype=np.float32).repeat(4, axis=0).repeat(4, axis=1) + 0.5 * streets
    ripples = [smooth_field(rng, (512, 512), scale) for scale in (3.0, 1.0, 6.0, 4.0)]
    return Landscape(
        height=height,
        width=width,
        swath=swath,
        height_field=np.minimum(terrain - np.quantile(terrain, 0.13), 4 * river).astype(np.float32),
        forest_field=forest - np.quantile(forest, 0.62),
        town_field=town - np.quantile(town, 0.90),
        district=smooth_field(rng, shape, 1.5 * scale),
        parcels=parcels.astype(np.float32),
        noise=rng.standard_normal((512, 512, 4), dtype=np.float32),
        relief=np.stack([*ripples, roofs / roofs.std()]).astype(np.float32),
    )


def render_scene(land: Landscape, window: Window) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """Pixels (height, width, 4) and labels (height, width) of `window`; 0 and 255 outside the swath."""
    which = _parcel_of(land, window)
    parcel = land.parcels[which]
    labels = np.where(parcel[:, :, 4] > 0, BARE, FIELD).astype(np.uint8)
    labels[at_pixels(land.forest_field, _CELL, window) > 0] = FOREST
    labels[at_pixels(land.town_field, _CELL, window) > 0] = URBAN
    labels[at_pixels(land.height_field, _CELL, window) < 0] = WATER
    relief = np.zeros(labels.shape, np.float32)
    for label, texture in enumerate(land.relief):
        here = labels == label
        if here.any():
            relief[here] = _RELIEF[label] * wrapped(texture, window)[here]
    values = _REFLECTANCE[labels] * (1 + relief)[:, :, None] + wrapped(land.noise, window) * _SPREAD * _CALM[labels][:, :, None]
    farmed = (labels == FIELD) | (labels == BARE)
    values[farmed] += parcel[farmed, :4]
    pixels = np.clip(np.rint(values / _COUNT), 1, 1000).astype(np.uint16) * np.uint16(_COUNT)
    if land.swath:
        outside = _outside_swath(land, window)
        pixels[outside] = 0
        labels[outside] = NO_LABEL
    return pixels, labels


def scene_field(land: Landscape, rng: np.random.Generator, *, side: int = 256) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """A random square of a landscape, turned and mirrored, to train on; take another seed than the scene's.

    Returns:
        Pixels (side, side, 4) and labels (side, side).

    Raises:
        SettingsError: `side` does not fit the landscape.
    """
    if not 0 < side <= min(land.height, land.width):
        raise SettingsError(f"a field's side is at most the landscape's {min(land.height, land.width)}, got {side}")
    y, x = int(rng.integers(0, land.height - side + 1)), int(rng.integers(0, land.width - side + 1))
    pixels, labels = render_scene(land, Window(y=y, x=x, height=side, width=side))
    turns, step = int(rng.integers(0, 4)), 1 - 2 * int(rng.integers(0, 2))
    return np.ascontiguousarray(np.rot90(pixels, turns)[::step]), np.ascontiguousarray(np.rot90(labels, turns)[::step])


def write_scene(path: Path, *, height: int = 6144, width: int = 8192, seed: int = 0, workers: int = 2) -> SceneTruth:
    """Write a Cloud Optimized GeoTIFF of four named uint16 bands and, as `<stem>.labels.tif` beside it, another of its labels.

    Raises:
        SettingsError: see `draw_landscape`.
    """
    land = draw_landscape(seed, height, width, swath=True)
    labels_path = path.with_name(f"{path.stem}.labels.tif")
    frame = {
        "driver": "GTiff",
        "height": height,
        "width": width,
        "tiled": True,
        "blockxsize": 512,
        "blockysize": 512,
        "crs": "EPSG:32633",
        "transform": Affine(_GSD, 0.0, _CORNER[0], 0.0, -_GSD, _CORNER[1]),
    }
    with TemporaryDirectory(dir=path.parent) as folder, rasterio.Env(GDAL_CACHEMAX=48 * 2**20), ThreadPoolExecutor(workers) as pool:
        raw = (Path(folder) / "scene.tif", Path(folder) / "labels.tif")
        with (
            rasterio.open(raw[0], "w", count=len(BANDS), dtype="uint16", nodata=0, interleave="pixel", **frame) as scene,
            rasterio.open(raw[1], "w", count=1, dtype="uint8", nodata=NO_LABEL, **frame) as answers,
        ):
            scene.descriptions = BANDS
            answers.descriptions = ("label",)
            for y in range(0, height, _BLOCK):
                _write_band(land, y, scene, answers, pool)
        for source, target, resampling in ((raw[0], path, "AVERAGE"), (raw[1], labels_path, "MODE")):
            rasterio.shutil.copy(
                source,
                target,
                driver="COG",
                compress="DEFLATE",
                predictor="YES",
                level=4,
                blocksize=512,
                overview_resampling=resampling,
                num_threads=workers,
            )
    return SceneTruth(labels=labels_path, classes=CLASSES, seed=seed)


def _write_band(land: Landscape, y: int, scene: Any, answers: Any, pool: ThreadPoolExecutor) -> None:
    """One row of blocks into both open files; the blocks are rendered side by side, and only they are in memory."""
    windows = [
        Window(y=y, x=x, height=min(_BLOCK, land.height - y), width=min(_BLOCK, land.width - x)) for x in range(0, land.width, _BLOCK)
    ]
    for window, (pixels, labels) in zip(windows, pool.map(lambda window: render_scene(land, window), windows), strict=True):
        place = rasterio.windows.Window(window.x, window.y, window.width, window.height)
        scene.write(np.moveaxis(pixels, 2, 0), window=place)
        answers.write(labels, 1, window=place)


def _parcel_of(land: Landscape, window: Window) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Row and column in `land.parcels` of every pixel: two rectangular grids, turned against each other by district."""
    y = np.arange(window.y, window.y_end, dtype=np.float32)[:, None]
    x = np.arange(window.x, window.x_end, dtype=np.float32)
    turned = at_pixels(land.district, _CELL, window) > 0
    found = []
    for size, odd in zip(_PARCEL, (0, 1), strict=True):
        ways = [np.cos(angle) * (x if odd else y) + (1 - 2 * odd) * np.sin(angle) * (y if odd else x) for angle in (0.35, -0.6)]
        found.append(np.floor(np.where(turned, ways[1], ways[0]) / np.float32(size)).astype(np.intp) % len(land.parcels))
    return found[0], found[1]


def _outside_swath(land: Landscape, window: Window) -> NDArray[np.bool_]:
    """True in the collar: beyond two parallel edges that lean by one pixel in five."""
    y = np.arange(window.y, window.y_end)[:, None]
    x = np.arange(window.x, window.x_end)
    lean = (land.height - y) / 5.0 - x
    return (lean > 0.12 * land.height) | (lean < 0.08 * land.height - land.width)
