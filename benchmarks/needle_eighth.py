"""What a glance at 8x could see: the same saliency, taught the same way, on thumbnails half as fine.

A digit is 3 pixels there. This tells what the 4x level is read for.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from needle_reads import WIDE, Seen
from needle_training import GAIN, Lesson, schedule
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

CELL = WIDE // 2
"""Side of what is seen around a candidate, pixels of the 8x thumbnail: 64 of the canvas."""


class EighthSaliency(nn.Sequential):
    """[n, 1, 8, 8] of the 8x thumbnail to logits [n, 1, 1, 1]."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 48, 3), nn.SiLU(), nn.Conv2d(48, 96, 3), nn.SiLU(), nn.Conv2d(96, 128, 4), nn.SiLU(), nn.Conv2d(128, 1, 1)
        )

    @torch.no_grad()
    def rank(self, small: NDArray[np.uint8]) -> NDArray[np.float32]:
        """[n, 16, 16] of the 4x thumbnail to logits [n]."""
        return torch.cat([self(coarser(part)).flatten() for part in torch.from_numpy(np.array(small)).split(4096)]).numpy()


def coarser(small: Tensor) -> Tensor:
    """[n, 16, 16] stored values to [n, 1, 8, 8], means of 2x2."""
    return functional.avg_pool2d(small[:, None].float() / GAIN, 2)


def teach(lessons: Sequence[Lesson], *, epochs: int, seed: int, batch: int = 256, others: int = 4) -> EighthSaliency:
    """As `needle_training.distil`."""
    small, wanted = (np.concatenate([getattr(one, name) for one in lessons]) for name in ("small", "wanted"))
    draw = np.random.default_rng(seed)
    torch.manual_seed(seed)
    saliency = EighthSaliency()
    few, many = np.flatnonzero(wanted > 0.5), np.flatnonzero(wanted <= 0.5)
    steps = epochs * ((1 + others) * len(few) // batch)
    optimiser = torch.optim.AdamW(saliency.parameters(), lr=2e-3, weight_decay=0.02, fused=True)
    rates = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: schedule(step / steps))
    for _ in range(epochs):
        rows = draw.permutation(np.concatenate([few, draw.choice(many, min(len(many), others * len(few)), replace=False)]))
        for part in rows[: len(rows) // batch * batch].reshape(-1, batch):
            logits = saliency(coarser(torch.from_numpy(small[part]))).flatten()
            loss = functional.binary_cross_entropy_with_logits(logits, torch.from_numpy(wanted[part]))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            rates.step()
    return saliency.eval()


def rank_eighth(saliency: EighthSaliency, seen: Seen) -> list[NDArray[np.float32]]:
    """Of all candidates of each image."""
    return [saliency.rank(seen.small[index, :count]) for index, count in enumerate(seen.reads.count)]
