"""Patches of a Selection out of images held in memory, and the coarse view of such an image: for training and small images."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from patchdrive.models.types import ModelSpec, Selection
from patchdrive.readers.geometry import Level


def crop(image: Tensor, selection: Selection, grid: Level, spec: ModelSpec) -> Tensor:
    """Stored pixels of every slot, by index: corners are whole pixels, nothing is resampled.

    Args:
        image: [B, C, H, W] stored values, the pixels of `grid`.
        selection: K slots per image.
        grid: the image's frame.
        spec: of the encoder: its size and fill.

    Returns:
        [B, K, C, size, size] of the image's dtype; `fill` outside the image and in empty slots.
    """
    size = spec.size
    steps = selection.yx.new_tensor([grid.downsample_y, grid.downsample_x])
    corners = (selection.yx / steps - size / 2).round().long().tolist()
    patches = image.new_full((*selection.valid.shape, image.shape[1], size, size), spec.fill)
    for b, row in enumerate(selection.valid.tolist()):
        for k, filled in enumerate(row):
            if filled:
                y, x = corners[b][k]
                part = image[b, :, max(y, 0) : y + size, max(x, 0) : x + size]
                top, left = max(-y, 0), max(-x, 0)
                patches[b, k, :, top : top + part.shape[1], left : left + part.shape[2]] = part
    return patches


def coarsen(image: Tensor, factor: int) -> Tensor:
    """Area means, a partial pixel the mean of its part: [B, C, H, W] of any dtype to float32 [B, C, ceil(H / factor), ceil(W / factor)]."""
    return functional.avg_pool2d(image.to(torch.float32), factor, ceil_mode=True, count_include_pad=False)
