"""Batches to values on the device: one batch shape, and answers checked against the spec before anything is written."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
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
from patchdrive.pipeline.turns import Ticket, Turn
from patchdrive.pipeline.uncut import Uncut
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
    turn: Turn | None = None,
) -> Generator[Values, None, None]:
    """Run `model` on each batch, taking a `turn` for it. The next batch is begun before the values of one come back.

    Raises:
        ModelError: an output is missing, has another shape than its spec says, or is not finite.
        TooLargeError: a batch does not fit on the device.
    """
    turn = turn or Turn()
    with closing(_Cuda(model, device, turn, timings) if device.type == "cuda" else _Host(model, turn, timings)) as computer:
        begun: deque[Begun] = deque()
        for batch in batches:
            begun.append(computer.begin(batch))
            if len(begun) > 1:
                yield _values(*begun.popleft(), model.spec)
        while begun:
            yield _values(*begun.popleft(), model.spec)


def compute(model: PatchModel, pixels: NDArray[Any], device: torch.device) -> Given:
    """What `model` gives for stored pixels (n, side, side, channel), on the device.

    Raises:
        TooLargeError: they do not fit there.
    """
    return fitting(lambda: answer(model, model.spec.arrange(torch.from_numpy(pixels).to(device)), in_place=True), len(pixels), device)


@torch.inference_mode()
def fitting(work: Callable[[], Given], count: int, device: torch.device) -> Given:
    """What `work` gives for `count` patches.

    Raises:
        TooLargeError: it ran out of memory.
    """
    try:
        return work()
    except (torch.OutOfMemoryError, MemoryError) as error:
        said = str(error)
    except RuntimeError as error:
        if "DefaultCPUAllocator" not in str(error):
            raise
        said = str(error)
    raise _too_large(count, device, said)  # out here: the error's frames would hold on to what does not fit


def _too_large(count: int, device: torch.device, said: str) -> TooLargeError:
    why = said.partition("\n")[0] or "out of memory"
    return TooLargeError(f"{count} patches at once do not fit on {device} ({why}); a smaller --patch-size or model may")


class _Host:
    """A thread of its own computes one batch while the caller's brings the next into the form the model eats, in one of two tensors
    that are used again and again; what the model hands back of them is copied.
    """

    def __init__(self, model: PatchModel, turn: Turn, timings: Timings) -> None:
        self._model, self._turn, self._timings = model, turn, timings
        self._asked: deque[Ticket] = deque()
        self._idle: list[Tensor] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="patchdrive-compute")

    def begin(self, batch: Batch) -> Begun:
        """Bring a batch into form and have it computed; the feed may write into it again once this returns."""
        kept = batch if batch.valid is None else replace(batch, valid=batch.valid.copy())
        if not len(batch.rows):
            return kept, dict
        count, side, _, channels = batch.held.shape
        eaten = self._idle.pop() if self._idle else torch.empty((count, channels, side, side), dtype=torch.float32)
        spec = self._model.spec
        spec.standardise(spec.arrange(torch.from_numpy(batch.pixels), into=eaten), in_place=True)
        self._asked.append(self._turn.ask())
        return kept, self._thread.submit(self._compute, eaten).result

    def close(self) -> None:
        """Compute nothing more; what the batch in hand holds is gone when this returns."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        for ticket in self._asked:
            ticket.give_up()

    def _compute(self, eaten: Tensor) -> Given:
        with ExitStack() as turn:
            with self._timings.waiting("infer_for_turn"):
                turn.enter_context(self._asked.popleft())
            with self._timings.stage("infer"):
                given = fitting(lambda: self._model(eaten), len(eaten), eaten.device)
        place = eaten.untyped_storage().data_ptr()
        kept = {name: tensor.clone() if tensor.untyped_storage().data_ptr() == place else tensor for name, tensor in given.items()}
        self._idle.append(eaten)
        return kept


