"""Drives: generators of Plans. Each is sent the features of the patches it asked for, until it returns what it found."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from torch import Tensor

from patchdrive.models.types import Attended, DriveModel, Glance, Objects, Output, OutputSpec, Selection, Tokens
from patchdrive.pipeline.devices import Devices
from patchdrive.pipeline.glance import View, patch_grid
from patchdrive.pipeline.look import look
from patchdrive.pipeline.missed import missed_of
from patchdrive.pipeline.plan import SQUARE, Plan, target_grid, target_grid_of
from patchdrive.pipeline.settings import RunSettings
from patchdrive.pipeline.tables import FoundBoxes, FoundObjects
from patchdrive.pipeline.timings import Timings
from patchdrive.readers import Level
from patchdrive.readers.errors import ModelError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FusedMap:
    """A map that a drive returned."""

    output: OutputSpec
    """What it means."""
    values: NDArray[np.float32]
    """(channel, height, width)."""
    valid: NDArray[np.bool_]
    """(height, width)."""
    grid: Level
    """The cells it lies on: level-0 pixels per cell."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcome:
    """What a drive returns once it has seen enough."""

    maps: tuple[FusedMap, ...] = ()
    """On the glance's grid."""
    answers: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """About the whole image: probability by class name."""
    objects: Mapping[str, FoundObjects] = field(default_factory=dict)
    """Things found, by name."""
    columns: Mapping[str, tuple[NDArray[np.float32], ...]] = field(default_factory=dict)
    """What is known of each patch at the end, by name, per round (n,) in the plan's row order; NaN: nothing. `attention`: how much the
    answers about the whole image attend to it; `influence_<answer>`: how much it brings to the likeliest class."""
    audit: Mapping[str, Any] | None = None
    """As `missed_of`, where an audit was asked for."""
    embedding: NDArray[np.float32] | None = None
    """(D,), the whole image."""


Drive = Generator[Plan, "zarr.Array[Any] | None", Outcome | None]
"""Yields plans, is sent (n, D) features in the plan's row order (NaN: not computed; read only if wanted), returns its outcome."""


def once(plan: Plan) -> Drive:
    """The drive of a model that does not drive: one plan, no outcome."""
    yield plan
    return None


def model_drive(model: DriveModel, view: View, settings: RunSettings, devices: Devices, timings: Timings) -> Drive:
    """The drive of a model that asks: its Selections become Plans, features its Tokens.

    Nothing here is saved: a resumed run replays it, and finished rounds are answered from the store.

    Raises:
        ModelError: a corner of the model's selection is not on the patch grid.
    """
    grid = patch_grid(view.image, model.encoder.spec, settings)
    with timings.stage("glance"):
        seen, cells = look(model, view, grid, settings, devices=devices, timings=timings)
    talk = model.drive(seen, cells, grid)
    tokens: Tokens | None = None
    asked: list[tuple[Selection, NDArray[np.int64]]] = []
    while True:
        with torch.inference_mode():  # around the model's own steps only: a yield inside would leave it on for whoever looks on
            try:
                selection = next(talk) if tokens is None else talk.send(tokens)
            except StopIteration as end:
                return outcome_of(model, end.value, seen, cells, asked)
        plan, rows = plan_of(selection, view.image.levels[0], grid, model.encoder.spec.size)
        asked.append((selection, rows))
        features = yield plan
        assert features is not None
        tokens = tokens_of(selection, np.asarray(features[:], np.float32), rows, seen.features.device)


