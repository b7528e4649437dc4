"""The other engines, one a process, in an environment of their own: which is why nothing of patchdrive is imported here.

    .venv/peers-engine/bin/python benchmarks/engine_peers.py dataloader JOB.json

JOB names the slide, the patches (an .npz of y and x, level-0 pixels), the network and where to write. Each engine is used as its
documentation says, with two workers and the same batch size, and leaves on disk what it leaves for its users. The last line printed
is JSON: the seconds from the end of its imports until its results are written. With `keep` the features are handed over afterwards.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from engine_networks import MEAN, STD, network
from numpy.typing import NDArray

SIDE = 256
_WORKERS = 2

Answer = tuple[NDArray[Any], NDArray[Any]]
"""Corners (n, 2) as (x, y) and features (n, D), row for row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What an engine is asked to do."""

    slide: str
    """Path."""
    corners: str
    """Path of an .npz: y, x."""
    network: str
    """Name in `engine_networks`."""
    batch_size: int
    """Patches per batch."""
    out: str
    """Empty folder for its results."""
    keep: bool
    """Also leave `features.npz` for comparison, after the clock has stopped."""

    def places(self) -> NDArray[np.int64]:
        """(n, 2) corners as (x, y), row by row as these engines order them."""
        with np.load(self.corners) as held:
            y, x = held["y"], held["x"]
        rows = np.lexsort((x, y))
        return np.stack([x[rows], y[rows]], axis=1).astype(np.int64)


def _know_torchvision() -> None:
    """Torchvision's wheel has its operators for CUDA only: a torch without CUDA must have heard their names before it is imported."""
    if torch.version.cuda is None:
        library: Any = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _HELD.append(library)


_HELD: list[Any] = []  # a library that is let go forgets its operators


def dataloader() -> tuple[str, Callable[[Job], Answer]]:
    """As TRIDENT and its kin: PIL images from OpenSlide, ToTensor and Normalize in the workers, float32 to the main process, HDF5."""
    import h5py  # noqa: PLC0415 - each engine imports its own
    import openslide  # noqa: PLC0415
    from torch.utils.data import DataLoader, Dataset  # noqa: PLC0415
    from torchvision import transforms  # noqa: PLC0415

    class Patches(Dataset[tuple[torch.Tensor, tuple[int, int]]]):
        """Patches of one slide; every worker opens it anew."""

        def __init__(self, path: str, places: NDArray[np.int64]) -> None:
            self.path, self.places = path, places.tolist()
            self.slide: Any = None
            self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])

        def __len__(self) -> int:
            return len(self.places)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, tuple[int, int]]:
            if self.slide is None:
                self.slide = openslide.OpenSlide(self.path)
            x, y = self.places[index]
            return self.transform(self.slide.read_region((x, y), 0, (SIDE, SIDE)).convert("RGB")), (x, y)

    def work(job: Job) -> Answer:
        net = network(job.network)
        loader: Any = DataLoader(Patches(job.slide, job.places()), batch_size=job.batch_size, num_workers=_WORKERS)
        features, corners = [], []
        with torch.inference_mode():
            for pixels, (x, y) in loader:
                features.append(net(pixels).numpy())
                corners.append(np.stack([x, y], axis=1))
        answer = np.concatenate(corners), np.concatenate(features)
        with h5py.File(Path(job.out) / "features.h5", "w") as file:
            file.create_dataset("coords", data=answer[0])
            file.create_dataset("features", data=answer[1])
        return answer

    return f"torch {version('torch')}, openslide-python {version('openslide-python')}", work


