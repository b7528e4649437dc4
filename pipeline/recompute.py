"""A seeded sample of patches, computed again by the run's own feed, infer and stitch, and compared with the store byte by byte.

Patches are packed into as few batches as hold them. A model may answer a patch by a bit otherwise in other company, or at another place
of its batch; so what differs is computed once more in the very batches it was in, and only then is it a problem.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from patchdrive.models.types import PatchModel
from patchdrive.pipeline.devices import Devices
from patchdrive.pipeline.engine import lane
from patchdrive.pipeline.glance import View, mpp_of
from patchdrive.pipeline.lanes import Stop
from patchdrive.pipeline.ledger import Ledger, RoundLedger
from patchdrive.pipeline.maps import encode, stored_maps
from patchdrive.pipeline.plan import Block, Plan, Saliency
from patchdrive.pipeline.problems import Cure, Problem
from patchdrive.pipeline.records import READ_ERRORS
from patchdrive.pipeline.settings import RunSettings
from patchdrive.pipeline.stitch import Finished
from patchdrive.pipeline.store import Sizes
from patchdrive.pipeline.timings import Timings
from patchdrive.pipeline.work import Work, prepare
from patchdrive.readers import Image, Window


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pick:
    """One patch to compute again."""

    round: RoundLedger
    """Its round."""
    block: Block
    """The block that counts it."""
    row: int
    """Of the round's plan."""

    @property
    def batch_size(self) -> int:
        """Of the batches its block was computed in: smaller than at first after the device ran out of memory."""
        size: int = self.round.records[self.block.index]["batch_size"]
        return size

    @property
    def state(self) -> str:
        """What became of it: done, skipped or failed."""
        return next((state for row, state, _ in self.round.records[self.block.index]["dropped"] if row == self.row), "done")


