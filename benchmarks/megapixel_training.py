"""Learning megapixel MNIST from the labels of images: which reads to learn from, how, and what is answered in the end.

No digit is labelled and none is located. Reads to learn from are drawn from an image's peaks: a few of the most complex, those that the
network itself gave most attention when it saw them last (free: it is known from the step before), and some by chance.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from megapixel_canvas import Canvases
from megapixel_network import SIZE, Answers, Network
from megapixel_reads import CUT, Reads
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

POSES = torch.tensor([[[0, 0], [0, 0]], [[0.08, 0], [0, 0.08]], [[-0.08, 0], [0, -0.08]], [[0, 0.1], [-0.1, 0]], [[0, -0.1], [0.1, 0]]])
"""[5, 2, 2] what is added to the transform of a read: as it is, smaller, larger, turned either way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """Which of an image's reads a step learns from."""

    complex: int
    """The most complex."""
    attended: int
    """Those that had most attention when last seen."""
    chance: int
    """Drawn by chance."""

    @property
    def count(self) -> int:
        """Reads of an image."""
        return self.complex + self.attended + self.chance


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How long, how fast, from which reads."""

    epochs: int = 20
    """Over the images."""
    batch: int = 16
    """Images a step."""
    rate: float = 2e-3
    """Of AdamW at its height; a twentieth of the steps to get there, then a cosine down."""
    decay: float = 0.05
    """Of matrices and kernels."""
    average: float = 0.999
    """Of the moving average of the weights, which is what is used."""
    early: Mixture = Mixture(complex=6, attended=8, chance=6)
    """Reads at first."""
    late: Mixture = Mixture(complex=2, attended=5, chance=3)
    """Reads once it has `settled`."""
    settled: float = 0.1
    """Share of the epochs after which the network knows where to look."""
    shift: float = 3.0
    """Reads are shifted by up to this many pixels."""
    affine: float = 0.15
    """Up to this is added to each of the four numbers of their transform."""
    dropout: float = 0.1
    """Of tokens."""
    noisy_or: float = 1.0
    """Weight of: a digit is in the image where a read shows it."""
    seed: int = 0
    """Of the weights and of every draw."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Examples:
    """Images to learn from or to be judged by."""

    reads: Reads
    """Of all images of their half."""
    labels: Mapping[str, Tensor]
    """As `Canvases.labels`."""
    index: NDArray[np.int64]
    """Which of them."""

    def subset(self, index: NDArray[np.int64]) -> Examples:
        return dataclasses.replace(self, index=index)


def examples(canvases: Canvases, reads: Reads) -> Examples:
    """All images of one half."""
    labels = {task: torch.from_numpy(values) for task, values in canvases.labels().items()}
    return Examples(reads=reads, labels=labels, index=np.arange(len(reads)))


def train(given: Examples, recipe: Recipe, *, checked: Examples | None = None) -> Network:
    """A network that has learned; `checked` images are judged now and then, for a person to see."""
    torch.manual_seed(recipe.seed)
    draw = np.random.default_rng(recipe.seed)
    network, used = Network(given.reads.side, dropout=recipe.dropout), Network(given.reads.side)
    used.load_state_dict(network.state_dict())
    optimiser = _optimiser(network, recipe)
    bank = np.ones(given.reads.yx.shape[:2], np.float32)  # attention * K when last seen; one is what chance has
    per_epoch = len(given.index) // recipe.batch
    step, begin = 0, time.perf_counter()
    for epoch in range(recipe.epochs):
        network.train()
        total = 0.0
        mixture = recipe.early if epoch < recipe.settled * recipe.epochs else recipe.late
        for images in draw.permutation(given.index)[: per_epoch * recipe.batch].reshape(per_epoch, -1):
            for group in optimiser.param_groups:
                group["lr"] = group["times"] * recipe.rate * _schedule(step / (recipe.epochs * per_epoch))
            drawn = draw_reads(given.reads, bank, images, mixture, draw)
            answers = _read(network, given.reads, drawn, recipe, draw)
            loss = loss_of(answers, {task: values[images] for task, values in given.labels.items()}, drawn, recipe)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            bank[images[:, None], drawn.slots] = answers.attention.detach().numpy() * drawn.valid.sum(axis=1, keepdims=True)
            _follow(used, network, min(recipe.average, (1 + step) / (10 + step)))
            total += loss.item()
            step += 1
        told = f"  epoch {epoch + 1}: loss {total / per_epoch:.3f}, {time.perf_counter() - begin:.0f} s"
        if checked is not None and (epoch % 4 == 1 or epoch + 1 == recipe.epochs):
            found = right(answer_all(used, checked, encode_all(used, checked), checked.reads.valid[checked.index]), checked)
            told += ", held out " + " ".join(f"{value:.3f}" for value in found.values())
        print(told, file=sys.stderr, flush=True)
    return used.eval()


