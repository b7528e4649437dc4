"""What `expected.json` says, and the comparisons every reader makes with it. For any environment: the standard library and numpy.

Positions are level-0 pixels, (y, x), the first pixel covering [0, 1). A reader gives the coordinates of its pixels' centres as its library
has them: of OME-NGFF, where the centre of the first level-0 pixel is 0 and units are micrometres or level-0 pixels; of the world; or
level-0 pixels as here.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

Frame = Literal["ngff", "world", "level 0"]
_TOLERANCE = 0.02
"""Of a position, pixels of the map that is looked at: half a pixel is the mistake to find."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One level of a map, as a library has it."""

    index: int
    """0 for the finest."""
    values: np.ndarray
    """(channel, height, width), or (height, width)."""
    y: np.ndarray
    """(height,) coordinates of the centres of its rows."""
    x: np.ndarray
    """(width,) of its columns."""
    frame: Frame
    """What they are coordinates of."""
    decoded: bool = False
    """True where stored probabilities were turned into [0, 1]."""
    none: np.ndarray | None = None
    """(height, width) True where the library says that there is no value; None where it is not asked."""


class Check:
    """Compares, remembers what is wrong, and tells it in one line."""

    def __init__(self, consumer: str, folder: str) -> None:
        self.consumer, self.folder = consumer, Path(folder)
        self.images = json.loads((self.folder / "expected.json").read_text())["images"]
        self.compared: Counter[str] = Counter()
        self.wrong: list[str] = []

    def maps(self, *, scenes: bool = False) -> Iterator[tuple[Mapping[str, Any], Path, Mapping[str, Any]]]:
        """(image, folder, expected) of every map, or of those of scenes alone."""
        for image in self.images:
            if image["transform"] is not None or not scenes:
                for store in image["stores"].values():
                    for held in store["maps"]:
                        yield image, self.folder / store["path"] / held["path"], held

    def tables(self) -> Iterator[tuple[Mapping[str, Any], Path, Mapping[str, Any]]]:
        """(image, folder, expected) of every table."""
        for image in self.images:
            for store in image["stores"].values():
                for held in store["tables"]:
                    yield image, self.folder / store["path"] / held["path"], held

    def that(self, holds: bool, where: object, told: str) -> None:
        """Something must hold."""
        if not holds:
            self.wrong.append(f"{_short(where)}: {told}")

    def equal(self, what: str, where: object, found: Any, wanted: Any) -> None:
        """A fact must be as expected; numbers to nine digits."""
        numbers = isinstance(wanted, (float, list)) and found is not None
        same = np.shape(found) == np.shape(wanted) and np.allclose(found, wanted, rtol=1e-9, atol=1e-9) if numbers else found == wanted
        self.compared[what] += 1
        self.that(bool(same), where, f"{what} is {found}, not {wanted}")

    def level(self, image: Mapping[str, Any], path: Path, held: Mapping[str, Any], level: Level) -> None:
        """Size, place, mark, gaps and values of a level."""
        self.compared["maps"] += level.index == 0
        self.compared["levels"] += 1
        where = f"{path}/{level.index}"
        rows, columns = (_Axis(centres, *_axis(image, level.frame, axis)) for axis, centres in ((0, level.y), (1, level.x)))
        self.that(level.values.shape[-2:] == (len(level.y), len(level.x)), where, "there is not a coordinate for every row and column")
        for axis, name, side in ((rows, "y", "height"), (columns, "x", "width")):
            self.that(axis.covers(image[side]), where, f"{name} covers {axis.first:.4f} to {axis.last:.4f} of {image[side]} level-0 pixels")
        if level.index == 0 and held["downsample"] is not None:
            self.equal("pixel size", where, [rows.step, columns.step], held["downsample"])
        if level.index == 0 and not level.decoded:
            self.equal("dtype", where, level.values.dtype.name, held["dtype"])
        scale = held["scale_factor"] if level.decoded and held["scale_factor"] else 1.0
        values = level.values if level.values.ndim == 3 else level.values[None]
        self.that(len(values) == (held["channels"] or 1), where, f"{len(values)} channels, not {held['channels'] or 1}")
        if held["mark"] is not None:
            self.compared["marks"] += 1
            marked = np.all(
                [np.isclose(plane, value * scale, atol=1e-6) for plane, value in zip(values, held["mark"], strict=True)], axis=0
            )
            self._box("mark", where, marked, image["mark"], (rows, columns))
        if level.none is not None and held["gaps"]:
            self.compared["gaps"] += 1
            self._box("nodata", where, level.none, image["invalid"], (rows, columns))
        if level.index == 0 and held["path"] == "images/image":
            for sample in image["samples"]:
                self.equal("values", where, values[:, rows.nearest(sample["y"]), columns.nearest(sample["x"])].tolist(), sample["values"])

    def _box(self, name: str, where: str, there: np.ndarray, box: Mapping[str, int] | None, axes: tuple[_Axis, _Axis]) -> None:
        """What is `there` must be just that rectangle, or nothing."""
        if box is None or not there.any():
            self.that(box is None and not there.any(), where, f"{name} expected at {box}, found {int(there.sum())} pixels of it")
            return
        for axis, found, start, side in ((axes[0], there.any(axis=1), "y", "height"), (axes[1], there.any(axis=0), "x", "width")):
            first, last = axis.span(np.flatnonzero(found))
            wanted = (box[start], box[start] + box[side])
            close = abs(first - wanted[0]) <= _TOLERANCE * axis.step and abs(last - wanted[1]) <= _TOLERANCE * axis.step
            self.that(close, where, f"{name} at {start} {first:.4f} to {last:.4f}, not {wanted[0]} to {wanted[1]}")
        self.that(bool(there[np.ix_(there.any(axis=1), there.any(axis=0))].all()), where, f"{name} is no full rectangle")

    def table(
        self,
        image: Mapping[str, Any],
        path: Path,
        held: Mapping[str, Any],
        *,
        column: Callable[[str], np.ndarray],
        xy: np.ndarray,
        state: Sequence[str],
    ) -> None:
        """Rows, states, and the mark: the patches with the marked value have its place.

        Args:
            image: of which it is.
            path: of the table.
            held: what is expected.
            column: a column of X by name.
            xy: (n, 2) `obsm/spatial`.
            state: `obs/state`, of tables of patches.
        """
        self.compared["tables"] += 1
        self.equal("rows", path, len(xy), held["rows"])
        self.equal("states", path, Counter(state), {"done": held["done"]} if held["done"] else {})
        if held["column"] is not None:
            self.compared["marks"] += 1
            rows = np.flatnonzero(np.isclose(column(held["column"]).astype(np.float64), held["value"], rtol=1e-3))
            self.equal("marked patches", path, len(rows), 2)
            mark = image["mark"]
            wanted = [mark["x"] + mark["width"] / 2, mark["y"] + mark["height"] / 2]
            self.equal("place of the marked patches", path, xy[rows].mean(axis=0).tolist() if len(rows) else None, wanted)

    def end(self) -> None:
        """Tell, and leave: 0 where nothing is wrong."""
        compared = ", ".join(f"{count} {what}" for what, count in self.compared.items())
        verdict = "ok" if not self.wrong else f"{len(self.wrong)} wrong: " + "; ".join(self.wrong[:8])
        print(f"{self.consumer} | {compared} | {verdict}")
        sys.exit(1 if self.wrong or not self.compared else 0)


