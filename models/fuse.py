"""System A's cross-attention fusion: global cells ask, patch features answer, so that each detail lands at its place in the map.

One pre-norm layer. Queries are the task tokens and the cells of the global stream; keys and values are the patch tokens and the
stream pooled to 8x8. With w the gate of a patch (MODELS 3.6):

    logits = q.k / sqrt(d) + log w - softplus(a_head) * (distance / side)^2        X = Q + MHA;  X += MLP(X);  fused = F + gamma * X

Deviations, each for training in minutes: the distance term (a learned width per head; a patch's detail need not learn from the
position code where it belongs; none for task tokens and pooled cells), the 64 pooled cells count as one key (-log 64, else a
patch starts with less than a hundredth of the attention), gamma starts at 0.5 rather than 0, and the linear map of
the position code starts at 0. The gate scales a token after its norm, so that the norm cannot undo it.

Options, for answers about a whole image from a few of its patches (each off unless asked for, and then no weight is there):
`gated`, a gate that a token has of itself, 4 logsigmoid(g(t)), added to its logits: what holds nothing is left out of every answer by one
weight, where the queries would each have to learn it; g starts at 2, so all are in. `sloped`, for "the topmost": a bias linear in y, one
slope per query and head, -2 to 2 at the start; sines at fixed octaves can only approximate an order. A slope is s |s|: telling two heights
apart takes hundreds, and steep ones then move by large steps while those of other tasks stay where they are. `octaves` and `lowest`: as
many octaves as the image has places to tell apart, the lowest of half a period, so that no two ends of the image share a code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from patchdrive.models.stream import pool
from patchdrive.models.types import Glance, Tokens
from patchdrive.readers.geometry import Level

POOLED = 8
"""The global stream is pooled to 8x8 tokens."""
QUERIES = 4096
"""Cells that ask at once: memory is heads * QUERIES * (K + 64) floats, a few times over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What the position code calls 0 and 1: the image's own borders, or in training a larger image that it could be a part of."""

    origin: tuple[float, float]
    """Level-0 (y, x) of code 0, relative to the image."""
    extent: tuple[float, float]
    """Level-0 (height, width) from code 0 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskAnswers:
    """What the task queries found in the patches."""

    tokens: Tensor
    """[B, tasks, D]."""
    attention: Tensor
    """[B, tasks, K] what each gave to each patch, the mean over heads; 0 for empty slots."""


def coord_encoding(yx: Tensor, side: Tensor, frame: Frame, reference: float, octaves: int, *, lowest: float = 1.0) -> Tensor:
    """Position and size as sines: u = (yx - origin) / extent, v = log2(side / reference) / 8; sin and cos of 2 pi lowest 2^j, j < octaves.

    Args:
        yx: [..., 2] level-0 centres.
        side: [...] level-0 pixels.
        frame: what 0 and 1 mean.
        reference: level-0 side that has v = 0.
        octaves: J.
        lowest: periods of the first octave from code 0 to 1.

    Returns:
        [..., 6 J]; the same for cells and patches, so they share one frame.
    """
    u = (yx - yx.new_tensor(frame.origin)) / yx.new_tensor(frame.extent)
    v = torch.log2(side / reference) / 8
    waves = 2 * math.pi * lowest * 2.0 ** torch.arange(octaves, device=yx.device)
    angle = (torch.cat([u, v[..., None]], dim=-1)[..., None] * waves).flatten(-2)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def cell_centres(cells: Level, first: int, last: int, device: torch.device) -> Tensor:
    """[last - first, 2] level-0 centres of the cells with these flat indices."""
    index = torch.arange(first, last, device=device)
    centres = torch.stack([index // cells.width, index % cells.width], dim=1).to(torch.float32) + 0.5
    return centres * centres.new_tensor([cells.downsample_y, cells.downsample_x])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Keys:
    """What is attended to: K patch tokens, then 64 pooled cells where there is a glance."""

    k: Tensor
    """[B, heads, M, d]."""
    v: Tensor
    """[B, heads, M, d]."""
    bias: Tensor
    """[B, M], log of the gates, -inf for empty slots; -log 64 for pooled cells."""
    yx: Tensor
    """[B, M, 2] level-0 centres."""
    nearness: Tensor
    """[B, M], 1 / side; 0 for what is near to everything."""
    down: Tensor
    """[B, M], y in the position code's frame: 0 at the top, 1 at the bottom."""


