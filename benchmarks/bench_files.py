"""The files that are read: three slides of 1.67 gigapixels and two scenes of 0.42, made once by script from one seed.

    python benchmarks/bench_files.py [slide-256-422 ...]

They lie in benchmarks/.cache or in the folder that PATCHDRIVE_BENCH names. Tissue is scikit-image's photograph of immunohistochemistry,
mirrored so that it has no seams, stained unevenly and with grain of the camera, in islands on white glass. Grain is set so that
tissue takes 2.35 bits a pixel as JPEG Q85 4:2:2. The photograph comes round every 4064 pixels, a multiple of no tile, so tiles differ.
"""

from __future__ import annotations

import os
import struct
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import simplejpeg
import tifffile
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from skimage.data import immunohistochemistry

WIDTH, HEIGHT, SCENE_SIDE = 41160, 40500, 20480
PERIOD = 4064  # px until the texture comes round: 32 * 127, so that it shrinks evenly to /32
CELL = 32  # level-0 px a side of one cell of the map of tissue
_SEED = 20261121
_GRAIN = 1.5
_QUALITY = 85
_AHEAD = 4  # rows of tiles encoded before they are written

Encode = Callable[[NDArray[Any]], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideFile:
    """How one slide is stored."""

    name: str
    tile: int
    sampling: str
    rgb: bool
    """Stored as red, green and blue, not as YCbCr."""
    downsamples: tuple[int, ...]
    aperio: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneFile:
    """How one scene is stored: 4 x uint16, blocks of 512, horizontal differences."""

    name: str
    codec: str
    downsamples: tuple[int, ...] = (1, 4, 16)


SLIDES = (
    SlideFile(name="slide-256-422.svs", tile=256, sampling="422", rgb=False, downsamples=(1, 4, 16, 32), aperio=True),
    SlideFile(name="slide-240-rgb.svs", tile=240, sampling="444", rgb=True, downsamples=(1, 4, 16, 32), aperio=True),
    SlideFile(name="slide-512-420.tif", tile=512, sampling="420", rgb=False, downsamples=(1, 2, 4, 8, 16, 32), aperio=False),
)
SCENES = (SceneFile(name="scene-deflate.tif", codec="deflate"), SceneFile(name="scene-zstd.tif", codec="zstd"))


def folder() -> Path:
    """Where the files lie."""
    return Path(os.environ.get("PATCHDRIVE_BENCH") or Path(__file__).parent / ".cache")


def bench_file(name: str) -> Path:
    """One of the files, made if it is not there; half a file is never left under its name."""
    path = folder() / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / ".gitignore").write_text("*\n")
        begin, part = time.perf_counter(), path.with_suffix(".part" + path.suffix)
        recipe = next(recipe for recipe in (*SLIDES, *SCENES) if recipe.name == name)
        if isinstance(recipe, SlideFile):
            _write_slide(part, recipe)
        else:
            _write_scene(part, recipe)
        part.rename(path)
        print(f"made {path} ({path.stat().st_size / 1e6:.0f} MB) in {time.perf_counter() - begin:.0f} s", flush=True)
    return path


