"""What people know of images: a class of each image, or objects in it as points or boxes, out of CSV and GeoJSON."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from pyproj.exceptions import CRSError

from patchdrive.pipeline.belonging import file_of, name_of
from patchdrive.pipeline.geojson import Feature, brought, read_features, unit_of
from patchdrive.pipeline.train_sources import Names
from patchdrive.readers import Image
from patchdrive.readers.errors import SettingsError

_SOURCE = ("source", "image", "imagepath", "filename", "file", "slide")
_LABEL = ("label", "class", "classname", "classification")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_PLACES = ("{}.csv", "{}.geojson", "{}.geojson.gz", "{}.json")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Things:
    """Objects of one image, level-0 pixels."""

    yx: NDArray[np.float64]
    """(n, 2) centres, (y, x)."""
    size: NDArray[np.float64]
    """(n, 2) height and width; zeros of points."""
    labels: tuple[str, ...]
    """(n) what each is; "" where nobody says."""

    def __len__(self) -> int:
        return len(self.labels)

    def of(self, labels: Sequence[str]) -> Things:
        """Those of some labels; all where `labels` is empty."""
        return self.at(np.array([not labels or label in labels for label in self.labels], np.bool_))

    def at(self, kept: NDArray[np.bool_]) -> Things:
        """Those where `kept`, (n,), is True."""
        return Things(yx=self.yx[kept], size=self.size[kept], labels=tuple(np.array(self.labels, object)[kept].tolist()))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """A line of a CSV."""

    place: str
    """File and line, for errors."""
    cells: Mapping[str, str]
    """By column, lower case without underscores."""

    def text(self, columns: Sequence[str]) -> str | None:
        """What stands in the first of `columns` that there is."""
        return next((self.cells[column] for column in columns if column in self.cells), None)

    def number(self, column: str) -> float:
        """
        Raises:
            SettingsError: that is no number.
        """
        try:
            value = float(self.cells[column])
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise SettingsError(f"{self.place}: {column} is a number, got {self.cells[column]!r}")
        return value


def read_image_labels(path: Path, names: Names) -> Mapping[Path, str]:
    """The class of each image of a CSV with the columns `source` and `label`; lines of images that are not ours say nothing.

    Raises:
        SettingsError: it cannot be read, has no such columns, or calls an image by two classes.
    """
    found: dict[Path, str] = {}
    for row in _rows(path, "labels.images"):
        source, label = row.text(_SOURCE), row.text(_LABEL)
        if source is None or label is None:
            raise SettingsError(f"labels.images {path} needs the columns source and label, got {', '.join(row.cells)}")
        image = names.meant(source, path)
        if image is not None and found.setdefault(image, label) != label:
            raise SettingsError(f"{row.place}: {source} is called {found[image]!r} before and {label!r} here")
    return found


class ObjectLabels:
    """Objects of images: one CSV with a column `source`, or a folder with a CSV or GeoJSON for each image."""

    def __init__(self, where: Path, paths: Sequence[Path]) -> None:
        """Read what is for all images at once.

        Raises:
            SettingsError: it cannot be read; or it is of one image, and there are more.
        """
        self._where = where
        self._known: dict[Path, Things] | None = None
        if where.is_file() and where.suffix.lower() == ".csv":
            rows = _rows(where, "labels.objects")
            if rows and rows[0].text(_SOURCE) is not None:
                self._known = _by_image(rows, where, Names(paths))
        if where.is_file() and self._known is None and len(paths) > 1:
            raise SettingsError(
                f"labels.objects {where} does not say of which image its objects are, and there are {len(paths)}; "
                "give a CSV with a column source, or a folder with a file for each image"
            )

    def of(self, path: Path, image: Image) -> Things | None:
        """The objects of one image; None where nothing is said of it.

        Raises:
            SettingsError: its file is missing, cannot be read, or lies beside the image.
        """
        if self._known is not None:
            return self._known.get(path)
        file = label_file(self._where, path, _PLACES, "labels.objects")
        return _things_of_rows(_rows(file, "labels.objects"), file) if file.suffix == ".csv" else _things_of_geojson(file, image)


def label_file(where: Path, path: Path, places: Sequence[str], field: str) -> Path:
    """The file of labels that belongs to an image.

    Args:
        where: a folder with a file for each image; a name in which {} stands for the image's; or the file.
        path: of the image.
        places: where in the folder it may lie, the first that is there and is not the image itself.
        field: of the config, for the error.

    Raises:
        SettingsError: there is none.
    """
    if "{}" in where.name:
        return file_of(str(where.parent), str(path), (where.name,), option=field)
    others = [place for place in places if where / place.format(name_of(str(path))) != path]
    return file_of(str(where), str(path), others, option=field)


def _rows(path: Path, field: str) -> list[_Row]:
    """Every line of a CSV; its columns are separated by commas, semicolons or tabs."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{field} {path} cannot be read: {error}") from error
    lines = text.splitlines()
    if not lines:
        raise SettingsError(f"{field} {path} is empty; its first line names its columns")
    reader = csv.reader(lines, delimiter=max(",;\t", key=lines[0].count))
    columns = [name.strip().lower().replace("_", "") for name in next(reader)]
    rows = []
    for cells in reader:
        if len(cells) not in {0, len(columns)}:
            raise SettingsError(f"{field} {path}, line {reader.line_num}: {len(columns)} columns, got {len(cells)}")
        if cells:
            held = dict(zip(columns, (cell.strip() for cell in cells), strict=True))
            rows.append(_Row(place=f"{field} {path}, line {reader.line_num}", cells=held))
    return rows


