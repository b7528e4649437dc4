"""Which cells to look at: peaks, and the K best of them, hard or sampled. Pure functions of scores.

Scores are logits [B, N] or [B, gh, gw] float32; -inf marks what may not be picked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from patchdrive.readers.errors import ModelError

_PART = 2**20
"""Cells among which the highest are looked for at once."""
_KNUTH = 2_654_435_761
"""Multiplier of Knuth's multiplicative hash (2^32 over the golden ratio): spreads equal scores over the image."""


def nms(score: Tensor, valid: Tensor) -> Tensor:
    """Peaks: valid cells that no valid neighbour of their 3x3 exceeds.

    Args:
        score: [B, gh, gw] logits.
        valid: [B, gh, gw] bool.

    Returns:
        [B, gh, gw] bool. Equal neighbours are both peaks, so a flat image has as many as cells.
    """
    masked = score.masked_fill(~valid, -torch.inf)
    highest = functional.max_pool2d(masked[:, None], kernel_size=3, stride=1, padding=1)[:, 0]
    return valid & (masked >= highest)


def topk_hard(score: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The `k` best of each row, best first; ties go by a fixed hash of the index, so they neither move nor crowd a corner.

    Args:
        score: [B, N] logits, -inf for what may not be picked.
        k: slots; more than there are candidates leaves empty ones.

    Returns:
        index [B, k] int64 (-1 in empty slots) and valid [B, k] bool.
    """
    cells = [_best_of(row, k) for row in score.detach()]
    index = torch.stack([functional.pad(one, (0, k - len(one)), value=-1) for one in cells])
    return index, index >= 0


def _best_of(row: Tensor, k: int) -> Tensor:
    """Up to `k` indices of [N] logits. Only what reaches the k-th highest is put in order: of 100 million cells, all in order take 3 GB."""
    highest = torch.cat([part.topk(min(k, len(part))).values for part in torch.split(row, _PART)])
    least = highest.topk(k).values[-1] if 0 < k < len(highest) else -torch.inf
    index = ((row >= least) & (row > -torch.inf)).nonzero()[:, 0]
    index = index[torch.argsort(_hash(index))]
    return index[torch.sort(row[index], descending=True, stable=True).indices[:k]]


def topk_gumbel(score: Tensor, k: int, generator: Generator, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """`k` drawn without replacement with probability softmax(score / temperature): top-k of Gumbel-perturbed logits (Kool et al. 2019).

    Args:
        score: [B, N] logits, -inf for what may not be drawn.
        k: slots.
        generator: of the draw, on the score's device.
        temperature: towards 0 this is `topk_hard`.

    Returns:
        As `topk_hard`. Neither carries gradient: the gate of a Selection does (MODELS 3.4).
    """
    uniform = torch.rand(score.shape, generator=generator, device=score.device).clamp(1e-7, 1 - 1e-7)
    return topk_hard(score.detach() / temperature - torch.log(-torch.log(uniform)), k)


def _hash(cell: Tensor) -> Tensor:
    """Distinct for distinct cells below 2^32."""
    return cell.mul(_KNUTH).remainder(2**32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """The best cells seen so far."""

    score: Tensor
    """[B, M] logits, best first; -inf in empty slots."""
    cell: Tensor
    """[B, M] int64; -1 in empty slots."""
    place: Tensor
    """[B, M] int64, where in the row that was given each of them stood; 0 in empty slots. With `valid` what `Tokens.take` asks for."""
    valid: Tensor
    """[B, M] bool."""


def keep_best(score: Tensor, cell: Tensor, k: int) -> Scored:
    """The `k` best of the cells kept so far and those of the next chunk: the merge of iterative patch selection (Bergner et al. 2023).

    Cells of equal score go by the hash of `topk_hard`, so neither the order of the chunks nor their size decides: chunk by chunk this ends
    with what `topk_hard` says of all cells at once.

    Args:
        score: [B, M + I] logits, of the kept and of the new; -inf for empty slots.
        cell: [B, M + I] int64, or any other number that patches have, from 0 to below 2^31; each at most once in a row, anything in empty
            slots.
        k: M, how many are kept.
    """
    short = max(k - score.shape[1], 0)
    score, cell = functional.pad(score, (0, short), value=-torch.inf), functional.pad(cell, (0, short))
    by_hash = torch.argsort(_hash(cell), dim=1)
    order = torch.sort(score.gather(1, by_hash), dim=1, descending=True, stable=True).indices
    place = by_hash.gather(1, order)[:, :k]
    best = score.gather(1, place)
    valid = best > -torch.inf
    return Scored(score=best, cell=cell.gather(1, place).where(valid, -1), place=place.where(valid, 0), valid=valid)


@dataclass(frozen=True, slots=True, kw_only=True)
class Perturbed:
    """The top k expected under noise, over the few cells that need to be read for it.

    A rank is a place in the order of position, not of score: rank 0 is the first of the k picked cells in raster order.
    """

    cell: Tensor
    """[B, U] int64, ascending; -1 in empty slots, which come last."""
    valid: Tensor
    """[B, U] bool."""
    share: Tensor
    """[B, k, U] float32, share of the samples that have this cell at this rank; carries gradient to the score. A rank's shares sum to one
    less what the cap left out; to zero where there are not so many cells to pick."""

    @property
    def indicator(self) -> Tensor:
        """[B, k, U], `share` with each rank's sum brought to one: what mixes tokens. A rank that nothing fills stays zero."""
        total = self.share.sum(dim=2, keepdim=True)
        return self.share / total.where(total > 0, 1.0)

    @property
    def inclusion(self) -> Tensor:
        """[B, U] in [0, 1]: how likely each cell is among the k, a gate that carries gradient to the score."""
        return self.share.sum(dim=1)

    def mix(self, values: Tensor) -> Tensor:
        """[B, U, D] of the cells read, tokens or places, to [B, k, D] of the ranks: token_k = sum_u indicator[k, u] t_u."""
        return self.indicator @ values


def topk_perturbed(score: Tensor, k: int, generator: Generator, *, reads: int, samples: int = 200, sigma: float = 0.05) -> Perturbed:
    """E[top-k(score + sigma Z)] for Gaussian Z by samples, differentiable in the score (Berthet et al. 2020; Cordonnier et al. 2021).

    The patches of the union of all samples are read, and mixed as features: `Perturbed.mix`. With idx_sk the cell of rank k in
    sample s and G the gradient of `share`,

        d score = 1 / (S sigma) * sum_s Z_s (a_s - mean a),    a_s = sum_k G[k, idx_sk]

    which is the derivative of the expectation (Stein's lemma; the mean is a control variate, and takes 1/S off its size). Memory is
    O(S (k + N) + k U) per image: no one-hot and no Jacobian is made. As sigma goes to 0 this becomes `topk_hard` and the gradient 0.

    Args:
        score: [B, N] logits at a fixed scale, that of `sigma`; -inf for what may not be picked.
        k: ranks.
        generator: of the noise, on the score's device.
        reads: U, the most cells that are read. Each rank's most frequent cell is kept, then those picked in most samples.
        samples: S.
        sigma: standard deviation of the noise, logits.

    Raises:
        ModelError: a number is out of its range.
    """
    if not (1 <= k <= reads and samples >= 1 and sigma > 0):
        raise ModelError(
            f"perturbed top-k needs 1 <= k <= reads, a sample and noise, got k={k}, reads={reads}, samples={samples}, sigma={sigma:g}; "
            "without noise it is topk_hard"
        )
    batch, count = score.shape
    noise = torch.randn(batch, samples, count, generator=generator, device=score.device, dtype=score.dtype)
    best, picked = (score.detach()[:, None] + sigma * noise).topk(min(k, count), dim=2)
    picked = picked.masked_fill(best == -torch.inf, count).sort(dim=2).values  # no cell counts as the one after the last
    picked = functional.pad(picked, (0, k - picked.shape[2]), value=count)
    cell, valid = _union(picked, count, reads)
    slot_of = picked.new_full((batch, count + 1), reads)  # what is not read has the slot after the last
    slot_of.scatter_(1, cell.where(valid, count), torch.arange(reads, device=cell.device).expand(batch, -1))
    slot_of[:, count] = reads
    slot = slot_of.gather(1, picked.flatten(1)).view_as(picked).transpose(1, 2)
    share: Tensor = _Share.apply(score, noise.div_(samples * sigma), slot, reads)  # type: ignore[no-untyped-call]
    return Perturbed(cell=cell, valid=valid, share=share)


def _union(picked: Tensor, count: int, reads: int) -> tuple[Tensor, Tensor]:
    """Cells [B, reads] picked in any sample, ascending, -1 when empty, and which are filled; of `picked` [B, S, k], `count` for no cell."""
    samples = picked.shape[1]
    times = picked.new_zeros(len(picked), count + 1)
    times.scatter_add_(1, picked.flatten(1), torch.ones_like(picked).flatten(1))
    usual = torch.mode(picked, dim=1).values
    times.scatter_add_(1, usual, torch.full_like(usual, samples + 1))  # more than any other cell can have
    wanted = times[:, :count].to(torch.float64)
    cell, valid = topk_hard(wanted.masked_fill(wanted == 0, -torch.inf), reads)
    cell = cell.where(valid, count).sort(dim=1).values
    return cell.masked_fill(cell == count, -1), cell < count


class _Share(torch.autograd.Function):
    """How often each slot has each rank, and the gradient of its expectation."""

    @staticmethod
    def forward(ctx: Any, score: Tensor, push: Tensor, slot: Tensor, reads: int) -> Tensor:
        """[B, k, U] of `slot` [B, k, S], the slots picked (U for none); `push` [B, S, N] is Z / (S sigma)."""
        ctx.save_for_backward(score, push, slot)
        times = score.new_zeros(*slot.shape[:2], reads + 1)
        times.scatter_add_(2, slot, score.new_ones(()).expand(slot.shape))
        return times[:, :, :reads] / slot.shape[2]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        """By the formula of `topk_perturbed`; cells that may not be picked get none."""
        score, push, slot = ctx.saved_tensors
        worth = functional.pad(gradient, (0, 1)).gather(2, slot).sum(dim=1)
        worth = worth - worth[:, :1]  # the mean of equal worths rounds, and a small sigma would make much of it
        worth = worth - worth.mean(dim=1, keepdim=True)
        return torch.einsum("bs,bsn->bn", worth, push).masked_fill(score == -torch.inf, 0.0), None, None, None
