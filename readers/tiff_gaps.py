"""Where a level stores nothing: tiles that were left out. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from patchdrive.readers.geometry import Window
from patchdrive.readers.tiff_tiles import TileLayout


def has_gaps(layouts: Sequence[TileLayout]) -> bool:
    """True where any tile of a level was left out."""
    return any(bool((layout.counts[: layout.planes * layout.rows * layout.columns] == 0).any()) for layout in layouts)


def where_stored(layouts: Sequence[TileLayout], window: Window) -> NDArray[np.bool_]:
    """False where a tile of any channel was left out, (height, width), for a `window` inside the level."""
    stored = np.ones((window.height, window.width), np.bool_)
    for layout in layouts:
        rows = np.arange(window.y, window.y_end) // layout.tile_height
        columns = np.arange(window.x, window.x_end) // layout.tile_width
        first = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
        counts = layout.counts[: layout.planes * layout.rows * layout.columns].reshape(layout.planes, layout.rows, layout.columns)
        present = (counts[:, first[0], first[1]] != 0).all(axis=0)
        stored &= present[rows - rows[0]][:, columns - columns[0]]
    return stored
