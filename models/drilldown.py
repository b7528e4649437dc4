"""Drill-down: look small, ask for the best places at a middle level, and only for their best parts at full resolution.

Round one reads a share of the patches on pixels `zoom` times as large; each token then says, per part of its patch, how much it wants
to see of it, which is added to what the glance thought of that part. Round two reads the best parts of all of them. One limit holds for
both rounds. Tokens of both levels are kept: a position code with the patch's side tells them apart.
"""

from __future__ import annotations

import torch
from torch import nn

from patchdrive.models.drivers import best
from patchdrive.models.lattice import Lattice
from patchdrive.models.search import Asking, Gathered, Search
from patchdrive.models.types import Tokens


class DrillDownDriver(nn.Module):
    """Two rounds: `share` of the patches at the middle level, the rest among their parts."""

    def __init__(self, width: int, *, zoom: int, share: float) -> None:
        super().__init__()
        self.zoom, self.share = zoom, share
        self.wish = nn.Linear(width, zoom * zoom)
        nn.init.zeros_(self.wish.weight)
        nn.init.zeros_(self.wish.bias)

    def ask(self, search: Search) -> Asking:
        """Twice, or once where one patch is all there is."""
        cells = search.cells
        middle = Lattice.over(search.grid, search.size, self.zoom)
        score = middle.scores(search.glance, cells)
        first = max(1, round(self.share * search.max_patches))
        index, valid = best(score, first, search.sampling)
        tokens = yield middle.select(cells, index, valid, torch.sigmoid(score.gather(1, index.clamp_min(0))))
        rest = search.max_patches - first
        if rest < 1:
            return Gathered(tokens=tokens)
        fine = middle.finer(self.zoom)
        inside = middle.children(index.clamp_min(0), self.zoom)
        seen = fine.scores(search.glance, cells).gather(1, inside.flatten(1)).view_as(inside)
        read = tokens.selection.valid[..., None]
        wanted = (seen + self.wish(tokens.x)).masked_fill(~read, -torch.inf).flatten(1)
        slot, filled = best(wanted, rest, search.sampling)
        at = slot.clamp_min(0)
        weight = torch.sigmoid(wanted.gather(1, at))
        details = yield fine.select(cells, inside.flatten(1).gather(1, at), filled, weight)
        return Gathered(tokens=Tokens.joined([tokens, details]))
