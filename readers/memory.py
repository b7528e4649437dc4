"""An in-memory pyramid: the slow, obvious reference that every other reader is compared with."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS

from patchdrive.readers.errors import FormatError
from patchdrive.readers.geometry import Level, Window
from patchdrive.readers.pixels import fill_out, mask_of


class MemoryImage:
    """Arrays as an Image. Levels are (height, width, channel), finest first; the first level is never copied."""

    reader = "memory"
    cache_bytes = 0
    codec = "none"
    color_profile: bytes | None = None

    def __init__(
        self,
        levels: Sequence[NDArray[Any]],
        *,
        channels: Sequence[str] | None = None,
        mpp: tuple[float, float] | None = None,
        transform: Affine | None = None,
        crs: CRS | None = None,
        nodata: float | None = None,
        tile: int = 256,
    ) -> None:
        """Wrap `levels`.

        Raises:
            FormatError: a level is not (height, width, channel), or levels disagree in dtype or channels.
        """
        if not levels:
            raise FormatError("an image needs at least one level, got none")
        first = levels[0]
        for array in levels:
            if array.ndim != 3 or 0 in array.shape:
                raise FormatError(f"a level is (height, width, channel) and not empty, got shape {array.shape}")
            if array.dtype != first.dtype or array.shape[2] != first.shape[2]:
                raise FormatError("every level has the dtype and the channels of the first")
        self._arrays = tuple(levels)
        self.levels = tuple(
            Level(
                index=index,
                height=array.shape[0],
                width=array.shape[1],
                downsample_y=first.shape[0] / array.shape[0],
                downsample_x=first.shape[1] / array.shape[1],
                tile_height=min(tile, array.shape[0]),
                tile_width=min(tile, array.shape[1]),
            )
            for index, array in enumerate(levels)
        )
        self.dtype: np.dtype[Any] = first.dtype
        self.channels = tuple(channels) if channels is not None else _default_names(first.shape[2])
        if len(set(self.channels)) != first.shape[2]:
            raise FormatError(f"{first.shape[2]} channels need as many different names, got {self.channels}")
        self.mpp, self.transform, self.crs, self.nodata = mpp, transform, crs, nodata
        self.associated: Mapping[str, NDArray[np.uint8]] = {}
        self.properties: Mapping[str, str] = {}

    @cached_property
    def identity(self) -> str:
        """SHA-256 of the finest level's shape, dtype and bytes."""
        first = np.ascontiguousarray(self._arrays[0])
        digest = hashlib.sha256(f"{first.shape}{first.dtype.str}".encode())
        digest.update(first.data)
        return digest.hexdigest()

    @property
    def source(self) -> str:
        """A name made from the identity: the same pixels have the same name."""
        return f"memory-{self.identity[:12]}"

    @property
    def has_mask(self) -> bool:
        """True with a nodata value or with floats, which may be NaN."""
        return self.nodata is not None or self.dtype.kind == "f"

    def read(
        self,
        window: Window,
        *,
        level: int = 0,
        channels: Sequence[int] | None = None,
        out: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        """See `Image.read`."""
        frame = self.levels[level]
        frame.check(window, self.source)
        pixels = self._arrays[level][window.within(frame.window)]
        return fill_out(pixels if channels is None else pixels[:, :, list(channels)], out)

    def read_mask(self, window: Window, *, level: int = 0) -> NDArray[np.bool_]:
        """See `Image.read_mask`."""
        return mask_of(self.read(window, level=level), self.nodata)

    def close(self) -> None:
        """Nothing to release."""


def _default_names(count: int) -> tuple[str, ...]:
    return ("red", "green", "blue") if count == 3 else tuple(f"channel_{index}" for index in range(count))
