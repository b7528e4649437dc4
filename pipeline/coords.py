"""coords: patches that somebody else chose, TRIDENT's or CLAM's coordinate files, as a plan."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from patchdrive.pipeline.belonging import file_of
from patchdrive.pipeline.plan import Plan, ordered
from patchdrive.readers import Level
from patchdrive.readers.errors import SettingsError

_PLACES = tuple(f"{folder}{{}}{end}" for folder in ("", "patches/", "h5_files/") for end in ("_patches.h5", ".h5"))
_SAME = 0.01
"""Footprints that agree to a hundredth are one: tools round them to whole level-0 pixels."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Coords:
    """Where somebody else's patches lie."""

    path: Path
    """Of the file."""
    size: tuple[int, int] | None
    """Rows and columns of the slide's level 0, where the file says them."""
    yx: NDArray[np.int64]
    """(n, 2) level-0 pixels of the top-left corners, (y, x)."""
    side: float
    """Of a patch, level-0 pixels."""

    def require_slide(self, base: Level, source: str) -> None:
        """
        Raises:
            SettingsError: the file says another size of level 0 than `base`, that of `source`.
        """
        if self.size is not None and self.size != (base.height, base.width):
            theirs = f"{self.size[0]} x {self.size[1]}"
            raise SettingsError(
                f"--coords {self.path} is of a slide of {theirs} pixels (height x width), {source} has {base.height} x {base.width}: "
                "it is another slide's"
            )

    @property
    def digest(self) -> str:
        """Hex SHA-256 of what it says, wherever it lies."""
        return hashlib.sha256(f"{self.side} {self.yx.shape}".encode() + self.yx.astype("<i8").tobytes()).hexdigest()


def read_coords(where: str, source: str) -> Coords:
    """The patches of one slide.

    Args:
        where: an .h5 file, or a folder with `<slide>_patches.h5` or `<slide>.h5` in it, in its `patches` or in its `h5_files`.
        source: the slide's path; it is called by its file name without the suffix.

    Raises:
        SettingsError: there is no such file, or it does not say where patches lie and how large they are.
    """
    path = file_of(where, source, _PLACES, option="--coords")
    try:
        with h5py.File(path) as file:
            found = file["coords"]
            xy, about = np.asarray(found[:]), dict(found.attrs)
        side = _side(about, path)
        size = (int(about["level0_height"]), int(about["level0_width"])) if {"level0_height", "level0_width"} <= about.keys() else None
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise SettingsError(
            f"--coords {path} cannot be read ({error}); it is to be an .h5 file with `coords`, as TRIDENT or CLAM write"
        ) from error
    if xy.ndim != 2 or xy.shape[1] != 2 or xy.dtype.kind not in "iu":
        raise SettingsError(f"--coords {path}: `coords` is to be integer, (n, 2), got {xy.dtype} {xy.shape}")
    if xy.dtype == np.uint64:
        xy = np.minimum(xy, np.uint64(2**62))  # what signed numbers cannot hold is outside any image
    return Coords(path=path, size=size, yx=xy[:, ::-1].astype(np.int64), side=side)


def plan_of(coords: Coords, grid: Level, side: int) -> Plan:
    """A plan of these patches, corners rounded to the target grid; every score is 1.

    Args:
        coords: which patches.
        grid: the target grid.
        side: of a patch, target pixels.

    Raises:
        SettingsError: the patches are of another size, or one lies wholly outside the image.
    """
    ours = side * (grid.downsample_y + grid.downsample_x) / 2
    if abs(coords.side / ours - 1) > _SAME:
        raise SettingsError(
            f"--coords {coords.path}: its patches are {coords.side:g} level-0 pixels wide, and {side} pixels as asked for are {ours:g}; "
            f"give the --mpp and --patch-size they were made with ({side} pixels fit at {coords.side / side:g} level-0 pixels each)"
        )
    corners = np.rint(coords.yx / (grid.downsample_y, grid.downsample_x)).astype(np.int64)
    outside = ((corners <= -side) | (corners >= (grid.height, grid.width))).any(axis=1)
    if outside.any():
        y, x = coords.yx[np.flatnonzero(outside)[0]]
        where = f"{outside.sum()} patches lie outside the image, the first at level-0 pixel ({y}, {x})"
        raise SettingsError(f"--coords {coords.path}: {where}; is it another slide's?")
    return ordered(corners[:, 0], corners[:, 1], np.ones(len(corners), np.float32), side, grid)


def _side(about: dict[str, Any], path: Path) -> float:
    """Level-0 pixels of a patch: TRIDENT says them, CLAM says pixels of a level and its downsample."""
    if "patch_size_level0" in about:
        side = float(about["patch_size_level0"])
    elif {"patch_size", "downsample"} <= about.keys():
        side = float(about["patch_size"]) * float(np.mean(about["downsample"]))
    else:
        raise SettingsError(f"--coords {path} does not say how large its patches are: patch_size_level0, or patch_size and downsample")
    if not side > 0:
        raise SettingsError(f"--coords {path}: patches are {side:g} level-0 pixels wide, which cannot be")
    return side
