"""Inverted residual blocks (MobileNetV2, Sandler et al. 2018), and a patch encoder made of them: system F's embedding network.

A block widens by a 1x1 convolution, looks around by a depthwise 3x3, and narrows by a linear 1x1; input and output are joined where their
shapes agree. Deviations: GroupNorm, never batch norm in training mode, so that a patch's features are its own; SiLU for ReLU6, as in
`encoders.SmallCNN`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from patchdrive.models.digest import module_digest
from patchdrive.models.types import ModelSpec
from patchdrive.readers.errors import ModelError

_GROUP = 8
"""Channels normalised together."""
_BLOCKS = ((16, 24, 2), (24, 24, 1), (24, 48, 2), (48, 48, 1))
"""Channels in, channels out, stride."""


class InvertedResidual(nn.Module):
    """1x1 to `expansion` times the channels, depthwise 3x3, 1x1 back without an activation; residual where the shapes agree.

    Raises:
        ModelError: channels are no multiple of 8.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1, expansion: int = 4) -> None:
        super().__init__()
        if inputs % _GROUP or outputs % _GROUP:
            raise ModelError(f"channels are a multiple of {_GROUP}, the group of their norm, got {inputs} and {outputs}")
        hidden = expansion * inputs
        self.residual = stride == 1 and inputs == outputs
        self.layers = nn.Sequential(
            nn.Conv2d(inputs, hidden, 1, bias=False),
            nn.GroupNorm(hidden // _GROUP, hidden),
            nn.SiLU(),
            nn.Conv2d(hidden, hidden, 3, stride=stride, padding=1, groups=hidden, bias=False),
            nn.GroupNorm(hidden // _GROUP, hidden),
            nn.SiLU(),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.GroupNorm(outputs // _GROUP, outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[n, C, h, w] to [n, outputs, ceil(h / stride), ceil(w / stride)]."""
        narrow: Tensor = self.layers(x)
        return x + narrow if self.residual else narrow


class InvertedEncoder(nn.Module):
    """A patch to one vector: a PatchModel, in the place of `SmallCNN`. 6 MMAC and 95 thousand weights for 64x64x3 to 64.

    That is less than `SmallCNN` has, but depthwise layers wait for memory: on a CPU it takes three times as long. Read out
    as there: [mean, max] over the patch say what is in it, a 4x4 sketch says where in it.
    """

    def __init__(self, spec: ModelSpec, width: int) -> None:
        super().__init__()
        self.spec = spec
        first, last = _BLOCKS[0][0], _BLOCKS[-1][1]
        self.stem = nn.Sequential(
            nn.Conv2d(spec.channels, first, 3, stride=2, padding=1, bias=False), nn.GroupNorm(first // _GROUP, first), nn.SiLU()
        )
        self.blocks = nn.Sequential(*(InvertedResidual(inputs, outputs, stride=stride) for inputs, outputs, stride in _BLOCKS))
        self.content = nn.Linear(2 * last, width)
        self.sketch = nn.Linear(16 * last, width)
        self.norm = nn.LayerNorm(width)

    @property
    def digest(self) -> str:
        """As `PatchModel.digest`."""
        return module_digest(self, self.spec.to_dict())

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """[n, C, p, p] normalised to `features` [n, D]."""
        x = self.blocks(self.stem(pixels))
        content = torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1)
        sketch = functional.adaptive_avg_pool2d(x, 4).flatten(1)
        return {"features": self.norm(self.content(content) + self.sketch(sketch))}
