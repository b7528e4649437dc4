"""Cells on real tissue: the labelled images, and a slide sewn of pieces of real tissue, four of which are labelled.

The pieces lie 8 x 8, each CORE pixels a side, SEAM apart; all are treated alike. A piece is mirrored outwards into the seams around it,
where neighbours fade into each other: its own pixels stay as they are, and a labelled piece begins as any other does. Pieces are 0.5 um per
pixel; those of finer slides are area means. The tissue around the labelled pieces has cells too, which nobody labelled.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from skimage.io import imread
from skimage.transform import resize_local_mean

from patchdrive.readers import Window, open_image

DATA = Path(os.environ.get("PATCHDRIVE_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
MPP = 0.5
"""Micrometres per pixel: BRCA-M2C brings slides of 0.23 to 0.25 to half their sides and less, 1000 x 0.93 / 2 = 465 pixels."""
CORE, SEAM, PLACES = 464, 48, 8
"""Pixels of a piece, pixels between two, pieces a side."""
SIDE = PLACES * (CORE + SEAM)
"""Of the mosaic, pixels."""
KINDS = {1: "lymphocyte", 2: "tumour", 3: "stroma"}
_GLASS, _MOST_GLASS = 220, 0.12
"""A pixel is glass where no channel is darker; a piece of the tissue around has at most this share of it."""
_STEP = 32
"""Pixels from one piece that could be cut to the next."""
_DOWNSAMPLES = (2, 4, 8, 16, 32)
_SURROUNDINGS = {
    "CMU-1 (skin, H&E)": ("CMU-1-Small-Region.svs", 0.5),
    "OS-1 (H&E)": ("OS-1-detail.ome.tif", 0.2),
    "OS-2 by one scanner (Ki67)": ("OS-2-ndpi.ome.tif", 0.15),
    "OS-2 by another (Ki67)": ("OS-2-vsi.ome.tif", 0.15),
}
"""File and share of the pieces, by name."""
LABELLED = "BRCA-M2C, labelled"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Labelled:
    """An image and the cells in it."""

    name: str
    """Of the file, without its suffix."""
    pixels: NDArray[np.uint8]
    """(height, width, 3)."""
    yx: NDArray[np.float64]
    """(n, 2) centres of cells, pixels; a labelled pixel's centre is at + 0.5."""
    kind: NDArray[np.int64]
    """(n,) key of KINDS."""

    def only(self, kind: str) -> Labelled:
        """The same image with the cells of one kind, or of all for `cell`."""
        kept = np.array([kind in {"cell", KINDS[key]} for key in self.kind.tolist()], np.bool_)
        return replace(self, yx=self.yx[kept], kind=self.kind[kept])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mosaic:
    """The sewn slide, and what is known of it."""

    pixels: NDArray[np.uint8]
    """(SIDE, SIDE, 3)."""
    source: NDArray[np.str_]
    """(PLACES, PLACES) what each piece is of."""
    yx: NDArray[np.float64]
    """(n, 2) centres of the labelled cells, pixels."""
    kind: NDArray[np.int64]
    """(n,) key of KINDS."""
    image: NDArray[np.int64]
    """(n,) which of the labelled images."""
    names: tuple[str, ...]
    """Of the labelled images."""
    place: NDArray[np.int64]
    """(labelled images, 2) row and column of the piece that each is."""

    def inside(self, source: str) -> NDArray[np.bool_]:
        """(SIDE, SIDE) True in the pieces of a source, their seams left out."""
        return _mask(np.argwhere(self.source == source))

    def inside_image(self, index: int) -> NDArray[np.bool_]:
        """(SIDE, SIDE) True in the piece that is one of the labelled images."""
        return _mask(self.place[index : index + 1])


def read_labelled(which: str) -> list[Labelled]:
    """The images of the list `train` or `val` that are there, in its order."""
    folder = DATA / "labelled" / "BRCA-M2C"
    found = []
    for name in (folder / f"brca_ds_{which}.txt").read_text().split():
        path = folder / "images" / name
        if path.exists():
            rows = np.loadtxt(folder / "labels" / f"{path.stem}_gt_class_coords.txt", np.int64, ndmin=2)
            found.append(Labelled(name=path.stem, pixels=imread(path), yx=rows[:, :2] + 0.5, kind=rows[:, 2]))
    return found


