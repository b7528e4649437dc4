"""train_from(): `patchdrive train` from a config to weights. The file to read first of all that has to do with training.

What a step learns from is drawn from the seed and its number alone, and a checkpoint holds everything else that decides it. So a
training that was stopped, or killed, goes on to the same weights.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from patchdrive.pipeline.checkpoints import Checkpoint, load_checkpoint
from patchdrive.pipeline.drafts import draft_of
from patchdrive.pipeline.journal import StoreInUseError
from patchdrive.pipeline.lease import Holder, Verdict, Watch, take
from patchdrive.pipeline.metrics import Metric, bootstrapped
from patchdrive.pipeline.train import Training
from patchdrive.pipeline.train_batches import ahead
from patchdrive.pipeline.train_config import TrainConfig
from patchdrive.pipeline.train_curves import draw_curves
from patchdrive.pipeline.train_setup import Setup, set_up
from patchdrive.pipeline.train_tasks import train_settings
from patchdrive.pipeline.watcher import Watcher
from patchdrive.readers.errors import StoreError

WEIGHTS, CHECKPOINT, METRICS, CURVES, SUMMARY = "weights.safetensors", "checkpoint.safetensors", "metrics.json", "curves.png", "train.json"
"""What training leaves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """How good the model was after a step."""

    step: int
    """Steps taken before it."""
    metrics: Mapping[str, Metric]
    """By name."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"step": self.step, "metrics": {name: metric.to_dict() for name, metric in self.metrics.items()}}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Look:
        """Read what `to_dict` wrote."""
        held = fields["metrics"].items()
        return cls(step=fields["step"], metrics={name: Metric.from_dict(metric) for name, metric in held})


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a training stands when the command ends."""

    out: str
    """Folder of what it leaves."""
    status: Literal["done", "partial"]
    """`partial`: stopped by a signal; the same command goes on."""
    steps: int
    """Taken."""
    ended: str
    """Why there are no more."""
    metric: str | None
    """The one that says which weights are the best; None where nothing was held out."""
    best: int | None
    """The step that the weights are of."""
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    """Of these weights."""
    seconds: float
    """Of all runs of the command together."""

    def __str__(self) -> str:
        judged = ", ".join(f"{name} {metric}" for name, metric in self.metrics.items())
        weights = f"; weights of step {self.best}{f': {judged}' if judged else ''} -> {Path(self.out) / WEIGHTS}"
        return f"{self.out}: {self.status} after {self.steps} steps, {self.ended}{weights if self.status == 'done' else ''}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        held = {name: getattr(self, name) for name in ("out", "status", "steps", "ended", "metric", "best", "seconds")}
        return {**held, "metrics": {name: metric.to_dict() for name, metric in self.metrics.items()}}


def train_from(config: TrainConfig, *, say: Callable[[str], None], watcher: Watcher, overwrite: bool = False) -> Outcome:
    """Train what `config` asks for, or go on with it.

    Args:
        config: as `read_config` gives it.
        say: tells people a line.
        watcher: is told of steps, and may end it after one.
        overwrite: start anew where there is another training, or a finished one.

    Raises:
        SettingsError: images, labels and model do not go together.
        StoreError: `config.out` holds another training; names the settings that differ.
        ReadError: an image cannot be read; the last checkpoint stands.
    """
    with _alone_in(config.out_folder, overwrite=overwrite), closing(set_up(config, say)) as setup:
        job = _Job(config, setup, say)
        job.resume()
        watcher.began(config.training.steps, config.training.steps - job.training.step)
        if not job.ended and not watcher.wants_stop():
            left = range(job.training.step, config.training.steps)
            with closing(ahead(setup.batch, left, workers=setup.workers)) as batches:
                for batch in batches:
                    job.training.take(batch)
                    watcher.committed(1)
                    if job.note(stop=watcher.wants_stop()):
                        break
        return job.finish()


@contextmanager
def _alone_in(out: Path, *, overwrite: bool) -> Iterator[None]:
    """While the body lasts, no other process trains there."""
    out.mkdir(parents=True, exist_ok=True)
    lease = take(Watch(out, "lease"), Holder.this_process())
    if isinstance(lease, Verdict):
        raise StoreInUseError(f"{out} is in use by another process ({lease.holder}); wait for it, or name another `out`")
    try:
        if overwrite:
            for name in (SUMMARY, WEIGHTS, METRICS, CURVES, CHECKPOINT):
                (out / name).unlink(missing_ok=True)
        elif (out / WEIGHTS).exists() and not (out / CHECKPOINT).exists():
            raise StoreError(
                f"{out / WEIGHTS} is there without the checkpoint of its training; name another `out`, or replace it with --overwrite"
            )
        yield
    finally:
        lease.release()


