"""A class for each pixel of an image: out of a mask, or of polygons."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from pyproj.exceptions import CRSError
from rasterio.features import rasterize
from skimage import measure

from patchdrive.models.segmenter import IGNORED
from patchdrive.pipeline.geojson import brought, read_features, unit_of
from patchdrive.pipeline.plan import target_grid
from patchdrive.pipeline.reads import ReadFrame
from patchdrive.pipeline.train_labels import Things, label_file, label_of
from patchdrive.pipeline.train_read import Shelf, read_window
from patchdrive.readers import Image, Level, Window
from patchdrive.readers.errors import SettingsError

_PLACES = ("{}_mask.png", "{}_mask.tif", "{}_mask.tiff", "{}.geojson", "{}.geojson.gz", "{}.json", "{}.png", "{}.tif", "{}.tiff")
_AREAS = ("{}.geojson", "{}.geojson.gz", "{}.json")
_POLYGONS = (".geojson", ".json", ".gz")
_UNEQUAL = 0.02
"""Relative difference of aspect up to which a mask is taken to cover the image: sizes are rounded."""
_MOST_WHOLE = 2**28
"""Pixels of a mask whose objects are looked for in one go."""
_SMALL = 1024
"""Longest side of the small view of a mask in which places of each class are found."""
_MOST_SPOTS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassNames:
    """What the classes of pixels are."""

    classes: tuple[str, ...]
    """In the order of the model's answers."""
    values: tuple[int, ...] = ()
    """Of masks, the value of each class; empty: 0, 1, 2 and so on."""
    rest: str | None = None
    """Of polygons, the class of pixels that lie in none; None: they are not asked for."""


class PixelLabels(Protocol):
    """Classes of the pixels of one image."""

    def read(self, grid: Level, window: Window) -> NDArray[np.uint8]:
        """(height, width) the class of each pixel of `window` of a target grid over the image; 255 where it is not asked for."""
        ...

    @property
    def digest(self) -> str:
        """Of the file that says them, as far as it is needed to see that it is another."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MaskLabels:
    """A raster that covers the image, at any size of its shape."""

    path: Path
    """Of the raster."""
    base: Level
    """Level 0 of the image."""
    values: tuple[int, ...]
    """The value of each class."""
    shelf: Shelf
    """Where it is open."""

    def read(self, grid: Level, window: Window) -> NDArray[np.uint8]:
        """See `PixelLabels.read`."""
        with self.shelf.borrow(self.path) as mask:
            held = mask.levels[0]
            step_y, step_x = (
                grid.downsample_y * held.height / self.base.height,
                grid.downsample_x * held.width / self.base.width,
            )
            if abs(step_y - 1) < 1e-9 and abs(step_x - 1) < 1e-9:
                step_y = step_x = 1.0
            frame = ReadFrame(level=held, step_y=step_y, step_x=step_x, side=window.width, resampling="nearest")
            found, valid = read_window(mask, frame, window, (0,), 0)
        classes = np.full(found.shape[:2], IGNORED, np.uint8)
        for index, value in enumerate(self.values):
            classes[valid & (found[..., 0] == value)] = index
        return classes

    @property
    def digest(self) -> str:
        """See `PixelLabels.digest`."""
        with self.shelf.borrow(self.path) as mask:
            return mask.identity


@dataclass(frozen=True, kw_only=True, eq=False)
class PolygonLabels:
    """Polygons of classes; of those that overlap, the last in the file counts."""

    polygons: tuple[Any, ...]
    """shapely's, level-0 pixels, (x, y)."""
    classes: tuple[int, ...]
    """The class of each; 255 where it is none that is asked for."""
    rest: int
    """The class of pixels that lie in none."""

    @cached_property
    def _tree(self) -> shapely.STRtree:
        return shapely.STRtree(self.polygons)

    def read(self, grid: Level, window: Window) -> NDArray[np.uint8]:
        """See `PixelLabels.read`; a pixel has the class of the polygon that its centre lies in."""
        frame = Affine.scale(grid.downsample_x, grid.downsample_y) @ Affine.translation(window.x, window.y)
        corner, end = frame @ (0, 0), frame @ (window.width, window.height)
        touched = np.sort(self._tree.query(shapely.box(*corner, *end))).tolist()
        shape = (window.height, window.width)
        if not touched:
            return np.full(shape, self.rest, np.uint8)
        shapes = [(self.polygons[index], self.classes[index]) for index in touched]
        painted = rasterize(shapes, out_shape=shape, transform=frame, fill=self.rest, dtype=np.uint8)
        return np.asarray(painted)

    def hold(self, yx: NDArray[np.float64]) -> NDArray[np.bool_]:
        """(n,) which of the level-0 places (n, 2) lie in a polygon."""
        held = np.zeros(len(yx), np.bool_)
        held[self._tree.query(shapely.points(yx[:, ::-1]), predicate="intersects")[0]] = True
        return held

    @property
    def digest(self) -> str:
        """See `PixelLabels.digest`."""
        digest = hashlib.sha256(repr((self.rest, self.classes)).encode())
        for polygon in self.polygons:
            digest.update(polygon.wkb)
        return digest.hexdigest()


def pixel_labels(where: Path, path: Path, image: Image, naming: ClassNames, shelf: Shelf) -> PixelLabels:
    """The classes of one image's pixels.

    Args:
        where: a folder with a file for each image, a name with {} in it, or the file.
        path: of the image.
        image: it.
        naming: what the classes are.
        shelf: for masks.

    Raises:
        SettingsError: there is no such file, it cannot be read, or does not fit the image.
    """
    file = label_file(where, path, _PLACES, "labels.pixels")
    if file.suffix.lower() in _POLYGONS:
        return _polygons(file, image, naming)
    _require_mask(file, image, shelf)
    return MaskLabels(path=file, base=image.levels[0], values=naming.values or tuple(range(len(naming.classes))), shelf=shelf)


