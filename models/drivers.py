"""System A's patch drive controller in its parallel forms, which ask once: the best peaks of the saliency, or the best of a grid."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from patchdrive.models.lattice import Lattice
from patchdrive.models.search import Asking, Gathered, Placing, Sampling, Search
from patchdrive.models.select import nms, topk_gumbel, topk_hard, topk_perturbed


class SaliencyDriver(nn.Module):
    """The K best of the 3x3 peaks of the score, each read centred on its object.

    In training a Gumbel draw of K, whose gates teach the score; or the half more that a perturbed top-K comes to in its samples, each
    gated by how likely it is among the K too: as its noise falls to 0 this becomes the K best.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.place = Placing(width)

    def ask(self, search: Search) -> Asking:
        """Once."""
        glance, sampling, count = search.glance, search.sampling, search.max_patches
        likely: Tensor | float = 1.0
        if sampling is not None and sampling.sigma is not None:
            peaks = glance.score.masked_fill(~nms(glance.score, glance.valid), -torch.inf).flatten(1)
            drawn = topk_perturbed(peaks, count, sampling.generator, reads=count + count // 2, sigma=sampling.sigma)
            index, valid, likely = drawn.cell, drawn.valid, drawn.inclusion
        else:
            index, valid = best_peaks(glance.score, glance.valid, glance.valid, count, sampling)
        weight = torch.sigmoid(glance.score.flatten(1).gather(1, index.clamp_min(0))) * likely
        tokens = yield self.place(search, index, valid, weight)
        return Gathered(tokens=tokens)


class GridDriver(nn.Module):
    """The K best patches of a grid without gaps or overlap, by the highest score inside each; all of them where K is enough."""

    def ask(self, search: Search) -> Asking:
        """Once."""
        lattice = Lattice.over(search.grid, search.size)
        score = lattice.scores(search.glance, search.cells)
        index, valid = best(score, search.max_patches, search.sampling)
        weight = torch.sigmoid(score.gather(1, index.clamp_min(0)))
        tokens = yield lattice.select(search.cells, index, valid, weight)
        return Gathered(tokens=tokens)


def best_peaks(score: Tensor, valid: Tensor, free: Tensor, count: int, sampling: Sampling | None) -> tuple[Tensor, Tensor]:
    """The best peaks, or in training a draw among them and some cells from anywhere.

    Args:
        score: [B, gh, gw] logits.
        valid: [B, gh, gw] bool, cells that a peak is compared with.
        free: [B, gh, gw] bool, cells that may be taken.
        count: slots.
        sampling: of a training step.

    Returns:
        Flat cells [B, count] (-1 when empty) and which of them are filled.
    """
    peaks = score.detach().masked_fill(~(nms(score, valid) & free), -torch.inf).flatten(1)
    if sampling is None:
        return topk_hard(peaks, count)
    roam = int(count * sampling.explore)
    index, filled = topk_gumbel(peaks, count - roam, sampling.generator, sampling.temperature)
    open_ = torch.zeros_like(peaks).masked_fill(~free.flatten(1), -torch.inf)
    spare = torch.cat([open_, open_[:, :1]], dim=1)  # one more cell at the end, where index -1 lands
    open_ = spare.scatter(1, index.where(filled, index.new_tensor(open_.shape[1])), -torch.inf)[:, :-1]
    others, others_filled = topk_gumbel(open_, roam, sampling.generator)
    return torch.cat([index, others], dim=1), torch.cat([filled, others_filled], dim=1)


def best(score: Tensor, count: int, sampling: Sampling | None) -> tuple[Tensor, Tensor]:
    """The `count` best of [B, N] logits, or in training a draw; as `topk_hard`."""
    if sampling is None:
        return topk_hard(score.detach(), count)
    return topk_gumbel(score.detach(), count, sampling.generator, sampling.temperature)