def _by_image(rows: Sequence[_Row], path: Path, names: Names) -> dict[Path, Things]:
    held: dict[Path, list[_Row]] = {}
    for row in rows:
        image = names.meant(row.text(_SOURCE) or "", path)
        if image is not None:
            held.setdefault(image, []).append(row)
    return {image: _things_of_rows(some, path) for image, some in held.items()}


def _things_of_rows(rows: Sequence[_Row], path: Path) -> Things:
    """Points of x and y; boxes of x, y (the upper left corner), width and height, or of their corners. Empty cells: no object."""
    boxes, labels = [], []
    for row in rows:
        if row.cells.keys() >= set(_CORNERS):
            columns: Sequence[str] = _CORNERS
        elif row.cells.keys() >= {"x", "y"}:
            columns = ("x", "y", "width", "height") if row.cells.keys() >= {"width", "height"} else ("x", "y")
        else:
            raise SettingsError(
                f"labels.objects {path} needs the columns x and y, with width and height for boxes, or xmin, ymin, xmax and ymax; "
                f"got {', '.join(row.cells)}"
            )
        if not any(row.cells[column] for column in columns):
            continue
        x, y, *rest = (row.number(column) for column in columns)
        across, down = rest or (0.0, 0.0)
        width, height = (across - x, down - y) if columns is _CORNERS else (across, down)
        if width < 0 or height < 0:
            raise SettingsError(f"{row.place}: a box is {width:g} wide and {height:g} high; its second corner is the lower right one")
        boxes.append((y + height / 2, x + width / 2, height, width))
        labels.append(row.text(_LABEL) or "")
    held = np.array(boxes, np.float64).reshape(-1, 4)
    return Things(yx=held[:, :2], size=held[:, 2:], labels=tuple(labels))


def _things_of_geojson(path: Path, image: Image) -> Things:
    held = read_features(path, option="labels.objects")
    try:
        geometries = brought([feature.geometry for feature in held.features], held.crs, image)
        boxes, labels = [], []
        for feature, geometry in zip(held.features, geometries, strict=True):
            for bounds in _bounds(geometry, path):
                boxes.append(_on_pixels(bounds, image))
                labels.append(label_of(feature))
    except (CRSError, TypeError, ValueError, IndexError) as error:
        unit = unit_of(held.crs, image)
        raise SettingsError(f"labels.objects {path} does not fit {image.source}: {error}; it is taken to be in {unit}") from error
    found = np.array(boxes, np.float64).reshape(-1, 4)
    base = image.levels[0]
    inside = ((found[:, :2] >= 0) & (found[:, :2] < (base.height, base.width))).all(axis=1)
    if len(found) and not inside.any():
        raise SettingsError(
            f"labels.objects {path}: none of its objects lies on {image.source}; they are taken to be in {unit_of(held.crs, image)}"
        )
    return Things(yx=found[:, :2], size=found[:, 2:], labels=tuple(labels))


def _bounds(geometry: Mapping[str, Any], path: Path) -> list[tuple[float, ...]]:
    """(x, y, x_end, y_end) of each object: a point each of MultiPoint, one of MultiPolygon, which may be a cell and its nucleus."""
    if geometry["type"] not in {"Point", "MultiPoint", "Polygon", "MultiPolygon"}:
        raise SettingsError(f"labels.objects {path} holds a {geometry['type']}; objects are points and polygons")
    shape = shapely.geometry.shape(geometry)
    return [part.bounds for part in shape.geoms] if geometry["type"] == "MultiPoint" else [shape.bounds]


def _on_pixels(bounds: tuple[float, ...], image: Image) -> tuple[float, float, float, float]:
    """Centre and size, level-0 pixels, of bounds in the image's world."""
    x, y, x_end, y_end = bounds
    if image.transform is not None:
        corners = [~image.transform @ corner for corner in ((x, y), (x_end, y), (x, y_end), (x_end, y_end))]
        (x, y), (x_end, y_end) = np.min(corners, axis=0), np.max(corners, axis=0)
    return float(y + y_end) / 2, float(x + x_end) / 2, float(y_end - y), float(x_end - x)


def label_of(feature: Feature) -> str:
    """What a feature is called: QuPath's classification, else `label`, `class` or `name`; "" where nobody says."""
    said = feature.properties.get("classification")
    if isinstance(said, Mapping):
        said = said.get("name")
    if said is None:
        said = next((feature.properties[name] for name in ("label", "class", "name") if feature.properties.get(name) is not None), "")
    return str(said)
