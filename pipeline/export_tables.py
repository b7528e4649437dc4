"""What exports of feature tables share: the patches that have features, in level-0 pixels, and their features a part at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from patchdrive.pipeline.belonging import name_of
from patchdrive.pipeline.glance import layout_of
from patchdrive.pipeline.result import Result, ResultRound
from patchdrive.pipeline.settings import RunSettings
from patchdrive.pipeline.tables import ROWS
from patchdrive.readers.errors import StoreError

_USUAL = (1.25, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 80.0)
_SQUARE = 0.01
"""Patches whose sides agree to a hundredth are squares."""
_NEAR = 0.1
"""A magnification within a tenth of a usual one is called that: objectives are named roundly, and others look for these names."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Table:
    """One feature table of a slide, the rows that are done, as other tools want to know them."""

    name: str
    """Of the table: the model's."""
    slide: str
    """The source's file name without its suffix."""
    xy: NDArray[np.int64]
    """(n, 2) level-0 pixels of each patch's top-left corner, (x, y), rounded."""
    um: NDArray[np.float64]
    """(n, 2) the same corners in micrometres, exact."""
    side: int
    """Of a patch, target pixels."""
    overlap: int
    """Of neighbouring patches, target pixels; 0 where they lie on no regular grid."""
    downsample: float
    """Level-0 pixels per target pixel, mean of both axes."""
    mpp: float
    """Micrometres per target pixel."""
    level0_mpp: tuple[float, float]
    """Micrometres per level-0 pixel, (y, x)."""
    size: tuple[int, int]
    """Rows and columns of level 0."""
    dtype: np.dtype[Any]
    """Of the features, as stored."""
    width: int
    """Features of a patch."""
    rounds: tuple[tuple[ResultRound, zarr.Array[Any]], ...]
    """Where they are."""

    def __len__(self) -> int:
        return len(self.xy)

    @property
    def side_level0(self) -> int:
        """Of a patch, level-0 pixels, rounded."""
        return round(self.side * self.downsample)

    def require_square_pixels(self) -> None:
        """For forms whose patches are squares of level-0 pixels.

        Raises:
            StoreError: these are not.
        """
        high, wide = self.level0_mpp
        if abs(wide / high - 1) > _SQUARE:
            raise StoreError(
                f"{self.slide}: level-0 pixels are {wide:g} x {high:g} µm, and this form knows square ones alone; --to stamp does"
            )

    @staticmethod
    def magnification(mpp: float) -> float:
        """10 / mpp, or the usual magnification close to it."""
        exact = 10 / mpp
        return next((usual for usual in _USUAL if abs(exact - usual) <= _NEAR * usual), round(exact, 4))

    def features(self) -> Iterator[NDArray[Any]]:
        """(up to 1024, width) features in the order of `xy`, as stored."""
        return done_features(self.rounds)


def done_features(rounds: Sequence[tuple[ResultRound, zarr.Array[Any]]]) -> Iterator[NDArray[Any]]:
    """(up to 1024, D) features of the rows that are done, round by round, as stored."""
    for held, stored in rounds:
        done = held.done
        for start in range(0, len(done), ROWS):
            part = slice(start, start + ROWS)
            if done[part].any():
                yield np.asarray(stored[part])[done[part]]


def slide_name(result: Result) -> str:
    """The source's file name without its suffix, by which other tools know a slide."""
    source = result.source
    return name_of(source[0]) if source else result.path.name.rpartition("-")[0]


def tables_of(result: Result) -> list[Table]:
    """The feature tables of a slide's store.

    Raises:
        StoreError: it holds maps, or nobody knows how large its pixels are.
    """
    name = result.path.name
    if not result.spec.features:
        raise StoreError(f"{name} holds no features (but maps, or boxes), which this form is for; export it --to another form")
    if result.facts["source"]["kind"] == "scene":
        raise StoreError(f"{name} is of a scene, and this form is for slides; --to anndata, geoparquet, geojson do")
    if result.mpp is None:
        raise StoreError(f"{name} does not say how many µm a pixel is, which this form is told; run it again with --mpp-override")
    rounds = result.rounds
    if not rounds:
        raise StoreError(f"{name} holds no features yet; the same run again goes on with it")
    grid, side = rounds[0].plan.grid, rounds[0].plan.side
    layout = layout_of(result.spec, RunSettings(**result.facts["settings"]))
    regular = all((plan.y % layout.stride == 0).all() and (plan.x % layout.stride == 0).all() for plan in (held.plan for held in rounds))
    corners = [np.stack([held.plan.x * grid.downsample_x, held.plan.y * grid.downsample_y], axis=1)[held.done] for held in rounds]
    xy = np.concatenate(corners)
    wide, high = grid.downsample_x * result.mpp[1], grid.downsample_y * result.mpp[0]
    if abs(wide / high - 1) > _SQUARE:
        raise StoreError(
            f"{name}: its patches are {side * wide:g} x {side * high:g} µm, and this form knows squares alone; --to anndata, geojson do"
        )
    return [
        Table(
            name=table,
            slide=slide_name(result),
            xy=np.rint(xy).astype(np.int64),
            um=xy * result.mpp[::-1],
            side=side,
            overlap=layout.side - layout.stride if regular else 0,
            downsample=(grid.downsample_y + grid.downsample_x) / 2,
            mpp=(wide + high) / 2,
            level0_mpp=result.mpp,
            size=result.size,
            dtype=np.dtype(vector.dtype),
            width=len(vector.channels),
            rounds=tuple(zip(rounds, result.tables[table], strict=True)),
        )
        for table, vector in result.spec.features.items()
    ]