def plan_of(selection: Selection, base: Level, grid: Level, side: int) -> tuple[Plan, NDArray[np.int64]]:
    """A Selection for one image as a Plan, and for each of its slots the plan's row (-1: an empty slot).

    Args:
        selection: patches of one level: `grid`, or a coarser one.
        base: level 0.
        grid: the finest that patches lie on.
        side: of a patch, pixels of its level.

    Raises:
        ModelError: the patches are of several levels, or a corner is not on their grid.
    """
    slots = np.nonzero(selection.valid[0].cpu().numpy())[0]
    sides = selection.side[0].cpu().numpy().astype(np.float64)[slots]
    times = sides / (side * (grid.downsample_y + grid.downsample_x) / 2)
    if len(times) and np.ptp(times) > 1e-3:
        raise ModelError(f"the patches of one round are of one pixel size; these are {times.min():g} to {times.max():g} times the finest")
    zoom = float(np.round(times[0], 3)) if len(times) else 1.0
    level = grid if zoom == 1.0 else target_grid(base, grid.downsample_y * zoom, grid.downsample_x * zoom)
    centres = selection.yx[0].cpu().numpy().astype(np.float64)[slots]
    exact_y = centres[:, 0] / level.downsample_y - side / 2
    exact_x = centres[:, 1] / level.downsample_x - side / 2
    y, x = np.rint(exact_y).astype(np.int64), np.rint(exact_x).astype(np.int64)
    off = max(np.abs(exact_y - y).max(initial=0.0), np.abs(exact_x - x).max(initial=0.0))
    if off > 0.1:
        raise ModelError(f"a drive's patches have their corners on whole pixels of the patch grid; one is {off:.2f} off")
    score = selection.weight[0].detach().cpu().numpy().astype(np.float32)[slots]
    order = np.lexsort((x, y, x // SQUARE, y // SQUARE))
    plan = Plan(y=y[order], x=x[order], score=score[order], rank=order.astype(np.int64), side=side, grid=level)
    rows = np.full(selection.valid.shape[1], -1, np.int64)
    rows[slots[order]] = np.arange(len(order))
    return plan, rows


def tokens_of(selection: Selection, features: NDArray[np.float32], rows: NDArray[np.int64], device: torch.device) -> Tokens:
    """Features in plan order as Tokens in the selection's order; a patch that was not computed becomes an empty slot."""
    padded = np.concatenate([features, np.full((1, features.shape[1]), np.nan, np.float32)])
    by_slot = torch.from_numpy(padded[rows]).to(device)
    computed = torch.isfinite(by_slot).all(dim=1)
    valid = selection.valid & computed[None]
    kept = replace(selection, valid=valid)
    return Tokens(x=torch.where(computed[:, None], by_slot, 0.0)[None], selection=kept)


def outcome_of(
    model: DriveModel, output: Output, seen: Glance, cells: Level, asked: Sequence[tuple[Selection, NDArray[np.int64]]]
) -> Outcome:
    """What the model returned, as arrays with their frames; `asked` are the rounds' Selections with their slots' rows."""
    valid = seen.valid[0].cpu().numpy()
    stride = model.glance.spec.outputs[0].stride
    answers = {
        name: {label: round(float(value), 6) for label, value in zip(model.values[name], tensor[0].tolist(), strict=True)}
        for name, tensor in output.values.items()
    }
    maps = tuple(fused_map(spec, output.maps[spec.name], valid, cells, stride // spec.stride) for spec in model.maps)
    found = {} if not output.objects else {"objects": found_of(output.objects[0])}
    return Outcome(
        maps=maps,
        answers=answers,
        objects=found,
        columns={} if output.attended is None else columns_of(output.attended, asked),
        audit=missed_of(output.audits[0]) if output.audits else None,
        embedding=None if output.embedding is None else output.embedding[0].float().cpu().numpy(),
    )


def fused_map(output: OutputSpec, values: Tensor, valid: NDArray[np.bool_], cells: Level, finer: int) -> FusedMap:
    """A map of one image, `finer` pixels along a cell of the glance."""
    grid = target_grid_of(cells.height * finer, cells.width * finer, cells.downsample_y / finer, cells.downsample_x / finer)
    return FusedMap(output=output, values=values[0].float().cpu().numpy(), valid=valid.repeat(finer, 0).repeat(finer, 1), grid=grid)


def found_of(objects: Objects) -> FoundObjects:
    """Things as arrays."""
    yx, score = objects.yx.cpu().numpy().astype(np.float64), objects.score.cpu().numpy()
    if objects.size is None:
        return FoundObjects(yx=yx, score=score)
    size = objects.size.cpu().numpy().astype(np.float64)
    return FoundObjects(yx=yx, score=score, boxes=FoundBoxes(size=size, kind=np.zeros(len(yx), np.int8), classes=(objects.name,)))


def columns_of(attended: Attended, asked: Sequence[tuple[Selection, NDArray[np.int64]]]) -> dict[str, tuple[NDArray[np.float32], ...]]:
    """By name, what is known of the rows of each round's plan: a patch that was kept is found again by its place and side."""
    named = {"attention": attended.attention, **{f"influence_{name}": values for name, values in attended.influence.items()}}
    kept = np.nonzero(attended.selection.valid[0].cpu().numpy())[0]
    known = {place.tobytes(): slot for place, slot in zip(_places(attended.selection)[kept], kept.tolist(), strict=True)}
    slots = []
    for selection, rows in asked:
        filled = np.nonzero(rows >= 0)[0]
        slot_of = np.full(len(filled), -1, np.int64)
        slot_of[rows[filled]] = [known.get(place.tobytes(), -1) for place in _places(selection)[filled]]
        slots.append(slot_of)
    padded = {name: np.append(values[0].float().cpu().numpy(), np.float32(np.nan)) for name, values in named.items()}  # -1 is the last
    return {name: tuple(values[slot_of] for slot_of in slots) for name, values in padded.items()}


def _places(selection: Selection) -> NDArray[np.float32]:
    """(K, 3) y, x and side of each slot."""
    return torch.cat([selection.yx[0], selection.side[0, :, None]], dim=1).cpu().numpy()
