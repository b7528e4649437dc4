"""System A's patch drive controller as an LSTM that decides in sequence: what was read changes where it looks next (MODELS 3.5).

With h_0 = 0, at step t:

    q_t = W h_t;   logits of cells  l = score + <F, q_t> / sqrt(D);   the `per_step` best peaks of l that are still free are read
    u_t = [mean_k(w_k x_k) ; mean position code ; mean of F];   h, c = LSTM(u_t, (h, c));   p_t = sigmoid(v.h)

W has no bias, so the first step is exactly the parallel top-K, and with `per_step` = K there is no other. An image is done when the
sum of its p exceeds 1 - EPSILON (Graves 2016), or K is used. The gate of a patch is sigmoid(l) * (1 - p_0 - ... - p_{t-1}): so the
halting learns from the task, and its price is the sum of 1 - p over the steps taken, `ponder`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from patchdrive.models.drivers import best_peaks
from patchdrive.models.fuse import Frame, coord_encoding
from patchdrive.models.search import Asking, Gathered, Placing, Search
from patchdrive.models.stream import match, pool
from patchdrive.models.types import Glance, Tokens

EPSILON = 0.01
"""An image is done once its halting probabilities sum to more than one less this."""
ONWARD = -4.0
"""Bias of an untrained halt: about fifty steps."""


class RecurrentDriver(nn.Module):
    """Asks for `per_step` patches at a time. Their number is part of the model; memory only decides in what chunks they are encoded."""

    def __init__(self, width: int, per_step: int) -> None:
        super().__init__()
        self.per_step = per_step
        self.octaves = width // 8
        self.place = Placing(width)
        self.position = nn.Linear(6 * self.octaves, width)
        self.memory = nn.LSTMCell(3 * width, width)
        self.query = nn.Linear(width, width, bias=False)
        self.halt = nn.Linear(width, 1)
        nn.init.zeros_(self.halt.weight)
        nn.init.constant_(self.halt.bias, ONWARD)

    def ask(self, search: Search) -> Asking:
        """Until every image is done."""
        glance, left = search.glance, search.max_patches
        batch, width = glance.features.shape[:2]
        free, spent = glance.valid, glance.score.new_zeros(batch)
        state = (glance.features.new_zeros(batch, width), glance.features.new_zeros(batch, width))
        ponder, stream = torch.zeros_like(spent), pool(glance, 1)[:, 0]
        parts: list[Tokens] = []
        while left > 0:
            logits = self._steered(glance, state[0])
            index, valid = best_peaks(logits, glance.valid, free, min(left, self.per_step), search.sampling)
            going = spent <= 1 - EPSILON
            valid = valid & going[:, None]
            if parts and not valid.any():
                break
            weight = torch.sigmoid(logits.flatten(1).gather(1, index.clamp_min(0))) * (1 - spent).clamp_min(EPSILON)[:, None]
            tokens = yield self.place(search, index.masked_fill(~valid, -1), valid, weight)
            parts.append(tokens)
            left -= index.shape[1]
            free = free & ~_around(index.masked_fill(~valid, -1), glance.valid)
            state = self.memory(self._seen(search, tokens, stream), state)
            p = torch.sigmoid(self.halt(state[0]))[:, 0]
            ponder = ponder + (1 - p) * going
            spent = spent + p * going
        return Gathered(tokens=Tokens.joined(parts), losses={"ponder": ponder.mean()})

    def _steered(self, glance: Glance, hidden: Tensor) -> Tensor:
        """[B, gh, gw] logits of where to look, given what was seen."""
        query = self.query(hidden) / math.sqrt(hidden.shape[1])
        return glance.score + match(glance, query)

    def _seen(self, search: Search, tokens: Tokens, stream: Tensor) -> Tensor:
        """[B, 3 D] what a step has brought: gated tokens, where they were, and the mean of the stream."""
        cells, chosen = search.cells, tokens.selection
        extent = (cells.height * cells.downsample_y, cells.width * cells.downsample_x)
        reference = search.size * (search.grid.downsample_y + search.grid.downsample_x) / 2
        code = coord_encoding(chosen.yx, chosen.side, Frame(origin=(0.0, 0.0), extent=extent), reference, self.octaves)
        valid = chosen.valid[..., None].to(tokens.x.dtype)
        count = valid.sum(dim=1).clamp_min(1)
        detail = (tokens.x * chosen.weight[..., None] * valid).sum(dim=1) / count
        places = (self.position(code) * valid).sum(dim=1) / count
        return torch.cat([detail, places, stream], dim=1)


def _around(index: Tensor, like: Tensor) -> Tensor:
    """[B, gh, gw] bool, cells within one of these [B, k] (-1 for none)."""
    batch, height, width = like.shape
    hit = torch.zeros(batch, height * width + 1, device=index.device)
    hit.scatter_(1, index.where(index >= 0, index.new_tensor(height * width)), 1.0)
    return functional.max_pool2d(hit[:, :-1].view(batch, 1, height, width), kernel_size=3, stride=1, padding=1)[:, 0] > 0