class _Job:
    """One training: its looks, its files."""

    def __init__(self, config: TrainConfig, setup: Setup, say: Callable[[str], None]) -> None:
        self._config, self._setup, self._say, self._out = config, setup, say, config.out_folder
        self.training = Training(setup.task.learner, train_settings(config))
        self._looks: list[Look] = []
        self._first = 0  # step of this run
        self._before = 0.0  # seconds of earlier runs
        self._began = time.monotonic()

    def resume(self) -> None:
        """Go on from the checkpoint, where there is one."""
        held = load_checkpoint(self._out / CHECKPOINT, self._setup.facts)
        counts = f"{len(self._setup.train)} images to train on, {len(self._setup.held_out)} to judge by"
        if held is None:
            self._say(f"patchdrive: {counts}")
            return
        try:
            self.training.restore(held.tensors)
            self._looks = [Look.from_dict(look) for look in held.state["looks"]]
            self._first, self._before = self.training.step, float(held.state["seconds"])
        except (KeyError, RuntimeError, TypeError) as error:
            raise StoreError(f"{self._out / CHECKPOINT} is not whole ({error!r}); start anew with --overwrite") from error
        self._say(f"patchdrive: {counts}; goes on after step {self.training.step} of {self._config.training.steps}")

    @property
    def ended(self) -> str:
        """Why there are no more steps; "" while there are."""
        steps, patience = self._config.training.steps, self._config.validation.patience
        if self.training.step >= steps:
            return f"all {steps} steps are taken"
        values = [look.metrics[self._config.metric].value for look in self._looks]
        if patience is None or self._best is None or len(values) - 1 - values.index(np.nanmax(values)) < patience:
            return ""
        return f"{self._config.metric} was not better than {np.nanmax(values):.3f} in {patience} looks"

    @property
    def _best(self) -> Look | None:
        """The look of the highest value of the metric, of equal ones the last; None where no look has one."""
        known = [look for look in self._looks if not math.isnan(look.metrics[self._config.metric].value)]
        return max(known, key=lambda look: (look.metrics[self._config.metric].value, look.step), default=None)

    def note(self, *, stop: bool) -> bool:
        """What is to be done after a step; True where it is the last one of this run."""
        step, steps = self.training.step, self._config.training.steps
        due = step == steps or step % self._config.validation.every == 0
        if self._setup.pieces and due:
            self._look()
        if due or stop or step % self._config.training.checkpoint_every == 0:
            self._save()
        if due or stop:
            self._show()
        return stop or bool(self.ended)

    def _look(self) -> None:
        """Judge the model; keep its weights where it is better than ever."""
        setup, config = self._setup, self._config
        judged: list[Any] = []
        with self.training.judged():
            with closing(setup.looks()) as batches:
                for batch in batches:
                    judged += setup.task.judge(batch)
            metrics = bootstrapped(
                lambda rows: setup.task.metrics([judged[row] for row in rows.tolist()]),
                setup.units,
                confidence=config.validation.confidence,
                resamples=config.validation.resamples,
                seed=config.seed,
            )
            look = Look(step=self.training.step, metrics=metrics)
            self._looks.append(look)
            if self._best is look:
                setup.task.save(self._out / WEIGHTS)
        recent = [losses["total"] for losses in self.training.history[-config.validation.every :]]
        told = ", ".join(f"{name} {metric}" for name, metric in metrics.items())
        better = "; the best so far" if self._best is look else ""
        self._say(f"step {look.step} of {config.training.steps}: loss {np.mean(recent):.4g}; {told}{better}")

    def _save(self) -> None:
        """A checkpoint."""
        state = {"looks": [look.to_dict() for look in self._looks], "seconds": self._seconds}
        Checkpoint(facts=self._setup.facts, state=state, tensors=self.training.state()).save(self._out / CHECKPOINT)

    def _show(self) -> None:
        """What people look at while it goes on."""
        best = self._best
        held = {"metric": self._config.metric, "confidence": self._config.validation.confidence, "units": len(self._setup.units)}
        _write(
            self._out / METRICS, {**held, "best": None if best is None else best.step, "looks": [look.to_dict() for look in self._looks]}
        )
        looks = [(look.step, look.metrics) for look in self._looks]
        draw_curves(self._out / CURVES, self.training.history, looks, None if best is None else best.step)

    @property
    def _seconds(self) -> float:
        return self._before + (time.monotonic() - self._began if self.training.step > self._first else 0.0)

    def finish(self) -> Outcome:
        """The weights and the summary of a training that has ended; where it stands, of one that was stopped."""
        best, config = self._best, self._config
        if self.ended and best is None:
            if self._looks:
                self._say(f"patchdrive: {config.metric} could not be said at any look; the weights of the last step are kept")
            self.training.finish()
            self._setup.task.save(self._out / WEIGHTS)
        if self.ended and not (self._out / WEIGHTS).exists():
            raise StoreError(f"{self._out / WEIGHTS} was taken away; train again with --overwrite")
        outcome = Outcome(
            out=str(self._out),
            status="done" if self.ended else "partial",
            steps=self.training.step,
            ended=self.ended or "stopped by a signal",
            metric=config.metric if self._setup.pieces else None,
            best=best.step if best is not None else self.training.step if self.ended else None,
            metrics=best.metrics if best is not None else {},
            seconds=round(self._seconds, 3),
        )
        if self.ended and (self.training.step > self._first or not (self._out / SUMMARY).exists()):
            _write(self._out / SUMMARY, {**outcome.to_dict(), **self._told()})
        return outcome

    def _told(self) -> dict[str, Any]:
        """What a summary says besides the outcome: with what the weights were made."""
        targets = {name: sum(0 if one.targets is None else len(one.targets) for one in part) for name, part in self._parts.items()}
        return {
            "images": {name: [one.path.name for one in part] for name, part in self._parts.items()},
            **({"targets": targets} if self._config.task == "detect" else {}),
            "config": self._setup.facts["config"],
            "model": self._setup.facts["model"],
            "versions": {name: version(name) for name in ("patchdrive", "torch", "numpy")},
        }

    @property
    def _parts(self) -> dict[str, Any]:
        return {"train": self._setup.train, "held_out": self._setup.held_out}


def _write(path: Path, held: Mapping[str, Any]) -> None:
    with draft_of(path) as draft:
        draft.write_text(json.dumps(held, indent=1) + "\n")
