"""Batches to values on the device: one batch shape, and answers checked against the spec before anything is written."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchdrive.models.answer import answer
from patchdrive.models.types import ModelSpec, OutputSpec, PatchModel
from patchdrive.pipeline.batches import Batch
from patchdrive.pipeline.timings import Timings
from patchdrive.readers.errors import BudgetError, ModelError

Given = Mapping[str, Tensor]
"""What a model gave for a batch: a tensor per output, places that hold no patch included."""


Begun = tuple[Batch, Callable[[], Given]]
"""A batch, and how to wait for what the model gives for it."""


class TooLargeError(BudgetError):
    """A batch does not fit on the device; a smaller one may."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Values:
    """What a model gave for one batch."""

    batch: Batch
    """Without its pixels' meaning: rows, validity, block."""
    outputs: Mapping[str, NDArray[Any]]
    """Per output, (n, channel) or (n, channel, side/stride, side/stride), float32."""


def infer(
    model: PatchModel,
    batches: Iterator[Batch],
    device: torch.device,
    timings: Timings,
    turn: Lock | None = None,
) -> Generator[Values, None, None]:
    """Run `model` on each batch, holding `turn` meanwhile. On CUDA the next batch is begun before the values of one come back.

    Raises:
        ModelError: an output is missing, has another shape than its spec says, or is not finite.
        TooLargeError: a batch does not fit on the device.
    """
    turn = turn or Lock()
    begin = (_Cuda if device.type == "cuda" else _Host)(model, device).begin
    ahead = 1 if device.type == "cuda" else 0
    begun: deque[Begun] = deque()
    for batch in batches:
        with timings.waiting("infer_for_turn"):
            turn.acquire()
        try:
            with timings.stage("infer"):
                begun.append(begin(batch))
        finally:
            turn.release()
        if len(begun) > ahead:
            yield _values(*begun.popleft(), model.spec, timings)
    while begun:
        yield _values(*begun.popleft(), model.spec, timings)


@torch.inference_mode()
def compute(model: PatchModel, pixels: NDArray[Any], device: torch.device, *, into: Tensor | None = None) -> Given:
    """What `model` gives for stored pixels (n, side, side, channel), on the device.

    Args:
        model: which is there.
        pixels: of a batch.
        device: where.
        into: a tensor there that receives what the model eats, (n, channel, side, side) float32; made where there is none.

    Raises:
        TooLargeError: they do not fit there.
    """
    try:
        return answer(model, model.spec.arrange(torch.from_numpy(pixels).to(device), into=into), in_place=True)
    except (torch.OutOfMemoryError, MemoryError) as error:
        said = str(error)
    except RuntimeError as error:
        if "DefaultCPUAllocator" not in str(error):
            raise
        said = str(error)
    raise _too_large(len(pixels), device, said)  # out here: the error's frames would hold on to what does not fit


def _too_large(count: int, device: torch.device, said: str) -> TooLargeError:
    why = said.partition("\n")[0] or "out of memory"
    return TooLargeError(f"{count} patches at once do not fit on {device} ({why}); a smaller --patch-size or model may")


class _Host:
    """Computes at once. What the model eats is written into one tensor again and again; what it hands back of it is copied."""

    def __init__(self, model: PatchModel, device: torch.device) -> None:
        self._model, self._device = model, device
        self._eaten: Tensor | None = None

    def begin(self, batch: Batch) -> Begun:
        """Compute a batch."""
        if not len(batch.rows):
            return batch, dict
        if self._eaten is None:
            count, side, _, channels = batch.pixels.shape
            self._eaten = torch.empty((count, channels, side, side), dtype=torch.float32, device=self._device)
        given = compute(self._model, batch.pixels, self._device, into=self._eaten)
        eaten = self._eaten.untyped_storage().data_ptr()
        kept = {name: tensor.clone() if tensor.untyped_storage().data_ptr() == eaten else tensor for name, tensor in given.items()}
        return batch, lambda: kept


class _Cuda:
    """Copies up on a stream of its own, from page-locked memory, while the device computes; values come back likewise."""

    def __init__(self, model: PatchModel, device: torch.device) -> None:
        self._model, self._device = model, device
        self._copies: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def begin(self, batch: Batch) -> Begun:
        """Send a batch and its computing off; the feed may write into it again once this returns."""
        kept = batch if batch.valid is None else replace(batch, valid=batch.valid.copy())
        if not len(batch.rows):
            return kept, dict
        with torch.cuda.device(self._device), torch.inference_mode():
            return kept, self._begin(batch.pixels)

    def _begin(self, pixels: NDArray[Any]) -> Callable[[], Given]:
        try:
            return self._send(pixels)
        except torch.OutOfMemoryError as error:
            said = str(error)
        torch.cuda.empty_cache()
        raise _too_large(len(pixels), self._device, said)

    def _send(self, pixels: NDArray[Any]) -> Callable[[], Given]:
        main = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._copies):
            stored = torch.from_numpy(pixels).to(self._device, non_blocking=True)
            sent = self._copies.record_event()
        main.wait_event(sent)
        stored.record_stream(main)
        given = answer(self._model, self._model.spec.arrange(stored), in_place=True)
        values = {name: _to_host(tensor) for name, tensor in given.items()}
        done = main.record_event()
        sent.synchronize()

        def wait() -> Given:
            done.synchronize()
            return values

        return wait


def _to_host(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=torch.float32, pin_memory=True).copy_(tensor, non_blocking=True)


def _values(batch: Batch, wait: Callable[[], Given], spec: ModelSpec, timings: Timings) -> Values:
    if not len(batch.rows):
        return Values(batch=batch, outputs={})
    with timings.stage("infer"):
        given = wait()
    missing = [output.name for output in spec.outputs if output.name not in given]
    if missing:
        raise ModelError(f"{spec.name} gave {sorted(given)} but its spec promises {missing} too")
    return Values(batch=batch, outputs={output.name: _checked(given[output.name], output, batch, spec) for output in spec.outputs})


def _checked(tensor: Tensor, output: OutputSpec, batch: Batch, spec: ModelSpec) -> NDArray[Any]:
    size, side = batch.pixels.shape[:2]
    cells = () if output.kind == "vector" else (side // output.stride, side // output.stride)
    wanted = (size, len(output.channels), *cells)
    if tuple(tensor.shape) != wanted:
        raise ModelError(f"{spec.name}: output {output.name!r} has shape {tuple(tensor.shape)}, its spec says {wanted}")
    values: NDArray[Any] = tensor.to("cpu", torch.float32).numpy()
    if len(batch.rows) < size:
        values = values[batch.places]
    if output.kind == "vector" and not np.isfinite(values).all():
        raise ModelError(f"{spec.name}: output {output.name!r} is not finite for some patch of block {batch.block.index}")
    return values