class _Cuda:
    """Copies up on a stream of its own, from page-locked memory, while the device computes; values come back likewise."""

    def __init__(self, model: PatchModel, device: torch.device, turn: Turn, timings: Timings) -> None:
        self._model, self._device, self._turn, self._timings = model, device, turn, timings
        self._copies: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._slab: Tensor | None = None
        self._cut: torch.cuda.Event | None = None

    def begin(self, batch: Batch) -> Begun:
        """Send a batch and its computing off; the feed may write into it again once this returns."""
        kept = batch if batch.valid is None else replace(batch, valid=batch.valid.copy())
        if not len(batch.rows):
            return kept, dict
        with ExitStack() as turn:
            with self._timings.waiting("infer_for_turn"):
                turn.enter_context(self._turn.ask())
            with torch.cuda.device(self._device), torch.inference_mode(), self._timings.stage("infer"):
                return kept, self._begin(batch)

    def close(self) -> None:
        """Nothing to end: what was sent off ends by itself."""

    def _begin(self, batch: Batch) -> Callable[[], Given]:
        try:
            return self._send(batch)
        except torch.OutOfMemoryError as error:
            said = str(error)
        self._copies.synchronize()  # they read what the feed writes into next
        torch.cuda.empty_cache()
        raise _too_large(batch.size, self._device, said)

    def _send(self, batch: Batch) -> Callable[[], Given]:
        main = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._copies):
            stored = self._send_uncut(batch.held, main) if isinstance(batch.held, Uncut) else self._send_cut(batch.held, main)
            sent = self._copies.record_event()
        main.wait_event(sent)
        given = answer(self._model, self._model.spec.arrange(stored()), in_place=True)
        values = {name: _to_host(tensor) for name, tensor in given.items()}
        done = main.record_event()
        sent.synchronize()

        def wait() -> Given:
            with self._timings.stage("infer"):
                done.synchronize()
            return values

        return wait

    def _send_cut(self, pixels: NDArray[Any], main: torch.cuda.Stream) -> Callable[[], Tensor]:
        moved = torch.from_numpy(pixels).to(self._device, non_blocking=True)
        moved.record_stream(main)
        return lambda: moved

    def _send_uncut(self, uncut: Uncut, main: torch.cuda.Stream) -> Callable[[], Tensor]:
        """Tiles that are not there yet, and where to cut; they are cut once it is asked for the pixels."""
        host = torch.from_numpy(uncut.slab)
        slab = torch.empty_like(host, device=self._device) if self._slab is None else self._slab
        self._slab = slab
        slab.record_stream(main)
        if self._cut is not None:
            self._copies.wait_event(self._cut)  # a slot is written over only once all that was cut from it is
        for slot in uncut.fresh.tolist():
            slab[slot].copy_(host[slot], non_blocking=True)
        cuts = uncut.send(self._device)
        for tensor in cuts.tensors:
            tensor.record_stream(main)

        def cut() -> Tensor:
            pixels = cuts.cut(slab)
            self._cut = main.record_event()
            return pixels

        return cut


def _to_host(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=torch.float32, pin_memory=True).copy_(tensor, non_blocking=True)


def _values(batch: Batch, wait: Callable[[], Given], spec: ModelSpec) -> Values:
    if not len(batch.rows):
        return Values(batch=batch, outputs={})
    given = wait()
    missing = [output.name for output in spec.outputs if output.name not in given]
    if missing:
        raise ModelError(f"{spec.name} gave {sorted(given)} but its spec promises {missing} too")
    return Values(batch=batch, outputs={output.name: _checked(given[output.name], output, batch, spec) for output in spec.outputs})


def _checked(tensor: Tensor, output: OutputSpec, batch: Batch, spec: ModelSpec) -> NDArray[Any]:
    size, side = batch.size, batch.side
    cells = () if output.by_rows else (side // output.stride, side // output.stride)
    wanted = (size, *output.shape, *cells)
    if tuple(tensor.shape) != wanted:
        raise ModelError(f"{spec.name}: output {output.name!r} has shape {tuple(tensor.shape)}, its spec says {wanted}")
    values: NDArray[Any] = tensor.to("cpu", torch.float32).numpy()
    if len(batch.rows) < size:
        values = values[batch.places]
    if not output.by_rows:
        return values
    if output.kind == "boxes":
        score = values[..., 4]
        values = np.where((score == 0)[..., None], np.float32(0), values)  # not there, whatever else is said of it
        wrong = (score < 0) | (score > 1) | ~np.isin(values[..., 5], np.arange(len(output.channels)))
        wrong |= (score > 0) & ~(values[..., 2:4] > 0).all(axis=2)
        how = "has a box without extent, or of a class that its spec does not name, or of a score beyond 0 to 1"
        _refuse(np.asarray(wrong.any(axis=1)), how, output, batch, spec)
    rows = values.reshape(len(values), -1)
    _refuse(~np.isfinite(rows).all(axis=1), "is not finite", output, batch, spec)
    return rows


def _refuse(wrong: NDArray[np.bool_], how: str, output: OutputSpec, batch: Batch, spec: ModelSpec) -> None:
    if wrong.any():
        row = int(batch.rows[np.flatnonzero(wrong)[0]])
        raise ModelError(f"{spec.name}: output {output.name!r} {how} for patch {row} of the plan, in block {batch.block.index}")
