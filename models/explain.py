"""Which patches decided, and what was missed: what can be asked of a PatchDrive once it has its tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Mapping

import torch
from torch import Tensor

from patchdrive.models.lattice import Lattice
from patchdrive.models.search import Search
from patchdrive.models.types import Audit, Selection, Tokens

TRIED = 16
"""The most attended patches are left out one by one."""
LIKELY = 0.5
"""Least probability at which a patch is taken to hold a target."""


def influence(tokens: Tokens, attention: Tensor, ask: Callable[[Tokens], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Leave-one-out: p(all patches) - p(all but this one), of the class that is likeliest with all of them.

    Args:
        tokens: of all patches.
        attention: [B, K] on them.
        ask: [B, C] probabilities of each answer, given some tokens.

    Returns:
        By answer [B, K]; NaN but for the `TRIED` patches of the highest attention.
    """
    whole = ask(tokens)
    best = {name: p.argmax(dim=1, keepdim=True) for name, p in whole.items()}
    told = {name: torch.full_like(attention, torch.nan) for name in whole}
    order = torch.where(tokens.selection.valid, attention, -torch.inf).argsort(dim=1, descending=True, stable=True)[:, :TRIED]
    for slot in torch.split(order, 1, dim=1):
        there = tokens.selection.valid.gather(1, slot)
        rest = dataclasses.replace(tokens.selection, valid=tokens.selection.valid.scatter(1, slot, False))
        for name, p in ask(Tokens(x=tokens.x, selection=rest)).items():
            brought = (whole[name] - p).gather(1, best[name])
            told[name] = told[name].scatter(1, slot, brought.where(there, torch.nan))
    return told


def sampled(search: Search, kept: Selection, count: int, seed: int) -> Generator[Selection, Tokens, tuple[Tokens, list[int]]]:
    """Ask for patches at random from outside those that were chosen.

    The image is divided into squares of half a patch's side. One is outside where its centre lies in no chosen patch; a patch is read
    around it. So a target that nobody chose lies in exactly one square, and near the middle of its patch.

    Args:
        search: the image.
        kept: the patches that were chosen.
        count: of the sample; fewer where there are not so many.
        seed: of the draw.

    Returns:
        The sample's tokens, and for each image how many squares lie outside.
    """
    squares = Lattice.over(search.grid, search.size // 2)
    outside = (squares.scores(search.glance, search.cells) > -torch.inf) & ~squares.within(kept)
    draw = torch.rand(outside.shape, generator=torch.Generator().manual_seed(seed)).to(outside.device)
    order = draw.masked_fill(~outside, 2.0).argsort(dim=1)[:, :count]
    ones = torch.ones_like(order, dtype=torch.float32)
    around = squares.select(search.cells, order, outside.gather(1, order), ones, grad=False)
    tokens = yield dataclasses.replace(around, side=2 * around.side)
    return tokens, outside.sum(dim=1).tolist()


def audits(kept: Tokens, sample: Tokens, outside: list[int], evidence: Callable[[Tensor], Tensor]) -> list[Audit]:
    """The audit of each image, by the probability [B, K] that there is a target in the middle of a patch; of the finest patches only."""
    finest = sample.selection.side[:, :1]
    hits = (evidence(sample.x) >= LIKELY) & sample.selection.valid
    found = (evidence(kept.x) >= LIKELY) & kept.selection.valid & (kept.selection.side < 1.5 * finest)
    counts = zip(sample.selection.valid.sum(dim=1).tolist(), outside, hits.sum(dim=1).tolist(), found.sum(dim=1).tolist(), strict=True)
    return [Audit(sampled=n, outside=beyond, hits=hit, found=right) for n, beyond, hit, right in counts]