class CrossAttentionFuse(nn.Module):
    """Patch tokens into the global map; `tasks` learned queries answer for the whole image."""

    def __init__(
        self,
        width: int,
        heads: int = 4,
        tasks: int = 1,
        *,
        octaves: int | None = None,
        lowest: float = 1.0,
        gated: bool = False,
        sloped: bool = False,
    ) -> None:
        """Draw the weights.

        Args:
            width: D, a multiple of 8 and of `heads`.
            heads: of the attention.
            tasks: learned queries.
            octaves: of the position code; D / 8 unless given.
            lowest: periods of its first octave over the image.
            gated: whether tokens gate themselves.
            sloped: whether queries and heads have slopes in y.
        """
        super().__init__()
        self.heads = heads
        self.tasks = nn.Parameter(0.02 * torch.randn(tasks, width))
        self.octaves, self.lowest = width // 8 if octaves is None else octaves, lowest
        self.position = nn.Linear(6 * self.octaves, width, bias=False)
        nn.init.zeros_(self.position.weight)
        self.norm_query, self.norm_patch, self.norm_pooled, self.norm_mlp = (nn.LayerNorm(width) for _ in range(4))
        self.query, self.output = nn.Linear(width, width), nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.locality = nn.Parameter(torch.linspace(3.0, 0.0, heads).exp())
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.gamma = nn.Parameter(torch.full((width,), 0.5))
        self.slope = nn.Parameter(torch.linspace(-1.4, 1.4, heads).repeat(tasks, 1)) if sloped else None
        self.gate = nn.Linear(width, 1) if gated else None
        if self.gate is not None:
            nn.init.zeros_(self.gate.weight)
            nn.init.constant_(self.gate.bias, 2.0)

    def forward(self, glance: Glance, tokens: Tokens, cells: Level, frame: Frame, *, queries: int = QUERIES) -> tuple[Tensor, Tensor]:
        """The whole map, [B, D, gh, gw], and task tokens [B, tasks, D]; arguments as `strips`."""
        strips = [strip for _, strip in self.strips(glance, tokens, cells, frame, queries=queries)]
        return torch.cat(strips, dim=2), self.ask(glance, tokens, cells, frame).tokens

    def strips(
        self, glance: Glance, tokens: Tokens, cells: Level, frame: Frame, *, queries: int = QUERIES
    ) -> Iterator[tuple[slice, Tensor]]:
        """The map a few rows at a time, these and [B, D, rows, gw], from the top: however large the image, no more of it is held.

        Args:
            glance: the global stream.
            tokens: of the patches read.
            cells: the glance's grid.
            frame: of the position code.
            queries: cells that ask at once, as whole rows; changes rounding only.
        """
        code = self._code(tokens, frame)
        keys = _join(self._patches(tokens, code), self._pooled(glance, cells, code))
        rows = max(1, queries // cells.width)
        for top in range(0, cells.height, rows):
            stream = glance.features[:, :, top : top + rows]
            block = stream.flatten(2).transpose(1, 2)
            first = top * cells.width
            centres = cell_centres(cells, first, first + block.shape[1], block.device)
            asked = self._look(block + code(centres, _cell_side(cells, centres)), keys, centres)
            yield slice(top, top + stream.shape[2]), (block + self.gamma * asked).transpose(1, 2).reshape(stream.shape)

    def answer(self, tokens: Tokens, frame: Frame) -> TaskAnswers:
        """What the task queries find in the patches alone: no glance, no map.

        Args:
            tokens: of the patches read; an image without any is answered from nothing.
            frame: of the position code.
        """
        answers, attention = self._ask(self._patches(tokens, self._code(tokens, frame)))
        return TaskAnswers(tokens=answers, attention=attention)

    def ask(self, glance: Glance, tokens: Tokens, cells: Level, frame: Frame) -> TaskAnswers:
        """What the task queries find in the patches and the glance, as `forward`, without the map."""
        code = self._code(tokens, frame)
        answers, attention = self._ask(_join(self._patches(tokens, code), self._pooled(glance, cells, code)))
        return TaskAnswers(tokens=answers, attention=attention[:, :, : tokens.x.shape[1]])

    def _ask(self, keys: _Keys) -> tuple[Tensor, Tensor]:
        """One pre-norm layer over the task tokens: [B, tasks, D], and the attention [B, tasks, M], its mean over heads."""
        x = self.tasks.expand(len(keys.bias), -1, -1)
        q = self._split(self.query(self.norm_query(x)))
        logits = q @ keys.k.transpose(2, 3) / math.sqrt(q.shape[3]) + keys.bias[:, None, None]
        if self.slope is not None:
            slope = self.slope * self.slope.abs()
            logits = logits + slope.T[:, :, None] * keys.down[:, None, None]
        empty = keys.bias == -torch.inf  # a row that is all empty has no softmax
        attention = torch.softmax(logits.masked_fill(empty[:, None, None], -1e9), dim=3).masked_fill(empty[:, None, None], 0.0)
        return self._finish(x, attention @ keys.v), attention.mean(dim=1)

    def _look(self, x: Tensor, keys: _Keys, centres: Tensor) -> Tensor:
        """One pre-norm layer over the cells [B, n, D] at level-0 `centres` [n, 2]."""
        q = self._split(self.query(self.norm_query(x)))
        apart = torch.zeros((), device=x.device)
        for axis in (0, 1):
            apart = apart + ((centres[:, axis, None] - keys.yx[:, None, :, axis]) * keys.nearness[:, None]).square()
        bias = keys.bias[:, None, None, :] - functional.softplus(self.locality)[:, None, None] * apart[:, None]
        return self._finish(x, functional.scaled_dot_product_attention(q, keys.k, keys.v, attn_mask=bias))

    def _finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """The residual branches: [B, n, D] and what its heads attended to [B, heads, n, d]."""
        x = x + self.output(attended.transpose(1, 2).flatten(2))
        answered: Tensor = x + self.mlp(self.norm_mlp(x))
        return answered

    def _code(self, tokens: Tokens, frame: Frame) -> _Code:
        return _Code(self.position, frame, float(tokens.selection.side.max()), self.octaves, self.lowest)

    def _patches(self, tokens: Tokens, code: _Code) -> _Keys:
        """The patches as keys."""
        selection = tokens.selection
        normed = self.norm_patch(tokens.x)
        x = (normed * selection.weight[..., None] + code(selection.yx, selection.side)).where(selection.valid[..., None], 0.0)
        gate = selection.weight.clamp_min(1e-6).log()
        if self.gate is not None:
            gate = gate + 4 * functional.logsigmoid(self.gate(normed)[..., 0])
        return self._keys(x, gate.masked_fill(~selection.valid, -torch.inf), selection.yx, 1 / selection.side, code)

    def _pooled(self, glance: Glance, cells: Level, code: _Code) -> _Keys:
        """The stream's 64 pooled cells as keys."""
        pooled = pool(glance, POOLED)
        extent = Level(
            index=0,
            height=POOLED,
            width=POOLED,
            downsample_y=cells.height * cells.downsample_y / POOLED,
            downsample_x=cells.width * cells.downsample_x / POOLED,
            tile_height=POOLED,
            tile_width=POOLED,
        )
        yx = cell_centres(extent, 0, POOLED**2, pooled.device).expand(len(pooled), -1, -1)
        x = self.norm_pooled(pooled) + code(yx, _cell_side(extent, yx))
        nothing = pooled.new_zeros(len(pooled), POOLED**2)
        return self._keys(x, nothing - math.log(POOLED**2), yx, nothing, code)

    def _keys(self, x: Tensor, bias: Tensor, yx: Tensor, nearness: Tensor, code: _Code) -> _Keys:
        k, v = (self._split(part) for part in self.key_value(x).chunk(2, dim=2))
        down = (yx[..., 0] - code.frame.origin[0]) / code.frame.extent[0]
        return _Keys(k=k, v=v, bias=bias, yx=yx, nearness=nearness, down=down)

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)


def _join(one: _Keys, other: _Keys) -> _Keys:
    return _Keys(
        k=torch.cat([one.k, other.k], dim=2),
        v=torch.cat([one.v, other.v], dim=2),
        bias=torch.cat([one.bias, other.bias], dim=1),
        yx=torch.cat([one.yx, other.yx], dim=1),
        nearness=torch.cat([one.nearness, other.nearness], dim=1),
        down=torch.cat([one.down, other.down], dim=1),
    )


@dataclass(frozen=True, slots=True)
class _Code:
    """The position code of one image, projected to the width of the tokens."""

    projection: nn.Linear
    frame: Frame
    reference: float
    octaves: int
    lowest: float

    def __call__(self, yx: Tensor, side: Tensor) -> Tensor:
        code: Tensor = self.projection(coord_encoding(yx, side, self.frame, self.reference, self.octaves, lowest=self.lowest))
        return code


def _cell_side(cells: Level, like: Tensor) -> Tensor:
    """Side of a cell, level-0 pixels, once per centre in `like` [..., 2]."""
    return like.new_full(like.shape[:-1], (cells.downsample_y + cells.downsample_x) / 2)
