"""Reading every 256-px patch of a slide: patchdrive's feed, OpenSlide on as many threads, and the limit of the decoder, in one run.

    make bench NAME=reading

The limit is pure decoding of each needed tile once, from memory, into a reused buffer, on the same number of threads. Rounds are
interleaved; ratios are medians of the rounds' own ratios, so that a machine whose speed drifts does not matter.
"""

from __future__ import annotations

import json
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openslide
import simplejpeg
import tifffile

from patchdrive.pipeline.budget import cores
from patchdrive.pipeline.feed import FeedSettings, feed
from patchdrive.pipeline.plan import Plan, feature_blocks, ordered, target_grid
from patchdrive.pipeline.reads import read_frame
from patchdrive.pipeline.synthetic import write_slide
from patchdrive.pipeline.timings import Timings
from patchdrive.readers import Image, open_image

SIDE, PATCH, ROUNDS = 6144, 256, 7


def plan_of(image: Image, *, offset: int, stride: int) -> Plan:
    grid = target_grid(image.levels[0], 1.0, 1.0)
    corners = np.arange(offset, SIDE - PATCH + 1, stride)
    y, x = np.meshgrid(corners, corners, indexing="ij")
    return ordered(y.ravel(), x.ravel(), np.ones(y.size, np.float32), PATCH, grid)


def by_feed(image: Image, plan: Plan, threads: int) -> None:
    frame = read_frame(image.levels, plan.grid, plan.side, "area")
    settings = FeedSettings(frame=frame, channels=(0, 1, 2), fill=255.0, batch_size=32, pool_bytes=64 * 2**20, workers=threads)
    for _ in feed(image, plan, feature_blocks(plan), settings, Timings()):
        pass


def by_openslide(path: Path, plan: Plan, threads: int) -> None:
    slide = openslide.OpenSlide(path)

    def read(corner: tuple[int, int]) -> None:
        np.asarray(slide.read_region((corner[1], corner[0]), 0, (PATCH, PATCH)).convert("RGB"))

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, zip(plan.y.tolist(), plan.x.tolist(), strict=True)))
    slide.close()


def tiles_of(path: Path, plan: Plan) -> list[bytes]:
    """The needed tiles as whole JPEG streams."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        across = -(-page.imagewidth // page.tilewidth)
        needed = {
            row * across + column
            for y, x in zip(plan.y.tolist(), plan.x.tolist(), strict=True)
            for row in range(y // page.tilelength, -(-(y + PATCH) // page.tilelength))
            for column in range(x // page.tilewidth, -(-(x + PATCH) // page.tilewidth))
        }
        tables = page.jpegtables or b""
        streams = []
        for index in sorted(needed):
            tiff.filehandle.seek(page.dataoffsets[index])
            stream = tiff.filehandle.read(page.databytecounts[index])
            streams.append(tables[:-2] + stream[2:] if tables else stream)
        return streams


def by_decoder(streams: list[bytes], threads: int) -> None:
    buffers = threading.local()

    def decode(stream: bytes) -> None:
        if not hasattr(buffers, "held"):
            buffers.held = np.empty((PATCH, PATCH, 3), np.uint8)
        simplejpeg.decode_jpeg(stream, "RGB", buffer=buffers.held)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(decode, streams, chunksize=16))


def timed(work: Callable[[], None]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def main() -> None:
    threads = cores()
    machine = f"{platform.machine()}, {threads} cores, Python {platform.python_version()}"
    results = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slide.tif"
        write_slide(path, side=SIDE, seed=3, targets=4, lookalikes=4)
        image = open_image(path)
        print(f"{machine}; {SIDE} px synthetic slide, 256-px JPEG tiles, {PATCH}-px patches, {ROUNDS} interleaved rounds")
        for name, offset, stride in (("aligned", 0, 256), ("unaligned", 77, 256), ("half overlap", 0, 128)):
            plan = plan_of(image, offset=offset, stride=stride)
            streams = tiles_of(path, plan)
            ways: dict[str, Callable[[], None]] = {
                "limit": lambda streams=streams: by_decoder(streams, threads),
                "feed": lambda plan=plan: by_feed(image, plan, threads),
                "openslide": lambda plan=plan: by_openslide(path, plan, threads),
            }
            for work in ways.values():
                work()
            rounds = [{way: timed(work) for way, work in ways.items()} for _ in range(ROUNDS)]
            share = statistics.median(one["limit"] / one["feed"] for one in rounds)
            times = statistics.median(one["openslide"] / one["feed"] for one in rounds)
            results.append({"work": name, "patches": len(plan), "share_of_limit": share, "times_openslide": times, "rounds": rounds})
            print(f"  {name:13} {len(plan):6} patches: {share:.2f} of the decoder's limit, {times:.1f} x OpenSlide on {threads} threads")
    out = Path(__file__).parent / "results" / "reading.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps({"machine": machine, "results": results}, indent=1))


if __name__ == "__main__":
    main()
