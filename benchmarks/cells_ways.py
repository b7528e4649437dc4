"""Ways to choose patches of a slide, each run by the pipeline, and what the patches hold.

Every way gives its patches in the order in which it would have them: the first n are what it takes of a slide when it may take n.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from patchdrive.models import load_model
from patchdrive.models.model import PatchDrive
from patchdrive.models.types import DriveModel, PatchModel
from patchdrive.pipeline import RunSettings, open_result, run
from patchdrive.pipeline.glance import traits_of
from patchdrive.pipeline.plan import Plan
from patchdrive.readers import open_image

Corners = NDArray[np.int64]
"""(n, 2) first pixels of patches, (y, x), best first."""


def by_model(slide: Path, model: PatchDrive, store: Path, *, most: int) -> Corners:
    """What a model that drives asks for."""
    return _best_first(_run(slide, model, store, RunSettings(max_patches=most, device="cpu")))


def by_tissue(slide: Path, store: Path, *, side: int, most: int) -> Corners:
    """`--select topk` with the saliency that slides have when none is named."""
    settings = RunSettings(patch_size=side, select="topk", saliency="tissue", max_patches=most, device="cpu")
    return _best_first(_run(slide, load_model("descriptor", traits_of(open_image(slide))), store, settings))


def by_coords(slide: Path, corners: Corners, store: Path, *, side: int) -> Corners:
    """Patches chosen here, run as a file of coordinates.

    Raises:
        RuntimeError: the run read others.
    """
    path = store.with_suffix(".h5")
    with h5py.File(path, "w") as file:
        file.create_dataset("coords", data=corners[:, ::-1]).attrs["patch_size_level0"] = side
    settings = RunSettings(patch_size=side, coords=str(path), device="cpu")
    plan = _run(slide, load_model("descriptor", traits_of(open_image(slide))), store, settings)
    if sorted(zip(plan.y.tolist(), plan.x.tolist(), strict=True)) != sorted(map(tuple, corners.tolist())):
        raise RuntimeError(f"{store}: not the patches of {path}")
    return corners


def evenly(extent: int, side: int) -> Corners:
    """Every patch of a grid without overlap, in an order of which any beginning lies evenly: that of an ordered dither (Bayer 1973).

    Args:
        extent: rows, and columns, of the slide; patches a side are a power of two.
        side: of a patch.
    """
    order = np.zeros((1, 1), np.int64)
    while len(order) < extent // side:
        order = np.block([[4 * order, 4 * order + 2], [4 * order + 3, 4 * order + 1]])
    return np.stack(np.unravel_index(np.argsort(order.ravel()), order.shape), axis=1) * side


def at_random(extent: int, side: int, rng: np.random.Generator) -> Corners:
    """Every patch of the same grid, shuffled."""
    return np.asarray(rng.permutation(evenly(extent, side)))


def greedily(yx: NDArray[np.float64], extent: int, side: int, *, most: int, step: int = 4) -> Corners:
    """Whoever knows every labelled cell: each patch takes the most that no patch before it took, corners on multiples of `step`.

    It ends when none is left, or at `most` patches.
    """
    lattice = (extent - side) // step + 1
    gain = np.zeros((lattice, lattice), np.int64)
    reach = side // step
    low = np.maximum(np.floor((yx - side) / step).astype(np.int64) + 1, 0)  # patches from low to high hold the cell
    high = np.minimum(np.floor(yx / step).astype(np.int64), lattice - 1)
    for (top, left), (bottom, right) in zip(low.tolist(), high.tolist(), strict=True):
        gain[top : bottom + 1, left : right + 1] += 1
    assert int((high - low).max()) < reach
    left_over, corners = np.ones(len(yx), np.bool_), []
    while len(corners) < most and left_over.any():
        at = np.unravel_index(int(gain.argmax()), gain.shape)
        taken = left_over & ((low <= at) & (high >= at)).all(axis=1)
        for cell in np.flatnonzero(taken):
            gain[low[cell, 0] : high[cell, 0] + 1, low[cell, 1] : high[cell, 1] + 1] -= 1
        left_over &= ~taken
        corners.append([int(index) * step for index in at])
    return np.array(corners, np.int64).reshape(-1, 2)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Curve:
    """What the first n patches hold, for every n up to all of them."""

    read: NDArray[np.float64]
    """(n,) share of the pixels inside some of the first 1, 2, ... patches; overlaps count once."""
    found: NDArray[np.float64]
    """(n,) share of the cells."""

    def at(self, share: float) -> float | None:
        """Share of the cells found when this share of the pixels is read, between two patches in proportion; None where less is."""
        if not len(self.read) or share > self.read[-1]:
            return None
        return float(np.interp(share, np.r_[0.0, self.read], np.r_[0.0, self.found]))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reads:
    """Patches in order, painted over the slide."""

    corners: Corners
    first: NDArray[np.int32]
    """(extent, extent) which patch holds a pixel first; the number of patches where none does."""

    @classmethod
    def of(cls, corners: Corners, extent: int, side: int) -> Reads:
        first = np.full((extent, extent), len(corners), np.int32)
        for index in range(len(corners) - 1, -1, -1):
            y, x = corners[index].tolist()
            first[y : y + side, x : x + side] = index
        return cls(corners=corners, first=first)

    def curve(self, yx: NDArray[np.float64], within: NDArray[np.bool_] | None = None) -> Curve:
        """Of these cells, over the whole slide or only the pixels `within`."""
        count = len(self.corners)
        pixels = self.first.ravel() if within is None else self.first[within]
        cells = self.first[tuple(np.floor(yx).astype(np.int64).T)]
        read, found = (np.bincount(some, minlength=count + 1)[:count].cumsum() / max(1, len(some)) for some in (pixels, cells))
        return Curve(read=read, found=found)

    def until(self, share: float, within: NDArray[np.bool_] | None = None) -> Corners:
        """The first patches that read this share of the pixels, of the slide's or of those `within`; all where that is not reached."""
        read = self.curve(np.zeros((0, 2)), within).read
        return self.corners[: int(np.searchsorted(read, share)) + 1]


def nearest(corners: Corners, side: int, yx: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,) how far from each patch's centre the nearest cell is, pixels along the longer axis; up to side / 2 it lies in the patch."""
    distance, _ = KDTree(yx).query(corners + side / 2, p=np.inf)
    return np.asarray(distance)


def _run(slide: Path, model: PatchModel | DriveModel, store: Path, settings: RunSettings) -> Plan:
    run(open_image(slide), model, store, settings=settings, overwrite=True)
    (only,) = open_result(store).rounds
    return only.plan


def _best_first(plan: Plan) -> Corners:
    order = np.argsort(plan.rank)
    return np.stack([plan.y[order], plan.x[order]], axis=1)


def mean_and_spread(values: Sequence[float | None]) -> tuple[float, float] | None:
    """Mean and standard deviation of values that are all there."""
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return None
    return float(np.mean(known)), float(np.std(known, ddof=1)) if len(known) > 1 else 0.0
