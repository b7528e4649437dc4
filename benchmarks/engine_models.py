"""What `patchdrive run` is given here, as module:function: the two networks, and tissue in a band of the slide only.

PYTHONPATH=benchmarks patchdrive run SLIDE -o OUT --model engine_models:tiny --saliency engine_models:tissue_of_an_eighth
"""

from __future__ import annotations

import time
from typing import Any, Self

import numpy as np
import torch
from engine_networks import MEAN, STD, WIDTHS, network
from numpy.typing import NDArray
from torch import Tensor

from patchdrive.models import ModelSpec, OutputSpec
from patchdrive.models.digest import module_digest
from patchdrive.pipeline.tissue import tissue

SIDE = 256
_WIDTH = 1024  # of the vectors that the device of fixed cost gives: what a large encoder leaves per patch


class Encoder:
    """One of the networks as a PatchModel."""

    def __init__(self, name: str) -> None:
        self._network = network(name)
        columns = tuple(f"{name}{index}" for index in range(WIDTHS[name]))
        output = OutputSpec(name="features", kind="vector", channels=columns, dtype="float32")
        self.spec = ModelSpec(name=name, channels=3, size=SIDE, scale=1 / 255, mean=MEAN, std=STD, fill=255.0, outputs=(output,))

    @property
    def digest(self) -> str:
        """As `PatchModel.digest`."""
        return module_digest(self._network, self.spec.to_dict())

    def __call__(self, pixels: Tensor) -> dict[str, Tensor]:
        """[n, 3, S, S] normalised to `features` [n, D]."""
        return {"features": self._network(pixels)}

    def to(self, device: torch.device) -> Self:
        """Move it, in place."""
        self._network.to(device)
        return self


class FixedCost:
    """A device that computes by itself: every batch takes it the same time, in which the processor is free for others.

    Its vectors are the first rows of a patch's first channel: what is stored is not constant, and the processor hardly touches it.
    """

    digest = "fixed-cost-1"

    def __init__(self, seconds: float) -> None:
        output = OutputSpec(name="features", kind="vector", channels=tuple(f"f{i}" for i in range(_WIDTH)), dtype="float16")
        self.spec = ModelSpec(name="fixed", channels=3, size=SIDE, fill=255.0, outputs=(output,))
        self.seconds = seconds
        """That one batch takes; 0 for a device that computes nothing."""
        self.batches = 0
        """Batches computed so far."""

    def __call__(self, pixels: Tensor) -> dict[str, Tensor]:
        """[n, 3, 256, 256] to `features` [n, 1024], `seconds` later."""
        self.batches += 1
        if self.seconds:
            time.sleep(self.seconds)
        return {"features": pixels[:, 0, : _WIDTH // SIDE].flatten(1)}

    def to(self, _: torch.device) -> Self:
        """Nothing to move."""
        return self


def tiny() -> Encoder:
    """The network that reading outruns only just."""
    return Encoder("tiny")


def resnet18() -> Encoder:
    """The network that computing decides."""
    return Encoder("resnet18")


def tissue_of_an_eighth(pixels: NDArray[Any], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The saliency of the command line, in an eighth of the slide's rows."""
    return _band(pixels, mask, 8)


def tissue_of_a_fiftieth(pixels: NDArray[Any], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The same, in a fiftieth of the rows: enough to try whether all of it works."""
    return _band(pixels, mask, 50)


def _band(pixels: NDArray[Any], mask: NDArray[np.bool_], share: int) -> NDArray[np.float32]:
    """Rows around the middle, 1 in `share`; no other place is worth reading."""
    found = tissue(pixels, mask)
    rows = len(found)
    first = (rows - rows // share) // 2
    found[:first] = 0.0
    found[first + rows // share :] = 0.0
    return found
