"""Iterative patch selection (Bergner et al., ICLR 2023): every patch is seen, a few at a time, and the M best stay in memory.

A buffer of M tokens and the next `per_step` are ranked by how much the answers about the whole image attend to them; the M best go on.
The memory depends on M and `per_step` alone. Where M covers all patches this is full attention. In training the scan learns nothing,
and the M that stay are read once more with gradient; later they need not be.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from patchdrive.models.lattice import Lattice
from patchdrive.models.search import Asking, Gathered, Search
from patchdrive.models.select import keep_best
from patchdrive.models.types import Selection, Tokens


class IterativeDriver(nn.Module):
    """Reads a grid without gaps, `per_step` patches a round, and keeps the `max_patches` that count most."""

    def __init__(self, per_step: int) -> None:
        super().__init__()
        self.per_step = per_step

    def ask(self, search: Search) -> Asking:
        """A round per `per_step` patches; in training one more, with gradient."""
        lattice = Lattice.over(search.grid, search.size)
        score = lattice.scores(search.glance, search.cells)
        order, count = self._order(score, search)
        kept: Tokens | None = None
        held = order[:, :0]
        for first in range(0, max(count, 1), self.per_step):
            index = order[:, first : first + self.per_step]
            valid = score.gather(1, index) > -torch.inf
            weight = torch.ones_like(index, dtype=torch.float32)
            tokens = yield lattice.select(search.cells, index, valid, weight, grad=search.sampling is None)
            kept = tokens if kept is None else Tokens.joined([kept, tokens])
            held = torch.cat([held, index], dim=1)
            if held.shape[1] > search.max_patches:
                with torch.no_grad():
                    best = keep_best(search.rank(kept), held, search.max_patches)
                kept, held = kept.take(best.place, best.valid), best.cell
        assert kept is not None
        if search.sampling is not None:
            chosen: Selection = dataclasses.replace(kept.selection, grad=True)
            kept = yield chosen
        return Gathered(tokens=kept)

    def _order(self, score: Tensor, search: Search) -> tuple[Tensor, int]:
        """[B, N] patches, those with a valid cell first, and how many these are at most; shuffled in training, as ties then are."""
        there = score > -torch.inf
        key = (~there).to(torch.float32)
        if search.sampling is not None:
            key = key + 0.5 * torch.rand(key.shape, generator=search.sampling.generator, device=key.device)
        return torch.argsort(key, dim=1, stable=True), int(there.sum(dim=1).max())
