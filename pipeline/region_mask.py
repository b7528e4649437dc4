"""A mask of regions: an image of any size that covers the whole image, or lies on it by its CRS; what is not zero is worth looking at."""

from __future__ import annotations

import hashlib
import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.vrt import WarpedVRT

from patchdrive.readers import Image, Level
from patchdrive.readers.errors import SettingsError

_UNEQUAL = 0.02
"""Relative difference of aspect up to which a mask is taken to cover the image: sizes are rounded."""

_ANY = "EPSG:3857"
"""Stands for level-0 pixels, the same on both sides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionMask:
    """A raster file whose first band says where to look."""

    path: Path
    """Of the file."""

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the file."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def over(self, image: Image, level: Level) -> NDArray[np.bool_]:
        """(height, width) True for every pixel of `level`, any frame of the image, in which a pixel of the mask is not zero.

        Raises:
            SettingsError: it cannot be read, has another shape than the image, or marks nothing on it.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NotGeoreferencedWarning)
                with rasterio.open(self.path) as mask:
                    inside = self._brought(mask, image, level)
        except RasterioError as error:
            raise SettingsError(f"--regions {self.path} cannot be read as an image ({error})") from error
        if not inside.any():
            raise SettingsError(f"--regions {self.path}: none of it lies on {image.source}; what is not zero is taken")
        return inside

    def _brought(self, mask: rasterio.DatasetReader, image: Image, level: Level) -> NDArray[np.bool_]:
        to_base = Affine.scale(level.downsample_x, level.downsample_y)
        if mask.crs is not None and image.crs is not None and image.transform is not None:
            theirs, ours = (mask.crs, mask.transform), (image.crs.to_wkt(), image.transform @ to_base)
        else:
            base = image.levels[0]
            self._require_shape(mask, image)
            theirs, ours = (_ANY, Affine.scale(base.width / mask.width, base.height / mask.height)), (_ANY, to_base)
        with WarpedVRT(
            mask,
            src_crs=theirs[0],
            src_transform=theirs[1],
            crs=ours[0],
            transform=ours[1],
            height=level.height,
            width=level.width,
            resampling=Resampling.max,
        ) as brought:
            held = np.nan_to_num(brought.read(1, masked=True).filled(0))
            return np.asarray(held != 0)

    def _require_shape(self, mask: rasterio.DatasetReader, image: Image) -> None:
        base = image.levels[0]
        aspect = (mask.height / mask.width) / (base.height / base.width)
        if abs(math.log(aspect)) > max(_UNEQUAL, 1.5 / min(mask.height, mask.width)):
            raise SettingsError(
                f"--regions {self.path} is {mask.height} x {mask.width} pixels (height x width), {image.source} is {base.height} x "
                f"{base.width}: a mask covers the whole image, at any size of its shape"
            )