def core_of(row: int, column: int) -> tuple[slice, slice]:
    """Where the pixels of a piece lie in the mosaic."""
    y, x = (index * (CORE + SEAM) + SEAM // 2 for index in (row, column))
    return slice(y, y + CORE), slice(x, x + CORE)


def _mask(places: NDArray[np.int64]) -> NDArray[np.bool_]:
    mask = np.zeros((SIDE, SIDE), np.bool_)
    for row, column in places.tolist():
        mask[core_of(row, column)] = True
    return mask


def sew(inserts: Sequence[Labelled], *, seed: int, tint: tuple[Sequence[float], Sequence[float]] | None = None) -> Mosaic:
    """Sew the mosaic.

    Args:
        inserts: labelled images; the middle of each becomes one piece.
        seed: where they come, and which other pieces lie around them.
        tint: mean and standard deviation per channel that every piece is brought to; None leaves them as they are.
    """
    rng = np.random.default_rng(seed)
    places = rng.permutation(PLACES**2)
    pieces: list[NDArray[np.uint8]] = [np.empty(0, np.uint8)] * PLACES**2
    source = np.empty(PLACES**2, f"<U{max(map(len, [*_SURROUNDINGS, LABELLED]))}")
    yx, kind, image = [], [], []
    for index, (place, insert) in enumerate(zip(places, inserts, strict=False)):
        first = (np.array(insert.pixels.shape[:2]) - CORE) // 2
        pieces[place], source[place] = insert.pixels[first[0] : first[0] + CORE, first[1] : first[1] + CORE], LABELLED
        kept = ((insert.yx >= first) & (insert.yx < first + CORE)).all(axis=1)
        down, across = core_of(*divmod(int(place), PLACES))
        yx.append(insert.yx[kept] - first + (down.start, across.start))
        kind.append(insert.kind[kept])
        image.append(np.full(np.count_nonzero(kept), index))
    others = places[len(inserts) :]
    shares = np.array([share for _, share in _SURROUNDINGS.values()])
    ends = np.rint(shares.cumsum() * len(others)).astype(int)
    for (name, (file, _)), part in zip(_SURROUNDINGS.items(), np.split(others, ends[:-1]), strict=True):
        drawn = _pieces(file, rng)
        for place in part:
            pieces[place], source[place] = next(drawn), name
    if tint is not None:
        pieces = [_tinted(piece, *tint) for piece in pieces]
    return Mosaic(
        pixels=_joined(pieces),
        source=source.reshape(PLACES, PLACES),
        yx=np.concatenate(yx),
        kind=np.concatenate(kind),
        image=np.concatenate(image),
        names=tuple(insert.name for insert in inserts),
        place=np.stack(np.divmod(places[: len(inserts)], PLACES), axis=1),
    )


def write_slide(path: Path, pixels: NDArray[np.uint8]) -> None:
    """A tiled, pyramidal TIFF that says its pixel size; lossless, so that labelled pixels are what they were."""
    with tifffile.TiffWriter(path) as tiff:
        for step in (1, *_DOWNSAMPLES):
            tiff.write(
                _shrunk(pixels, step),
                tile=(256, 256),
                photometric="rgb",
                compression="deflate",
                subfiletype=int(step > 1),
                resolution=(1e4 / (MPP * step), 1e4 / (MPP * step)),
                resolutionunit="CENTIMETER",
                metadata=None,
            )


def _pieces(file: str, rng: np.random.Generator) -> Iterator[NDArray[np.uint8]]:
    """Pieces of a slide with little glass in them, turned and mirrored; all places that could be cut come once before one comes twice."""
    pixels = _read_at_mpp(DATA / "wsi" / file)
    glass = np.pad((pixels.min(axis=2) > _GLASS).cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    y, x = np.meshgrid(*(np.arange(0, side - CORE + 1, _STEP) for side in pixels.shape[:2]), indexing="ij")
    y, x = y.ravel(), x.ravel()
    share = (glass[y + CORE, x + CORE] - glass[y + CORE, x] - glass[y, x + CORE] + glass[y, x]) / CORE**2
    cuts = np.argwhere(share <= _MOST_GLASS)[:, 0]
    if not len(cuts):
        raise RuntimeError(f"{file} has no piece of {CORE} pixels with at most {_MOST_GLASS:.0%} glass")
    while True:
        for cut in rng.permutation(cuts):
            piece = np.rot90(pixels[y[cut] : y[cut] + CORE, x[cut] : x[cut] + CORE], int(rng.integers(4)))
            yield piece[::-1] if rng.integers(2) else piece


def _read_at_mpp(path: Path) -> NDArray[np.uint8]:
    """Level 0, brought to MPP by area means."""
    image = open_image(path)
    level = image.levels[0]
    pixels = image.read(Window(y=0, x=0, height=level.height, width=level.width), level=0)[:, :, :3]
    if image.mpp is None:
        raise RuntimeError(f"{path} does not say its pixel size")
    if abs(image.mpp[0] / MPP - 1) <= 0.01:
        return np.asarray(pixels)
    shape = tuple(int(side * mpp / MPP) for side, mpp in zip(pixels.shape, image.mpp, strict=False))
    return np.rint(resize_local_mean(pixels, shape, preserve_range=True, channel_axis=2)).astype(np.uint8)


def _tinted(piece: NDArray[np.uint8], mean: Sequence[float], spread: Sequence[float]) -> NDArray[np.uint8]:
    """A piece with this mean and standard deviation per channel, but for what is cut off at 0 and 255."""
    values = piece.astype(np.float64)
    values = (values - values.mean(axis=(0, 1))) / values.std(axis=(0, 1)) * spread + mean
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _joined(pieces: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """PLACES x PLACES pieces, each mirrored outwards, the weighted mean of them where two or four meet."""
    ramp = np.minimum(1.0, (np.arange(CORE + 2 * SEAM) + 0.5) / SEAM)
    ramp = np.minimum(ramp, ramp[::-1]).astype(np.float32)
    weight = (ramp[:, None] * ramp)[:, :, None]
    step, whole = CORE + SEAM, SIDE + SEAM
    total, weights = np.zeros((whole, whole, 3), np.float32), np.zeros((whole, whole, 1), np.float32)
    for place, piece in enumerate(pieces):
        row, column = divmod(place, PLACES)
        here = slice(row * step, row * step + CORE + 2 * SEAM), slice(column * step, column * step + CORE + 2 * SEAM)
        total[here] += weight * np.pad(piece, ((SEAM, SEAM), (SEAM, SEAM), (0, 0)), mode="symmetric")
        weights[here] += weight
    inner = slice(SEAM // 2, SEAM // 2 + SIDE)
    return np.rint(total[inner, inner] / weights[inner, inner]).astype(np.uint8)


def _shrunk(pixels: NDArray[np.uint8], step: int) -> NDArray[np.uint8]:
    """Means of `step` x `step` pixels, rounded."""
    if step == 1:
        return pixels
    height, width = (side // step for side in pixels.shape[:2])
    means = pixels.reshape(height, step, width, step, 3).mean(axis=(1, 3))
    return np.rint(means).astype(np.uint8)
