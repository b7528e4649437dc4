"""Work: one plan's way through feed, infer and stitch, decided before any patch is read."""

from __future__ import annotations

from dataclasses import dataclass, replace

from patchdrive.models.types import PatchModel
from patchdrive.pipeline.budget import Needs, allot, cores, host_limit, usual_pool
from patchdrive.pipeline.devices import MOST_CUDA, Devices
from patchdrive.pipeline.feed import FeedSettings, batches_ahead
from patchdrive.pipeline.glance import View, layout_of, pick_channels
from patchdrive.pipeline.plan import Plan
from patchdrive.pipeline.pool import TILE_BYTES
from patchdrive.pipeline.reads import read_frame
from patchdrive.pipeline.settings import Blend, RunSettings
from patchdrive.pipeline.stitch import default_blend
from patchdrive.pipeline.store import Sizes
from patchdrive.readers.tiles import tile_decoder

_PLAN_ROW_BYTES = 40
"""y, x, rank, score of a row, and its places in the blocks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """How a plan is computed."""

    feed: FeedSettings
    """How it is read, in each lane."""
    blend: Blend
    """How map patches are joined."""
    sizes: Sizes
    """What memory decided; recorded."""

    def resized(self, sizes: Sizes) -> Work:
        """The same in batches of another size."""
        return replace(self, feed=replace(self.feed, batch_size=sizes.batch_size), sizes=sizes)


def prepare(
    view: View, model: PatchModel, plan: Plan, settings: RunSettings, *, recorded: Sizes | None, devices: Devices, held: int = 0
) -> Work:
    """Share the memory out over this plan.

    Args:
        view: what is read.
        model: what computes; on the devices.
        plan: which patches.
        settings: of the run.
        recorded: what was decided before, by this run or one that it resumes.
        devices: where it computes.
        held: bytes that the drive holds by itself.

    Raises:
        BudgetError: it does not fit; says how much would.
        ModelError: the model does not eat this image's channels.
    """
    image, spec = view.image, model.spec
    frame = read_frame(image.levels, plan.grid, plan.side, spec.resampling)
    channels = pick_channels(image, spec)
    layout = layout_of(spec, settings)
    grid = tile_decoder(image, frame.level.index).grid(level=frame.level.index)
    lanes = len(devices.each)
    workers = max(1, (settings.workers or cores()) // lanes)
    memory = settings.memory or host_limit() // 2
    footprint = devices.footprint(model, side=plan.side, dtype=frame.made(image.dtype))
    needs = Needs(
        frame=frame,
        grid=grid,
        spec=spec,
        channels=len(channels),
        stored=len(image.channels),
        dtype=image.dtype,
        batches=1 + batches_ahead(workers),
        lanes=lanes,
        computing=devices.host(footprint),
        fixed=held + view.nbytes + len(plan) * _PLAN_ROW_BYTES + lanes * grid.rows * grid.columns * TILE_BYTES + image.cache_bytes,
    )
    asked = settings.batch_size if recorded is None else recorded.batch_size
    slab = 0  # of the device's memory, for this run; two may be in flight
    if devices.first.type == "cuda" and frame.exact and layout.stride < layout.side:
        uncut = replace(needs, uncut=True)
        if uncut.least_pool(asked or MOST_CUDA) <= usual_pool(memory, lanes):
            needs, slab = uncut, usual_pool(memory, lanes)
    allotment = allot(
        needs,
        memory,
        batch_size=asked,
        edge=None if recorded is None else recorded.edge,
        workers=workers,
        most=devices.most(footprint, settings.device_memory, held=2 * slab),
    )
    return Work(
        feed=FeedSettings(
            frame=frame,
            channels=channels,
            fill=spec.fill,
            batch_size=allotment.batch_size,
            pool_bytes=allotment.pool_bytes,
            workers=allotment.workers,
            on_error=settings.on_error,
            patience=settings.patience,
            pinned=devices.first.type == "cuda",
            uncut=needs.uncut,
        ),
        blend=settings.blend or default_blend(layout.side - layout.stride, layout.halo),
        sizes=Sizes(batch_size=allotment.batch_size, edge=allotment.edge),
    )
