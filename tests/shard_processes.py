"""Several processes on one image, begun at the same instant, for each line `JOB COUNT WHO AFTER FOLDER` that is read.

They are forked from this one, which has imported everything. Each writes `FOLDER/<index>.json`: its report, or what was raised.
Process WHO kills itself after AFTER commits; 0: at the end of its first look, in the door. A line is written when all have ended.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from patchdrive.models.config import PatchDriveNetConfig
from patchdrive.models.identity import Identity
from patchdrive.models.model import patchdrivenet
from patchdrive.models.types import ImageTraits, ModelSpec, OutputSpec
from patchdrive.pipeline.run import run
from patchdrive.pipeline.settings import RunSettings
from patchdrive.pipeline.shard import Shard
from patchdrive.pipeline.store import ResultStore
from patchdrive.pipeline.watcher import Nobody
from patchdrive.readers import MemoryImage
from patchdrive.readers.errors import PatchdriveError


class Means:
    """The mean of each channel."""

    spec = ModelSpec(
        name="means", channels=3, size=16, any_size=True, outputs=(OutputSpec(name="means", kind="vector", channels=("r", "g", "b")),)
    )
    digest = "means"

    def __call__(self, pixels):
        return {"means": pixels.mean(dim=(2, 3))}

    def to(self, _device):
        return self


def job(name):
    """(image, model, settings) of a job: each has some blocks, and takes a second."""
    rng = np.random.default_rng(7)
    pixels = rng.integers(0, 255, (1300, 1350, 3)).astype(np.uint8)
    image = MemoryImage([pixels], tile=256)
    plain = RunSettings(saliency="valid", batch_size=16, workers=1, memory=1 << 30)
    if name == "features":
        return image, Means(), plain
    if name == "maps":
        return image, Identity(ImageTraits()), replace(plain, patch_size=128, overlap=32, memory=200 << 20)
    pixels[:, :, 1] = rng.integers(0, 255, (1300, 1350))
    model = patchdrivenet(PatchDriveNetConfig(driver="recurrent", threshold=0.02, max_patches=64, per_step=32))
    return MemoryImage([pixels], mpp=(0.5, 0.5)), model, replace(plain, saliency=None)


class Dies(Nobody):
    """Ends its process after some commits, as SIGKILL does."""

    def __init__(self, after):
        self._left = after

    def committed(self, rows):
        self._left -= 1
        if not self._left:
            os.kill(os.getpid(), signal.SIGKILL)


def compute(folder: Path, name: str, shard: Shard, after: int | None) -> None:
    torch.set_num_threads(1)
    image, model, settings = job(name)
    if after == 0:
        ResultStore.begin_round = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    try:
        report = run(
            image, model, folder / "s.zarr", settings=replace(settings, shard=shard), watcher=Nobody() if after is None else Dies(after)
        ).to_dict()
    except PatchdriveError as error:
        report = {"error": type(error).__name__, "message": str(error)}
    (folder / f"{shard.index}.json").write_text(json.dumps(report))


def main() -> None:
    for line in sys.stdin:
        name, count, who, after, folder = line.rstrip("\n").split(" ", 4)
        children = []
        for index in range(int(count)):
            child = os.fork()
            if not child:
                compute(Path(folder), name, Shard(index, int(count)), int(after) if index == int(who) else None)
                os._exit(0)
            children.append(child)
        for child in children:
            os.waitpid(child, 0)
        sys.stdout.write("ended\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
