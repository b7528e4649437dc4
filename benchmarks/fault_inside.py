"""What is broken inside a process on purpose: a model, or a call that the program makes. It knows nothing of this itself.

Each is asked for by an environment variable of the process that `fault_server` forks: what is not asked for is as it always is, so that
the next run, with the same command, is one in which the fault was mended.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from patchdrive.models.types import ModelSpec, OutputSpec
from patchdrive.pipeline import lease
from patchdrive.readers.tiff import TiffImage

_LONGEST = 60.0
"""Seconds that a gate stays shut if nobody opens it."""


class Means:
    """A PatchModel: the mean of each channel. `FAULT_MODEL` says what happens at the n-th batch of the process, counted from 1.

    `raise:n`, `nan:n`; `memory:n`: out of memory for more than n patches; `gate:n`: say so in the folder `FAULT_GATE`, and wait there.
    """

    spec = ModelSpec(
        name="means", channels=3, size=32, any_size=True, outputs=(OutputSpec(name="means", kind="vector", channels=("r", "g", "b")),)
    )
    digest = "fault-means"

    def __init__(self) -> None:
        kind, _, number = os.environ.get("FAULT_MODEL", "none:0").partition(":")
        self._kind, self._number, self._batches = kind, int(number), 0

    def __call__(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        self._batches += 1
        if self._kind == "memory" and len(pixels) > self._number:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {len(pixels)} patches")
        values = pixels.double().mean(dim=(2, 3)).float()
        if self._batches == self._number and self._kind in _AT_ONE_BATCH:
            values = _AT_ONE_BATCH[self._kind](values)
        return {"means": values}

    def to(self, _device: torch.device) -> Means:
        return self


def _fail(_values: torch.Tensor) -> torch.Tensor:
    raise KeyError("weights of layer 3")


def _through_gate(values: torch.Tensor) -> torch.Tensor:
    gate = Path(os.environ["FAULT_GATE"])
    (gate / "here").touch()
    by = time.monotonic() + _LONGEST
    while not (gate / "go").exists() and time.monotonic() < by:
        time.sleep(0.002)
    return values


_AT_ONE_BATCH: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "raise": _fail,
    "nan": lambda values: values.where(torch.arange(len(values))[:, None] != 1, torch.nan),
    "gate": _through_gate,
}


def break_calls() -> None:
    """Replace the calls that the environment asks for."""
    asked = os.environ
    if "FAULT_HANG" in asked:  # tiles of this level from this row on never come
        level, row = map(int, asked["FAULT_HANG"].split(":"))
        TiffImage.decode = _hanging(TiffImage.decode, level, row)  # type: ignore[method-assign]
    if "FAULT_HOST" in asked:
        lease._boot = lambda: asked["FAULT_HOST"]  # noqa: SLF001
        socket.gethostname = lambda: asked["FAULT_HOST"]
    if "FAULT_PACE" in asked:  # beat and patience, seconds
        for name, value in json.loads(asked["FAULT_PACE"]).items():
            object.__setattr__(lease.PACE, name, value)
    if "FAULT_CLOCK" in asked:
        time.time = _jumping(time.time)


def _hanging(decode: Callable[..., Any], level: int, first: int) -> Callable[..., Any]:
    def wrapped(image: TiffImage, tiles: Any, **named: Any) -> Any:
        if named["level"] == level and any(row >= first for row, _ in tiles):
            threading.Event().wait()
        return decode(image, tiles, **named)

    return wrapped


def _jumping(clock: Callable[[], float]) -> Callable[[], float]:
    """A wall clock that is a year ahead at one look and a year behind at the next."""
    looks = iter(range(10**9))
    return lambda: clock() + (3.15e7 if next(looks) % 2 else -3.15e7)
