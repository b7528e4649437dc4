"""Work: one plan's way through feed, infer and stitch, decided before any patch is read."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from patchdrive.models.types import ModelSpec
from patchdrive.pipeline.budget import Needs, allot, cores, host_limit
from patchdrive.pipeline.feed import FeedSettings, batches_ahead
from patchdrive.pipeline.glance import View, layout_of, pick_channels
from patchdrive.pipeline.infer import pick_device
from patchdrive.pipeline.plan import Plan
from patchdrive.pipeline.pool import TILE_BYTES
from patchdrive.pipeline.reads import read_frame
from patchdrive.pipeline.settings import Blend, RunSettings
from patchdrive.pipeline.stitch import default_blend
from patchdrive.pipeline.store import Sizes
from patchdrive.readers.tiles import tile_decoder

_PLAN_ROW_BYTES = 48
"""y, x, rank, score of a row, and its places in the blocks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """How a plan is computed."""

    feed: FeedSettings
    """How it is read."""
    blend: Blend
    """How map patches are joined."""
    device: torch.device
    """Where it is computed."""
    sizes: Sizes
    """What memory decided; recorded."""


def prepare(view: View, spec: ModelSpec, plan: Plan, settings: RunSettings, recorded: Sizes | None) -> Work:
    """Share the memory out over this plan.

    Raises:
        BudgetError: it does not fit; says how much would.
        ModelError: the model does not eat this image's channels.
        SettingsError: there is no such device.
    """
    image = view.image
    frame = read_frame(image.levels, plan.grid, plan.side, spec.resampling)
    channels = pick_channels(image, spec)
    layout = layout_of(spec, settings)
    fixed = view.saliency.map.nbytes + view.saliency.mask.nbytes + len(plan) * _PLAN_ROW_BYTES
    grid = tile_decoder(image, frame.level.index).grid(level=frame.level.index)
    workers = settings.workers or cores()
    needs = Needs(
        frame=frame,
        grid=grid,
        spec=spec,
        channels=len(channels),
        stored=len(image.channels),
        dtype=image.dtype,
        batches=1 + batches_ahead(workers),
        fixed=fixed + grid.rows * grid.columns * TILE_BYTES,
    )
    allotment = allot(
        needs,
        settings.memory or host_limit() // 2,
        batch_size=settings.batch_size if recorded is None else recorded.batch_size,
        edge=None if recorded is None else recorded.edge,
        workers=workers,
    )
    return Work(
        feed=FeedSettings(
            frame=frame,
            channels=channels,
            fill=spec.fill,
            batch_size=allotment.batch_size,
            pool_bytes=allotment.pool_bytes,
            workers=allotment.workers,
        ),
        blend=settings.blend or default_blend(layout.side - layout.stride, layout.halo),
        device=pick_device(settings.device),
        sizes=Sizes(batch_size=allotment.batch_size, edge=allotment.edge),
    )
