"""Levels whose stored sizes are padded to whole tiles: what they truly hold. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from patchdrive.readers.errors import FormatError
from patchdrive.readers.tiff_tiles import TileLayout

Size = tuple[int, int]
_COARSEST = 30
_STEP = 1.5
"""A level shrinks by at least this; two of them may be padded to the same size."""


def whole_tiles(stored: Size, tile: Size) -> bool:
    """True where both axes of a stored level are whole tiles."""
    return all(side > 0 and size % side == 0 for size, side in zip(stored, tile, strict=True))


def unpadded(stored: Size, base: Size, tile: Size, finer: float) -> tuple[int, Size] | None:
    """(factor, true size) of a padded level: the least power of two that is coarser than the level before and explains its size.

    Args:
        stored: (height, width) as its directory says them.
        base: (height, width) of the finest level.
        tile: (height, width) of its tiles.
        finer: factor of the level before, 1 for the finest.

    Returns:
        None where no power of two does.
    """
    if min(tile) <= 0:
        return None
    for exponent in range(1, _COARSEST):
        factor = 2**exponent
        if factor < finer * _STEP:
            continue
        sides = [_true_side(*axis, factor) for axis in zip(stored, base, tile, strict=True)]
        if sides[0] is not None and sides[1] is not None:
            return factor, (sides[0], sides[1])
    return None


def crop(layout: TileLayout, size: Size) -> TileLayout:
    """The same tiles, holding an image of `size` pixels.

    Raises:
        FormatError: such an image would have another number of tiles.
    """
    cut = replace(layout, height=size[0], width=size[1])
    if (cut.rows, cut.columns) != (layout.rows, layout.columns):
        raise FormatError(
            f"a level stored as {layout.rows} x {layout.columns} tiles truly has {size[0]} x {size[1]} pixels, which are "
            f'{cut.rows} x {cut.columns} tiles: its pixel spacing or its size is wrong; try reader "slide"'
        )
    return cut


def crop_all(layouts: Sequence[TileLayout], size: Size) -> tuple[TileLayout, ...]:
    """`crop` for the directories of one level."""
    return tuple(crop(layout, size) for layout in layouts)


def _true_side(stored: int, base: int, tile: int, factor: int) -> int | None:
    """The side that `base` shrinks to where padding makes `stored` of it; rounded down where that explains it, for the rest is no pixel."""
    for side in (base // factor, -(-base // factor)):
        if side > 0 and -(-side // tile) * tile == stored:
            return side
    return None
