"""A haystack of gigapixels as a file: a tiled, pyramidal TIFF, written stripe by stripe in memory that grows with the width alone.

    python benchmarks/needle_slide.py OUT.tif --side 65536

20 needles (MNIST's test digits) whatever the size, and 20,000 distractors in 65,536 x 65,536, as many per pixel in smaller ones.
Levels are halved again and again: each pixel is the rounded mean of four.
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from megapixel_canvas import BOX, DATA, read_stamps
from needle_canvas import turn_bands
from needle_reads import halve
from numpy.typing import NDArray
from scipy.spatial import KDTree

LEVELS = 6
"""1x to 32x."""
MPP = 0.25
"""Micrometres per pixel that the file says it has."""
NEEDLES = 20
_SIDE, _DISTRACTORS = 65_536, 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Slide:
    """What is written."""

    side: int = _SIDE
    """Pixels; a multiple of 32 tiles."""
    tile: int = 128
    """Of every level, pixels."""
    seed: int = 0

    @property
    def distractors(self) -> int:
        return round(_DISTRACTORS * (self.side / _SIDE) ** 2)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Things:
    """What lies where."""

    stamps: NDArray[np.uint8]
    """[n, 28, 28], the needles first."""
    corners: NDArray[np.int64]
    """[n, 2] (y, x), pixels; no two boxes overlap."""

    @property
    def needles(self) -> NDArray[np.float64]:
        """[20, 4] boxes of the needles' ink: top, left, bottom, right, pixels, the last two past its end."""
        boxes = []
        for stamp, corner in zip(self.stamps[:NEEDLES], self.corners[:NEEDLES], strict=True):
            inked = np.argwhere(stamp)
            boxes.append([*(inked.min(axis=0) + corner), *(inked.max(axis=0) + 1 + corner)])
        return np.array(boxes, np.float64)


def scatter(slide: Slide, *, data: Path = DATA) -> Things:
    """Draw what lies where."""
    draw = np.random.default_rng([slide.seed, slide.side])
    stamps, _ = read_stamps(data, train=False)
    digits = stamps[draw.choice(len(stamps), NEEDLES, replace=False)]
    others = turn_bands(stamps, draw)[draw.integers(len(stamps), size=slide.distractors)]
    count = NEEDLES + slide.distractors
    corners = draw.integers(0, slide.side - BOX + 1, size=(count, 2))
    while True:
        hits = KDTree(corners).query_pairs(BOX - 1, p=np.inf, output_type="ndarray").max(axis=1, initial=-1)
        if not len(hits):
            return Things(stamps=np.concatenate([digits, others]), corners=corners)
        hits = np.unique(hits)
        corners[hits] = draw.integers(0, slide.side - BOX + 1, size=(len(hits), 2))


def stripes(things: Things, side: int, height: int) -> Iterator[NDArray[np.uint8]]:
    """The image, `height` rows at a time."""
    order = np.argsort(things.corners[:, 0])
    tops = things.corners[order, 0]
    for top in range(0, side, height):
        stripe = np.zeros((height, side), np.uint8)
        for index in order[np.searchsorted(tops, top - BOX + 1) : np.searchsorted(tops, top + height)]:
            y, x = things.corners[index] - (top, 0)
            stripe[max(y, 0) : y + BOX, x : x + BOX] = things.stamps[index][max(-y, 0) : height - y]
        yield stripe


def write_slide(path: Path, slide: Slide, things: Things) -> None:
    """Write the pyramid: level 0 as it is made, the coarser levels, which are kept compressed, after it."""
    tile = slide.tile
    blank = zlib.compress(bytes(tile * tile), 6)
    waiting: list[list[NDArray[np.uint8]]] = [[] for _ in range(LEVELS)]
    kept: list[list[bytes]] = [[] for _ in range(LEVELS)]

    def encode(rows: NDArray[np.uint8]) -> list[bytes]:
        tiles = rows.reshape(tile, -1, tile).swapaxes(0, 1)
        inked = tiles.any(axis=(1, 2))
        return [zlib.compress(np.ascontiguousarray(one), 6) if ink else blank for one, ink in zip(tiles, inked, strict=True)]

    def pass_on(level: int, rows: NDArray[np.uint8]) -> None:
        """Rows of a level as high as a tile: keep them, and half of them for the next."""
        if level:
            kept[level] += encode(rows)
        if level + 1 < LEVELS:
            waiting[level + 1].append(halve(rows))
            if len(waiting[level + 1]) == 2:
                pass_on(level + 1, np.concatenate(waiting[level + 1]))
                waiting[level + 1].clear()

    def finest() -> Iterator[bytes]:
        for stripe in stripes(things, slide.side, tile):
            pass_on(0, stripe)  # first: nobody asks for more than the last tile
            yield from encode(stripe)

    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for level in range(LEVELS):
            side = slide.side >> level
            tiff.write(
                finest() if level == 0 else iter(kept[level]),
                shape=(side, side),
                dtype=np.uint8,
                tile=(tile, tile),
                photometric="minisblack",
                compression="adobe_deflate",
                subfiletype=int(level > 0),
                resolution=(1e4 / (MPP * 2**level),) * 2,
                resolutionunit="CENTIMETER",
                metadata=None,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--side", type=int, default=_SIDE)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    slide = Slide(side=given.side, seed=given.seed)
    write_slide(given.out, slide, scatter(slide))


if __name__ == "__main__":
    main()
