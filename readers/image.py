"""Image: what every reader promises. The whole contract is here, in words; `tests/contract.py` is the same in code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS

from patchdrive.readers.geometry import Level, Window


@runtime_checkable
class Image(Protocol):
    """A pyramid of pixels that is too large to open, read window by window.

    `read` gives the stored values: never resampled, padded or rescaled. Every method may be called from any thread.
    An Image pickles as its source and reopens lazily where it is unpickled.
    """

    @property
    def source(self) -> str:
        """Path or URL it was opened from."""
        ...

    @property
    def reader(self) -> str:
        """Name of the reader: memory, tiff, slide, raster, multiscale."""
        ...

    @property
    def identity(self) -> str:
        """Hex digest of what is stored (size, head, tail, tile index); moving or renaming the source keeps it."""
        ...

    @property
    def codec(self) -> str:
        """How level 0 is compressed, in the format's own word; "none" for raw, "unknown" where the library hides it."""
        ...

    @property
    def levels(self) -> tuple[Level, ...]:
        """Finest first; `levels[i].index == i`; downsamples are exact ratios and never decrease."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of every pixel `read` returns, in native byte order."""
        ...

    @property
    def channels(self) -> tuple[str, ...]:
        """Channel names, unique, in stored order."""
        ...

    @property
    def transform(self) -> Affine | None:
        """Level-0 pixel (column, row; edges) to world, for scenes; None for slides."""
        ...

    @property
    def crs(self) -> CRS | None:
        """World frame of `transform`; None where it is unknown."""
        ...

    @property
    def mpp(self) -> tuple[float, float] | None:
        """Micrometres per level-0 pixel, (y, x); known only for microscopy, and only where it is believable."""
        ...

    @property
    def nodata(self) -> float | None:
        """Stored value that means invalid; may be NaN."""
        ...

    @property
    def has_mask(self) -> bool:
        """False when `read_mask` is True everywhere by construction, so that nobody need ask it."""
        ...

    @property
    def cache_bytes(self) -> int:
        """What the library underneath may keep of decoded pixels by itself: charged to the budget of a run."""
        ...

    @property
    def color_profile(self) -> bytes | None:
        """ICC profile of the pixels as stored; None where the source has none. It is never applied."""
        ...

    @property
    def associated(self) -> Mapping[str, NDArray[np.uint8]]:
        """Label, macro, thumbnail as (y, x, 3) uint8. May show a patient's name: never copied into results."""
        ...

    @property
    def properties(self) -> Mapping[str, str]:
        """What else the file says of itself, in its own words."""
        ...

    def read(
        self,
        window: Window,
        *,
        level: int = 0,
        channels: Sequence[int] | None = None,
        out: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        """The pixels of `window` as (height, width, channel), exactly as stored.

        Args:
            window: pixels of `level`, wholly inside it.
            level: index into `levels`.
            channels: indices into `channels`, in the order wanted; None for all.
            out: array of the result's shape and dtype to fill and return.

        Raises:
            WindowError: the window overhangs the level.
            ReadError: a tile cannot be decoded.
        """
        ...

    def read_mask(self, window: Window, *, level: int = 0) -> NDArray[np.bool_]:
        """True where the pixel is valid, (height, width): by stored mask, alpha, nodata and NaN, in that order.

        Raises:
            WindowError: the window overhangs the level.
            ReadError: a tile cannot be decoded.
        """
        ...

    def close(self) -> None:
        """Release files. Reading afterwards is an error of the caller."""
        ...