def labelled_area(where: Path, path: Path, image: Image) -> PolygonLabels:
    """Where everything is labelled in one image: class 0 there, 255 elsewhere.

    Raises:
        SettingsError: there is no such file, it cannot be read, does not fit the image, or holds no polygon on it.
    """
    file = label_file(where, path, _AREAS, "labels.within")
    shapes, _ = _shapes(file, image, "labels.within")
    base = image.levels[0]
    if not shapely.union_all(shapes).intersects(shapely.box(0, 0, base.width, base.height)):
        raise SettingsError(f"labels.within {file}: none of its polygons lies on {image.source}")
    return PolygonLabels(polygons=tuple(shapes), classes=(0,) * len(shapes), rest=IGNORED)


def _require_mask(file: Path, image: Image, shelf: Shelf) -> None:
    """Refuse what is no mask of the image."""
    with shelf.borrow(file) as mask:
        if len(mask.channels) != 1 or mask.dtype.kind not in "iub":
            raise SettingsError(
                f"labels.pixels {file} has {len(mask.channels)} channels of {mask.dtype}: a mask has one, of whole numbers; "
                "write the class of each pixel as one number"
            )
        held, base = mask.levels[0], image.levels[0]
        aspect = (held.height / held.width) / (base.height / base.width)
        if abs(math.log(aspect)) > max(_UNEQUAL, 1.5 / min(held.height, held.width)):
            raise SettingsError(
                f"labels.pixels {file} is {held.height} x {held.width} pixels (height x width), {image.source} is {base.height} x "
                f"{base.width}: a mask covers the whole image, at any size of its shape"
            )


def _polygons(file: Path, image: Image, naming: ClassNames) -> PolygonLabels:
    shapes, said = _shapes(file, image, "labels.pixels")
    known = {name: index for index, name in enumerate(naming.classes)}
    rest = IGNORED if naming.rest is None else known[naming.rest]
    return PolygonLabels(polygons=tuple(shapes), classes=tuple(known.get(name, IGNORED) for name in said), rest=rest)


def _shapes(file: Path, image: Image, field: str) -> tuple[list[Any], list[str]]:
    """The polygons of a file, level-0 pixels, and what each is called."""
    held = read_features(file, option=field)
    kept = [feature for feature in held.features if feature.geometry["type"] in {"Polygon", "MultiPolygon"}]
    try:
        shapes = [shapely.geometry.shape(geometry) for geometry in brought([one.geometry for one in kept], held.crs, image)]
    except (CRSError, TypeError, ValueError, IndexError) as error:
        unit = unit_of(held.crs, image)
        raise SettingsError(f"{field} {file} does not fit {image.source}: {error}; it is taken to be in {unit}") from error
    if image.transform is not None:
        a, b, c, d, e, f = list(~image.transform)[:6]
        shapes = [shapely.affinity.affine_transform(shape, [a, b, d, e, c, f]) for shape in shapes]
    return shapes, [label_of(one) for one in kept]


def spots(labels: PixelLabels, image: Image, classes: int, grid: Level) -> tuple[NDArray[np.float64], ...]:
    """Per class (n, 2) places of its pixels, in pixels of `grid`: what pieces are drawn around."""
    base = image.levels[0]
    step = max(1.0, base.height / _SMALL, base.width / _SMALL)
    small = target_grid(base, step, step)
    seen = labels.read(small, small.window)
    scale = np.array([step / grid.downsample_y, step / grid.downsample_x])
    found = []
    for index in range(classes):
        places = np.argwhere(seen == index)
        chosen = np.linspace(0, len(places) - 1, min(len(places), _MOST_SPOTS)).astype(np.int64)
        found.append((places[chosen] + 0.5) * scale)
    return tuple(found)


def things_of_mask(where: Path, path: Path, image: Image, shelf: Shelf) -> Things:
    """The objects of a mask: every largest set of pixels of one value other than 0 that hang together by their sides. So masks of two
    values will do, and masks in which each object has a number of its own.

    Raises:
        SettingsError: there is no such mask, it does not fit the image, or is too large to be looked at in one go.
    """
    file = label_file(where, path, _PLACES, "labels.pixels")
    if file.suffix.lower() in _POLYGONS:
        raise SettingsError(f"labels.pixels {file} holds polygons: these are objects; name them as labels.objects")
    _require_mask(file, image, shelf)
    with shelf.borrow(file) as mask:
        held, base = mask.levels[0], image.levels[0]
        if held.height * held.width > _MOST_WHOLE:
            raise SettingsError(
                f"labels.pixels {file} has {held.height} x {held.width} pixels, and its objects are looked for in one go; "
                "give a smaller mask, or points as labels.objects"
            )
        values = mask.read(held.window)[..., 0]
    numbered = measure.label(values, background=0, connectivity=1)  # type: ignore[no-untyped-call]
    boxes, centres = [], []
    for one in measure.regionprops(numbered):  # type: ignore[no-untyped-call]
        centres.append(one.centroid)
        boxes.append((one.bbox[2] - one.bbox[0], one.bbox[3] - one.bbox[1]))
    scale = np.array([base.height / held.height, base.width / held.width])
    yx = (np.array(centres, np.float64).reshape(-1, 2) + 0.5) * scale
    return Things(yx=yx, size=np.array(boxes, np.float64).reshape(-1, 2) * scale, labels=("",) * len(centres))
