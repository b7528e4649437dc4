"""The network of the megapixel benchmark, out of system A's parts: a shared patch encoder, cross-attention with a query a task, heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from megapixel_canvas import TASKS
from torch import Tensor, nn

from patchdrive.models.encoders import SmallCNN
from patchdrive.models.fuse import CrossAttentionFuse, Frame
from patchdrive.models.types import ModelSpec, OutputSpec, Selection, Tokens

SIZE = 32
"""Side of a read, pixels."""
WIDTH = 128
"""D: length of a token."""
SELDOM = -4.0
"""Bias of the evidence of one read: most reads show no digit, let alone a given one."""
SPEC = ModelSpec(
    name="megapixel-mnist",
    channels=1,
    size=SIZE,
    scale=1 / 255,
    mean=(0.1,),
    std=(0.3,),
    outputs=(OutputSpec(name="features", kind="vector", channels=tuple(f"f{i}" for i in range(WIDTH))),),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What the network says of B images, K reads of each."""

    tasks: Mapping[str, Tensor]
    """[B, 10] logits per task: of one class of ten, and of `multi` of each digit by itself."""
    evidence: Tensor
    """[B, K, 10] logits: which digit a read shows by itself."""
    attention: Tensor
    """[B, K] the mean over tasks and heads; sums to one over an image's reads."""


class Network(nn.Module):
    """Reads and their places to four answers."""

    def __init__(self, side: int, *, dropout: float = 0.1) -> None:
        """Draw the weights.

        Args:
            side: of the canvas, pixels: what the position code calls one.
            dropout: of tokens, in training.
        """
        super().__init__()
        self.frame = Frame(origin=(0.0, 0.0), extent=(float(side), float(side)))
        self.encoder = SmallCNN(SPEC, WIDTH, late=True, dropout=dropout)
        self.fuse = CrossAttentionFuse(WIDTH, 8, len(TASKS), octaves=8, lowest=0.5, gated=True, sloped=True)
        self.heads = nn.ModuleDict({task: nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10)) for task in TASKS})
        self.evidence = nn.Linear(WIDTH, 10)
        nn.init.constant_(self.evidence.bias, SELDOM)

    def encode(self, pixels: Tensor) -> Tensor:
        """[n, 32, 32] stored values to [n, D] float32; the convolutions in bfloat16."""
        with torch.autocast(pixels.device.type, torch.bfloat16):
            vectors: Tensor = self.encoder(SPEC.standardise(pixels[:, None].float()))["features"]
        return vectors.float()

    def answer(self, x: Tensor, yx: Tensor, valid: Tensor) -> Answers:
        """Join reads.

        Args:
            x: [n, D] vectors of the filled slots, row by row.
            yx: [B, K, 2] centres, pixels.
            valid: [B, K] filled slots.
        """
        tokens = x.new_zeros(*valid.shape, WIDTH).masked_scatter(valid[..., None], x)
        selection = Selection(
            yx=yx.float(),
            side=torch.full(valid.shape, float(SIZE)),
            cell=torch.full(valid.shape, -1),
            weight=torch.ones(valid.shape),
            valid=valid,
        )
        found = self.fuse.answer(Tokens(x=tokens, selection=selection), self.frame)
        return Answers(
            tasks={task: self.heads[task](found.tokens[:, index]) for index, task in enumerate(TASKS)},
            evidence=self.evidence(tokens),
            attention=found.attention.mean(dim=1),
        )
