"""What a model needs to compute: found by letting it compute two small batches, and a line through them."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from patchdrive.models.types import PatchModel
from patchdrive.pipeline.budget import Footprint
from patchdrive.pipeline.infer import compute

_SIZES = (2, 4)
_MARGIN = 1.5
"""Kernels take room for themselves that no tensor shows: rearranged weights, unfolded pixels."""


def probe(model: PatchModel, *, side: int, dtype: np.dtype[Any], device: torch.device) -> Footprint:
    """Let `model`, which is on `device`, compute 2 and then 4 patches of (side, side) pixels as they are stored.

    On the CPU every living tensor is counted, which depends on nothing but the model; on CUDA the allocator is asked.

    Raises:
        TooLargeError: not even these fit.
        ModelError: as `infer`.
    """
    few, more = (_peak(model, np.zeros((size, side, side, model.spec.channels), dtype), device) for size in _SIZES)
    patch = max(0, more - few) // (_SIZES[1] - _SIZES[0])
    return Footprint(fixed=max(0, few - _SIZES[0] * patch), patch=round(patch * _MARGIN))


def _peak(model: PatchModel, pixels: np.ndarray[Any, Any], device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        compute(model, pixels, device)
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device))
    with _Counter() as counter:
        compute(model, pixels, device)
    peak: int = counter.peak
    return peak


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors alive: those that operations are given, and those they make."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here; to be guarded against that would import the compiler, for a second and a half."""
        return False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._bytes: dict[int, int] = {}
        self._watched: list[Any] = []
        self._now = 0
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, made)):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        self.peak = max(self.peak, self._now)
        return made

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        name = storage._cdata  # noqa: SLF001  the storage itself, however many tensors look at it
        if name not in self._bytes:
            self._bytes[name] = storage.nbytes()
            self._now += storage.nbytes()
            weakref.finalize(storage, self._forget, name)

    def _forget(self, name: int) -> None:
        self._now -= self._bytes.pop(name, 0)
