"""What is made of the fused map and the task tokens: answers about the whole image, a segmentation, things with their places, a vector.

A head says logits, which losses want, and turns them into its part of an Output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from patchdrive.models.answers import AnswerSpec
from patchdrive.models.saliency import HALO, STRIDE
from patchdrive.models.types import Objects, Output, OutputSpec
from patchdrive.readers.geometry import Level

RARE = -4.0
"""Bias of a detection logit at the start: about one cell in fifty holds an object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fused:
    """What heads are given."""

    map: Tensor
    """[B, D, rows, gw], the global stream with the patches' detail in it: the whole map, or a strip. Heads of maps see cell by cell."""
    queries: Tensor
    """[B, T, D], task tokens: one per answer, and one for the embedding where there is one."""


Said = Mapping[str, Tensor]
"""Logits by name."""


class Head(Protocol):
    """One kind of result."""

    @property
    def maps(self) -> tuple[OutputSpec, ...]:
        """The maps it gives, on the glance's pixels."""
        ...

    def __call__(self, fused: Fused) -> Said:
        """What it says, before it becomes probabilities."""
        ...

    def output(self, said: Said, cells: Level, /) -> Output:
        """Its part of the result, of what all heads said."""
        ...


class Centre(nn.Module):
    """Detection by centres (CenterNet, Zhou et al. 2019): a logit per cell, where beside the cell's centre the thing's is, how large it is.

    Sizes are exp(s) cells: things are as large as a cell at first.
    """

    def __init__(self, width: int, target: str, *, boxes: bool, threshold: float) -> None:
        super().__init__()
        self.maps = (OutputSpec(name="detection", kind="probability", channels=(target,), stride=STRIDE, halo=HALO),)
        self.target, self.threshold = target, threshold
        self.hidden = nn.Conv2d(width, width, 1)
        self.detection = nn.Conv2d(width, 1, 1)
        self.offset = nn.Conv2d(width, 2, 1)
        self.size = nn.Conv2d(width, 2, 1) if boxes else None
        assert self.detection.bias is not None
        nn.init.constant_(self.detection.bias, RARE)

    def forward(self, fused: Fused) -> Said:
        """[B, 1 or 2, gh, gw]: `detection` logits, `offset` (y, x) in cells from the cell's centre, `size` in log cells."""
        x = functional.relu(self.hidden(fused.map))
        said = {"detection": self.detection(x), "offset": self.offset(x)}
        return said if self.size is None else {**said, "size": self.size(x)}

    def output(self, said: Said, cells: Level, /) -> Output:
        """The map, and its peaks as things."""
        probability = torch.sigmoid(said["detection"])
        sizes: Sequence[Tensor | None] = list(said["size"].exp()) if self.size is not None else [None] * len(probability)
        things = zip(probability, said["offset"], sizes, strict=True)
        return Output(
            maps={"detection": probability},
            objects=[replace(find_objects(p[0], offset, cells, self.threshold, size), name=self.target) for p, offset, size in things],
        )


class Classify(nn.Module):
    """One answer about the whole image, from its own task token."""

    def __init__(self, width: int, answer: AnswerSpec, query: int) -> None:
        super().__init__()
        self.maps: tuple[OutputSpec, ...] = ()
        self.answer, self.query = answer, query
        self.norm = nn.LayerNorm(width)
        self.logits = nn.Linear(width, len(answer.classes))

    def forward(self, fused: Fused) -> Said:
        """[B, C] logits by the answer's name."""
        return {self.answer.name: self.logits(self.norm(fused.queries[:, self.query]))}

    def output(self, said: Said, _cells: Level, /) -> Output:
        """Probabilities."""
        logits = said[self.answer.name]
        return Output(values={self.answer.name: torch.sigmoid(logits) if self.answer.many else torch.softmax(logits, dim=1)})


class Segment(nn.Module):
    """Classes of every glance pixel: each cell of the fused map says those of its own STRIDE x STRIDE pixels."""

    def __init__(self, width: int, classes: tuple[str, ...]) -> None:
        super().__init__()
        kind: OutputSpec = OutputSpec(name="segmentation", kind="classes", channels=classes, stride=1, halo=HALO)
        self.maps = (kind,)
        self.hidden = nn.Conv2d(width, width, 1)
        self.pixels = nn.Conv2d(width, len(classes) * STRIDE**2, 1)

    def forward(self, fused: Fused) -> Said:
        """`segmentation` [B, C, STRIDE gh, STRIDE gw] logits."""
        return {"segmentation": functional.pixel_shuffle(self.pixels(functional.relu(self.hidden(fused.map))), STRIDE)}

    def output(self, said: Said, _cells: Level, /) -> Output:
        """Probabilities that sum to one."""
        return Output(maps={"segmentation": torch.softmax(said["segmentation"], dim=1)})


class Embed(nn.Module):
    """The whole image as one vector: its task token, normalised."""

    def __init__(self, width: int, query: int) -> None:
        super().__init__()
        self.maps: tuple[OutputSpec, ...] = ()
        self.query = query
        self.norm = nn.LayerNorm(width)

    def forward(self, fused: Fused) -> Said:
        """`embedding` [B, D]."""
        return {"embedding": self.norm(fused.queries[:, self.query])}

    def output(self, said: Said, _cells: Level, /) -> Output:
        """The vector."""
        return Output(embedding=said["embedding"])


def find_objects(probability: Tensor, offset: Tensor, cells: Level, threshold: float, size: Tensor | None = None) -> Objects:
    """The peaks of one image's detection map: cells at or above `threshold` that no neighbour of their 3x3 exceeds.

    Args:
        probability: [gh, gw].
        offset: [2, gh, gw] in cells, (y, x) from the cell's centre.
        cells: the map's grid.
        threshold: least probability of an object.
        size: [2, gh, gw] heights and widths in cells, where things have them.

    Returns:
        Highest first; of equals the one nearer the top, then the left. Centres are held inside the image.
    """
    highest = functional.max_pool2d(probability[None, None], kernel_size=3, stride=1, padding=1)[0, 0]
    y, x = torch.nonzero((probability >= threshold) & (probability >= highest), as_tuple=True)
    score, order = torch.sort(probability[y, x], descending=True, stable=True)
    y, x = y[order], x[order]
    place = torch.stack([y, x], dim=1) + 0.5 + offset[:, y, x].T
    extent = place.new_tensor([cells.height, cells.width])
    place = torch.minimum(place.clamp_min(0), extent)
    steps = place.new_tensor([cells.downsample_y, cells.downsample_x])
    return Objects(yx=place * steps, score=score, size=None if size is None else size[:, y, x].T * steps)
