"""From a config to all that a training needs: images, labels, what is held out, the model. What can be refused is refused here."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from patchdrive.models.config import PatchDriveNetConfig
from patchdrive.models.types import ImageTraits
from patchdrive.pipeline.budget import cores
from patchdrive.pipeline.devices import pick_devices
from patchdrive.pipeline.glance import traits_of
from patchdrive.pipeline.saliency import load_scorer
from patchdrive.pipeline.train_batches import Brightness, Loader, Palette, ahead, measure
from patchdrive.pipeline.train_config import TrainConfig
from patchdrive.pipeline.train_examples import MOST_WHOLE, Example, Surveyor, digest_of, hold_out, read_known
from patchdrive.pipeline.train_models import measures_brightness, model_config, pixel_spec
from patchdrive.pipeline.train_pieces import Drawing, Piece, draw_pieces, judged_pieces
from patchdrive.pipeline.train_read import Shelf
from patchdrive.pipeline.train_slides import SlideLoader
from patchdrive.pipeline.train_sources import Found, find_sources
from patchdrive.pipeline.train_tasks import Task, make_task
from patchdrive.readers import open_image
from patchdrive.readers.errors import SettingsError

_MEASURED = 32
"""Pieces that brightness is measured on."""


class Loads(Protocol):
    """Makes what a step of some task learns from."""

    def load(self, pieces: Sequence[Piece], /) -> Any:
        """A batch of those pieces."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Setup:
    """All that a training needs."""

    task: Task[Any]
    """The model on its device, and its loss."""
    train: tuple[Example, ...]
    """Images to learn from."""
    held_out: tuple[Example, ...]
    """Images, or parts of them, to judge by."""
    pieces: tuple[Piece, ...]
    """Of `held_out`, that are looked at."""
    facts: dict[str, Any]
    """What decides the weights, plain JSON."""
    drawing: Drawing
    """How pieces are drawn."""
    loaders: tuple[Loads, Loads]
    """Of `train` and of `held_out`."""
    ends: ExitStack
    """Closes what was opened."""
    workers: int
    """Threads that read ahead."""

    def batch(self, step: int) -> Any:
        """What a step learns from; by its number alone, in any order and from any thread."""
        return self.loaders[0].load(draw_pieces([example.ground for example in self.train], self.drawing, step))

    def looks(self) -> Generator[Any, None, None]:
        """What is held out, piece by piece."""
        return ahead(lambda place: self.loaders[1].load(self.pieces[place : place + 1]), range(len(self.pieces)), workers=self.workers)

    @property
    def units(self) -> list[NDArray[np.int64]]:
        """Which pieces of `looks` belong together: those of one image or, of a single one, each by itself."""
        of = np.array([piece.example for piece in self.pieces])
        images = [np.flatnonzero(of == index) for index in np.unique(of)]
        return images if len(images) > 1 else [np.array([place]) for place in range(len(of))]

    def close(self) -> None:
        """Close all images."""
        self.ends.close()


def set_up(config: TrainConfig, say: Callable[[str], None]) -> Setup:
    """Find the images, read their labels, hold some out, make the model.

    Raises:
        PatchdriveError: images, labels and model do not go together; says which, and the way out.
    """
    devices = pick_devices(config.device)
    if len(devices) > 1:
        raise SettingsError(f"device = {config.device!r}: training computes on one device; name one")
    if config.pieces.saliency is not None:
        load_scorer(config.pieces.saliency)
    workers = config.workers or cores()
    with ExitStack() as ends:
        images, masks = Shelf(functools.partial(open_image, reader=config.sources.reader)), Shelf()
        ends.callback(images.close)
        ends.callback(masks.close)
        train, held_out, traits, classes = _examples(config, images, masks, say)
        slides = config.task == "classify" and any(one.grid.height * one.grid.width > MOST_WHOLE for one in (*train, *held_out))
        side = None if config.task == "classify" else config.pieces.side
        drawing = _drawing(config, side, len(traits.channels))
        seen = _brightness(train, drawing, config, images) if measures_brightness(config, traits) else None
        held = model_config(config, traits, classes, seen)
        most = traits.value_range if np.dtype(traits.dtype).kind in "iu" else np.inf
        palette = Palette(spec=pixel_spec(held), value_range=most)
        loaders: list[Loads] = [Loader(examples=part, palette=palette, shelf=images) for part in (train, held_out)]
        if slides and isinstance(held, PatchDriveNetConfig):
            step, pool = held.glance_downsample, ends.enter_context(ThreadPoolExecutor(workers, thread_name_prefix="patchdrive-patch"))
            loaders = [
                SlideLoader(examples=part, palette=palette, glance_downsample=step, shelf=images, pool=pool) for part in (train, held_out)
            ]
        return Setup(
            task=make_task(config, held, devices[0], slides=slides),
            train=train,
            held_out=held_out,
            pieces=judged_pieces([one.ground for one in held_out], side=side, most=config.validation.pieces, seed=config.seed),
            facts={"config": config.answer_fields(), "images": digest_of((train, held_out)), "model": held.to_dict()},
            drawing=drawing,
            loaders=(loaders[0], loaders[1]),
            ends=ends.pop_all(),
            workers=workers,
        )


