"""What the benchmark is compared with that can be computed here: a network that sees the thumbnail alone, and what reading a grid costs.

The accuracies of IPS are those of its published logs: an epoch of its kind takes too long on one thread to train it here.
"""

from __future__ import annotations

import sys
import time
from itertools import pairwise

import numpy as np
import torch
from megapixel_canvas import TASKS, Canvases
from megapixel_network import Network
from megapixel_training import Examples
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

GRID = 50
"""Side of IPS's cells, pixels."""
KEPT = 100
"""Cells that IPS learns from, and that it scores at a time."""


class LowResolution(nn.Module):
    """The whole thumbnail to the four answers: five convolutions, the mean and the maximum over it, a linear map per task."""

    def __init__(self) -> None:
        super().__init__()
        widths = (2, 24, 48, 96, 96, 128)
        layers: list[nn.Module] = []
        for index, (inputs, outputs) in enumerate(pairwise(widths)):
            stride = 2 if index in {1, 3} else 1
            layers += [nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False), nn.GroupNorm(outputs // 8, outputs), nn.ReLU()]
            if index == 0:
                layers.append(nn.MaxPool2d(2))
        self.stages = nn.Sequential(*layers)
        self.heads = nn.ModuleDict({task: nn.Linear(2 * widths[-1], 10) for task in TASKS})

    def forward(self, thumbnails: Tensor) -> dict[str, Tensor]:
        """[B, h, w] uint8 to logits [B, 10] per task; a second channel says how far down a pixel lies."""
        grey = thumbnails.float() / 64
        down = torch.linspace(-1, 1, grey.shape[1])[:, None].expand_as(grey)
        with torch.autocast("cpu", torch.bfloat16):
            x = self.stages(torch.stack([grey, down], dim=1)).float()
        pooled = torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1)
        return {task: self.heads[task](pooled) for task in TASKS}


def low_resolution(given: Examples, test: Examples, *, epochs: int, batch: int = 16) -> dict[str, float]:
    """Share of the test images that a network of the thumbnail alone answers rightly, per task."""
    torch.manual_seed(0)
    network, draw = LowResolution(), np.random.default_rng(0)
    steps = epochs * (len(given.index) // batch)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-3, total_steps=steps)
    for epoch in range(epochs):
        for images in draw.permutation(given.index)[: len(given.index) // batch * batch].reshape(-1, batch):
            answers = network(torch.from_numpy(given.reads.thumbnails[images]))
            terms = [functional.cross_entropy(answers[task], given.labels[task][images]) for task in TASKS[:3]]
            several = functional.binary_cross_entropy_with_logits(answers["multi"], given.labels["multi"][images].float())
            loss = (torch.stack(terms).sum() + 3 * several) / 4
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        print(f"  low resolution, epoch {epoch + 1}: loss {loss.item():.3f}", file=sys.stderr, flush=True)
    hits: dict[str, list[Tensor]] = {task: [] for task in TASKS}
    with torch.no_grad():
        for images in np.array_split(test.index, -(-len(test.index) // 50)):
            for task, logits in network(torch.from_numpy(test.reads.thumbnails[images])).items():
                wanted = test.labels[task][images]
                hits[task].append(((logits > 0) == (wanted > 0)).all(dim=1) if task == "multi" else logits.argmax(dim=1) == wanted)
    return {task: torch.cat(found).double().mean().item() for task, found in hits.items()}


def grid_cells(canvas: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Every cell of the grid [n, 50, 50] and its centre [n, 2], pixels."""
    count = canvas.shape[0] // GRID
    cells = canvas[: count * GRID, : count * GRID].reshape(count, GRID, count, GRID).swapaxes(1, 2).reshape(-1, GRID, GRID)
    return cells, (np.argwhere(np.ones((count, count))) + 0.5).astype(np.float32) * GRID


def grid_timing(canvases: Canvases, given: Examples, *, steps: int, batch: int = 16) -> dict[str, float]:
    """Seconds that iterative patch selection over the grid takes with the same network, per epoch of the images given.

    Measured over a few steps. Each image: its 900 cells are encoded, each distinct one once and without gradient; 100 at a time are scored
    with the 100 best so far; the best of all are encoded again with gradient.
    """
    torch.manual_seed(0)
    network = Network(given.reads.side)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)
    begin, distinct = 0.0, []
    for step in range(steps + 1):
        if step == 1:  # the first one warms up
            begin = time.perf_counter()
        pixels, centres = [], []
        for image in given.index[step * batch : (step + 1) * batch]:
            cells, yx = grid_cells(canvases.draw(int(image)))
            kept, different = _select(network, cells, yx)
            distinct.append(different)
            pixels.append(cells[kept])
            centres.append(yx[kept])
        valid = torch.ones(batch, KEPT, dtype=torch.bool)
        answers = network.answer(network.encode(torch.from_numpy(np.concatenate(pixels))), torch.from_numpy(np.stack(centres)), valid)
        labels = {task: values[given.index[step * batch : (step + 1) * batch]] for task, values in given.labels.items()}
        loss = torch.stack([functional.cross_entropy(answers.tasks[task], labels[task]) for task in TASKS[:3]]).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    seconds = (time.perf_counter() - begin) / steps * (len(given.index) // batch)
    return {"seconds": seconds, "steps": steps, "distinct_cells": float(np.mean(distinct))}


@torch.no_grad()
def _select(network: Network, cells: NDArray[np.uint8], yx: NDArray[np.float32]) -> tuple[NDArray[np.int64], int]:
    """The cells that are kept, and how many distinct ones there are."""
    _, first, back = np.unique(cells.reshape(len(cells), -1).view(f"V{GRID * GRID}")[:, 0], return_index=True, return_inverse=True)
    vectors = network.encode(torch.from_numpy(cells[first]))[torch.from_numpy(back)]
    kept = np.arange(KEPT)
    for start in range(KEPT, len(cells), KEPT):
        rivals = np.concatenate([kept, np.arange(start, min(start + KEPT, len(cells)))])
        valid = torch.ones(1, len(rivals), dtype=torch.bool)
        attention = network.answer(vectors[rivals], torch.from_numpy(yx[rivals])[None], valid).attention[0]
        kept = rivals[attention.topk(KEPT).indices.numpy()]
    return kept, len(first)
