"""Patches of a Selection out of images held in memory, and the coarse view of such an image: for training and small images."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from patchdrive.models.types import ModelSpec, Selection
from patchdrive.readers.errors import ModelError
from patchdrive.readers.geometry import Level


def crop(image: Tensor, selection: Selection, slots: Tensor, grid: Level, spec: ModelSpec) -> Tensor:
    """Stored pixels of some slots, by index: corners are whole pixels. The pixels of a coarser level are means.

    Args:
        image: [B, C, H, W] stored values, the pixels of `grid`.
        selection: K slots per image.
        slots: [n, 2] int64, image and slot.
        grid: the image's frame.
        spec: of the encoder: its size and fill.

    Returns:
        [n, C, size, size] of the image's dtype, float32 on a coarser level (of one level at a time); `fill` outside the image.

    Raises:
        ModelError: a patch's pixel is not a whole number of the image's.
    """
    steps = selection.yx.new_tensor([grid.downsample_y, grid.downsample_x])
    zooms = selection.side * 2 / (steps.sum() * spec.size)
    b, k = slots.unbind(1)
    zoom = zooms[b, k].round().long()
    if (zooms[b, k] - zoom).abs().max() > 1e-3:
        raise ModelError(f"patches are of whole multiples of {spec.size} pixels here, got {(zooms[b, k] * spec.size).tolist()}")
    corners = (selection.yx[b, k] / (steps * zoom[:, None]) - spec.size / 2).round().long().tolist()
    levels = {z: image if z == 1 else coarsen(image, z) for z in set(zoom.tolist())}
    return torch.stack(
        [
            _cut(levels[z][one], y, x, side=spec.size, fill=spec.fill)
            for one, (y, x), z in zip(b.tolist(), corners, zoom.tolist(), strict=True)
        ]
    )


def _cut(image: Tensor, y: int, x: int, *, side: int, fill: float) -> Tensor:
    """[C, side, side] of [C, H, W] from corner (y, x), which may lie outside."""
    part = image[:, max(y, 0) : max(y + side, 0), max(x, 0) : max(x + side, 0)]
    if part.shape[1:] == (side, side):
        return part
    whole = image.new_full((len(image), side, side), fill)
    above, before = max(-y, 0), max(-x, 0)
    whole[:, above : above + part.shape[1], before : before + part.shape[2]] = part
    return whole


def coarsen(image: Tensor, factor: int) -> Tensor:
    """Area means, a partial pixel the mean of its part: [B, C, H, W] of any dtype to float32 [B, C, ceil(H / factor), ceil(W / factor)]."""
    return functional.avg_pool2d(image.to(torch.float32), factor, ceil_mode=True, count_include_pad=False)
