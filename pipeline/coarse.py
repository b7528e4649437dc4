"""The coarse look at an image: one level, or its exact block means, read once, in parts, and small enough to keep."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchdrive.pipeline.budget import cores
from patchdrive.pipeline.patience import patiently
from patchdrive.readers.errors import ReadError, StalledError
from patchdrive.readers.geometry import Level, Window, align_up, pick_level
from patchdrive.readers.image import Image
from patchdrive.readers.tiles import AlignedReads, DecodesTiles, TileGrid, Torn, tile_decoder

AT_ONCE = 1 << 16
"""Pixels whose float copies are held at once: three channels of them lie in the cache."""
_CLOSE = 0.05
"""A level up to 5 % coarser than wanted is as good."""
_PART = 8 << 20
"""Bytes of stored pixels that one task reads, where a tile does not hold more."""
_PART_MOST = 32 << 20
"""The same where blocks and tiles meet only every so many tiles; above that, tiles on the border of two parts are decoded for both."""
_SCORED = 17
"""Bytes for each coarse pixel that the greediest built-in scorer holds besides the look."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Coarse:
    """An image, seen small."""

    pixels: NDArray[Any]
    """(height, width, channel) in the image's dtype: the stored level, or means over valid pixels, rounded as a stored level's are."""
    mask: NDArray[np.bool_]
    """(height, width) True where any pixel underneath is known to be valid."""
    level: Level
    """Its frame: size, and level-0 pixels per pixel; `index` is the stored level it was made from."""
    unknown: NDArray[np.bool_] | None = None
    """(height, width) True where a pixel underneath could not be decoded; None where all could. Such places are to be planned, so that
    the patches there are tried and counted: what is torn here may be whole at full resolution."""
    torn: int = 0
    """Stored tiles of that level that could not be decoded."""
    reason: str = ""
    """Why the first of them could not."""

    @property
    def possible(self) -> NDArray[np.bool_]:
        """(height, width) True where there is, or may be, valid data."""
        return self.mask if self.unknown is None else self.mask | self.unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cut:
    """How a coarse look is made of a level."""

    level: Level
    """What is read."""
    by_y: int
    """Its rows to a coarse pixel."""
    by_x: int
    """Its columns to a coarse pixel."""

    @property
    def whole(self) -> bool:
        """True where the level is taken as it is."""
        return self.by_y == self.by_x == 1

    def frame(self) -> Level:
        """The frame of the look."""
        level = self.level
        if self.whole:
            return level
        height, width = -(-level.height // self.by_y), -(-level.width // self.by_x)
        return replace(
            level,
            height=height,
            width=width,
            downsample_y=level.downsample_y * self.by_y,
            downsample_x=level.downsample_x * self.by_x,
            tile_height=min(level.tile_height, height),
            tile_width=min(level.tile_width, width),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reading:
    """A level, and how it is read: part by part, each in whole blocks and, where the two meet soon enough, in whole tiles."""

    image: Image
    """Where from."""
    cut: _Cut
    """What of it."""
    decoder: DecodesTiles
    """By whom."""
    grid: TileGrid
    """The tiles."""

    @property
    def pixel_bytes(self) -> int:
        """Of one stored pixel."""
        return len(self.image.channels) * self.image.dtype.itemsize

    def part(self) -> tuple[int, int]:
        """Rows and columns of the level that one task reads."""
        cut, grid, most = self.cut, self.grid, _PART
        rows, columns = math.lcm(grid.tile_height, cut.by_y), math.lcm(grid.tile_width, cut.by_x)
        if min(rows, grid.height) * min(columns, grid.width) * self.pixel_bytes > _PART_MOST:
            rows, columns, most = align_up(grid.tile_height, cut.by_y), align_up(grid.tile_width, cut.by_x), _PART_MOST
        while True:
            taller = rows < grid.height and (rows <= columns or columns >= grid.width)
            more = (2 * rows, columns) if taller else (rows, 2 * columns)
            if rows >= grid.height and columns >= grid.width:
                return rows, columns
            if min(more[0], grid.height) * min(more[1], grid.width) * self.pixel_bytes > most:
                return rows, columns
            rows, columns = more

    def bytes_at_once(self, workers: int) -> int:
        """What the threads that read hold together.

        Each holds a row of tiles, another one inside the decoder and, where the level is shrunk, the part and sums of some rows of it.
        """
        grid, cut, channels = self.grid, self.cut, len(self.image.channels)
        step_y, step_x = self.part()
        rows, columns = min(step_y, grid.height), min(step_x, grid.width)
        straddle = 0 if columns % grid.tile_width == 0 or columns == grid.width else 1
        tiles = min(-(-columns // grid.tile_width) + straddle, grid.columns) + 1
        part = rows * columns * (self.pixel_bytes + 1)
        held = tiles * grid.tile_height * grid.tile_width * (self.pixel_bytes + 1)
        if isinstance(self.decoder, AlignedReads):
            held = max(held, part + rows * columns * len(self.image.channels))  # a part in one call, and what it makes of the mask
        if not cut.whole:
            blocks = _rows_at_once(columns * channels, cut.by_y)
            # Sums in 8 bytes; what is masked out before them; then means, joined with the share and rounded.
            sums = columns * ((channels + 2) * 8 + cut.by_y * (self.pixel_bytes + 4)) + -(-columns // cut.by_x) * (channels + 1) * 48
            held = part + max(held, blocks * sums)
        parts = -(-grid.height // step_y) * -(-grid.width // step_x)
        return min(workers, parts) * held

    def read(self, window: Window, look: Coarse) -> tuple[Torn, ...]:
        """Read a part into its place of `look`; what cannot be decoded is 0 and not valid."""
        cut = self.cut
        height, width = -(-window.height // cut.by_y), -(-window.width // cut.by_x)
        cells = Window(y=window.y // cut.by_y, x=window.x // cut.by_x, height=height, width=width).within(look.level.window)
        if cut.whole:
            pixels, valid = look.pixels[cells], look.mask[cells]
        else:
            pixels = np.empty((window.height, window.width, look.pixels.shape[2]), look.pixels.dtype)
            valid = np.ones((window.height, window.width), np.bool_)
        torn = () if self._read_at_once(window, pixels, valid) else self._read_tiles(window, pixels, valid)
        for hole in torn:
            part = hole.window.intersect(window)
            if part is not None:
                pixels[part.within(window)], valid[part.within(window)] = 0, False
        if not cut.whole:
            _reduce(pixels, valid, cut, look.pixels[cells], look.mask[cells])
        return torn

    def _read_at_once(self, window: Window, pixels: NDArray[Any], valid: NDArray[np.bool_]) -> bool:
        """A reader without tiles of its own gives a part in one call; False where it has its own, or something is torn."""
        if not isinstance(self.decoder, AlignedReads):
            return False
        try:
            pixels[...] = self.image.read(window, level=self.cut.level.index)
            if self.image.has_mask:
                valid[...] = self.image.read_mask(window, level=self.cut.level.index)
        except ReadError:
            return False
        return True

    def _read_tiles(self, window: Window, pixels: NDArray[Any], valid: NDArray[np.bool_]) -> tuple[Torn, ...]:
        """Decode the tiles of a part, row by row."""
        torn: list[Torn] = []
        tiles = self.grid.touched(window)
        columns = 1 + tiles[-1][1] - tiles[0][1]
        for start in range(0, len(tiles), columns):
            torn += self._decode(tiles[start : start + columns], window, pixels, valid)
        return tuple(torn)

    def _decode(self, tiles: list[tuple[int, int]], window: Window, pixels: NDArray[Any], valid: NDArray[np.bool_]) -> tuple[Torn, ...]:
        """Decode some tiles, and copy what of them lies in `window`."""
        shape = (len(tiles), self.grid.tile_height, self.grid.tile_width)
        slots = np.empty((*shape, pixels.shape[2]), pixels.dtype)
        masks = np.empty(shape, np.bool_) if self.image.has_mask else None
        asked = None if masks is None else list(masks)
        torn = self.decoder.decode(tiles, level=self.cut.level.index, channels=range(pixels.shape[2]), out=list(slots), valid=asked)
        for at, place in enumerate(tiles):
            tile = self.grid.window(*place)
            part = tile.intersect(window)
            assert part is not None, "a tile that the window touches"
            pixels[part.within(window)] = slots[at][part.within(tile)]
            if masks is not None:
                valid[part.within(window)] = masks[at][part.within(tile)]
        return torn


def coarse_look(
    image: Image,
    *,
    microns: float = 8.0,
    max_side: int = 4096,
    mpp: tuple[float, float] | None = None,
    workers: int | None = None,
    patience: float = 300.0,
) -> Coarse:
    """`image` at about `microns` per pixel or, where its pixel size is unknown, at 2048 pixels and more on its longer side.

    The coarsest stored level that is no coarser than wanted is read; where that is still at least twice too fine, or longer than
    `max_side`, it is shrunk by a whole factor per axis, part by part, so that an image without a pyramid needs no more memory.
    Tiles that cannot be decoded are left out, and told: `unknown`, `torn`.

    Args:
        image: what to look at.
        microns: wanted micrometres per pixel.
        max_side: pixels at most on either side; goes before `microns`.
        mpp: (y, x) micrometres per level-0 pixel; None for the image's own.
        workers: threads; None: the cores this process may use.
        patience: seconds without a part read after which the image is given up.

    Raises:
        ReadError: not one tile of the level can be decoded.
        StalledError: the image does not answer.
    """
    reading = _reading(image, microns, max_side, mpp)
    cut, frame = reading.cut, reading.cut.frame()
    look = Coarse(
        pixels=np.zeros((frame.height, frame.width, len(image.channels)), image.dtype),
        mask=np.ones((frame.height, frame.width), np.bool_),
        level=frame,
    )
    rows, columns = reading.part()

    def read(y: int, x: int) -> tuple[Torn, ...]:
        window = Window(y=y, x=x, height=rows, width=columns).intersect(cut.level.window)
        assert window is not None, "a part begins inside the level"
        return reading.read(window, look)

    parts = [partial(read, y, x) for y in range(0, cut.level.height, rows) for x in range(0, cut.level.width, columns)]

    def stalled() -> StalledError:
        return StalledError(
            f"{image.source} has not given a part of level {cut.level.index} for {patience:g} s; look after its disk or network. "
            "--patience says how long to wait"
        )

    answers = patiently(parts, workers=workers or cores(), patience=patience, stalled=stalled)
    torn = {(one.window.y, one.window.x): one for answer in answers for one in answer}
    return _with_torn(image, look, cut, tuple(torn.values())) if torn else look


def look_bytes(image: Image, *, mpp: tuple[float, float] | None, workers: int | None = None) -> int:
    """Bytes that `coarse_look`, any built-in scorer and the thumbnail of `image` hold at most, before a pixel is read.

    Counted are the look, the parts that the threads read at once, and what the scorers make of the look; a scorer of the user's
    own may hold more, and what a library underneath keeps is `Image.cache_bytes`.

    Args:
        image: what will be looked at.
        mpp: as for `coarse_look`.
        workers: likewise.
    """
    reading = _reading(image, 8.0, 4096, mpp)
    frame, channels = reading.cut.frame(), len(image.channels)
    cells = frame.height * frame.width
    # Statistics are taken from a lattice of a million pixels or, of a smaller look, from all: in the image's dtype, sorted, as floats.
    step = max(1, int(math.sqrt(cells / 1_000_000)))
    each = channels * (2 * image.dtype.itemsize + 4) + 8 if channels <= 4 else channels * 2 * max(image.dtype.itemsize, 2) + 16
    sampled = -(-frame.height // step) * -(-frame.width // step) * each
    shown = cells * 4 + min(cells, 1 << 20) * 24
    scoring = max(cells * _SCORED, sampled) + AT_ONCE * (channels * 12 + 24)
    return cells * (reading.pixel_bytes + 1) + max(reading.bytes_at_once(workers or cores()), scoring, shown)


def _reading(image: Image, microns: float, max_side: int, mpp: tuple[float, float] | None) -> _Reading:
    """How the look is read."""
    cut = _cut(image, microns, max_side, mpp)
    decoder = tile_decoder(image, cut.level.index)
    return _Reading(image=image, cut=cut, decoder=decoder, grid=decoder.grid(level=cut.level.index))


def _cut(image: Image, microns: float, max_side: int, mpp: tuple[float, float] | None) -> _Cut:
    """The level to read, and what it is shrunk by."""
    base = image.levels[0]
    size = mpp if mpp is not None else image.mpp
    unknown = max(1.0, 2 * max(base.height, base.width) / max_side)
    wanted_y, wanted_x = (unknown, unknown) if size is None else (max(1.0, microns / size[0]), max(1.0, microns / size[1]))
    least = max(base.height, base.width) / max_side
    level = pick_level(image.levels, max(wanted_y, least), max(wanted_x, least), tolerance=_CLOSE)
    return _Cut(
        level=level,
        by_y=_factor(wanted_y / level.downsample_y, level.height, max_side),
        by_x=_factor(wanted_x / level.downsample_x, level.width, max_side),
    )


def bands(array: NDArray[Any]) -> Iterator[slice]:
    """The rows of `array`, about `AT_ONCE` pixels at a time."""
    rows = max(1, AT_ONCE // array.shape[1])
    return (slice(row, min(row + rows, len(array))) for row in range(0, len(array), rows))


def block_means(pixels: NDArray[Any], mask: NDArray[np.bool_], by_y: int, by_x: int) -> NDArray[np.float64]:
    """(height, width, channel) to (ceil(height / by_y), ceil(width / by_x), channel + 1): means over valid pixels, then the valid share.

    Blocks on the far edges are means of what is there. A channel without a valid, finite pixel is 0. Sums of integers are exact.
    """
    whole = pixels.dtype.kind in "biu"
    known = mask[:, :, None] if whole else mask[:, :, None] & np.isfinite(pixels)
    sums = _block_sums(pixels if whole and mask.all() else np.where(known, pixels, np.zeros((), pixels.dtype)), by_y, by_x)
    counts = _block_sums(known, by_y, by_x)
    rows, columns = (np.minimum(by, size - np.arange(0, size, by)) for by, size in ((by_y, mask.shape[0]), (by_x, mask.shape[1])))
    share = _block_sums(mask[:, :, None], by_y, by_x) / (rows[:, None] * columns)[:, :, None]
    return np.concatenate([sums / np.maximum(counts, 1), share], axis=2)


def _block_sums(values: NDArray[Any], by_y: int, by_x: int) -> NDArray[np.float64]:
    """Sums of blocks, always added in the same order: several times faster than reduceat, which casts in small buffers."""
    dtype = np.float64 if values.dtype.kind == "f" else np.int64
    rows = np.zeros((-(-values.shape[0] // by_y), *values.shape[1:]), dtype)
    for start in range(min(by_y, values.shape[0])):
        part = values[start::by_y]
        rows[: len(part)] += part
    sums = np.zeros((len(rows), -(-values.shape[1] // by_x), values.shape[2]), dtype)
    for start in range(min(by_x, values.shape[1])):
        part = rows[:, start::by_x]
        sums[:, : part.shape[1]] += part
    return sums.astype(np.float64)


def _factor(ratio: float, side: int, max_side: int) -> int:
    """The largest whole factor that is no coarser than wanted, unless `max_side` asks for more."""
    nearest = round(ratio)
    return max(1, nearest if nearest <= ratio * (1 + _CLOSE) else math.floor(ratio), -(-side // max_side))


def _reduce(pixels: NDArray[Any], valid: NDArray[np.bool_], cut: _Cut, means: NDArray[Any], mask: NDArray[np.bool_]) -> None:
    """Block means into their place, in the image's own dtype, a few rows of blocks at a time."""
    rows = _rows_at_once(pixels.shape[1] * pixels.shape[2], cut.by_y)
    for first in range(0, len(means), rows):
        part = slice(first * cut.by_y, (first + rows) * cut.by_y)
        found = block_means(pixels[part], valid[part], cut.by_y, cut.by_x)
        mask[first : first + rows] = found[:, :, -1] > 0
        values = np.rint(found[:, :, :-1]) if pixels.dtype.kind in "biu" else found[:, :, :-1]
        means[first : first + rows] = values.astype(pixels.dtype)


def _rows_at_once(row_values: int, by_y: int) -> int:
    """Rows of blocks that are reduced at once, for rows of so many values."""
    return max(1, 4 * AT_ONCE // (row_values * by_y))


def _with_torn(image: Image, look: Coarse, cut: _Cut, torn: tuple[Torn, ...]) -> Coarse:
    """`look` that says what of it nobody could see."""
    level = cut.level
    if sum(one.window.height * one.window.width for one in torn) >= level.height * level.width:
        raise ReadError(
            f"{image.source}: a run looks at level {level.index} to see where to read, and not one of its {len(torn)} tiles can be decoded "
            f"({torn[0].reason}); fetch or copy the file again"
        )
    unknown = np.zeros(look.mask.shape, np.bool_)
    for one in torn:
        window = one.window
        unknown[window.y // cut.by_y : -(-window.y_end // cut.by_y), window.x // cut.by_x : -(-window.x_end // cut.by_x)] = True
    return replace(look, unknown=unknown, torn=len(torn), reason=torn[0].reason)
