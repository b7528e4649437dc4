"""Which cells to look at: peaks, and the K best of them, hard or sampled. Pure functions of scores.

Scores are logits [B, N] or [B, gh, gw] float32; -inf marks what may not be picked.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn import functional

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
    count = score.shape[1]
    hashed = torch.arange(count, device=score.device).mul(_KNUTH).remainder(2**32)
    spread = torch.argsort(hashed)
    ordered, order = torch.sort(score[:, spread], dim=1, descending=True, stable=True)
    index = functional.pad(spread[order[:, :k]], (0, max(k - count, 0)), value=-1)
    valid = functional.pad(ordered[:, :k] > -torch.inf, (0, max(k - count, 0)), value=False)
    return index.masked_fill(~valid, -1), valid


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
