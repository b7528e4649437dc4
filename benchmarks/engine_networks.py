"""The two networks that every engine is given, of torch alone: one that reading outruns only just, one that computing decides.

Nothing here knows patchdrive: the other engines import it in an environment of their own. Weights are random, from one seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's, what networks of the field are normalised by."""
_SEED = 20261121


class Tiny(nn.Module):
    """[n, 3, S, S] to [n, 64] in three convolutions that overlap nowhere: 3 MMAC at 256 px."""

    width = 64

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Conv2d(before, after, 4, stride=4) for before, after in ((3, 8), (8, 32), (32, self.width))]
        self.layers = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2], nn.ReLU())

    def forward(self, pixels: Tensor) -> Tensor:
        """Mean of the last convolution's answers."""
        found: Tensor = self.layers(pixels).mean(dim=(2, 3))
        return found


class _Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al. 2016, figure 5 left)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = _convolution(inputs, outputs, 3, stride)
        self.second = _convolution(outputs, outputs, 3, 1)
        same = stride == 1 and inputs == outputs
        self.shortcut: nn.Module = nn.Identity() if same else _convolution(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(torch.relu(self.first(x))) + self.shortcut(x))


def _convolution(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


class ResNet18(nn.Module):
    """[n, 3, S, S] to [n, 512]: He et al. 2016, table 1, without its last layer; 2.4 GMAC at 256 px."""

    width = 512

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_convolution(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1))
        stages, before = [], 64
        for outputs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            stages += [_Residual(before, outputs, stride), _Residual(outputs, outputs, 1)]
            before = outputs
        self.stages = nn.Sequential(*stages)

    def forward(self, pixels: Tensor) -> Tensor:
        """Mean of the last stage's answers."""
        found: Tensor = self.stages(self.stem(pixels)).mean(dim=(2, 3))
        return found


_NETWORKS: Mapping[str, Callable[[], nn.Module]] = {"tiny": Tiny, "resnet18": ResNet18}
WIDTHS = {"tiny": Tiny.width, "resnet18": ResNet18.width}
"""Numbers in the vector that each leaves of a patch."""


def network(name: str) -> nn.Module:
    """One of the networks, in evaluation mode; the same weights in every process."""
    with torch.random.fork_rng():
        torch.manual_seed(_SEED)
        return _NETWORKS[name]().eval()
