"""Drives: generators of Plans. Each is sent the features of the patches it asked for, until it returns what it found."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray

from patchdrive.models.types import DriveModel, Glance, Objects, OutputSpec, Selection, Tokens
from patchdrive.pipeline.devices import Devices
from patchdrive.pipeline.glance import View, patch_grid
from patchdrive.pipeline.look import look
from patchdrive.pipeline.plan import SQUARE, Plan
from patchdrive.pipeline.settings import RunSettings
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
    objects: Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]] = field(default_factory=dict)
    """Things found: (n, 2) level-0 centres (y, x) and (n,) scores, by name."""


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
    while True:
        with torch.inference_mode():  # around the model's own steps only: a yield inside would leave it on for whoever looks on
            try:
                selection = next(talk) if tokens is None else talk.send(tokens)
            except StopIteration as end:
                return outcome_of(model, end.value, seen, cells)
        plan, rows = plan_of(selection, grid, model.encoder.spec.size)
        features = yield plan
        assert features is not None
        tokens = tokens_of(selection, np.asarray(features[:], np.float32), rows, seen.features.device)


def plan_of(selection: Selection, grid: Level, side: int) -> tuple[Plan, NDArray[np.int64]]:
    """A Selection for one image as a Plan, and for each of its slots the plan's row (-1: an empty slot).

    Raises:
        ModelError: a corner is not on the patch grid.
    """
    slots = np.nonzero(selection.valid[0].cpu().numpy())[0]
    centres = selection.yx[0].cpu().numpy().astype(np.float64)[slots]
    exact_y = centres[:, 0] / grid.downsample_y - side / 2
    exact_x = centres[:, 1] / grid.downsample_x - side / 2
    y, x = np.rint(exact_y).astype(np.int64), np.rint(exact_x).astype(np.int64)
    off = max(np.abs(exact_y - y).max(initial=0.0), np.abs(exact_x - x).max(initial=0.0))
    if off > 0.1:
        raise ModelError(f"a drive's patches have their corners on whole pixels of the patch grid; one is {off:.2f} off")
    score = selection.weight[0].detach().cpu().numpy().astype(np.float32)[slots]
    order = np.lexsort((x, y, x // SQUARE, y // SQUARE))
    plan = Plan(y=y[order], x=x[order], score=score[order], rank=order.astype(np.int64), side=side, grid=grid)
    rows = np.full(selection.valid.shape[1], -1, np.int64)
    rows[slots[order]] = np.arange(len(order))
    return plan, rows


def tokens_of(selection: Selection, features: NDArray[np.float32], rows: NDArray[np.int64], device: torch.device) -> Tokens:
    """Features in plan order as Tokens in the selection's order; a patch that was not computed becomes an empty slot."""
    padded = np.concatenate([features, np.full((1, features.shape[1]), np.nan, np.float32)])
    by_slot = torch.from_numpy(padded[rows]).to(device)
    computed = torch.isfinite(by_slot).all(dim=1)
    valid = selection.valid & computed[None]
    kept = Selection(yx=selection.yx, side=selection.side, cell=selection.cell, weight=selection.weight, valid=valid)
    return Tokens(x=torch.where(computed[:, None], by_slot, 0.0)[None], selection=kept)


def outcome_of(model: DriveModel, output: Any, seen: Glance, cells: Level) -> Outcome:
    """What the model returned, as arrays with their frames."""
    valid = seen.valid[0].cpu().numpy()
    maps = tuple(
        FusedMap(output=spec, values=output.maps[spec.name][0].float().cpu().numpy(), valid=valid, grid=cells) for spec in model.maps
    )
    answers = {
        name: {label: round(float(value), 6) for label, value in zip(model.values[name], tensor[0].tolist(), strict=True)}
        for name, tensor in output.values.items()
    }
    found: list[Objects] = list(output.objects)
    objects = {"objects": (found[0].yx.cpu().numpy(), found[0].score.cpu().numpy())} if found else {}
    return Outcome(maps=maps, answers=answers, objects=objects)
