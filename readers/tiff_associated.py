"""Label, macro and thumbnail of a TIFF slide, decoded when asked for and kept by nobody."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from patchdrive.readers.errors import FormatError, ReadError
from patchdrive.readers.geometry import Window
from patchdrive.readers.tiff_index import Directory
from patchdrive.readers.tiff_philips import Base64Jpeg
from patchdrive.readers.tiff_tiles import MAX_TILE_BYTES, tile_layout
from patchdrive.readers.tiff_window import StoredPlane, read_plane


class AssociatedImages(Mapping[str, NDArray[np.uint8]]):
    """Name to (y, x, 3) uint8."""

    def __init__(self, source: str, data: memoryview, places: Mapping[str, Directory | Base64Jpeg]) -> None:
        """Remember where they lie.

        Args:
            source: file, for messages.
            data: the whole file.
            places: name to the directory that holds it, or to the JPEG it is.
        """
        self._source, self._data, self._places = source, data, places

    def __getitem__(self, name: str) -> NDArray[np.uint8]:
        """Decode one.

        Raises:
            KeyError: there is none of this name.
            ReadError: it is damaged, or stored in a way that is not read.
        """
        place = self._places[name]
        where = f"{self._source}, associated image {name!r}"
        return _decode_jpeg(place, where) if isinstance(place, Base64Jpeg) else self._decode(place, where)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def _decode(self, directory: Directory, where: str) -> NDArray[np.uint8]:
        try:
            layout = tile_layout(directory)
        except FormatError as error:
            raise ReadError(f"{where}: {error}") from error
        size = layout.height * layout.width * layout.samples
        if layout.planes != 1 or layout.coding.dtype != np.uint8 or layout.samples not in {1, 3, 4} or size > MAX_TILE_BYTES:
            raise ReadError(
                f"{where}: {layout.height} x {layout.width} pixels of {layout.samples} {layout.coding.dtype} samples "
                "are no small 8-bit picture; the slide itself can be read"
            )
        pixels = np.empty((layout.height, layout.width, layout.samples), np.uint8)
        wanted = tuple((sample, sample) for sample in range(layout.samples))
        stored = StoredPlane(data=self._data, layout=layout, plane=0, fill=0, name=where, wanted=wanted)
        everything = Window(y=0, x=0, height=layout.height, width=layout.width)
        read_plane(stored, everything, pixels)
        return np.repeat(pixels, 3, axis=2) if layout.samples == 1 else np.ascontiguousarray(pixels[:, :, :3])


def _decode_jpeg(place: Base64Jpeg, where: str) -> NDArray[np.uint8]:
    try:
        data = base64.b64decode(place.text)
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        if height * width * 3 > MAX_TILE_BYTES:
            raise ReadError(f"{where}: a JPEG of {height} x {width} pixels is no small picture; the slide itself can be read")
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB")
    except ValueError as error:  # of base64, and what simplejpeg raises on bytes it cannot read
        raise ReadError(f"{where}: it cannot be decoded: {error}") from error
    return pixels
