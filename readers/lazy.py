"""Any Image's level as a Dask array, chunks on the file's own tiles: for coarse levels, saliency and a user's own Dask code.

Dask pushes no slice down to the file: a 10 x 10 slice reads its whole chunk, and `[::8, ::8]` reads full resolution. Patches are
read with `Image.read`; a thumbnail is a coarser level.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from patchdrive.readers.geometry import Level, Window
from patchdrive.readers.image import Image

if TYPE_CHECKING:
    import dask.array as da

_MOST = 64 << 20
"""Bytes of a chunk at most, unless a single tile has more."""

_LEAST = 1 << 20
"""Bytes of a chunk at least, unless the level has less: a task costs Dask 0.2 to 2.4 ms."""


def lazy(image: Image, level: int = 0, *, tiles: int = 8) -> da.Array:
    """A level as a Dask array (y, x, channel) of the image's dtype; each chunk is one `Image.read` of whole source tiles.

    Args:
        image: read by the threads or processes that compute; where it is sent to, it reopens from its source.
        level: index into `image.levels`.
        tiles: source tiles a side of a chunk; fewer where the chunk would exceed 64 MiB, more where it would not reach 1 MiB.
    """
    return _dask_array(LevelPixels(image=image, level=level), tiles)


def lazy_mask(image: Image, level: int = 0, *, tiles: int = 8) -> da.Array:
    """`Image.read_mask` of a level as a Dask array (y, x) of bool, True where valid, in the chunks of `lazy`."""
    return _dask_array(LevelMask(image=image, level=level), tiles)


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelPixels:
    """The pixels of a level, (y, x, channel), as Dask slices them: small, picklable, read only when sliced."""

    image: Image
    """Where they are read from."""
    level: int
    """Index into its levels."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(height, width, channels)."""
        frame = self.image.levels[self.level]
        return frame.height, frame.width, len(self.image.channels)

    @property
    def ndim(self) -> int:
        """Three."""
        return 3

    @property
    def dtype(self) -> np.dtype[Any]:
        """The image's."""
        return self.image.dtype

    def __getitem__(self, index: tuple[int | slice, ...]) -> NDArray[Any]:
        return _read_indexed(lambda window: self.image.read(window, level=self.level), index, self.shape, self.dtype)

    def __dask_tokenize__(self) -> tuple[object, ...]:
        return "pixels", self.image.reader, self.image.identity, self.level, self.shape


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelMask:
    """The validity of a level, (y, x), as Dask slices it."""

    image: Image
    """Where it is read from."""
    level: int
    """Index into its levels."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(height, width)."""
        frame = self.image.levels[self.level]
        return frame.height, frame.width

    @property
    def ndim(self) -> int:
        """Two."""
        return 2

    @property
    def dtype(self) -> np.dtype[np.bool_]:
        """Bool."""
        return np.dtype(np.bool_)

    def __getitem__(self, index: tuple[int | slice, ...]) -> NDArray[Any]:
        return _read_indexed(lambda window: self.image.read_mask(window, level=self.level), index, self.shape, self.dtype)

    def __dask_tokenize__(self) -> tuple[object, ...]:
        return "mask", self.image.reader, self.image.identity, self.level, self.shape


def chunk_of(level: Level, pixel_bytes: int, tiles: int) -> tuple[int, int]:
    """Rows and columns of a chunk: whole tiles, `tiles` a side where that is between 1 and 64 MiB.

    Above, the longer side is halved until a tile is left; below, the shorter one is doubled until the level ends.

    Raises:
        ValueError: `tiles` is not positive.
    """
    if tiles < 1:
        raise ValueError(f"a chunk holds at least one tile a side, got tiles={tiles}")
    rows, columns = tiles, tiles

    def size() -> tuple[int, int]:
        return min(rows * level.tile_height, level.height), min(columns * level.tile_width, level.width)

    while (height := size()[0]) * (width := size()[1]) * pixel_bytes > _MOST and (rows > 1 or columns > 1):
        if columns == 1 or (rows > 1 and height >= width):
            rows = -(-rows // 2)
        else:
            columns = -(-columns // 2)
    while (height := size()[0]) * (width := size()[1]) * pixel_bytes < _LEAST and (height < level.height or width < level.width):
        if width == level.width or (height < level.height and height <= width):
            rows *= 2
        else:
            columns *= 2
    return size()


def _dask_array(array: LevelPixels | LevelMask, tiles: int) -> da.Array:
    """One layer of slicing tasks over one copy of `array`: as small for a million chunks as for one."""
    import dask.array as da  # noqa: PLC0415  a second of imports that a run, which reads without Dask, is spared
    from dask.base import tokenize  # noqa: PLC0415

    # The mask has the chunks of the pixels, so that the two meet without rechunking.
    pixel_bytes = array.image.dtype.itemsize * len(array.image.channels)
    rows, columns = chunk_of(array.image.levels[array.level], pixel_bytes, tiles)
    name = f"patchdrive-{tokenize(array, rows, columns)}"
    chunks = (rows, columns, *array.shape[2:])
    meta = np.empty((0,) * array.ndim, array.dtype)
    whole: da.Array = da.from_array(array, chunks, name=name, asarray=False, fancy=False, meta=meta)  # type: ignore[no-untyped-call]
    return whole


def _read_indexed(
    read: Callable[[Window], NDArray[Any]], index: tuple[int | slice, ...], shape: tuple[int, ...], dtype: np.dtype[Any]
) -> NDArray[Any]:
    """What numpy would give for `index` (integers and slices; whole where it is short), reading only the rows and columns it spans."""
    index = (*index, *(slice(None),) * (len(shape) - len(index)))
    rows, columns = (_span(taken, size) for taken, size in zip(index[:2], shape[:2], strict=True))
    if rows and columns:
        pixels = read(Window(y=rows.start, x=columns.start, height=len(rows), width=len(columns)))
    else:
        pixels = np.empty((len(rows), len(columns), *shape[2:]), dtype)
    return pixels[(_inside(index[0]), _inside(index[1]), *index[2:])]


def _span(taken: int | slice, size: int) -> range:
    """From the first to the last index that `taken` takes of `size`."""
    if isinstance(taken, slice):
        indices = range(size)[taken]
        return range(min(indices[0], indices[-1]), max(indices[0], indices[-1]) + 1) if indices else range(0)
    first = range(size)[taken]
    return range(first, first + 1)


def _inside(taken: int | slice) -> int | slice:
    """What takes the same out of its span."""
    return slice(None, None, taken.step) if isinstance(taken, slice) else 0
