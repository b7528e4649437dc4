"""Curves of a training as a picture: each term of the loss, and each metric with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from patchdrive.pipeline.drafts import draft_of
from patchdrive.pipeline.metrics import Metric

_POINTS = 200
"""Most points of a curve of the loss; each is the mean of the steps around it."""


def draw_curves(
    path: Path, history: Sequence[Mapping[str, float]], looks: Sequence[tuple[int, Mapping[str, Metric]]], best: int | None
) -> None:
    """Write a picture, PNG or what the suffix says.

    Args:
        path: of the picture.
        history: per step, the terms of the loss.
        looks: step and metrics of each look at what was held out.
        best: the step of the best of them.
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    losses, judged = figure.subplots(1, 2)
    width = max(1, -(-len(history) // _POINTS))
    for name in history[0]:
        values = np.array([losses_of[name] for losses_of in history])
        starts = np.arange(0, len(values), width)
        means = np.add.reduceat(values, starts) / np.diff(np.append(starts, len(values)))
        style = {"color": "black", "linewidth": 1.8} if name == "total" else {"linewidth": 1.0}
        losses.plot(starts + width / 2, means, label=name, **style)
    losses.set(title="loss", xlabel="step")
    if any(value > 0 for value in history[0].values()):
        losses.set_yscale("log")
    losses.legend(fontsize="small")
    steps = [step for step, _ in looks]
    for name in looks[0][1] if looks else ():
        metrics = [metrics_of[name] for _, metrics_of in looks]
        (line,) = judged.plot(steps, [metric.value for metric in metrics], marker=".", label=name)
        judged.fill_between(steps, [one.low for one in metrics], [one.high for one in metrics], alpha=0.15, color=line.get_color())
    if best is not None:
        judged.axvline(best, color="grey", linestyle=":", label="best")
    judged.set(title="held out" if looks else "nothing is held out", xlabel="step", ylim=(-0.02, 1.02))
    if looks:
        judged.legend(fontsize="small", loc="lower right")
    with draft_of(path) as draft:
        figure.savefig(draft, dpi=110)