def _examples(
    config: TrainConfig, images: Shelf, masks: Shelf, say: Callable[[str], None]
) -> tuple[tuple[Example, ...], tuple[Example, ...], ImageTraits, tuple[str, ...]]:
    """Those to train on, those to judge by, what images are like, and their classes."""
    found, others = _found(config, config.sources.train, say), _found(config, config.sources.validation, say)
    twice = set(found.paths) & set(others.paths)
    if twice:
        raise SettingsError(f"sources.validation names {min(twice)}, which sources.train names too")
    known = read_known(config, (*found.paths, *others.paths))
    with images.borrow(found.paths[0]) as image:
        traits = traits_of(image)
    trial = model_config(config, traits, known.classes, None)
    surveyor = Surveyor(
        config=config,
        traits=traits,
        spec=pixel_spec(trial),
        glance_downsample=trial.glance_downsample if isinstance(trial, PatchDriveNetConfig) else 1,
        known=known,
        images=images,
        masks=masks,
        say=say,
    )
    workers = config.workers or cores()
    train, held_out = hold_out(surveyor.survey(found.paths, workers=workers), config)
    _require_targets(config, train, say)
    return train, held_out or surveyor.survey(others.paths, workers=workers), traits, known.classes


def _brightness(train: Sequence[Example], drawing: Drawing, config: TrainConfig, images: Shelf) -> Brightness:
    """Of squares, however large images are."""
    squares, grounds = dataclasses.replace(drawing, side=config.pieces.side, batch_size=_MEASURED), [example.ground for example in train]
    return measure(train, draw_pieces(grounds, squares, 0), images)


def _found(config: TrainConfig, names: Sequence[str], say: Callable[[str], None]) -> Found:
    found = find_sources(names, config.folder, reader=config.sources.reader)
    for path, why in list(found.left_out.items())[:3]:
        say(f"patchdrive: {path} is left out: {why}")
    if len(found.left_out) > 3:
        say(f"patchdrive: {len(found.left_out) - 3} more files that no reader opens are left out")
    return found


def _require_targets(config: TrainConfig, train: Sequence[Example], say: Callable[[str], None]) -> None:
    """Refuse to learn from nothing."""
    if config.task != "detect":
        return
    counts = [sum(len(held) for held in example.ground.targets) for example in train]
    if not sum(counts):
        named = f" called {' or '.join(config.labels.targets)}" if config.labels.targets else ""
        raise SettingsError(f"labels: no image to train on holds an object{named}; there is nothing to learn")
    say(f"patchdrive: {sum(counts)} objects in {sum(count > 0 for count in counts)} of {len(train)} images to train on")


def _drawing(config: TrainConfig, side: int | None, channels: int) -> Drawing:
    changes = config.augment
    return Drawing(
        seed=config.seed,
        batch_size=config.training.batch_size,
        side=side,
        channels=channels,
        with_targets=config.pieces.with_targets,
        flips=changes.flips,
        turns=changes.turns,
        brightness=changes.brightness,
        contrast=changes.contrast,
        color=changes.color,
    )
