"""The other readers, each as its own documentation says to use it for patches. Imported only when they are used."""

from __future__ import annotations

import asyncio
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import tifffile
from bench_work import Corners, stored_level
from numpy.typing import NDArray

Sink = Callable[[int, NDArray[Any]], None]
"""Takes (which patch, its pixels)."""
Patch = Callable[[int, int, int], NDArray[Any]]
"""(first row, first column, side) to pixels."""
Read = Callable[[Corners, int, Sink], None]
GDAL_CACHE_MB = "64"
"""As much as our own pool. GDAL takes a twentieth of the machine if nobody says otherwise."""


def drop(_: int, __: NDArray[Any]) -> None:
    """The sink of a round that is timed."""


@contextmanager
def _threaded(patch: Patch, threads: int) -> Iterator[Read]:
    """Patches one by one on some threads."""
    with ThreadPoolExecutor(threads) as pool:

        def read(corners: Corners, side: int, sink: Sink) -> None:
            places = corners.tolist()

            def share(first: int) -> None:
                # Every thread takes a run of neighbours, so that its cache serves it.
                for index in range(first, min(first + 8, len(places))):
                    sink(index, patch(*places[index], side))

            list(pool.map(share, range(0, len(places), 8)))

        yield read


@contextmanager
def by_openslide(path: Path, threads: int) -> Iterator[Read]:
    """One handle, which its threads share, as its cache is shared."""
    with openslide.OpenSlide(path) as slide:

        def patch(y: int, x: int, side: int) -> NDArray[Any]:
            return np.asarray(slide.read_region((x, y), 0, (side, side)).convert("RGB"))

        with _threaded(patch, threads) as read:
            yield read


