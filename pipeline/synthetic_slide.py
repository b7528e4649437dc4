"""A synthetic whole slide with known answers: islands of real stained tissue on white glass, with targets and look-alikes in them.

The tissue is scikit-image's bundled photograph of immunohistochemistry, cut into irregular pieces, turned and joined. Everything follows
from the seed, to the byte. The slide is rendered block by block, so its side does not decide the memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import simplejpeg
import tifffile
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter
from skimage.data import immunohistochemistry

from patchdrive.pipeline.synthetic_disc import STAMP_SIDE, draw_disc, paste_discs, place_discs
from patchdrive.pipeline.synthetic_texture import at_pixels, rough_field, smooth_field, wrapped
from patchdrive.readers.errors import SettingsError
from patchdrive.readers.geometry import Window

MPP = 0.5
"""Micrometres per level-0 pixel of every synthetic slide."""
DOWNSAMPLES = (4, 8, 16)
"""Level-0 pixels per pixel of the levels below the finest."""

CELL = 16
"""Level-0 pixels per sample of a slide's coarse fields."""
_BLOCK = 512  # level-0 px rendered at once
_TILE = 256
_PIECE, _STRIDE = 256, 196  # level-0 px: a piece of tissue, and the step from one to the next
_QUALITY = 85
_GLASS = np.array([243.0, 242.0, 240.0], np.float32)
_STRENGTHS = 32  # tabulated strengths of stain


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideTruth:
    """Where the planted discs of one slide are."""

    side: int
    """Level-0 rows, and columns."""
    seed: int
    """What the slide was drawn from."""
    targets_yx: NDArray[np.float64]
    """(n, 2) centres of targets, level-0 pixels."""
    lookalikes_yx: NDArray[np.float64]
    """(m, 2) centres of look-alikes, level-0 pixels."""

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        plain = {
            "side": self.side,
            "seed": self.seed,
            "mpp": MPP,
            "targets_yx": self.targets_yx.tolist(),
            "lookalikes_yx": self.lookalikes_yx.tolist(),
        }
        path.write_text(json.dumps(plain, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote."""
        plain = json.loads(path.read_text())
        return cls(
            side=plain["side"],
            seed=plain["seed"],
            targets_yx=np.asarray(plain["targets_yx"], np.float64).reshape(-1, 2),
            lookalikes_yx=np.asarray(plain["lookalikes_yx"], np.float64).reshape(-1, 2),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TissueBank:
    """What pieces of tissue are cut from."""

    photographs: NDArray[np.uint8]
    """(8, 512, 512, 3): one photograph, turned and mirrored in the eight ways, in this slide's tint."""
    outlines: NDArray[np.float32]
    """(8, piece, piece, 3) weights in (0, 1]: irregular pieces that fade into their neighbours; equal in the channels."""
    stain: NDArray[np.float32]
    """(strengths, 256): stored value to value, for every strength of stain."""
    grain: NDArray[np.float32]
    """(1024, 1024, 3) noise of the camera, in grey values."""
    fray: NDArray[np.float32]
    """(1024, 1024): how the edge of the tissue wanders, level-0 pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tissue:
    """One drawn slide: everything `render` needs, and nothing that grows with its pixels."""

    side: int
    """Level-0 rows, and columns."""
    depth: NDArray[np.float32]
    """(side/16, side/16) level-0 pixels from the edge of the tissue, positive inside."""
    pieces: NDArray[np.int64]
    """(rows, columns, 5) of each piece: photograph, its row and column there, outline, strength of stain."""
    bank: TissueBank
    """What pieces are cut from."""
    corners: NDArray[np.int64]
    """(n, 2) top-left pixel of each planted stamp."""
    stamps: NDArray[np.float32]
    """(n, 48, 48, 4) the planted discs."""


def draw_tissue(seed: int, side: int, *, share: float = 0.30, targets: int = 0, lookalikes: int = 0) -> Tissue:
    """Decide everything about a slide of `side` pixels of which `share` is tissue.

    Raises:
        SettingsError: `side` is no multiple of 16, or the tissue has no room for so many discs.
    """
    if side < 2 * _TILE or side % max(DOWNSAMPLES):
        raise SettingsError(f"the side of a synthetic slide is a multiple of {max(DOWNSAMPLES)} from {2 * _TILE} on, got {side}")
    rng = np.random.default_rng([seed, side])
    depth = _draw_islands(rng, side // CELL, share)
    bank = _draw_bank(rng)
    corners = place_discs(rng, depth, CELL, targets + lookalikes)
    if len(corners) < targets + lookalikes:
        raise SettingsError(
            f"{targets} targets and {lookalikes} look-alikes do not fit into {side} x {side} pixels, only {len(corners)}; "
            "ask for fewer or for a larger side"
        )
    stamps = [draw_disc(rng, target=index < targets) for index in range(len(corners))]
    return Tissue(
        side=side,
        depth=depth,
        pieces=_choose_pieces(rng, bank, -(-side // _STRIDE) + 1),
        bank=bank,
        corners=corners,
        stamps=np.reshape(stamps, (-1, STAMP_SIDE, STAMP_SIDE, 4)).astype(np.float32),
    )


def render(tissue: Tissue, window: Window) -> NDArray[np.uint8]:
    """The level-0 pixels of `window`, (height, width, 3); the same whatever window they are asked in."""
    pixels = wrapped(tissue.bank.grain, window) + _GLASS
    edge = at_pixels(tissue.depth, CELL, window)
    if edge.max() > -3 * CELL:
        edge += wrapped(tissue.bank.fray, window)
        opacity = np.clip(edge / 10.0 + 0.5, 0.0, 1.0)[:, :, None]
        pixels += (_render_pieces(tissue, window) - _GLASS) * opacity
        near = ((tissue.corners > (window.y - STAMP_SIDE, window.x - STAMP_SIDE)) & (tissue.corners < (window.y_end, window.x_end))).all(
            axis=1
        )
        paste_discs(pixels, tissue.stamps[near], tissue.corners[near] - (window.y, window.x))
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def write_slide(path: Path, *, side: int = 20480, seed: int = 0, targets: int = 40, lookalikes: int = 160, workers: int = 2) -> SlideTruth:
    """Write a tiled, pyramidal JPEG TIFF that slide viewers open, and its truth beside it as `<stem>.truth.json`.

    Args:
        path: where to.
        side: level-0 rows, and columns; a multiple of 16.
        seed: the same seed and side give the same bytes.
        targets: discs to find.
        lookalikes: discs that only full resolution tells from targets.
        workers: threads that render and compress.

    Raises:
        SettingsError: see `draw_tissue`.
    """
    tissue = draw_tissue(seed, side, targets=targets, lookalikes=lookalikes)
    coarser = {step: np.empty((side // step, side // step, 3), np.uint8) for step in DOWNSAMPLES}
    with tifffile.TiffWriter(path) as tiff, ThreadPoolExecutor(workers) as pool:
        _write_level(tiff, _finest_tiles(tissue, coarser, pool), side, 1)
        for step, pixels in coarser.items():
            _write_level(tiff, pool.map(_encode, _cut_tiles(pixels)), side // step, step)
    centres = tissue.corners.astype(np.float64) + STAMP_SIDE / 2
    truth = SlideTruth(side=side, seed=seed, targets_yx=centres[:targets], lookalikes_yx=centres[targets:])
    truth.save(path.with_name(f"{path.stem}.truth.json"))
    return truth


def through_jpeg(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What is left of (height, width, 3) pixels after the slide's own compression."""
    decoded: NDArray[np.uint8] = simplejpeg.decode_jpeg(_encode(pixels))
    return decoded


def _draw_islands(rng: np.random.Generator, cells: int, share: float) -> NDArray[np.float32]:
    """Signed distance to the edge of the tissue, (cells, cells) level-0 pixels: a few islands with holes that fill `share`."""
    y, x = np.mgrid[:cells, :cells] / cells
    islands = np.full((cells, cells), -9.0, np.float32)
    for _ in range(6):
        centre_y, centre_x = rng.uniform(0.2, 0.8, size=2)
        long, wide, turn = rng.uniform(0.16, 0.34), rng.uniform(0.09, 0.17), rng.uniform(0, np.pi)
        along = (y - centre_y) * np.cos(turn) + (x - centre_x) * np.sin(turn)
        across = (x - centre_x) * np.cos(turn) - (y - centre_y) * np.sin(turn)
        islands = np.maximum(islands, 1.0 - np.hypot(along / long, across / wide))
    islands += 0.22 * rough_field(rng, (cells, cells), cells / 16, octaves=4)
    islands -= 0.35 * np.clip(np.abs(rough_field(rng, (cells, cells), cells / 24)) - 1.6, 0.0, None) * 4
    if share < 0.6:  # glass all around, as under a cover slip; a canvas of tissue goes to its border
        islands -= 40.0 * np.clip(0.17 - np.minimum.reduce([y, x, 1 - y, 1 - x]), 0.0, None) ** 2 / 0.17
    inside = islands > np.quantile(islands, 1.0 - share)
    distance = distance_transform_edt(inside) - distance_transform_edt(~inside)
    depth: NDArray[np.float32] = gaussian_filter((distance * CELL).astype(np.float32), 1.5)
    return depth


def _choose_pieces(rng: np.random.Generator, bank: TissueBank, rows: int) -> NDArray[np.int64]:
    """Which piece lies where, (rows, rows, 5), see `Tissue.pieces`: glands here, loose tissue there, as large regions want it."""
    among = 6
    size = (among, rows, rows)
    which, y, x = (rng.integers(0, high, size=size) for high in (8, 512 - _PIECE + 1, 512 - _PIECE + 1))
    ink = np.pad(255.0 - bank.photographs.mean(axis=3), ((0, 0), (1, 0), (1, 0))).cumsum(axis=1).cumsum(axis=2)
    held = ink[which, y + _PIECE, x + _PIECE] - ink[which, y, x + _PIECE] - ink[which, y + _PIECE, x] + ink[which, y, x]
    rank = held.argsort(axis=0).argsort(axis=0)
    wanted = np.clip(np.rint(2.5 + 1.6 * rough_field(rng, (rows, rows), max(2.0, rows / 16))), 0, among - 1)
    taken = np.abs(rank - wanted).argmin(axis=0)[None]
    strength = 0.5 + 0.17 * smooth_field(rng, (rows, rows), max(2.0, rows / 10))
    chosen = [np.take_along_axis(values, taken, axis=0)[0] for values in (which, y, x)]
    return np.stack(
        [*chosen, rng.integers(0, 8, size=(rows, rows)), np.clip(strength * _STRENGTHS, 0, _STRENGTHS - 1).astype(np.int64)], axis=2
    )


def _draw_bank(rng: np.random.Generator) -> TissueBank:
    """One slide's tint, outlines, noise."""
    tint = rng.uniform(0.9, 1.1, size=3)
    photograph = np.rint(255.0 * (immunohistochemistry() / 255.0) ** tint).astype(np.uint8)  # type: ignore[no-untyped-call]
    turned = [np.rot90(side, turns) for side in (photograph, photograph[::-1]) for turns in range(4)]
    ramp = np.minimum(np.arange(_PIECE) + 1.0, np.arange(_PIECE, 0, -1.0))
    inset = np.minimum(ramp[:, None], ramp) - (_PIECE - _STRIDE) / 2
    wander = [9.0 * rough_field(rng, (_PIECE, _PIECE), 18.0) for _ in range(8)]
    outlines = np.stack([np.clip((inset + shift) / 8.0 + 0.5, 1e-4, 1.0) for shift in wander])
    strengths = np.linspace(0.75, 1.3, _STRENGTHS)
    return TissueBank(
        photographs=np.stack(turned),
        outlines=np.repeat(outlines[:, :, :, None], 3, axis=3).astype(np.float32),
        stain=(255.0 * (np.arange(256) / 255.0) ** strengths[:, None]).astype(np.float32),
        grain=1.2 * rng.standard_normal((1024, 1024, 3), dtype=np.float32),
        fray=6.0 * rough_field(rng, (1024, 1024), 9.0),
    )


def _render_pieces(tissue: Tissue, window: Window) -> NDArray[np.float32]:
    """The tissue of `window` as if there were no glass, (height, width, 3) in 0..255: the weighted mean of the pieces that overlap."""
    total = np.zeros((window.height, window.width, 3), np.float32)
    weight = np.zeros_like(total)
    lap = _PIECE - _STRIDE
    for row in range(window.y // _STRIDE, (window.y_end - 1 + lap) // _STRIDE + 1):
        for column in range(window.x // _STRIDE, (window.x_end - 1 + lap) // _STRIDE + 1):
            place = Window(y=row * _STRIDE - lap, x=column * _STRIDE - lap, height=_PIECE, width=_PIECE)
            shared = place.intersect(window)
            if shared is None:
                continue
            which, y, x, outline, strength = tissue.pieces[row, column].tolist()
            part = shared.within(place)
            photograph = tissue.bank.photographs[which, y : y + _PIECE, x : x + _PIECE][part]
            share = tissue.bank.outlines[outline][part]
            here = shared.within(window)
            total[here] += tissue.bank.stain[strength][photograph] * share
            weight[here] += share
    total /= weight
    return total


def _finest_tiles(tissue: Tissue, coarser: dict[int, NDArray[np.uint8]], pool: ThreadPoolExecutor) -> Iterator[bytes]:
    """The compressed tiles of level 0 in row-major order; on the way every block fills its place in the `coarser` levels."""
    starts = range(0, tissue.side, _BLOCK)

    def work(place: tuple[int, int]) -> list[list[bytes]]:
        y, x = place
        window = Window(y=y, x=x, height=min(_BLOCK, tissue.side - y), width=min(_BLOCK, tissue.side - x))
        pixels = render(tissue, window)
        for step, level in coarser.items():
            _reduce(pixels, step, level[y // step : window.y_end // step, x // step : window.x_end // step])
        return [[_encode(tile) for tile in _cut_tiles(pixels[row : row + _TILE])] for row in range(0, window.height, _TILE)]

    blocks = pool.map(work, [(y, x) for y in starts for x in starts])
    for _ in starts:
        band = [next(blocks) for _ in starts]
        for row in range(len(band[0])):
            for block in band:
                yield from block[row]


def _reduce(pixels: NDArray[np.uint8], step: int, out: NDArray[np.uint8]) -> None:
    """Exact means of `step` x `step` pixels, rounded, into `out`."""
    height, width = out.shape[:2]
    rows = np.add.reduceat(pixels, np.arange(0, height * step, step), axis=0, dtype=np.uint16)
    sums = np.add.reduceat(rows, np.arange(0, width * step, step), axis=1, dtype=np.uint32)
    out[...] = (sums + step * step // 2) // (step * step)


def _cut_tiles(pixels: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """Whole tiles, row-major; those that overhang repeat the last row and column."""
    for y in range(0, pixels.shape[0], _TILE):
        for x in range(0, pixels.shape[1], _TILE):
            tile = pixels[y : y + _TILE, x : x + _TILE]
            short = (_TILE - tile.shape[0], _TILE - tile.shape[1])
            yield np.pad(tile, ((0, short[0]), (0, short[1]), (0, 0)), mode="edge") if any(short) else tile


def _encode(pixels: NDArray[np.uint8]) -> bytes:
    encoded: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=_QUALITY, colorspace="RGB", colorsubsampling="420")
    return encoded


def _write_level(tiff: tifffile.TiffWriter, tiles: Iterator[bytes], side: int, step: int) -> None:
    """One page of compressed tiles that says its pixel size."""
    tiff.write(
        tiles,
        shape=(side, side, 3),
        dtype=np.uint8,
        tile=(_TILE, _TILE),
        photometric="ycbcr",
        subsampling=(2, 2),
        compression="jpeg",
        subfiletype=int(step > 1),
        resolution=(1e4 / (MPP * step), 1e4 / (MPP * step)),
        resolutionunit="CENTIMETER",
        software="patchdrive",
        metadata=None,
    )
