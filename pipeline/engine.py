"""Engine: from a plan to committed blocks. Reading, computing and writing go on at the same time, in as many lanes as devices."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial

from patchdrive.models.types import PatchModel
from patchdrive.pipeline.devices import Devices, Placed
from patchdrive.pipeline.feed import feed
from patchdrive.pipeline.glance import View
from patchdrive.pipeline.infer import TooLargeError, infer
from patchdrive.pipeline.lanes import Stop, side_by_side
from patchdrive.pipeline.plan import Block, Plan, coverage
from patchdrive.pipeline.run_report import RunReport, measure
from patchdrive.pipeline.settings import RunSettings
from patchdrive.pipeline.stitch import Finished, stitch
from patchdrive.pipeline.store import ResultStore
from patchdrive.pipeline.timings import Timings
from patchdrive.pipeline.watcher import Watcher
from patchdrive.pipeline.work import Work, prepare
from patchdrive.readers import Image

Blocks = Generator[Finished, None, None]

_LOOK_AGAIN = 0.2
"""Seconds between two looks at what other processes have committed."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Engine:
    """What all rounds of a run have in common."""

    view: View
    """The image, seen small."""
    model: PatchModel
    """What computes each patch."""
    settings: RunSettings
    """Of the run."""
    devices: Devices
    """Where it computes."""
    result: ResultStore
    """Where blocks are committed."""
    timings: Timings
    """Where time goes."""
    watcher: Watcher
    """Who looks on, and may wish to stop."""
    held: int = 0
    """Bytes that the drive holds by itself."""

    def carry_out(self, plan: Plan, *, to_its_end: bool) -> bool:
        """Compute and commit this process's blocks of a plan, the next round.

        Args:
            plan: of the round.
            to_its_end: wait for the blocks of other processes too, and compute those that nobody does.

        Returns:
            Whether every block of the round is committed.

        Raises:
            BudgetError: the memory cannot hold one block, or the device one patch.
        """
        placed = self.devices.place(self.model)
        recorded = self.result.sizes()
        work = prepare(self.view, self.model, plan, self.settings, recorded=recorded, devices=self.devices, held=self.held)
        round_ = self.result.begin_round(plan, self.view.frame(plan.grid), work.sizes)
        self.watcher.began(len(plan), sum(len(block.owned) for block in round_.todo))
        todo: Sequence[Block] = round_.todo
        while self._commit(plan, todo, work, placed):
            if self.result.whole(round_):
                return True
            if not to_its_end or self.watcher.wants_stop():
                return False
            todo = self.result.orphans(round_)
            if not todo:
                time.sleep(_LOOK_AGAIN)
        return False

    def report(self, plans: Sequence[Plan], *, partial: bool) -> RunReport:
        """The report of a run that ends now, after these rounds."""
        view, lanes = self.view, len(self.devices.each)
        unseen = f"{view.torn} tiles of the level looked at could not be decoded ({view.reason}); their places are planned unseen"
        return measure(
            self.result,
            view.image,
            self.timings,
            coverage=coverage(plans, view.saliency),
            lanes=lanes,
            notes=[unseen] if view.torn else [],
            partial=partial,
        )

    def _commit(self, plan: Plan, blocks: Sequence[Block], work: Work, placed: Sequence[Placed]) -> bool:
        """Compute and commit `blocks`; False where the watcher wished to stop before their end.

        Where a batch does not fit on the device it is halved from then on, which is recorded, and the open blocks start again.
        """
        left = {block.index: block for block in blocks}
        while left:
            try:
                with self.timings.stage("compute"), closing(self._compute(plan, list(left.values()), work, placed)) as finished:
                    for block in finished:
                        with self.timings.stage("write"):
                            self.result.commit(block)
                        del left[block.block.index]
                        self.watcher.committed(len(block.block.owned))
                        del block  # it is large: it must be gone before the next is taken
                        if left and self.watcher.wants_stop():
                            return False
            except TooLargeError:
                if work.sizes.batch_size == 1:
                    raise
                sizes = self.result.shrink(replace(work.sizes, batch_size=work.sizes.batch_size // 2))
                work = work.resized(sizes)
        return not left

    def _compute(self, plan: Plan, blocks: Sequence[Block], work: Work, placed: Sequence[Placed]) -> Blocks:
        """The blocks as they are finished: each is computed in one lane, and each lane has a run of neighbours."""
        count = len(placed)
        lanes: list[Callable[[Stop], Blocks]] = []
        image, timings = self.view.image, self.timings
        for index, here in enumerate(placed):
            share = blocks[index * len(blocks) // count : (index + 1) * len(blocks) // count]
            if share:
                lanes.append(partial(lane, image, plan, share, work=work, here=here, timings=timings))
        return side_by_side(lanes, self.timings)


def lane(image: Image, plan: Plan, blocks: Sequence[Block], stop: Stop, *, work: Work, here: Placed, timings: Timings) -> Blocks:
    """Some blocks of a plan, computed one after the other on one device; ends early once `stop` is set.

    Raises:
        TooLargeError: a batch does not fit on the device.
        ModelError: the model does not answer as its spec says.
        StalledError: the image gives no tile any more.
    """
    with closing(feed(image, plan, blocks, work.feed, timings, stop=stop)) as batches:
        values = infer(here.model, batches, here.device, timings, here.turn)
        yield from stitch(values, plan, here.model.spec, work.blend, timings)
