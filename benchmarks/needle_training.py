"""Learning where to look in a haystack from the four answers about each image: no digit is labelled, none is located.

First a network like that of megapixel MNIST learns to answer from full-resolution reads: of canvases with 20 distractors, where a tenth
of the candidates matter and it takes off, then of canvases with 200. What it takes each candidate to be is then told to a small CNN that
sees nothing but the 4x thumbnail: the saliency. The network itself is the second stage, which ranks what was read.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from megapixel_network import SIZE, Answers, Network
from megapixel_reads import CUT
from megapixel_training import Drawn, Mixture, Recipe, bend, draw_reads, examples, loss_of
from needle_reads import CELL, WIDE, Seen
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

SELDOM = -6.0
"""Bias of the evidence of one read: of 205 about one shows a given digit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """One part of the curriculum."""

    seen: Seen
    epochs: int
    rate: float
    mixture: Mixture
    """Which of an image's candidates a step learns from."""


def learn(course: Course, network: Network, *, seed: int) -> Network:
    """`network`, trained on; what comes back is the moving average of its weights."""
    recipe = Recipe(epochs=course.epochs, rate=course.rate, seed=seed)
    given = examples(course.seen.canvases, course.seen.reads)
    torch.manual_seed(seed)
    draw = np.random.default_rng(seed)
    used = Network(given.reads.side)
    used.load_state_dict(network.state_dict())
    optimiser = torch.optim.AdamW(network.parameters(), lr=recipe.rate, weight_decay=recipe.decay, fused=True)
    per_epoch = len(given.index) // recipe.batch
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: schedule(step / (per_epoch * recipe.epochs)))
    bank = _bank(network, course.seen)
    begin, step = time.perf_counter(), 0
    for epoch in range(recipe.epochs):
        network.train()
        total = 0.0
        for images in draw.permutation(given.index)[: per_epoch * recipe.batch].reshape(per_epoch, -1):
            drawn = draw_reads(given.reads, bank, images, course.mixture, draw)
            answers = _read(network, course.seen, drawn, recipe, draw)
            loss = loss_of(answers, {task: values[images] for task, values in given.labels.items()}, drawn, recipe)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            bank[images[:, None], drawn.slots] = torch.sigmoid(answers.evidence.detach()).amax(dim=2).numpy()
            keep = min(recipe.average, (1 + step) / (10 + step))
            with torch.no_grad():
                torch._foreach_lerp_(list(used.parameters()), list(network.parameters()), 1 - keep)
            total += loss.item()
            step += 1
        print(f"  epoch {epoch + 1}: loss {total / per_epoch:.3f}, {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
    return used.eval()


def _bank(network: Network, seen: Seen) -> NDArray[np.float32]:
    """[N, K] how likely each candidate shows a digit, as the network has it before it learns: where digits are few, what is drawn by chance
    misses them, and answers cannot be learned from images whose digits were not read.
    """
    bank = np.zeros(seen.reads.yx.shape[:2], np.float32)
    for index, logits in enumerate(rank_all(network, seen, range(len(seen.reads)))):
        bank[index, : len(logits)] = 1 / (1 + np.exp(-logits))
    return bank


def new_network(side: int, *, seed: int) -> Network:
    """An untrained network, whose reads seldom show a digit."""
    torch.manual_seed(seed)
    network = Network(side)
    nn.init.constant_(network.evidence.bias, SELDOM)
    return network


def schedule(done: float) -> float:
    """Share of the learning rate after this share of the steps: a twentieth up, then a cosine down."""
    return min(done / 0.05 + 0.01, 1.0) if done < 0.05 else (1 + math.cos(math.pi * (done - 0.05) / 0.95)) / 2 + 1e-3


def _read(network: Network, seen: Seen, drawn: Drawn, recipe: Recipe, draw: np.random.Generator) -> Answers:
    """The answers from the reads drawn, each shifted and bent a little."""
    rows = drawn.images[:, None]
    pixels = torch.from_numpy(seen.reads.cuts[rows, drawn.slots][drawn.valid]).float()
    shift = draw.uniform(-recipe.shift, recipe.shift, (len(pixels), 2)).astype(np.float32)
    yx = seen.reads.yx[rows, drawn.slots].astype(np.float32)
    yx[drawn.valid] += shift
    bent = draw.uniform(-recipe.affine, recipe.affine, (len(pixels), 2, 2)).astype(np.float32)
    patches = bend(pixels, torch.from_numpy(shift), torch.from_numpy(bent))
    return network.answer(network.encode(patches), torch.from_numpy(yx), torch.from_numpy(drawn.valid))


@torch.no_grad()
def rank_reads(network: Network, pixels: Tensor) -> Tensor:
    """[n, 32, 32] stored values to [n], how sure the network is that a read shows a digit, whichever: its best evidence, a logit."""
    found = [network.evidence(network.encode(part)).amax(dim=1) for part in pixels.split(1024)]
    return torch.cat(found) if found else torch.zeros(0)


def rank_all(network: Network, seen: Seen, images: Sequence[int]) -> list[NDArray[np.float32]]:
    """`rank_reads` of all candidates of each image."""
    margin = (CUT - SIZE) // 2
    network.eval()
    found = []
    for index in images:
        cuts = seen.reads.cuts[index, : seen.reads.count[index], margin:-margin, margin:-margin]
        found.append(rank_reads(network, torch.from_numpy(np.array(cuts))).numpy())
    return found


class Saliency(nn.Sequential):
    """[n, 1, 12, 12] of the 4x thumbnail, in [0, 1], to logits [n, 1, 1, 1]: is a digit at the middle? No padding, so it also slides."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 32, 3), nn.SiLU(), nn.Conv2d(32, 48, 3), nn.SiLU(), nn.Conv2d(48, 64, 3), nn.SiLU(),
            nn.Conv2d(64, 128, CELL - 6), nn.SiLU(), nn.Dropout(0.1), nn.Conv2d(128, 1, 1),
        )  # fmt: skip

    @torch.no_grad()
    def rank(self, small: Tensor) -> Tensor:
        """[n, 12, 12] stored values to logits [n]."""
        found = [self(part[:, None].float() / GAIN).flatten() for part in small.split(4096)]
        return torch.cat(found) if found else torch.zeros(0)


GAIN = 64.0
"""Stored values are divided by this: thumbnails of thin ink are dark."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """What the saliency learns from: cells of the thumbnail and what the network took them to be."""

    small: NDArray[np.uint8]
    """[n, 16, 16]."""
    wanted: NDArray[np.float32]
    """[n] probabilities."""

    @classmethod
    def of(cls, network: Network, seen: Seen, *, most: int | None = None) -> Lesson:
        """Every candidate of every image, or of the first `most`."""
        images = range(len(seen.reads))[:most]
        marks = [1 / (1 + np.exp(-logits)) for logits in rank_all(network, seen, images)]
        small = np.concatenate([seen.small[index, : len(mark)] for index, mark in zip(images, marks, strict=True)])
        wanted = np.concatenate(marks).astype(np.float32)
        print(f"  the network takes {wanted.sum() / len(images):.2f} of an image's candidates for digits", file=sys.stderr, flush=True)
        return cls(small=small, wanted=wanted)


def distil(lessons: Sequence[Lesson], *, epochs: int, seed: int, batch: int = 256, others: int = 4) -> Saliency:
    """A saliency that wants what the network took for digits; each epoch sees those and `others` times as many of the rest."""
    small = np.concatenate([one.small for one in lessons])
    wanted = np.concatenate([one.wanted for one in lessons])
    draw = np.random.default_rng(seed)
    torch.manual_seed(seed)
    saliency, used = Saliency(), Saliency()
    used.load_state_dict(saliency.state_dict())
    few, many = np.flatnonzero(wanted > 0.5), np.flatnonzero(wanted <= 0.5)
    steps = epochs * ((1 + others) * len(few) // batch)
    optimiser = torch.optim.AdamW(saliency.parameters(), lr=2e-3, weight_decay=0.02, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: schedule(step / steps))
    saliency.train()
    begin, step = time.perf_counter(), 0
    for epoch in range(epochs):
        rows = draw.permutation(np.concatenate([few, draw.choice(many, min(len(many), others * len(few)), replace=False)]))
        total = 0.0
        for part in rows[: len(rows) // batch * batch].reshape(-1, batch):
            pixels = _shifted(torch.from_numpy(small[part]).float() / GAIN, draw)
            with torch.autocast("cpu", torch.bfloat16):
                logits = saliency(pixels[:, None]).float().flatten()
            loss = functional.binary_cross_entropy_with_logits(logits, torch.from_numpy(wanted[part]))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            with torch.no_grad():
                keep = min(0.999, (1 + step) / (10 + step))
                torch._foreach_lerp_(list(used.parameters()), list(saliency.parameters()), 1 - keep)
            total += loss.item()
            step += 1
        told = f"  saliency, epoch {epoch + 1}: loss {total / (len(rows) // batch):.4f}, {time.perf_counter() - begin:.0f} s"
        print(told, file=sys.stderr, flush=True)
    return used.eval()


def _shifted(pixels: Tensor, draw: np.random.Generator) -> Tensor:
    """The middle [n, 12, 12] of [n, 16, 16], moved by up to 0.75 pixels, turned and scaled a little; bilinear."""
    count = len(pixels)
    bent = torch.eye(2) + torch.from_numpy(draw.uniform(-0.08, 0.08, (count, 2, 2)).astype(np.float32))
    shift = torch.from_numpy(draw.uniform(-0.75, 0.75, (count, 2, 1)).astype(np.float32)) * (2 / WIDE)
    whole = torch.from_numpy(draw.random(count) < 0.5)[:, None, None]  # half of them as sharp as they are
    theta = torch.cat([bent * (CELL / WIDE), shift], dim=2)
    plain = torch.cat([torch.eye(2) * (CELL / WIDE), torch.zeros(2, 1)], dim=1)
    grid = functional.affine_grid(torch.where(whole, plain, theta), [count, 1, CELL, CELL], align_corners=False)
    return functional.grid_sample(pixels[:, None], grid, align_corners=False)[:, 0]


def recalls(seen: Seen, scores: Mapping[str, Sequence[NDArray[np.float32]]], counts: Sequence[int]) -> dict[str, dict[int, float]]:
    """Share of the digits whose ink lies whole in one of the first reads, for several ways to score candidates."""
    from megapixel_reads import recall  # noqa: PLC0415

    found: dict[str, dict[int, float]] = {}
    for name, given in scores.items():
        ordered = [seen.reads.yx[index][np.argsort(-score, kind="stable")] for index, score in enumerate(given)]
        found[name] = {count: recall(seen.canvases, [yx[:count] for yx in ordered], SIZE) for count in counts}
    return found
