"""What a driver is given of an image, and what it hands back: the nouns between a model and its driver."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Generator as Draws
from torch import Tensor, nn

from patchdrive.models.types import Glance, Selection, Tokens
from patchdrive.readers.geometry import Level


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a training step strays from the K best."""

    generator: Draws
    """Of all its draws."""
    temperature: float = 0.3
    """Of the Gumbel draw among the candidates."""
    sigma: float | None = None
    """Of the noise of a perturbed top-K (`select.topk_perturbed`), which a saliency driver then draws by instead; logits."""
    explore: float = 0.1
    """Share of the K spent on cells drawn uniformly."""
    drop: float = 0.15
    """Share of the patches read that fusion does not get, so that it knows what cells look like that nobody read."""
    jitter: float = 4.0
    """Patches are shifted by up to this many patch pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """One image before any of its patches is read."""

    glance: Glance
    """What was seen of it."""
    cells: Level
    """The glance's grid."""
    grid: Level
    """The grid of the finest patches."""
    size: int
    """Side of a patch in pixels, whatever its level."""
    max_patches: int
    """Patches that may be asked for in all."""
    rank: Callable[[Tokens], Tensor]
    """[B, K] how much the answers about the whole image attend to each of these patches; -inf for empty slots."""
    sampling: Sampling | None = None
    """Draws of a training step; None for the best."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """What a driver has gathered once it has seen enough."""

    tokens: Tokens
    """Of the patches that answers are made of."""
    losses: Mapping[str, Tensor] = field(default_factory=dict)
    """Terms of the training loss that only the driver knows, by the names of LossWeights."""


Asking = Generator[Selection, Tokens, Gathered]


class Driver(Protocol):
    """Decides, in one or several steps, which patches are read. Its weights are its own; what it knows of an image lives in `ask`."""

    def ask(self, search: Search) -> Asking:
        """Ask for patches, be sent their tokens, say what was gathered."""
        ...


class Placing(nn.Module):
    """Patches on cells: a learned sub-cell offset centres each on its object, and the image's border holds it inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.offset = nn.Linear(width, 2)
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)

    def offsets(self, features: Tensor) -> Tensor:
        """[..., D] features of cells to [..., 2] (y, x), where in or beside the cell the object's centre lies, in cells, within +-1."""
        return torch.tanh(self.offset(features))

    def forward(self, search: Search, index: Tensor, valid: Tensor, weight: Tensor) -> Selection:
        """Patches of the finest grid on cells [B, k] (flat indices; whatever where not `valid`), with their gates."""
        cells, grid, size = search.cells, search.grid, search.size
        at = index.clamp_min(0)
        features = search.glance.features.flatten(2)
        features = features.gather(2, at[:, None].expand(-1, features.shape[1], -1)).transpose(1, 2)
        place = torch.stack([at // cells.width, at % cells.width], dim=2) + 0.5 + self.offsets(features).detach()
        steps = place.new_tensor([grid.downsample_y, grid.downsample_x])
        corner = place * place.new_tensor([cells.downsample_y, cells.downsample_x]) / steps - size / 2
        if search.sampling is not None:
            shift = torch.rand(corner.shape, generator=search.sampling.generator, device=corner.device)
            corner = corner + (2 * shift - 1) * search.sampling.jitter
        last = place.new_tensor([max(grid.height - size, 0), max(grid.width - size, 0)])
        corner = torch.minimum(corner.round().clamp_min(0), last)
        return Selection(
            yx=(corner + size / 2) * steps,
            side=corner.new_full(index.shape, size * (grid.downsample_y + grid.downsample_x) / 2),
            cell=index,
            weight=weight.masked_fill(~valid, 1.0),
            valid=valid,
        )
