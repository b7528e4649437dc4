"""System A's high-resolution feature extractor: one small CNN, its weights shared by all patches.

GroupNorm, never batch norm in training mode: a patch's features are its own, so any chunking by memory gives the same numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from patchdrive.models.digest import module_digest
from patchdrive.models.types import ModelSpec


def _stage(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.GroupNorm(outputs // 8, outputs), nn.SiLU())


class SmallCNN(nn.Module):
    """A patch to one vector: a PatchModel. 5 MMAC for 64x64x3.

    [mean, max] over the patch say what is in it, a 4x4 sketch says where in it. SiLU rather than ReLU: fine textures are learned in half
    the steps and from every seed tried.
    """

    def __init__(self, spec: ModelSpec, width: int, *, late: bool = False, dropout: float = 0.0) -> None:
        """Draw the weights.

        Args:
            spec: what it eats; one vector of `width` channels is what it gives.
            width: D.
            late: whether the last stage halves the resolution rather than the one before: twice the work, for small patches full of detail.
            dropout: share of a vector that training leaves out, before its norm.
        """
        super().__init__()
        self.spec = spec
        third, fourth = (1, 2) if late else (2, 1)
        self.stages = nn.Sequential(
            _stage(spec.channels, 16, 5, 2), _stage(16, 32, 3, 2), _stage(32, 64, 3, third), _stage(64, 64, 3, fourth)
        )
        with torch.no_grad():  # filters that see contrast, not brightness: what patches differ in from the first step
            kernel = next(self.stages.parameters())
            kernel.sub_(kernel.mean(dim=(2, 3), keepdim=True))
        self.content = nn.Linear(2 * 64, width)
        self.sketch = nn.Linear(16 * 64, width)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width)

    @property
    def digest(self) -> str:
        """As `PatchModel.digest`."""
        return module_digest(self, self.spec.to_dict())

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """[n, C, p, p] normalised to `features` [n, D]."""
        x = self.stages(pixels)
        content = torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1)
        sketch = functional.adaptive_avg_pool2d(x, 4).flatten(1)
        return {"features": self.norm(self.dropout(self.content(content) + self.sketch(sketch)))}
