"""How GDAL is asked: its settings, its errors, a fresh handle of a local file."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import rasterio
from rasterio._err import CPLE_BaseError  # rasterio lets GDAL's own errors through in places, and names them nowhere else
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader

from patchdrive.readers.errors import FormatError

GDAL_CACHE_BYTES = 64 << 20
"""What GDAL may keep of decoded blocks, in the whole process."""
GDAL_OPTIONS = {
    "GDAL_CACHEMAX": GDAL_CACHE_BYTES,  # rasterio hands integers over in bytes
    "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": ".patchdrive-reads-no-network",
    "GDAL_NUM_THREADS": "1",  # each of our threads has its handle; and the JPEG2000 driver loses the errors of its own threads
    "GDAL_PNG_WHOLE_IMAGE_OPTIM": "NO",  # loses the error of a file that is cut short, and leaves the array unwritten
}
"""Of every `rasterio.Env` in which a handle is opened or read; an Env is of one thread."""
GDAL_ERRORS = (RasterioError, CPLE_BaseError)
"""What GDAL raises through rasterio."""
_WARNING_FILTERS = threading.Lock()
"""`warnings.catch_warnings` is not safe in threads; handles are opened in any."""


def open_gdal(path: Path | str, overview: int | None = None) -> DatasetReader:
    """A fresh handle of the whole, or of one of its overviews.

    Raises:
        FormatError: GDAL cannot open it.
    """
    options = {} if overview is None else {"overview_level": overview}
    with opening(path), _WARNING_FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return rasterio.open(path, sharing=False, **options)


@contextmanager
def opening(path: Path | str) -> Iterator[None]:
    """What GDAL says while a file is opened and asked for its metadata becomes a FormatError."""
    try:
        yield
    except GDAL_ERRORS as error:
        raise FormatError(f"{path}: GDAL cannot open it: {error}") from error