def tiatoolbox() -> tuple[str, Callable[[Job], Answer]]:
    """Its DeepFeatureExtractor over the slide, with a mask that leaves the patches asked for; Zarr."""
    import zarr  # noqa: PLC0415
    from tiatoolbox.models.engine.deep_feature_extractor import DeepFeatureExtractor  # noqa: PLC0415
    from tiatoolbox.models.engine.io_config import IOPatchPredictorConfig  # noqa: PLC0415
    from tiatoolbox.models.models_abc import ModelABC  # noqa: PLC0415
    from tiatoolbox.wsicore.wsireader import WSIReader  # noqa: PLC0415
    from torchvision import transforms  # noqa: PLC0415

    normalise = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])

    class Model(ModelABC):  # type: ignore[misc]
        """A network as its pretrained ones are wrapped: normalised in the workers, channel last until the device has it."""

        def __init__(self, name: str) -> None:
            super().__init__()
            self.network = network(name)

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.network(pixels)
            return found

        @staticmethod
        def preproc(image: NDArray[np.uint8]) -> torch.Tensor:
            normalised: torch.Tensor = normalise(image)
            return normalised.permute(1, 2, 0)

        @staticmethod
        def infer_batch(model: torch.nn.Module, batch_data: torch.Tensor, *, device: str) -> list[NDArray[Any]]:
            pixels = batch_data.to(device, torch.float32).permute(0, 3, 1, 2).contiguous()
            with torch.inference_mode():
                return [model(pixels).cpu().numpy()]

    def work(job: Job) -> Answer:
        width, height = WSIReader.open(job.slide).slide_dimensions(1.0, "baseline")
        mask = np.zeros((-(-int(height) // SIDE), -(-int(width) // SIDE)), np.uint8)  # one pixel per patch of its grid
        columns, rows = (job.places() // SIDE).T
        mask[rows, columns] = 1
        extractor = DeepFeatureExtractor(
            model=Model(job.network), batch_size=job.batch_size, num_workers=_WORKERS, device="cpu", verbose=False
        )
        ioconfig = IOPatchPredictorConfig(
            input_resolutions=[{"units": "baseline", "resolution": 1.0}], patch_input_shape=(SIDE, SIDE), stride_shape=(SIDE, SIDE)
        )
        out = Path(job.out) / "tiatoolbox"
        found = extractor.run(
            [Path(job.slide)], masks=[mask], patch_mode=False, ioconfig=ioconfig, save_dir=out, output_type="zarr", overwrite=True
        )
        held: Any = zarr.open(next(iter(found.values())), mode="r")
        return np.asarray(held["coordinates"])[:, :2], np.asarray(held["features"])

    return f"tiatoolbox {version('tiatoolbox')}", work


def lazyslide() -> tuple[str, Callable[[Job], Answer]]:
    """Its tl.feature_extraction over the tiles asked for; the SpatialData store it writes beside the slide."""
    import lazyslide as zs  # noqa: PLC0415
    from torchvision.transforms import v2  # noqa: PLC0415
    from wsidata import TileSpec  # noqa: PLC0415
    from wsidata.io import add_tiles  # noqa: PLC0415

    # What its own image models ask for (lazyslide_models 0.1.0, base.py), less the resizing.
    transform = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])

    def work(job: Job) -> Answer:
        places = job.places()
        wsi = zs.open_wsi(job.slide, store=str(Path(job.out) / "lazyslide.zarr"))
        add_tiles(wsi, "tiles", places, TileSpec.from_wsidata(wsi, SIDE), np.zeros(len(places), np.int64))
        zs.tl.feature_extraction(
            wsi,
            network(job.network),
            model_name=job.network,
            transform=transform,
            device="cpu",
            batch_size=job.batch_size,
            num_workers=_WORKERS,
            pbar=False,
        )
        wsi.write()
        bounds = wsi.shapes["tiles"].bounds
        return bounds[["minx", "miny"]].to_numpy().astype(np.int64), np.asarray(wsi.tables[f"{job.network}_tiles"].X)

    return f"lazyslide {version('lazyslide')}, wsidata {version('wsidata')}", work


ENGINES = {"dataloader": dataloader, "tiatoolbox": tiatoolbox, "lazyslide": lazyslide}


def main(name: str, job_path: str) -> None:
    _know_torchvision()
    about, work = ENGINES[name]()
    begin = time.perf_counter()
    job = Job(**json.loads(Path(job_path).read_text()))
    corners, features = work(job)
    seconds = time.perf_counter() - begin
    if job.keep:
        np.savez(Path(job.out) / "features.npz", y=corners[:, 1], x=corners[:, 0], features=features)
    print(json.dumps({"about": about, "seconds": seconds, "patches": len(features)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
