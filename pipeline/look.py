"""The glance of a DriveModel: its map model run over one coarse level by the same feed, infer and stitch as everything else."""

from __future__ import annotations

import math
import tempfile
from contextlib import closing

import numpy as np
import torch
from numpy.typing import NDArray

from patchdrive.models.types import DriveModel, Glance, OutputSpec
from patchdrive.pipeline.budget import cores
from patchdrive.pipeline.devices import Devices
from patchdrive.pipeline.feed import FeedSettings, feed
from patchdrive.pipeline.glance import View, layout_of, pick_channels
from patchdrive.pipeline.infer import infer
from patchdrive.pipeline.plan import WORTH_READING, map_blocks, plan_grid, target_grid, target_grid_of
from patchdrive.pipeline.reads import read_frame
from patchdrive.pipeline.settings import RunSettings
from patchdrive.pipeline.stitch import stitch
from patchdrive.pipeline.timings import Timings
from patchdrive.readers import Level

_BATCH = 4
_EDGE_CELLS = 1024
_POOL = 64 * 2**20
_IN_MEMORY = 2**26
"""Bytes up to which an output of the glance is held in memory."""
_PER_CELL = 40
"""Bytes of a cell in all that a drive makes of its score."""


def look(model: DriveModel, view: View, grid: Level, settings: RunSettings, *, devices: Devices, timings: Timings) -> tuple[Glance, Level]:
    """What the model sees of the whole image, and the grid of cells it sees it on.

    Only what is worth reading is looked at; other cells are not valid.
    """
    spec = model.glance.spec
    coarse, cells = _grids(model, view, grid)
    layout = layout_of(spec, RunSettings())
    plan = plan_grid(coarse, view.saliency, layout)
    stride = spec.outputs[0].stride
    held = {output.name: _room(output, cells) for output in spec.outputs}
    seen = np.zeros((cells.height, cells.width), np.bool_)
    feed_settings = FeedSettings(
        frame=read_frame(view.image.levels, coarse, layout.side, spec.resampling),
        channels=pick_channels(view.image, spec),
        fill=spec.fill,
        batch_size=_BATCH,
        pool_bytes=_POOL,
        workers=settings.workers or cores(),
        on_error=settings.on_error,
        patience=settings.patience,
    )
    device = devices.first
    blocks = map_blocks(plan, edge=_EDGE_CELLS * stride, halo=spec.halo)
    with closing(feed(view.image, plan, blocks, feed_settings, timings)) as batches:
        for finished in stitch(infer(model.glance, batches, device, timings, devices.turn(device)), plan, spec, "box", timings):
            window = finished.block.window
            assert window is not None
            for name, part in finished.maps.items():
                height, width = part.valid.shape
                area = (slice(window.y // stride, window.y // stride + height), slice(window.x // stride, window.x // stride + width))
                held[name][:, *area] = part.values
                seen[area] = part.valid
    seen &= _worth(view, cells)
    return (
        Glance(
            features=torch.from_numpy(held["features"])[None].to(device),
            score=torch.from_numpy(held["score"]).to(device),
            valid=torch.from_numpy(seen)[None].to(device),
        ),
        cells,
    )


def _room(output: OutputSpec, cells: Level) -> NDArray[np.float32]:
    """(channel, height, width) zeros; what is large lies in a file without a name, whose pages the system takes back when it needs them."""
    shape = (len(output.channels), cells.height, cells.width)
    if 4 * math.prod(shape) <= _IN_MEMORY:
        return np.zeros(shape, np.float32)
    with tempfile.TemporaryFile(prefix="patchdrive-glance-") as file:
        file.truncate(4 * math.prod(shape))
        return np.memmap(file, np.float32, "r+", shape=shape)


def held_bytes(model: DriveModel, view: View, grid: Level) -> int:
    """What a drive holds from the look to its end: score and validity of every cell and some copies while the best are looked for, the
    maps that its heads give, as logits and as probabilities, and the stream where it is small.
    """
    _, cells = _grids(model, view, grid)
    stream, *_ = outputs = model.glance.spec.outputs
    given = sum(len(output.channels) * (stream.stride // output.stride) ** 2 for output in model.maps)
    count = cells.height * cells.width
    features = 4 * count * sum(len(output.channels) for output in outputs)
    return count * (12 * given + _PER_CELL) + min(features, _IN_MEMORY * len(outputs))


def _grids(model: DriveModel, view: View, grid: Level) -> tuple[Level, Level]:
    """The pixels that the glance eats, and the cells it gives."""
    times, stride = model.glance_downsample, model.glance.spec.outputs[0].stride
    coarse = target_grid(view.image.levels[0], grid.downsample_y * times, grid.downsample_x * times)
    rows, columns = -(-coarse.height // stride), -(-coarse.width // stride)
    return coarse, target_grid_of(rows, columns, coarse.downsample_y * stride, coarse.downsample_x * stride)


def _worth(view: View, cells: Level) -> NDArray[np.bool_]:
    """(height, width) True for cells whose centre is worth reading."""
    level = view.saliency.level
    rows = ((np.arange(cells.height) + 0.5) * cells.downsample_y / level.downsample_y).astype(np.int64)
    columns = ((np.arange(cells.width) + 0.5) * cells.downsample_x / level.downsample_x).astype(np.int64)
    at_centres = view.saliency.map[np.ix_(np.minimum(rows, level.height - 1), np.minimum(columns, level.width - 1))]
    return np.asarray(at_centres >= WORTH_READING)
