"""What a run would read: the plan, counted and drawn. No patch is read; a few tiles are, to know how fast that goes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchdrive.models.types import DriveModel, PatchModel
from patchdrive.pipeline.asked import as_asked
from patchdrive.pipeline.budget import show_bytes
from patchdrive.pipeline.devices import Devices
from patchdrive.pipeline.feed import FeedSettings
from patchdrive.pipeline.glance import check, glance
from patchdrive.pipeline.pictures import draw_plan, save_picture
from patchdrive.pipeline.plan import Plan, coverage
from patchdrive.pipeline.reads import tile_pixels, tile_uses, tiles_of
from patchdrive.pipeline.run import drive_of, step
from patchdrive.pipeline.settings import RunSettings
from patchdrive.pipeline.store import store_name
from patchdrive.pipeline.timings import Timings
from patchdrive.pipeline.work import prepare
from patchdrive.readers import Image
from patchdrive.readers.tiles import DecodesTiles, tile_decoder

_TRIED = 16


def outlook(image: Image, model: PatchModel | DriveModel, settings: RunSettings, *, picture: Path | None) -> dict[str, Any]:
    """The first round of a run, counted; with a picture of it in the folder `picture`.

    The seconds are those of decoding alone, at the speed of a few tiles tried now.

    Raises:
        PatchdriveError: what `run` would refuse, this refuses.
    """
    timings, devices = Timings(), Devices(settings.device)
    model = as_asked(model, settings)
    encoder = model.encoder if isinstance(model, DriveModel) else model
    check(image, encoder.spec, settings, drives=isinstance(model, DriveModel))
    view = glance(image, settings)
    model.to(devices.first)
    plan = step(drive_of(model, view, settings, devices, timings))
    assert isinstance(plan, Plan)
    work = prepare(view, encoder, plan, settings, recorded=None, devices=devices)
    frame = work.feed.frame
    decoder = tile_decoder(image, frame.level.index)
    grid = decoder.grid(level=frame.level.index)
    used = tile_uses([tiles_of(frame.sources(plan.y, plan.x), grid)], grid) > 0
    needed = tile_pixels(used, grid) * image.dtype.itemsize * len(work.feed.channels)
    facts = {
        "source": image.source,
        "patches": len(plan),
        "patch_size": plan.side,
        "downsample": [plan.grid.downsample_y, plan.grid.downsample_x],
        "mpp": None if view.mpp is None else [view.mpp[0] * plan.grid.downsample_y, view.mpp[1] * plan.grid.downsample_x],
        "level": frame.level.index,
        "resampled": not frame.exact,
        "coverage": round(coverage([plan], view.saliency), 6),
        "bytes_needed": needed,
        "seconds_reading": round(needed / _speed(image, decoder, used, work.feed) / work.feed.workers, 1),
        "batch_size": work.sizes.batch_size,
        "picture": None,
    }
    if picture is not None:
        picture.mkdir(parents=True, exist_ok=True)
        path = picture / store_name(image).replace(".zarr", ".plan.png")
        save_picture(path, draw_plan(view.thumbnail, plan, image.levels[0]))
        facts["picture"] = str(path)
    return facts


def _speed(image: Image, decoder: DecodesTiles, used: NDArray[np.bool_], feed: FeedSettings) -> float:
    """Bytes a second that one thread decodes, tried on a few tiles spread over those in use."""
    level = feed.frame.level.index
    grid, places = decoder.grid(level=level), np.argwhere(used)
    tried = [(row, column) for row, column in places[:: max(1, len(places) // _TRIED)].tolist()]
    shape = (grid.tile_height, grid.tile_width)
    out = np.empty((*shape, len(feed.channels)), image.dtype)
    valid = np.empty(shape, np.bool_) if image.has_mask else None
    begin = time.perf_counter()
    for tile in tried:
        decoder.decode([tile], level=level, channels=feed.channels, out=[out], valid=None if valid is None else [valid])
    return max(out.nbytes * len(tried), 1) / max(time.perf_counter() - begin, 1e-6)


def outlook_lines(facts: Mapping[str, Any]) -> list[str]:
    """The same for people."""
    size = "" if facts["mpp"] is None else f" at {facts['mpp'][0]:.4g} µm per pixel"
    how = "resampled from" if facts["resampled"] else "as stored in"
    lines = [
        str(facts["source"]),
        f"  {facts['patches']} patches of {facts['patch_size']} px{size}, {how} level {facts['level']}, batches of {facts['batch_size']}",
        f"  {facts['coverage']:.1%} of the valid area, {show_bytes(facts['bytes_needed'])} to decode, "
        f"about {facts['seconds_reading']:.0f} s of reading",
    ]
    return lines if facts["picture"] is None else [*lines, f"  {facts['picture']}"]
