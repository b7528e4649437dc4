"""Objects: the polygons of a store's label and probability maps, traced a window at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
import shapely
from numpy.typing import NDArray

from patchdrive.pipeline.map_view import MapView
from patchdrive.pipeline.maps import PROBABILITY_STEPS, decode_probability
from patchdrive.pipeline.pieces import ClassPart, Pieces, whole_objects
from patchdrive.pipeline.result import Result
from patchdrive.pipeline.rings import Lattice, batches, polygons
from patchdrive.readers.errors import SettingsError

_STORED = np.arange(256, dtype=np.uint8)
"""All that a label or probability map can hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracing:
    """Which objects of a store are wanted, and in what form."""

    maps: tuple[str, ...]
    """Label maps, and probability maps of one channel, by name; `map:channel` of one that has several."""
    background: tuple[str, ...] = ()
    """Classes of label maps that are no objects."""
    threshold: float = 0.5
    """Least probability inside an object of a probability map."""
    least_area: float = 0.0
    """Smaller objects are left out; level-0 pixels, squared."""
    simplify: float = 0.0
    """Farthest that a simplified outline may lie from the true one, level-0 pixels; 0: as it is."""
    annotations: bool = False
    """QuPath's annotations, few and made for editing; else its detections, which may be millions."""

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise SettingsError(f"--threshold is a probability above 0 and at most 1, got {self.threshold:g}")
        if not (0 <= self.least_area < np.inf and 0 <= self.simplify < np.inf):
            raise SettingsError(f"--least-area and --simplify are at least 0, and finite, got {self.least_area:g} and {self.simplify:g}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Objects:
    """Some objects of one map."""

    geometry: NDArray[np.object_]
    """(n,) valid shapely polygons, (x, y) in level-0 pixels; along the edges of map pixels where not simplified."""
    kind: NDArray[np.int64]
    """(n,) index into the classes of the map."""
    area: NDArray[np.float64]
    """(n,) of all its pixels, whatever was simplified; level-0 pixels, squared."""
    area_um2: NDArray[np.float64] | None
    """(n,) the same in µm²; None where nobody knows how large a pixel is."""
    probability: NDArray[np.float64] | None
    """(n,) mean over its pixels; None where the store does not hold it."""

    def __len__(self) -> int:
        return len(self.geometry)

    @property
    def measured(self) -> Mapping[str, NDArray[np.float64]]:
        """What is known of area and probability, by the names of `ObjectMap.measured`."""
        columns = {"area_px": self.area, "area_um2": self.area_um2, "probability": self.probability}
        return {name: values for name, values in columns.items() if values is not None}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ObjectMap:
    """A map whose objects are wanted."""

    name: str
    """For people and files."""
    view: MapView
    """A label or a probability map."""
    channel: int | None
    """Of a probability map."""
    probability: MapView | None
    """Top probabilities beside a label map."""
    mpp: tuple[float, float] | None
    """Micrometres per level-0 pixel, (y, x)."""
    tracing: Tracing
    """What is wanted of it."""

    @property
    def classes(self) -> tuple[str, ...]:
        """What `Objects.kind` counts."""
        return self.view.channels

    @property
    def colors(self) -> tuple[str, ...]:
        """One RRGGBB per class."""
        return self.view.colors

    @property
    def measured(self) -> tuple[str, ...]:
        """What will be known of each object."""
        um2 = ("area_um2",) if self.mpp is not None else ()
        return ("area_px", *um2, *(("probability",) if self._weighed else ()))

    @property
    def _weighed(self) -> bool:
        return self.probability is not None or self.channel is not None

    def objects(self, *, most: int = 1 << 22, rows: int = 1 << 13) -> Iterator[Objects]:
        """All objects, up to `rows` at a time, in the order of their last pixels, row by row.

        They are the same for every `most`. Held at a time: a window, the outlines of one row of windows, and of what reaches into the next.

        Args:
            most: map pixels read at a time; at least a chunk is.
            rows: objects of a batch, at most.
        """
        (down_y, down_x), shift = self.view.downsample, self.view.translation
        lattice = Lattice(downsample_y=down_y, downsample_x=down_x, top=shift[0] - (down_y - 1) / 2, left=shift[1] - (down_x - 1) / 2)
        least = max(1, ceil(self.tracing.least_area / (down_y * down_x) - 1e-6))
        for found in whole_objects(self._parts(most), width=self.view.width, least=least):
            for batch in batches(found, rows):
                yield self._objects(batch, lattice)

    def _parts(self, most: int) -> Iterator[ClassPart]:
        """The map, window by window, stored values turned into classes counted from 1."""
        kinds = self._kinds()
        for window in self.view.windows(most):
            inside = (slice(window.y, window.y_end), slice(window.x, window.x_end))
            stored = np.asarray(self.view.array[inside if self.channel is None else (self.channel, *inside)])
            weights = stored if self.channel is not None else None
            if self.probability is not None:
                weights = np.asarray(self.probability.array[(0, *inside)])
            yield ClassPart(y=window.y, x=window.x, classes=kinds[stored], weights=weights)

    def _kinds(self) -> NDArray[np.uint8]:
        """(256,) of each stored value its class, counted from 1; 0: nothing that is wanted."""
        if self.channel is not None:
            return np.where(decode_probability(_STORED) >= np.float32(self.tracing.threshold), np.uint8(self.channel + 1), np.uint8(0))
        kinds = np.zeros(256, np.uint8)
        for value, name in enumerate(self.classes):
            kinds[value] = 0 if name in self.tracing.background else value + 1
        return kinds

    def _objects(self, pieces: Pieces, lattice: Lattice) -> Objects:
        geometry = polygons(pieces, lattice)
        if self.tracing.simplify > 0:
            geometry = shapely.simplify(geometry, self.tracing.simplify, preserve_topology=True)
        area = np.round(pieces.pixels * (lattice.downsample_y * lattice.downsample_x), 6)
        return Objects(
            geometry=geometry,
            kind=pieces.kind.astype(np.int64) - 1,
            area=area,
            area_um2=None if self.mpp is None else area * (self.mpp[0] * self.mpp[1]),
            probability=pieces.weight / pieces.pixels / PROBABILITY_STEPS if self._weighed else None,
        )


def object_maps(result: Result, tracing: Tracing) -> tuple[ObjectMap, ...]:
    """The maps whose objects are wanted; nothing of them is read yet.

    Raises:
        SettingsError: there is no such map, channel or background class, or the map is an image.
    """
    found = tuple(_object_map(result, name, tracing) for name in dict.fromkeys(tracing.maps))
    there = [name for one in found if one.channel is None for name in one.classes]
    unknown = [name for name in tracing.background if name not in there]
    if unknown:
        raise SettingsError(f"there is no class {unknown[0]!r} to be the background; the label maps have {_list(there)}")
    return found


def _object_map(result: Result, asked: str, tracing: Tracing) -> ObjectMap:
    name, channel = (asked, "") if asked in result.maps else (asked.rpartition(":")[0], asked.rpartition(":")[2])
    view = result.maps.get(name)
    if view is None or view.kind == "image" or (view.kind == "label" and channel):
        traced = [one for one, held in result.maps.items() if held.kind != "image"]
        raise SettingsError(f"{result.path.name} has no label or probability map {asked!r} to trace; it has {_list(traced)}")
    label = view.kind == "label"
    if not label and (channel not in view.channels if channel else len(view.channels) > 1):
        ways = [f"{name}:{one}" for one in view.channels]
        raise SettingsError(f"objects are traced in one channel of a probability map, {asked!r} is none; ask for one of {_list(ways)}")
    return ObjectMap(
        name=f"{name}_{channel}" if channel else name,
        view=view,
        channel=None if label else (view.channels.index(channel) if channel else 0),
        probability=result.maps.get(f"{name}_probability") if label else None,
        mpp=result.mpp,
        tracing=tracing,
    )


def _list(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
