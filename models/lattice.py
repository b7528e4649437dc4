"""Patches without gaps or overlap on one pixel size, from the image's corner: what grid, iterative and drill-down drives choose from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from patchdrive.models.fuse import cell_centres
from patchdrive.models.types import Glance, Selection
from patchdrive.readers.geometry import Level


@dataclass(frozen=True, slots=True, kw_only=True)
class Lattice:
    """Rows and columns of patches; flat indices are row-major."""

    rows: int
    """Of patches; the last may overhang the image."""
    columns: int
    """Of patches."""
    side_y: float
    """Level-0 pixels from one row to the next."""
    side_x: float
    """Level-0 pixels from one column to the next."""

    @classmethod
    def over(cls, grid: Level, size: int, zoom: int = 1) -> Self:
        """All patches of `size` pixels that are `zoom` pixels of `grid` each."""
        step = size * zoom
        return cls(
            rows=-(-grid.height // step), columns=-(-grid.width // step), side_y=step * grid.downsample_y, side_x=step * grid.downsample_x
        )

    def scores(self, glance: Glance, cells: Level) -> Tensor:
        """[B, rows * columns]: the highest logit of the valid cells in each patch, -inf where it has none.

        A cell is in the patch that holds its centre; a patch finer than the cells takes the one its own centre lies in.
        """
        score = glance.score.masked_fill(~glance.valid, -torch.inf).flatten(1)
        inside = self._holding(cell_centres(cells, 0, cells.height * cells.width, score.device))
        highest = score.new_full((len(score), self.rows * self.columns), -torch.inf)
        highest = highest.scatter_reduce(1, inside.expand(len(score), -1), score, "amax")
        return torch.maximum(highest, score[:, self._cells(cells, score.device)])

    def select(self, cells: Level, index: Tensor, valid: Tensor, weight: Tensor, *, grad: bool = True) -> Selection:
        """Patches [B, k] (flat indices; whatever where not `valid`) with their gates."""
        at = index.clamp_min(0)
        centre = torch.stack([at // self.columns, at % self.columns], dim=2).to(torch.float32) + 0.5
        return Selection(
            yx=centre * centre.new_tensor([self.side_y, self.side_x]),
            side=centre.new_full(index.shape, (self.side_y + self.side_x) / 2),
            cell=self._cells(cells, at.device)[at].masked_fill(~valid, -1),
            weight=weight.masked_fill(~valid, 1.0),
            valid=valid,
            grad=grad,
        )

    def within(self, selection: Selection) -> Tensor:
        """[B, rows * columns] bool, patches whose centre lies in one of the Selection's."""
        hit = torch.zeros(len(selection.valid), self.rows, self.columns, dtype=torch.bool)
        step = selection.yx.new_tensor([self.side_y, self.side_x])
        half = selection.side[..., None] / 2
        first = ((selection.yx - half) / step - 0.5).ceil().clamp_min(0).long().tolist()
        last = ((selection.yx + half) / step - 0.5).floor().long().tolist()
        for image, slot in selection.valid.nonzero().tolist():
            (top, left), (bottom, right) = first[image][slot], last[image][slot]
            hit[image, top : max(bottom + 1, 0), left : max(right + 1, 0)] = True
        return hit.flatten(1).to(selection.valid.device)

    def children(self, index: Tensor, zoom: int) -> Tensor:
        """[B, k] patches to [B, k, zoom * zoom], those of the lattice `zoom` times finer inside each, row-major."""
        steps = torch.arange(zoom, device=index.device)
        y = (index // self.columns)[..., None] * zoom + steps
        x = (index % self.columns)[..., None] * zoom + steps
        return (y[..., :, None] * (self.columns * zoom) + x[..., None, :]).flatten(-2)

    def finer(self, zoom: int) -> Lattice:
        """The lattice that `children` count on: `zoom` times as many rows and columns."""
        return Lattice(rows=self.rows * zoom, columns=self.columns * zoom, side_y=self.side_y / zoom, side_x=self.side_x / zoom)

    def _holding(self, yx: Tensor) -> Tensor:
        """[n] patch that holds each level-0 place [n, 2]."""
        row, column = (yx / yx.new_tensor([self.side_y, self.side_x])).floor().long().unbind(1)
        return row.clamp(0, self.rows - 1) * self.columns + column.clamp(0, self.columns - 1)

    def _cells(self, cells: Level, device: torch.device) -> Tensor:
        """[rows * columns] flat cell that holds each patch's centre; the nearest, of one that overhangs."""
        y = ((torch.arange(self.rows, device=device) + 0.5) * self.side_y / cells.downsample_y).floor().long().clamp(0, cells.height - 1)
        x = ((torch.arange(self.columns, device=device) + 0.5) * self.side_x / cells.downsample_x).floor().long().clamp(0, cells.width - 1)
        return (y[:, None] * cells.width + x).flatten()