def draw(ledger: Ledger, damaged: Iterable[tuple[int, int]], count: int, seed: int) -> list[Pick]:
    """`count` patches, or all there are, of the blocks that are recorded and not `damaged`: every one as likely as any other."""
    left_out = set(damaged)
    held = [
        (round_, round_.blocks[index])
        for round_ in ledger.rounds.values()
        for index in sorted(round_.records)
        if (round_.index, index) not in left_out
    ]
    ends = np.cumsum([len(block.owned) for _, block in held], dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    drawn = np.sort(np.random.default_rng(seed).choice(total, size=min(count, total), replace=False)) if total else np.zeros(0, np.int64)
    picks = []
    for place, at in zip(drawn.tolist(), np.searchsorted(ends, drawn, side="right").tolist(), strict=True):
        round_, block = held[at]
        picks.append(Pick(round=round_, block=block, row=int(block.owned[place - int(ends[at])])))  # counted from the block's end
    return picks


def recompute(ledger: Ledger, picks: list[Pick], image: Image, encoder: PatchModel, settings: RunSettings) -> list[Problem]:
    """Compute the `picks` again, and say which are not what the store holds.

    Raises:
        BudgetError: the memory cannot hold one block; says how much would.
        SettingsError: there is no such device.
        ModelError: the model does not answer as its spec says.
    """
    devices = Devices(settings.device)
    again = _Again(ledger, _view(image, settings), encoder, settings, devices)
    rounds = sorted({pick.round.index for pick in picks})
    wrong = [found for index in rounds for found in again.differing([pick for pick in picks if pick.round.index == index])]
    # Where no answer agrees, the data are not to blame: one block computed anew would not agree with its neighbours.
    right = {id(pick) for pick in picks if pick.state == "done"} - {id(pick) for pick, _, _ in wrong}
    cure: Cure = "mend" if right or len(wrong) == 1 else "overwrite"
    return [
        Problem(kind="answer", where=where, what=what, cure=cure, round=pick.round.index, block=pick.block.index, rows=(pick.row, pick.row))
        for pick, where, what in wrong
    ]


def _view(image: Image, settings: RunSettings) -> View:
    """The image without a look at it: where to look is in the plan."""
    nothing = Saliency(map=np.zeros((1, 1), np.float32), mask=np.zeros((1, 1), np.bool_), level=image.levels[-1])
    thumbnail = np.zeros((1, 1, 3), np.uint8)
    return View(image=image, mpp=mpp_of(image, settings), saliency=nothing, thumbnail=thumbnail, thumbnail_cell=1)


class _Again:
    """The run's own way from rows to values, for a few rows."""

    def __init__(self, ledger: Ledger, view: View, model: PatchModel, settings: RunSettings, devices: Devices) -> None:
        self._ledger, self._view, self._settings, self._devices = ledger, view, settings, devices
        self._placed = devices.place(model)[0]

    def differing(self, picks: list[Pick]) -> list[tuple[Pick, str, str]]:
        """Those of the picks of one round that are not as stored, with the array and what differs."""
        recorded = self._ledger.sizes
        assert recorded is not None
        by_size = {size: [pick for pick in picks if pick.batch_size == size] for size in sorted({pick.batch_size for pick in picks})}
        return [found for size, some in by_size.items() for found in self._differing(some, replace(recorded, batch_size=size))]

    def _differing(self, picks: list[Pick], sizes: Sizes) -> list[tuple[Pick, str, str]]:
        plan = picks[0].round.plan
        work = prepare(self._view, self._placed.model, plan, self._settings, recorded=sizes, devices=self._devices)
        halo = self._ledger.spec.halo
        few = self._unequal(_packed(picks) if self._ledger.spec.vectors else [_alone(pick, halo, None) for pick in picks], work)
        exactly = [_alone(pick, halo, work.sizes.batch_size) for pick, _, _ in few]
        return self._unequal(exactly, work)

    def _unequal(self, asked: list[tuple[Block, list[Pick]]], work: Work) -> list[tuple[Pick, str, str]]:
        if not asked:
            return []
        plan = asked[0][1][0].round.plan
        wrong = []
        for (_, picks), finished in zip(asked, self._compute(plan, [block for block, _ in asked], work), strict=True):
            for pick in picks:
                found = self._compare(pick, finished)
                if found is not None:
                    wrong.append((pick, *found))
        return wrong

    def _compute(self, plan: Plan, blocks: list[Block], work: Work) -> Iterator[Finished]:
        return lane(self._view.image, plan, blocks, Stop(), work=work, here=self._placed, timings=Timings())

    def _compare(self, pick: Pick, finished: Finished) -> tuple[str, str] | None:
        """The array that differs and how; None where nothing does."""
        then, now = pick.state, next((drop.state for drop in finished.dropped if drop.row == pick.row), "done")
        if then != now:
            return self._ledger.path.name, f"it was {then} when it was stored, and is {now} now"
        arrays = self._rows(pick, finished) if self._ledger.spec.vectors else self._areas(finished)
        for name, (selection, computed) in arrays.items():
            where = f"{self._ledger.path.name}/{name}"
            try:
                stored = np.asarray(zarr.open_array(store=self._ledger.path / name, mode="r")[selection])
            except READ_ERRORS as error:
                return where, f"it cannot be read ({error})"
            if stored.dtype != computed.dtype or stored.shape != computed.shape:
                return where, f"it holds {stored.dtype} of shape {stored.shape} where {computed.dtype} of {computed.shape} was computed"
            if stored.tobytes() != computed.tobytes():
                return where, _difference(stored, computed)
        return None

    def _rows(self, pick: Pick, finished: Finished) -> Mapping[str, tuple[Any, NDArray[Any]]]:
        """Per table, where the row lies and what it should hold: the values in the stored dtype, NaN where it was dropped."""
        at = np.flatnonzero(finished.rows == pick.row)
        arrays = {}
        for table, vector in self._ledger.spec.tables.items():
            values = np.full(len(vector.columns), np.nan, vector.dtype)
            if len(at):
                values[:] = finished.features[vector.name][at[0]]
            arrays[f"tables/{table}_round{pick.round.index}/X"] = (pick.row, values)
        return arrays

    def _areas(self, finished: Finished) -> Mapping[str, tuple[Any, NDArray[Any]]]:
        """Per stored map, where the window lies and what it should hold."""
        window = finished.block.window
        assert window is not None
        arrays: dict[str, tuple[Any, NDArray[Any]]] = {}
        for output in self._ledger.spec.outputs:
            for stored in stored_maps(output, all_classes=self._settings.all_classes):
                values = encode(output, finished.maps[output.name], stored)
                y, x = window.y // stored.stride, window.x // stored.stride
                area = (..., slice(y, y + values.shape[-2]), slice(x, x + values.shape[-1]))
                arrays[str(Path(stored.path) / "0" / "map")] = (area, values)
        return arrays


def _packed(picks: list[Pick]) -> list[tuple[Block, list[Pick]]]:
    """All picks of a table in one block."""
    rows = np.array([pick.row for pick in picks], np.int64)
    return [(Block(index=0, rows=rows, owned=rows, window=None), picks)]


def _alone(pick: Pick, halo: int, batch_size: int | None) -> tuple[Block, list[Pick]]:
    """A block for one pick: its row or, of maps, its core inside its own block with every row that touches it, in plan order.

    With a batch size those rows come with all the others of the batches they were in, and at their own places.
    """
    rows, window = pick.block.rows, None
    needed = rows == pick.row
    if pick.block.window is not None:
        plan, core = pick.round.plan, pick.round.plan.side - 2 * halo
        tops, lefts = plan.y[rows] + halo, plan.x[rows] + halo
        (at,) = np.flatnonzero(needed)
        window = Window(y=int(tops[at]), x=int(lefts[at]), height=core, width=core).intersect(pick.block.window)
        assert window is not None, "a block counts only rows that touch it"
        needed = (tops < window.y_end) & (tops + core > window.y) & (lefts < window.x_end) & (lefts + core > window.x)
    if batch_size is not None:
        batch = np.arange(len(rows)) // batch_size
        needed = np.isin(batch, batch[needed])
    return Block(index=0, rows=rows[needed], owned=np.array([pick.row]), window=window), [pick]


def _difference(stored: NDArray[Any], computed: NDArray[Any]) -> str:
    unequal = (stored != computed) & ~((stored != stored) & (computed != computed))  # noqa: PLR0124  NaN is not itself
    first = tuple(int(place) for place in np.argwhere(unequal)[0]) if unequal.any() else (0,) * stored.ndim
    count = int(np.count_nonzero(unequal))
    return f"computed again, {count} of {stored.size} values differ; the first is {stored[first]} in the store and {computed[first]} now"