@torch.no_grad()
def encode_all(network: Network, given: Examples, poses: Tensor = POSES[:1]) -> Tensor:
    """[n, K, D] vectors of every read, the mean over `poses` [p, 2, 2] of the same 32x32 pixels; zeros in empty slots."""
    network.eval()
    vectors = torch.zeros(len(given.index), given.reads.yx.shape[1], network.fuse.tasks.shape[1])
    margin = (CUT - SIZE) // 2
    for first in range(0, len(given.index), 32):
        images = given.index[first : first + 32]
        valid = given.reads.valid[images]
        pixels = torch.from_numpy(given.reads.cuts[images][valid]).float()
        pixels = functional.pad(pixels[:, margin:-margin, margin:-margin], (margin,) * 4)  # a pose shows no pixel that was not read
        still = torch.zeros(len(pixels), 2)
        seen = [network.encode(bend(pixels, still, pose.expand(len(pixels), 2, 2))) for pose in poses]
        vectors[first : first + 32][torch.from_numpy(valid)] = torch.stack(seen).mean(dim=0)
    return vectors


@torch.no_grad()
def answer_all(network: Network, given: Examples, vectors: Tensor, chosen: NDArray[np.bool_]) -> Answers:
    """The answers from the `chosen` [n, K] reads."""
    network.eval()
    valid = torch.from_numpy(chosen)
    return network.answer(vectors[valid], torch.from_numpy(given.reads.yx[given.index]), valid)


def judge(network: Network, given: Examples, chosen: Mapping[str, NDArray[np.bool_]]) -> dict[str, dict[str, float]]:
    """Share of images answered rightly per task, each read seen in all poses, for several ways to choose reads [N, K] of all images."""
    vectors = encode_all(network, given, POSES)
    return {name: right(answer_all(network, given, vectors, which[given.index]), given) for name, which in chosen.items()}


def right(answers: Answers, given: Examples) -> dict[str, float]:
    """Share of images answered rightly per task; of `multi`, those whose ten digits are all right."""
    found = {}
    for task, logits in answers.tasks.items():
        wanted = given.labels[task][given.index]
        hit = ((logits > 0) == (wanted > 0)).all(dim=1) if task == "multi" else logits.argmax(dim=1) == wanted
        found[task] = hit.double().mean().item()
    return found