@dataclass(frozen=True, slots=True)
class _Axis:
    """Coordinates of pixel centres along an axis, as level-0 pixels."""

    centres: np.ndarray
    """As the library has them."""
    origin: float
    """Coordinate of the edge of the first level-0 pixel."""
    size: float
    """Of a level-0 pixel."""

    def at(self, index: int) -> float:
        """Level-0 position of a centre."""
        return float((self.centres[index] - self.origin) / self.size)

    @property
    def step(self) -> float:
        return (self.at(-1) - self.at(0)) / (len(self.centres) - 1)

    @property
    def first(self) -> float:
        return self.at(0) - self.step / 2

    @property
    def last(self) -> float:
        return self.at(-1) + self.step / 2

    def covers(self, side: int) -> bool:
        """Whether it begins with level 0, and ends with it or less than a pixel later."""
        slack = _TOLERANCE * self.step
        return abs(self.first) <= slack and side - slack <= self.last < side + self.step

    def span(self, indices: np.ndarray) -> tuple[float, float]:
        """Level-0 positions where those pixels begin and end."""
        return self.at(indices[0]) - self.step / 2, self.at(indices[-1]) + self.step / 2

    def nearest(self, position: float) -> int:
        """The index nearest to a level-0 position."""
        return int(np.argmin(np.abs(self.centres - (self.origin + position * self.size))))


def _axis(image: Mapping[str, Any], frame: Frame, axis: int) -> tuple[float, float]:
    """(coordinate of the first level-0 pixel's edge, size of a level-0 pixel) along y (0) or x (1)."""
    if frame == "world":
        a, _, c, _, e, f = image["transform"]
        return ((f, e), (c, a))[axis]
    if frame == "level 0":
        return 0.0, 1.0
    size = image["mpp"][axis] if image["mpp"] else 1.0
    return -size / 2, size


def placed(extent: int, scale: float, translation: float) -> np.ndarray:
    """OME-NGFF: coordinates of the centres of an axis."""
    return translation + scale * np.arange(extent)


def arguments() -> str:
    """The folder with `expected.json`."""
    return sys.argv[1]


def _short(where: object) -> str:
    """The last parts of a path: store, folder, map, level."""
    return "/".join(Path(str(where)).parts[-4:])
