"""Any window of an image at any pixel size, read in bounded memory; and images that stay open for a while."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchdrive.pipeline.reads import ReadFrame
from patchdrive.pipeline.resample import resample, taps
from patchdrive.readers import Image, Window, open_image

_BAND = 1 << 22
"""Level pixels that are read at once: what a piece is made of may be many times as large as the piece."""


def read_window(
    image: Image, frame: ReadFrame, window: Window, channels: Sequence[int], fill: float
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """What an image holds of a window of the target grid, and where that is valid.

    Args:
        image: read level by level, a band at a time.
        frame: how the target grid lies on the level.
        window: target pixels; may overhang.
        channels: of the image, in the order wanted.
        fill: for pixels that are invalid or outside.

    Returns:
        (height, width, channel) of the image's dtype where target pixels are level pixels or taken from one, else float32; (height, width).

    Raises:
        ReadError: it cannot be decoded.
    """
    shape = (window.height, window.width, len(channels))
    pixels, valid = np.full(shape, fill, frame.made(image.dtype)), np.zeros(shape[:2], np.bool_)
    rows = max(1, int(_BAND / max(1.0, window.width * frame.step_x) / frame.step_y))
    for first in range(0, window.height, rows):
        band = Window(y=window.y + first, x=window.x, height=min(rows, window.height - first), width=window.width)
        part = slice(first, first + band.height)
        _read_band(image, frame, band, channels, (pixels[part], valid[part]))
    pixels[~valid] = fill
    return pixels, valid


def _read_band(image: Image, frame: ReadFrame, band: Window, channels: Sequence[int], out: tuple[NDArray[Any], NDArray[np.bool_]]) -> None:
    """Fill `out`, pixels and which of them are valid, with a band that is small enough to be read at once."""
    pixels, valid = out
    level = frame.level
    if frame.exact:
        held = band.intersect(level.window)
        if held is not None:
            there = held.within(band)
            pixels[there] = image.read(held, level=level.index, channels=channels)
            valid[there] = image.read_mask(held, level=level.index) if image.has_mask else True
        return
    down = taps(band.y * frame.step_y, frame.step_y, band.height, frame.resampling)
    across = taps(band.x * frame.step_x, frame.step_x, band.width, frame.resampling)
    touched = Window(y=down.first, x=across.first, height=down.extent, width=across.extent).intersect(level.window)
    if touched is None:
        return
    found = image.read(touched, level=level.index, channels=channels)
    known = image.read_mask(touched, level=level.index) if image.has_mask else np.ones(found.shape[:2], np.bool_)
    pixels[...], valid[...] = resample(found, known, down.cut(touched.y, touched.y_end), across.cut(touched.x, touched.x_end), fill=0.0)


class Shelf:
    """Images that are open: borrowed one by one, a few of them kept for the next who asks."""

    def __init__(self, open_one: Callable[[Path], Image] = open_image, *, most: int = 16) -> None:
        """
        Args:
            open_one: opens an image.
            most: images kept open that nobody uses.
        """
        self._open, self._most = open_one, most
        self._idle: deque[tuple[Path, Image]] = deque()
        self._lock = threading.Lock()

    @contextmanager
    def borrow(self, path: Path) -> Iterator[Image]:
        """An image that is nobody else's while the body lasts."""
        image = self._taken(path) or self._open(path)
        try:
            yield image
        finally:
            with self._lock:
                self._idle.append((path, image))
                spare = self._idle.popleft()[1] if len(self._idle) > self._most else None
            if spare is not None:
                spare.close()

    def _taken(self, path: Path) -> Image | None:
        with self._lock:
            for place, (name, image) in enumerate(self._idle):
                if name == path:
                    del self._idle[place]
                    return image
        return None

    def close(self) -> None:
        """Close them all."""
        while self._idle:
            self._idle.popleft()[1].close()
