"""Where to look, learned from where the network looked: its attention over all reads of its training images, told to a small CNN.

The CNN sees 9x9 pixels of the thumbnail around a peak and nothing of the canvas, so ranking the peaks costs no read.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from megapixel_network import Network
from megapixel_reads import LOOK
from megapixel_training import Examples, answer_all, encode_all
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

LOOKED_AT = 1.5
"""A read is salient that has this many times the attention that an even spread would give it."""
GAIN = 4.0
"""Thumbnails of thin ink are dark: grey values in [0, 1] are multiplied by this."""


class Saliency(nn.Sequential):
    """[n, 1, 9, 9] of the thumbnail to logits [n, 1, 1, 1]; of a whole thumbnail to those of its inner cells, one per pixel."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 24, 3), nn.ReLU(), nn.Conv2d(24, 48, 3), nn.ReLU(), nn.Conv2d(48, 64, LOOK - 4), nn.ReLU(), nn.Conv2d(64, 1, 1)
        )  # fmt: skip

    @torch.no_grad()
    def rank(self, look: NDArray[np.float32]) -> NDArray[np.float32]:
        """[..., 9, 9] to logits [...]."""
        flat = torch.from_numpy(np.array(look, np.float32).reshape(-1, 1, LOOK, LOOK))
        logits = torch.cat([self(GAIN * part).flatten() for part in flat.split(8192)])
        return logits.numpy().reshape(look.shape[:-2])


def distil(network: Network, given: Examples, *, seed: int, epochs: int = 3) -> Saliency:
    """A saliency that finds what `network` attends to in the `given` images."""
    valid = given.reads.valid[given.index]
    attention = answer_all(network, given, encode_all(network, given), valid).attention
    wanted = attention > LOOKED_AT / torch.from_numpy(valid).sum(dim=1, keepdim=True)
    print(f"  the network attends to {wanted.sum().item() / len(valid):.3f} reads an image", file=sys.stderr, flush=True)
    looks = torch.from_numpy(given.reads.look[given.index][valid]).float()
    return _fit(looks[:, None], wanted[torch.from_numpy(valid)].float(), seed, epochs)


def _fit(looks: Tensor, wanted: Tensor, seed: int, epochs: int) -> Saliency:
    torch.manual_seed(seed)
    saliency = Saliency()
    batch = 512
    steps = epochs * (len(looks) // batch)
    optimiser = torch.optim.AdamW(saliency.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(looks))[: len(looks) // batch * batch].view(-1, batch):
            loss = functional.binary_cross_entropy_with_logits(saliency(GAIN * looks[rows]).flatten(), wanted[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return saliency.eval()
