"""System A's first two parts: the global low-resolution stream, and the saliency head that says where to look.

The stream is a small convolutional net over the whole image at a coarse pixel size; the saliency head is a 1x1 convolution on
its features plus a Laplacian-of-Gaussian prior at a fixed scale, which alone ranks the cells of an untrained model.

No spatial normalisation anywhere, so a tile with a halo gives what the whole image gives (layer norm is per cell). Cells lie
exactly on their pixels: resolution is lost by space-to-depth, not by strided convolutions, whose centres drift by half a pixel.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from patchdrive.models.digest import module_digest
from patchdrive.models.types import ModelSpec

SIGMAS = (1.6, 3.2)
"""Scales of the complexity prior, glance pixels."""
STRIDE = 4
"""Glance pixels per cell."""
SELDOM = -2.0
"""Bias of an untrained score: most cells hold nothing worth reading, and a trained gate is near one only where something is."""
HALO = 16
"""Glance pixels of context that a cell depends on: 2 + 3 * 4 for the stream, ceil(4 * 3.2) = 13 for the prior, in whole cells."""


def log_complexity(grey: Tensor) -> Tensor:
    """R = max over sigma of |sigma^2 * lap(G_sigma * grey)|, the scale-normalised Laplacian of Gaussian (Lindeberg 1998).

    Args:
        grey: [B, 1, H, W] float32; zeros beyond its border.

    Returns:
        [B, 1, H, W] >= 0, in the units of `grey`: never normalised by the image, so tiles join.
    """
    responses = []
    for sigma in SIGMAS:
        radius = int(4 * sigma + 0.999)
        t = torch.arange(-radius, radius + 1, dtype=torch.float64) / sigma
        gauss = torch.exp(-t.square() / 2)
        gauss = gauss / gauss.sum()
        second = (t.square() - 1) * gauss
        second = second - second.mean()  # truncation must not let a constant through
        taps = torch.stack([gauss, second]).to(grey)
        rows = functional.conv2d(grey, taps[:, None, :, None], padding=(radius, 0))
        response = functional.conv2d(rows, taps.flip(0)[None, :, None, :], padding=(0, radius))  # G_y'' G_x + G_y G_x''
        responses.append(response.abs())
    return torch.maximum(*responses)


class GlanceNet(nn.Module):
    """Pixels of a coarse level to `features` (the global stream) and `score` (saliency, logits); a PatchModel of two maps.

    score = w . features + b + beta * prior, with w = 0, b = -2 and beta = 1 at the start.
    """

    def __init__(self, spec: ModelSpec, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.fine = nn.Conv2d(4 * spec.channels, width // 2, 3, padding=1)
        self.coarse = nn.Conv2d(2 * width, width, 3, padding=1)
        self.context = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.LayerNorm(width)
        self.saliency = nn.Conv2d(width, 1, 1)
        self.beta = nn.Parameter(torch.ones(()))
        nn.init.zeros_(self.saliency.weight)
        assert self.saliency.bias is not None
        nn.init.constant_(self.saliency.bias, SELDOM)

    @property
    def digest(self) -> str:
        """As `PatchModel.digest`."""
        return module_digest(self, self.spec.to_dict())

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """[n, C, S, S] normalised, S a multiple of 4, to features [n, D, S/4, S/4] and score [n, 1, S/4, S/4].

        Cells within the halo of the border are not to be used: the pixels beyond are zeros there, not the image's.
        """
        x = functional.relu(self.fine(functional.pixel_unshuffle(pixels, 2)))
        x = functional.relu(self.coarse(functional.pixel_unshuffle(x, 2)))
        x = functional.relu(x + self.context(x))
        features = self.norm(x.movedim(1, -1)).movedim(-1, 1)
        with torch.no_grad():
            prior = functional.max_pool2d(log_complexity(pixels.mean(dim=1, keepdim=True)), STRIDE)
        return {"features": features.contiguous(), "score": self.saliency(features) + self.beta * prior}
