"""What an OME-Zarr group says of its image (NGFF 0.4 and 0.5), read from its attributes. Pure: no file, no array.

Source: https://ngff.openmicroscopy.org/0.5 (0.4 has the same fields, without the enclosing `ome`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from patchdrive.readers.errors import FormatError

_MICROMETRES = {
    "picometer": 1e-6,
    "angstrom": 1e-4,
    "nanometer": 1e-3,
    "nm": 1e-3,
    "micrometer": 1.0,
    "micron": 1.0,
    "um": 1.0,
    "\N{MICRO SIGN}m": 1.0,
    "\N{GREEK SMALL LETTER MU}m": 1.0,
    "millimeter": 1e3,
    "mm": 1e3,
    "centimeter": 1e4,
    "meter": 1e6,
    "inch": 25400.0,
}
"""Micrometres per unit: the lengths of NGFF that a microscope's pixel may have, and how writers abbreviate them."""

_BELIEVABLE = (0.01, 100.0)
"""Micrometres per pixel; what lies outside is a placeholder or another unit, never a microscope."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One axis of the stored arrays."""

    name: str
    """`y`, `x`, `c` for channels whatever the file calls them, else the file's own name (`t`, `z`, ...)."""
    unit: str | None
    """Unit of its scale, in the file's word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Multiscale:
    """One image of a group: where its levels lie and what a step along each axis means."""

    version: str
    """NGFF version, as written."""
    name: str
    """What the file calls the image; may be empty."""
    axes: tuple[Axis, ...]
    """In stored order; `y` and `x` are among them."""
    paths: tuple[str, ...]
    """Array of each level, relative to the group, finest first."""
    scales: tuple[tuple[float, ...], ...]
    """Per level, per axis: units per element, > 0, before `scale_of_all`."""
    scale_of_all: tuple[float, ...]
    """Per axis: what the scale of every level is multiplied by."""
    labels: tuple[str, ...]
    """Channel names from `omero`; empty where there are none."""

    def axis(self, name: str) -> int | None:
        """Place of an axis in the stored order, or None."""
        return next((place for place, axis in enumerate(self.axes) if axis.name == name), None)

    @property
    def mpp(self) -> tuple[float, float] | None:
        """Micrometres per pixel of the first level, (y, x); None where a unit is missing or no length, or the value is absurd."""
        found = [self._micrometres("y"), self._micrometres("x")]
        sizes = [size for size in found if size is not None and _BELIEVABLE[0] <= size <= _BELIEVABLE[1]]
        return (sizes[0], sizes[1]) if len(sizes) == 2 else None

    def _micrometres(self, name: str) -> float | None:
        place = self.axis(name)
        assert place is not None
        factor = _MICROMETRES.get(self.axes[place].unit or "")
        return None if factor is None else self.scales[0][place] * self.scale_of_all[place] * factor

    def channel_names(self, count: int) -> tuple[str, ...]:
        """The labels where there is one for each of `count` channels and no two are alike, else channel_0, channel_1, ..."""
        if len(self.labels) == count == len(set(self.labels)) and all(self.labels):
            return self.labels
        return tuple(f"channel_{index}" for index in range(count))


def downsample_of(fine: float, coarse: float, size: int, size_0: int) -> float:
    """Level-0 elements per element of a level along one axis.

    The ratio of the scales is exact where sizes were rounded (10 → 5 → 2 is 1, 2, 4), so it is believed as long as the size it
    predicts is less than one element off the stored one; scales that were never filled in (all 1) or that were written rounded
    fail that, and then the ratio of the sizes is what the level covers. Scales are divided as the decimals they were written in.

    Args:
        fine: scale of the first level.
        coarse: scale of this level.
        size: elements of this level.
        size_0: elements of the first level.
    """
    ratio = Fraction(repr(coarse)) / Fraction(repr(fine))
    return float(ratio) if abs(size - size_0 / ratio) < 1 else size_0 / size


def ome_of(attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    """The NGFF attributes of a group: under `ome` since 0.5, at the top before."""
    ome = attributes.get("ome", attributes)
    return ome if isinstance(ome, Mapping) else {}


def kind_of_collection(attributes: Mapping[str, Any]) -> str | None:
    """What a group that holds images and is none itself is called; None for an image, and for what says nothing."""
    ome = ome_of(attributes)
    kinds = {"plate": "plate", "well": "well", "bioformats2raw.layout": "bioformats2raw series", "labels": "labels group"}
    return None if "multiscales" in ome else next((kinds[key] for key in kinds if key in ome), None)


def inner_paths(attributes: Mapping[str, Any]) -> list[str]:
    """Where the members of a collection lie, relative to it: wells, fields, labels; a series is numbered and not listed."""
    ome = ome_of(attributes)
    listed = [
        *_members(ome.get("plate"), "wells"),
        *_members(ome.get("well"), "images"),
        *_members(ome, "labels"),
        *([str(index) for index in range(16)] if "bioformats2raw.layout" in ome else []),
    ]
    paths = [entry.get("path") if isinstance(entry, Mapping) else entry for entry in listed]
    return [path for path in paths if isinstance(path, str)]


def _members(fields: object, key: str) -> list[Any]:
    members = fields.get(key) if isinstance(fields, Mapping) else None
    return members if isinstance(members, list) else []


def parse_multiscale(attributes: Mapping[str, Any], source: str) -> Multiscale:
    """The first multiscale image of a group's attributes; `source` is named in errors.

    Raises:
        FormatError: a field that NGFF requires is missing or contradicts another, or the version is not 0.4 or 0.5.
    """
    ome = ome_of(attributes)
    images = _list(ome, "multiscales", source)
    if not images or not isinstance(images[0], Mapping):
        raise FormatError(f"{source}: multiscales lists no image; an OME-Zarr image has at least one")
    image = images[0]
    axes = _parse_axes(_list(image, "axes", source), source)
    datasets = _list(image, "datasets", source)
    if not datasets or not all(isinstance(entry, Mapping) and isinstance(entry.get("path"), str) for entry in datasets):
        raise FormatError(f"{source}: datasets must list at least one level, each with a path, got {datasets!r}")
    return Multiscale(
        version=_parse_version(ome, image, source),
        name=str(image.get("name", "")),
        axes=axes,
        paths=tuple(entry["path"] for entry in datasets),
        scales=tuple(_parse_scale(_scales(entry), len(axes), f"{source}: level {entry['path']!r}") for entry in datasets),
        scale_of_all=_parse_scale(_scales(image) or [[1] * len(axes)], len(axes), f"{source}: the image"),
        labels=_parse_labels(ome.get("omero")),
    )


def _list(fields: Mapping[str, Any], key: str, source: str) -> Sequence[Any]:
    value = fields.get(key)
    if not isinstance(value, list):
        said = f"is {value!r}" if key in fields else "is missing"
        raise FormatError(f"{source}: an OME-Zarr image has a list of {key}, here it {said}; is this the group of an image?")
    return value


def _parse_version(ome: Mapping[str, Any], image: Mapping[str, Any], source: str) -> str:
    """0.4 only recommends a version; dev versions such as 0.5-dev-spatialdata add fields and change none."""
    version = str(image.get("version", ome.get("version", "not stated")))
    if version != "not stated" and version.partition("-")[0] not in {"0.4", "0.5"}:
        raise FormatError(f"{source}: OME-Zarr version {version} is not supported, only 0.4 and 0.5 are; write it again as one of them")
    return version


def _parse_axes(entries: Sequence[Any], source: str) -> tuple[Axis, ...]:
    if not all(isinstance(entry, Mapping) and isinstance(entry.get("name"), str) for entry in entries):
        raise FormatError(f"{source}: each of the axes must have a name, got {entries!r}")
    names = ["c" if entry.get("type") == "channel" else entry["name"] for entry in entries]
    if len(set(names)) != len(names) or not {"y", "x"} <= set(names):
        raise FormatError(f"{source}: axes must hold y and x, at most one channel axis and no name twice, got {', '.join(names)}")
    units = [entry.get("unit") for entry in entries]
    return tuple(
        Axis(name=name, unit=unit.lower().replace("metre", "meter") if isinstance(unit, str) else None)
        for name, unit in zip(names, units, strict=True)
    )


def _scales(entry: Mapping[str, Any]) -> list[Any]:
    """Every scale among an entry's transformations."""
    transforms = entry.get("coordinateTransformations")
    items = transforms if isinstance(transforms, list) else []
    return [item.get("scale") for item in items if isinstance(item, Mapping) and item.get("type") == "scale"]


def _parse_scale(found: Sequence[Any], ndim: int, where: str) -> tuple[float, ...]:
    if len(found) != 1 or not isinstance(found[0], list) or len(found[0]) != ndim or not all(map(_is_positive, found[0])):
        raise FormatError(f"{where} must have one scale, with a number > 0 for each of the {ndim} axes, got {found!r}")
    return tuple(float(value) for value in found[0])


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def _parse_labels(omero: object) -> tuple[str, ...]:
    """`omero` is about rendering and optional: whatever does not fit names nothing."""
    labels = [entry.get("label") if isinstance(entry, Mapping) else None for entry in _members(omero, "channels")]
    return tuple("" if label is None else str(label) for label in labels)