def _optimiser(network: Network, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW. Slopes go ten times as fast: to tell two heights of a canvas apart, its softmax must become steep."""
    weights = {name: weight for name, weight in network.named_parameters() if name != "fuse.slope"}
    groups = [
        {"params": [weight for weight in weights.values() if weight.ndim >= 2], "weight_decay": recipe.decay, "times": 1.0},
        {"params": [weight for weight in weights.values() if weight.ndim < 2], "weight_decay": 0.0, "times": 1.0},
        {"params": [network.fuse.slope], "weight_decay": 0.0, "times": 10.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.rate, fused=True)


def _schedule(done: float) -> float:
    """Share of the learning rate after this share of the steps."""
    return min(done / 0.05, (1 + math.cos(math.pi * (done - 0.05) / 0.95)) / 2 if done > 0.05 else 1.0) + 1e-3


def _follow(used: nn.Module, network: nn.Module, keep: float) -> None:
    with torch.no_grad():
        torch._foreach_lerp_(list(used.parameters()), list(network.parameters()), 1 - keep)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Drawn:
    """What one step learns from."""

    images: NDArray[np.int64]
    """[B]."""
    slots: NDArray[np.int64]
    """[B, K] of their reads."""
    valid: NDArray[np.bool_]
    """[B, K] which of them are filled."""


def draw_reads(reads: Reads, bank: NDArray[np.float32], images: NDArray[np.int64], mixture: Mixture, draw: np.random.Generator) -> Drawn:
    """The most complex, the most attended of the others, and some by chance."""
    filled = reads.valid[images]
    priority = draw.random(filled.shape)  # of chance, below everything
    priority[:, : mixture.complex] += 100
    known = (bank[images] + 1e-3 * draw.random(filled.shape)) * (filled & (priority < 100))
    best = np.argsort(-known, axis=1)[:, : mixture.attended]
    np.put_along_axis(priority, best, 50.0, axis=1)
    priority[~filled] = -1
    slots = np.argsort(-priority, axis=1)[:, : mixture.count]
    return Drawn(images=images, slots=slots, valid=np.take_along_axis(filled, slots, axis=1))


def _read(network: Network, reads: Reads, drawn: Drawn, recipe: Recipe, draw: np.random.Generator) -> Answers:
    """The answers from the reads drawn, each shifted and bent a little; where it was shifted to is where it is said to be."""
    rows = drawn.images[:, None]
    pixels = torch.from_numpy(reads.cuts[rows, drawn.slots][drawn.valid]).float()
    shift = draw.uniform(-recipe.shift, recipe.shift, (len(pixels), 2)).astype(np.float32)
    yx = reads.yx[rows, drawn.slots].astype(np.float32)
    yx[drawn.valid] += shift
    bent = draw.uniform(-recipe.affine, recipe.affine, (len(pixels), 2, 2)).astype(np.float32)
    seen = bend(pixels, torch.from_numpy(shift), torch.from_numpy(bent))
    return network.answer(network.encode(seen), torch.from_numpy(yx), torch.from_numpy(drawn.valid))


def bend(pixels: Tensor, shift: Tensor, by: Tensor) -> Tensor:
    """The middle [n, 32, 32] of [n, 48, 48], bilinear, its centre moved by `shift` [n, 2] (y, x) pixels, bent by `by` [n, 2, 2]."""
    theta = torch.cat([(torch.eye(2) + by) * (SIZE / CUT), shift.flip(1)[..., None] * (2 / CUT)], dim=2)  # of (x, y), the half side is 1
    grid = functional.affine_grid(theta, [len(pixels), 1, SIZE, SIZE], align_corners=False)
    return functional.grid_sample(pixels[:, None], grid, align_corners=False)[:, 0]


def loss_of(answers: Answers, labels: Mapping[str, Tensor], drawn: Drawn, recipe: Recipe) -> Tensor:
    """The mean over tasks, `multi` three times as heavy (its mean over ten digits is small), and the noisy-or of the reads."""
    single = [functional.cross_entropy(answers.tasks[task], labels[task]) for task in ("majority", "max", "top")]
    present = labels["multi"].float()
    several = functional.binary_cross_entropy_with_logits(answers.tasks["multi"], present)
    absent = (
        functional.logsigmoid(-answers.evidence).masked_fill(~torch.from_numpy(drawn.valid)[..., None], 0.0).sum(dim=1)
    )  # log of: no read shows it
    shown = torch.log(-torch.expm1(absent.clamp_max(-1e-6)))
    noisy_or = -(present * shown + (1 - present) * absent).mean()
    return (torch.stack(single).sum() + 3 * several) / 4 + recipe.noisy_or * noisy_or
