"""Batches to values on the device: one batch shape, and answers checked against the spec before anything is written."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
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
    turn: AbstractContextManager[Any] | None = None,
) -> Generator[Values, None, None]:
    """Run `model` on each batch, holding `turn` meanwhile. On CUDA the next batch is begun before the values of one come back.

    Raises:
        ModelError: an output is missing, has another shape than its spec says, or is not finite.
        TooLargeError: a batch does not fit on the device.
    """
    turn = turn or nullcontext()
    begin = _Cuda(model, device).begin if device.type == "cuda" else _begin_on_host(model, device)
    ahead = 1 if device.type == "cuda" else 0
    begun: deque[tuple[Batch, Callable[[], Given]]] = deque()
    for batch in batches:
        with timings.stage("infer"), turn:
            begun.append(begin(batch))
        if len(begun) > ahead:
            yield _values(*begun.popleft(), model.spec, timings)
    while begun:
        yield _values(*begun.popleft(), model.spec, timings)


@torch.inference_mode()
def compute(model: PatchModel, pixels: NDArray[Any], device: torch.device) -> Given:
    """What `model` gives for stored pixels (n, side, side, channel), on the device.

    Raises:
        TooLargeError: they do not fit there.
    """
    try:
        return answer(model, model.spec.arrange(torch.from_numpy(pixels).to(device)))
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _too_large(len(pixels), device, error) from None  # the traceback holds on to what does not fit
    except RuntimeError as error:
        if "DefaultCPUAllocator" not in str(error):
            raise
        raise _too_large(len(pixels), device, error) from None


def _too_large(count: int, device: torch.device, error: BaseException) -> TooLargeError:
    said = str(error).partition("\n")[0] or "out of memory"
    return TooLargeError(f"{count} patches at once do not fit on {device} ({said}); a smaller --patch-size or model may")


def _begin_on_host(model: PatchModel, device: torch.device) -> Callable[[Batch], tuple[Batch, Callable[[], Given]]]:
    def begin(batch: Batch) -> tuple[Batch, Callable[[], Given]]:
        given = compute(model, batch.pixels, device) if len(batch.rows) else {}
        return batch, lambda: given

    return begin


class _Cuda:
    """Copies up on a stream of its own, from page-locked memory, while the device computes; values come back likewise."""

    def __init__(self, model: PatchModel, device: torch.device) -> None:
        self._model, self._device = model, device
        self._copies: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def begin(self, batch: Batch) -> tuple[Batch, Callable[[], Given]]:
        """Send a batch and its computing off; the feed may write into it again once this returns."""
        kept = batch if batch.valid is None else replace(batch, valid=batch.valid.copy())
        if not len(batch.rows):
            return kept, dict
        with torch.cuda.device(self._device), torch.inference_mode():
            return kept, self._begin(batch.pixels)

    def _begin(self, pixels: NDArray[Any]) -> Callable[[], Given]:
        main = torch.cuda.current_stream(self._device)
        try:
            with torch.cuda.stream(self._copies):
                stored = torch.from_numpy(pixels).to(self._device, non_blocking=True)
                sent = self._copies.record_event()
            main.wait_event(sent)
            stored.record_stream(main)
            given = answer(self._model, self._model.spec.arrange(stored))
            values = {name: _to_host(tensor) for name, tensor in given.items()}
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise _too_large(len(pixels), self._device, error) from None
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
    elif np.may_share_memory(values, batch.pixels):  # a model that hands back its input: the feed writes there again
        values = values.copy()
    if output.kind == "vector" and not np.isfinite(values).all():
        raise ModelError(f"{spec.name}: output {output.name!r} is not finite for some patch of block {batch.block.index}")
    return values
