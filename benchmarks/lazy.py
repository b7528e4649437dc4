"""A level of a million chunks as a Dask array: how long it takes to build, how large it travels, what it costs in memory.

    make bench NAME=lazy

The image is a BigTIFF of a million tiles of 1024 pixels, a terapixel, of which a few are stored and the rest left out.
"""

from __future__ import annotations

import json
import pickle
import platform
import resource
import statistics
import struct
import tempfile
import time
from pathlib import Path

import dask
import numpy as np
from distributed import Client, LocalCluster

from patchdrive.readers import Window, lazy, open_image

SIDE, TILE, STORED = 1000, 1024, 32
ROUNDS = 7


def write_vast_tiff(path: Path) -> None:
    """SIDE x SIDE tiles of TILE x TILE RGB, uncompressed; the first STORED x STORED share one stored tile, the others have no bytes."""
    pixels = np.random.default_rng(0).integers(0, 256, (TILE, TILE, 3), np.uint8)
    count = SIDE * SIDE
    here = 16 + 8 + 12 * 20 + 8 + 8
    counts_at, offsets_at = here, here + 8 * count
    tile_at = offsets_at + 8 * count
    stored = np.zeros((SIDE, SIDE), "<u8")
    stored[:STORED, :STORED] = 1
    entries = [
        (256, 4, 1, SIDE * TILE),
        (257, 4, 1, SIDE * TILE),
        (258, 3, 3, struct.unpack("<Q", struct.pack("<4H", 8, 8, 8, 0))[0]),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (277, 3, 1, 3),
        (284, 3, 1, 1),
        (322, 4, 1, TILE),
        (323, 4, 1, TILE),
        (324, 16, count, offsets_at),
        (325, 16, count, counts_at),
        (339, 3, 3, struct.unpack("<Q", struct.pack("<4H", 1, 1, 1, 0))[0]),
    ]
    head = struct.pack("<2sHHHQQ", b"II", 43, 8, 0, 16, len(entries)) + b"".join(struct.pack("<HHQQ", *entry) for entry in entries)
    with path.open("wb") as file:
        file.write((head + struct.pack("<Q", 0)).ljust(here, b"\0"))
        file.write((stored * pixels.nbytes).tobytes())
        file.write((stored * tile_at).tobytes())
        file.write(pixels.tobytes())


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vast.tif"
        write_vast_tiff(path)
        image = open_image(path)
        lazy(image, tiles=1)  # the first one opens the file
        before, seconds = peak_mib(), []
        for _ in range(ROUNDS):
            begin = time.perf_counter()
            array = lazy(image, tiles=1)
            seconds.append(time.perf_counter() - begin)
        facts = {
            "machine": f"{platform.machine()}, Python {platform.python_version()}, dask {dask.__version__}",
            "shape": array.shape,
            "chunks": array.npartitions,
            "build_seconds": statistics.median(seconds),
            "pickle_bytes": len(pickle.dumps(array)),
            "extra_peak_mib": peak_mib() - before,
            "token_is_stable": array.name == lazy(open_image(path), tiles=1).name,
        }
        part = array[: 40 * TILE, : 25 * TILE]
        window = Window(y=TILE - 5, x=TILE - 7, height=9, width=11)
        corner = (slice(window.y, window.y_end), slice(window.x, window.x_end))
        wanted = int(image.read(Window(y=0, x=0, height=TILE, width=TILE)).astype(np.int64).sum()) * 25 * STORED
        with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster, Client(cluster) as client:
            begin = time.perf_counter()
            total = int(client.compute(part.sum(dtype=np.int64)).result())
            facts["distributed_chunks"], facts["distributed_seconds"] = part.npartitions, time.perf_counter() - begin
            facts["distributed_right"] = total == wanted and np.array_equal(client.compute(array[corner]).result(), image.read(window))
        for scheduler in ("synchronous", "threads", "processes"):
            begin = time.perf_counter()
            facts[f"{scheduler}_right"] = int(part.sum(dtype=np.int64).compute(scheduler=scheduler, num_workers=2)) == wanted
            facts[f"{scheduler}_seconds"] = time.perf_counter() - begin
    for key, value in facts.items():
        print(f"  {key:20} {value}")
    out = Path(__file__).parent / "results" / "lazy.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