class OpenSlidePatches:
    """A torch dataset as pathology pipelines write it; what it is indexed with is the patch itself."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.slide: openslide.OpenSlide | None = None  # every worker opens its own

    def __len__(self) -> int:
        return 2**31 - 1  # nobody asks: the sampler names patches

    def __getitem__(self, place: tuple[int, int, int]) -> NDArray[Any]:
        if self.slide is None:
            self.slide = openslide.OpenSlide(self.path)
        y, x, side = place
        return np.array(self.slide.read_region((x, y), 0, (side, side)).convert("RGB"))


class _Batches:
    """A batch sampler that can be given other patches each round, while the workers stay."""

    places: list[tuple[int, int, int]]

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        for start in range(0, len(self.places), 32):
            yield self.places[start : start + 32]


@contextmanager
def by_dataloader(path: Path) -> Iterator[Read]:
    """Two worker processes, batches of 32, collated to one tensor."""
    from torch.utils.data import DataLoader  # noqa: PLC0415 - seconds to import

    batches = _Batches()
    loader: Any = DataLoader(
        OpenSlidePatches(path),  # type: ignore[arg-type]
        batch_sampler=batches,
        num_workers=2,
        persistent_workers=True,
        multiprocessing_context="spawn",
    )

    def read(corners: Corners, side: int, sink: Sink) -> None:
        batches.places = [(y, x, side) for y, x in corners.tolist()]
        index = 0
        for batch in loader:
            for pixels in batch.numpy():
                sink(index, pixels)
                index += 1

    yield read


@contextmanager
def by_cucim(path: Path, threads: int) -> Iterator[Read]:
    """One handle for all threads; its cache serves nothing here, whatever its size."""
    from cucim import CuImage  # noqa: PLC0415

    image = CuImage(str(path))

    def patch(y: int, x: int, side: int) -> NDArray[Any]:
        return np.asarray(image.read_region((x, y), (side, side), level=0))

    with _threaded(patch, threads) as read:
        yield read


@contextmanager
def by_pyvips(path: Path, threads: int) -> Iterator[Read]:
    """A region of an image of its own for every thread."""
    import pyvips  # noqa: PLC0415

    pyvips.cache_set_max(0)  # else every thread gets the one image
    own, level = threading.local(), stored_level(path.name)

    def patch(y: int, x: int, side: int) -> NDArray[Any]:
        if not hasattr(own, "region"):
            own.region = pyvips.Region.new(pyvips.Image.tiffload(str(path), page=0, access="random"))
        pixels = own.region.fetch(x, y, side, side)
        return np.frombuffer(pixels, level.dtype).reshape(side, side, level.channels)

    with _threaded(patch, threads) as read:
        yield read


@contextmanager
def by_tiffslide(path: Path) -> Iterator[Read]:
    """One thread: a second gains nothing."""
    from tiffslide import TiffSlide  # noqa: PLC0415

    with TiffSlide(path) as slide:

        def patch(y: int, x: int, side: int) -> NDArray[Any]:
            return np.asarray(slide.read_region((x, y), 0, (side, side), as_array=True))

        with _threaded(patch, 1) as read:
            yield read


@contextmanager
def by_tifffile_zarr(path: Path) -> Iterator[Read]:
    """One thread: a second gains nothing."""
    import zarr  # noqa: PLC0415

    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        assert isinstance(page, tifffile.TiffPage)
        array: Any = zarr.open(page.aszarr(), mode="r")

        def patch(y: int, x: int, side: int) -> NDArray[Any]:
            return np.asarray(array[y : y + side, x : x + side])

        with _threaded(patch, 1) as read:
            yield read


@contextmanager
def by_rasterio(path: Path, threads: int) -> Iterator[Read]:
    """A dataset for every thread, one block cache for all (GDAL_CACHEMAX in the environment). Pixels stay channel first."""
    import rasterio  # noqa: PLC0415
    from rasterio.windows import Window  # noqa: PLC0415

    warnings.filterwarnings("ignore", category=rasterio.errors.NotGeoreferencedWarning)
    own, handles = threading.local(), []

    def patch(y: int, x: int, side: int) -> NDArray[Any]:
        if not hasattr(own, "dataset"):
            own.dataset = rasterio.open(path)
            handles.append(own.dataset)
        return np.moveaxis(own.dataset.read(window=Window(x, y, side, side)), 0, -1)

    with _threaded(patch, threads) as read:
        yield read
    for handle in handles:
        handle.close()


@contextmanager
def by_async_tiff(path: Path) -> Iterator[Read]:
    """The tiles of eight patches at once, decoded by its own pool of two threads, pasted here."""
    from async_tiff import TIFF, ThreadPool  # noqa: PLC0415
    from async_tiff.store import LocalStore  # noqa: PLC0415

    level, pool = stored_level(path.name), ThreadPool(2)
    tile = level.tile
    loop = asyncio.new_event_loop()

    async def opened() -> Any:
        return await TIFF.open(path.name, store=LocalStore(path.parent))

    tiff = loop.run_until_complete(opened())

    async def patch(y: int, x: int, side: int) -> NDArray[Any]:
        out = np.empty((side, side, level.channels), level.dtype)
        needed = level.needed(np.array([[y, x]]), side)
        stored = await tiff.fetch_tiles([(column, row) for row, column in needed], 0)
        decoded = await asyncio.gather(*(one.decode(pool=pool) for one in stored))
        for (row, column), pixels in zip(needed, decoded, strict=True):
            top, left = row * tile, column * tile
            y0, x0, y1, x1 = max(top, y), max(left, x), min(top + tile, y + side), min(left + tile, x + side)
            out[y0 - y : y1 - y, x0 - x : x1 - x] = np.asarray(pixels)[y0 - top : y1 - top, x0 - left : x1 - left]
        return out

    async def every(corners: Corners, side: int, sink: Sink) -> None:
        places = corners.tolist()
        for start in range(0, len(places), 8):
            group = await asyncio.gather(*(patch(y, x, side) for y, x in places[start : start + 8]))
            for index, pixels in enumerate(group):
                sink(start + index, pixels)

    yield lambda corners, side, sink: loop.run_until_complete(every(corners, side, sink))
    loop.close()
