"""Devices: where models compute, shared by all runs of a process."""

from __future__ import annotations

import copy
import itertools
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from patchdrive.models.types import PatchModel
from patchdrive.pipeline.budget import Footprint, show_bytes
from patchdrive.pipeline.probe import probe
from patchdrive.pipeline.turns import Line, Turn
from patchdrive.readers.errors import BudgetError, SettingsError

MOST_CUDA = 128
"""Patches in the largest batch there, where nobody says how many."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Placed:
    """A model on a device."""

    model: PatchModel
    """Ready to compute."""
    device: torch.device
    """There."""
    turn: Turn
    """Taken for every batch."""


class Devices:
    """Some devices by name: a model is put on each, its footprint is probed once, and runs that share a device take turns there,
    a whole batch each: never more than one is being computed on it, and the run that came first goes first.
    """

    def __init__(self, names: str) -> None:
        """`auto` is the first CUDA device where there is one, else the CPU; `cuda:0,1` are two.

        Raises:
            SettingsError: no such device here.
        """
        self.each = pick_devices(names)
        """One per lane; a device named twice has two lanes that take turns."""
        self._lines = {device: Line() for device in self.each}
        self._ranks = itertools.count(1)
        self._rank = 0
        self._probing = threading.Lock()
        self._copies: dict[tuple[str, torch.device], PatchModel] = {}
        self._footprints: dict[tuple[str, int, str], Footprint] = {}

    @property
    def first(self) -> torch.device:
        """Where what is done once is done."""
        return self.each[0]

    def joined(self) -> Devices:
        """The same devices for one more run, which lets those that joined before it go first."""
        one = copy.copy(self)
        one._rank = next(self._ranks)  # noqa: SLF001  one of us
        return one

    def turn(self, device: torch.device) -> Turn:
        """How this run asks for `device`, batch by batch."""
        return Turn(self._lines[device], self._rank)

    def place(self, model: PatchModel) -> Sequence[Placed]:
        """`model` for each lane: itself on the first device, copies on the others."""
        model.to(self.first)
        return [Placed(model=self._on(device, model), device=device, turn=self.turn(device)) for device in self.each]

    def _on(self, device: torch.device, model: PatchModel) -> PatchModel:
        if device == self.first:
            return model
        key = (model.digest, device)
        with self._probing:
            if key not in self._copies:
                self._copies[key] = copy.deepcopy(model)
                self._copies[key].to(device)
            return self._copies[key]

    def footprint(self, model: PatchModel, *, side: int, dtype: np.dtype[Any]) -> Footprint:
        """What `model`, placed here, takes on the first device for patches of (side, side) pixels of `dtype`.

        Raises:
            BudgetError: it does not fit there at all.
        """
        key = (model.digest, side, dtype.name)
        with self._probing:
            if key not in self._footprints:
                with self.turn(self.first).ask():
                    self._footprints[key] = probe(model, side=side, dtype=dtype, device=self.first)
            return self._footprints[key]

    def host(self, footprint: Footprint) -> Footprint:
        """The part of it that lies in host memory: all on the CPU, nothing on CUDA."""
        return footprint if self.first.type == "cpu" else Footprint()

    def most(self, footprint: Footprint, share: float, *, held: int = 0) -> int:
        """The largest batch that suits these devices: a power of two.

        Args:
            footprint: of the model.
            share: of the device's memory, as `RunSettings.device_memory` has it.
            held: bytes that each lane has there besides.

        Raises:
            BudgetError: not even one patch fits there.
        """
        if self.first.type != "cuda":
            return 32
        free = min(torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) for device in self.each)
        room = (int(share * free) if share <= 1 else int(share)) - held * max(map(self.each.count, self.each))
        most = min(MOST_CUDA, footprint.most(room))
        if most < 1:
            raise BudgetError(
                f"the model takes {show_bytes(footprint.of(1))} of device memory for one patch, and --device-memory allows "
                f"{show_bytes(room)}; give it more, or a smaller --patch-size"
            )
        return 1 << (most.bit_length() - 1)


def pick_devices(names: str) -> tuple[torch.device, ...]:
    """The devices called `names`, as `Devices` has them.

    Raises:
        SettingsError: no such device here.
    """
    if names == "auto":
        return (torch.device("cuda:0" if torch.cuda.is_available() else "cpu"),)
    first, *others = names.split(",")
    kind = first.partition(":")[0]
    found = tuple(_device(f"{kind}:{name}" if name.isdigit() else name, names) for name in (first, *others))
    if len({device.type for device in found}) > 1:
        raise SettingsError(f"--device {names}: devices of one kind compute one answer; name only cuda devices, or cpu")
    return found


def _device(name: str, names: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SettingsError(f"--device {names}: {name!r} is not a device; say auto, cpu, cuda, cuda:1 or cuda:0,1") from error
    if device.type == "cuda":
        if (device.index or 0) >= torch.cuda.device_count():
            raise SettingsError(f"--device {names}: this machine shows {torch.cuda.device_count()} CUDA devices; say auto or cpu")
        return torch.device("cuda", device.index or 0)
    return device