@cache
def tissue_map() -> NDArray[np.bool_]:
    """(HEIGHT / 32, WIDTH / 32), rounded up: True where the slides hold tissue, about six tenths."""
    rng = np.random.default_rng([_SEED, 1])
    field = gaussian_filter(rng.standard_normal((-(-HEIGHT // CELL) + 16, -(-WIDTH // CELL) + 16)), 60)
    fray = gaussian_filter(rng.standard_normal(field.shape), 2)
    field = field / field.std() + 0.1 * fray / fray.std()
    inside: NDArray[np.bool_] = field > np.quantile(field, 0.4)
    return inside


@cache
def _textures() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(tissue, glass), each (PERIOD, PERIOD, 3) without seams."""
    rng = np.random.default_rng([_SEED, 2])
    photograph = immunohistochemistry()[: PERIOD // 8, : PERIOD // 8].astype(np.float32)
    mirrored = np.concatenate([photograph, photograph[::-1]])
    mirrored = np.concatenate([mirrored, mirrored[:, ::-1]], axis=1)
    stain = gaussian_filter(rng.standard_normal((PERIOD // 8, PERIOD // 8)), 20, mode="wrap")
    strength = np.kron(1 + 0.12 * stain / stain.std(), np.ones((8, 8))).astype(np.float32)[:, :, None]
    tissue = 255 - (255 - np.tile(mirrored, (4, 4, 1))) * strength
    tissue += _GRAIN * rng.standard_normal(tissue.shape, np.float32)
    glass = np.array([243, 242, 240], np.float32) + 1.5 * rng.standard_normal(tissue.shape, np.float32)
    return np.clip(tissue, 0, 255).astype(np.uint8), np.clip(glass, 0, 255).astype(np.uint8)


@cache
def _shrunk(downsample: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    small = []
    for texture in _textures():
        side = PERIOD // downsample
        blocks = texture.reshape(side, downsample, side, downsample, 3)
        small.append(blocks.mean(axis=(1, 3), dtype=np.float32).round().astype(np.uint8))
    # Twice in each direction, so that a tile of any phase is one slice.
    reps = -(-(side + 1024) // side)
    return np.tile(small[0], (reps, reps, 1)), np.tile(small[1], (reps, reps, 1))


def slide_pixels(y: int, x: int, tile: int, downsample: int) -> NDArray[np.uint8]:
    """A square of a level, (tile, tile, 3); what reaches past the level is drawn too."""
    tissue, glass = _shrunk(downsample)
    side = PERIOD // downsample
    part = np.s_[y % side : y % side + tile, x % side : x % side + tile]
    cells = tissue_map()
    rows = np.minimum(np.arange(y, y + tile) * downsample // CELL, cells.shape[0] - 1)
    columns = np.minimum(np.arange(x, x + tile) * downsample // CELL, cells.shape[1] - 1)
    corner = cells[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    if corner.all():
        return tissue[part]
    if not corner.any():
        return glass[part]
    return np.where(cells[np.ix_(rows, columns)][:, :, None], tissue[part], glass[part])


def _encoded(draw: Callable[[int, int], bytes], rows: int, columns: int) -> Iterator[bytes]:
    """Tiles in stored order, encoded a few rows ahead on every core."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        line: deque[Future[list[bytes]]] = deque()
        for row in range(rows):
            line.append(pool.submit(lambda row=row: [draw(row, column) for column in range(columns)]))
            if len(line) > _AHEAD:
                yield from line.popleft().result()
        while line:
            yield from line.popleft().result()


def _jpeg(recipe: SlideFile, pixels: NDArray[np.uint8]) -> bytes:
    pixels = np.ascontiguousarray(pixels)
    if recipe.rgb:
        return bytes(imagecodecs.jpeg8_encode(pixels, _QUALITY, colorspace="RGB", outcolorspace="RGB", subsampling=recipe.sampling))
    return simplejpeg.encode_jpeg(pixels, _QUALITY, "RGB", recipe.sampling)


def split_jpeg(stream: bytes) -> tuple[bytes, bytes]:
    """(tables, tile without them and without JFIF and Adobe segments), as TIFF keeps them apart."""
    tables, tile, place = [b"\xff\xd8"], [b"\xff\xd8"], 2
    while stream[place + 1] != 0xDA:
        marker, (length,) = stream[place + 1], struct.unpack_from(">H", stream, place + 2)
        segment = stream[place : place + 2 + length]
        if marker in {0xDB, 0xC4}:
            tables.append(segment)
        elif not 0xE0 <= marker <= 0xEF:
            tile.append(segment)
        place += 2 + length
    return b"".join([*tables, b"\xff\xd9"]), b"".join([*tile, stream[place:]])


def _write_slide(path: Path, recipe: SlideFile) -> None:
    tile = recipe.tile
    sample = _jpeg(recipe, slide_pixels(0, 0, tile, 1))
    tables, _ = split_jpeg(sample)
    title = "Aperio Image Library v12.0.15\n" if recipe.aperio else ""
    with tifffile.TiffWriter(path, bigtiff=False, byteorder="<") as tiff:
        for index, downsample in enumerate(recipe.downsamples):
            height, width = HEIGHT // downsample, WIDTH // downsample

            def draw(row: int, column: int, downsample: int = downsample) -> bytes:
                return split_jpeg(_jpeg(recipe, slide_pixels(row * tile, column * tile, tile, downsample)))[1]

            about = f"{title}{WIDTH}x{HEIGHT} ({tile}x{tile}) -> {width}x{height} JPEG/{'RGB' if recipe.rgb else 'YCC'} Q={_QUALITY}"
            mpp = 0.5 * downsample
            tiff.write(
                _encoded(draw, -(-height // tile), -(-width // tile)),
                shape=(height, width, 3),
                dtype=np.uint8,
                tile=(tile, tile),
                photometric="rgb" if recipe.rgb else "ycbcr",
                compression="jpeg",
                compressionargs={"outcolorspace": "rgb"} if recipe.rgb else None,  # else tifffile calls it YCbCr
                subsampling=None if recipe.rgb else {"422": (2, 1), "420": (2, 2)}[recipe.sampling],
                jpegtables=tables,
                description=about + ("|AppMag = 20|MPP = 0.5" if recipe.aperio and index == 0 else ""),
                resolution=None if recipe.aperio else (1e4 / mpp, 1e4 / mpp),
                resolutionunit=None if recipe.aperio else "CENTIMETER",
                subfiletype=0 if recipe.aperio or index == 0 else 1,
                metadata=None,
                software=False,
            )
            if recipe.aperio and index == 0:
                small = np.ascontiguousarray(slide_pixels(0, 0, 768, 32))
                tiff.write(small, photometric="rgb", rowsperstrip=16, description=title + "thumbnail", metadata=None, software=False)


@cache
def _scene_texture() -> NDArray[np.uint16]:
    """(PERIOD, PERIOD, 4): reflectances in ten-thousandths, smooth fields with the noise of a sensor."""
    rng = np.random.default_rng([_SEED, 3])
    shared = sum(gaussian_filter(rng.standard_normal((PERIOD, PERIOD), np.float32), sigma, mode="wrap") * sigma for sigma in (1, 4, 16))
    shared = shared / shared.std()
    bands = [level + spread * shared for level, spread in ((900, 160), (1100, 200), (1300, 280), (2800, 600))]
    pixels = np.stack(bands, axis=2) + rng.standard_normal((PERIOD, PERIOD, 4), np.float32) * 12
    texture: NDArray[np.uint16] = np.clip(pixels, 1, 10000).astype(np.uint16)
    return np.tile(texture, (2, 2, 1))


def _write_scene(path: Path, recipe: SceneFile) -> None:
    block, texture = 512, _scene_texture()
    encode: Encode = {
        "deflate": lambda data: bytes(imagecodecs.deflate_encode(data, 6)),
        "zstd": lambda data: bytes(imagecodecs.zstd_encode(data, 9)),
    }[recipe.codec]

    def georeference(size: float) -> list[tuple[int, int, int, Any, bool]]:
        keys = (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32632)
        return [
            (33550, 12, 3, (size, size, 0.0), True),
            (33922, 12, 6, (0.0, 0.0, 0.0, 600000.0, 5400000.0, 0.0), True),
            (34735, 3, len(keys), keys, True),
        ]

    with tifffile.TiffWriter(path, bigtiff=True, byteorder="<") as tiff:
        for index, downsample in enumerate(recipe.downsamples):
            side = SCENE_SIDE // downsample

            def draw(row: int, column: int, downsample: int = downsample) -> bytes:
                y, x = row * block * downsample % PERIOD, column * block * downsample % PERIOD
                # Every downsample-th pixel: what overviews hold is not what is measured.
                rows, columns = (
                    np.arange(y, y + block * downsample, downsample) % PERIOD,
                    np.arange(x, x + block * downsample, downsample) % PERIOD,
                )
                pixels = texture[y : y + block, x : x + block] if downsample == 1 else texture[np.ix_(rows, columns)]
                return encode(imagecodecs.delta_encode(np.ascontiguousarray(pixels), axis=1))

            tiff.write(
                _encoded(draw, -(-side // block), -(-side // block)),
                shape=(side, side, 4),
                dtype=np.uint16,
                tile=(block, block),
                planarconfig="contig",
                photometric="minisblack",
                extrasamples=(0, 0, 0),
                compression={"deflate": "adobe_deflate", "zstd": "zstd"}[recipe.codec],
                predictor=2,
                subfiletype=int(index > 0),
                extratags=georeference(10.0) if index == 0 else (),
                metadata=None,
                software=False,
            )


def main(names: list[str]) -> None:
    for recipe in (*SLIDES, *SCENES):
        if not names or Path(recipe.name).stem in names:
            print(bench_file(recipe.name))


if __name__ == "__main__":
    main(sys.argv[1:])
