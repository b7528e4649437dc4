"""Examples: images with what is known of them, in the model's pixels; and which of them are held out."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from patchdrive.models.types import ImageTraits, ModelSpec
from patchdrive.pipeline.glance import glance, patch_grid, pick_channels, saliency_of, traits_of
from patchdrive.pipeline.plan import WORTH_READING
from patchdrive.pipeline.reads import ReadFrame, read_frame
from patchdrive.pipeline.settings import RunSettings
from patchdrive.pipeline.train_config import TrainConfig
from patchdrive.pipeline.train_labels import ObjectLabels, Things, read_image_labels
from patchdrive.pipeline.train_masks import ClassNames, PixelLabels, PolygonLabels, labelled_area, pixel_labels, spots, things_of_mask
from patchdrive.pipeline.train_pieces import Ground
from patchdrive.pipeline.train_read import Shelf
from patchdrive.pipeline.train_sources import Names
from patchdrive.readers import Image, Level
from patchdrive.readers.errors import SettingsError

ANSWER = "class"
"""What the answer about an image is called."""
MOST_WHOLE = 2048 * 2048
"""Pixels of the model in an image that is held whole; a larger one is read where the model drives."""
MOST_SEEN = 2048 * 2048
"""Pixels of the glance in an image that is classified: they are held, with what the network makes of them."""
_MOST_WORTH = 4096
"""Places worth looking at that are kept of one image."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Example:
    """One image, or a part of it, and what is known of it."""

    path: Path
    """Of the image."""
    identity: str
    """As `Image.identity`."""
    grid: Level
    """Pixels of the model over all of it."""
    frame: ReadFrame
    """How they lie on the level that is read."""
    channels: tuple[int, ...]
    """Of the image, in the model's order."""
    targets: NDArray[np.float64] | None = None
    """(n, 2) centres of targets in it, pixels of the model, (y, x); None: nobody says."""
    sizes: NDArray[np.float64] | None = None
    """(n, 2) their heights and widths; None: nobody asks."""
    label: int | None = None
    """Its class; None: nobody says."""
    pixels: PixelLabels | None = None
    """The class of each pixel."""
    within: PolygonLabels | None = None
    """Where everything is labelled; None: everywhere."""
    ground: Ground
    """Where pieces are drawn."""

    def rows(self, first: int, end: int) -> Example:
        """The part of it between two rows."""
        ground = self.ground
        worth = None if ground.worth is None else _between(ground.worth, first, end)
        part = Ground(
            top=first,
            bottom=end,
            width=ground.width,
            targets=tuple(_between(held, first, end) for held in ground.targets),
            worth=worth if worth is not None and (len(worth) or ground.only) else None,
            only=ground.only,
        )
        return dataclasses.replace(self, ground=part)

    def told(self) -> bytes:
        """All that decides what is learned of it, wherever it lies."""
        pixels = [None if one is None else one.digest for one in (self.pixels, self.within)]
        ground = self.ground.worth
        held = (self.path.name, self.identity, self.label, pixels, self.ground.top, self.ground.bottom, self.grid)
        return repr(held).encode() + b"|".join(b"" if one is None else one.tobytes() for one in (self.targets, self.sizes, ground))


def _between(yx: NDArray[np.float64], first: int, end: int) -> NDArray[np.float64]:
    return yx[(yx[:, 0] >= first) & (yx[:, 0] < end)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What label files say of all images."""

    classes: tuple[str, ...]
    """Of images or pixels, in the order of the model's answers; empty where only objects are known."""
    images: Mapping[Path, str] = field(default_factory=dict)
    """Class of each image."""
    objects: ObjectLabels | None = None
    """Objects in images."""


def read_known(config: TrainConfig, paths: Sequence[Path]) -> Known:
    """Read the label files that are of all images.

    Raises:
        SettingsError: one cannot be read, an image has no label, or there are fewer than two classes.
    """
    labels = config.labels
    objects = None if labels.objects is None else ObjectLabels(config.folder / labels.objects, paths)
    if labels.images is None:
        return Known(classes=labels.classes, objects=objects)
    file = config.folder / labels.images
    images = read_image_labels(file, Names(paths))
    without = [path.name for path in paths if path not in images]
    if without:
        raise SettingsError(
            f"labels.images {file} says nothing of {len(without)} of {len(paths)} images: {', '.join(without[:3])}"
            f"{' and others' if len(without) > 3 else ''}; label them, or leave them out of sources"
        )
    classes = labels.classes or tuple(sorted(set(images.values())))
    others = sorted(set(images.values()) - set(classes))
    if others or len(classes) < 2:
        raise SettingsError(
            f"labels.images {file} has the labels {sorted(set(images.values()))}"
            + (f", and labels.classes are {list(classes)}" if others else "; to tell classes apart there must be two")
        )
    return Known(classes=classes, images=images, objects=objects)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Surveyor:
    """Makes examples of images."""

    config: TrainConfig
    """What is asked for."""
    traits: ImageTraits
    """Of the first image: the others are to be like it."""
    spec: ModelSpec
    """Of the pixels that the model eats."""
    glance_downsample: int
    """Of those per pixel of its glance."""
    known: Known
    """What label files say."""
    images: Shelf
    """Where images are open."""
    masks: Shelf
    """Where masks are open."""
    say: Callable[[str], None]
    """Tells people a line."""

    def survey(self, paths: Sequence[Path], *, workers: int) -> tuple[Example, ...]:
        """An example of each image.

        Raises:
            PatchdriveError: one cannot be opened, does not fit the model, or its labels do not fit it.
        """
        with ThreadPoolExecutor(workers, thread_name_prefix="patchdrive-survey") as pool:
            return tuple(pool.map(self._one, paths))

    def _one(self, path: Path) -> Example:
        with self.images.borrow(path) as image:
            return self._example(path, image)

    def _example(self, path: Path, image: Image) -> Example:
        config, settings = self.config, self._settings
        traits = traits_of(image)
        if traits.value_range != self.traits.value_range:
            raise SettingsError(
                f"sources: {path} holds {traits.dtype}, other images {self.traits.dtype}: one model learns from one of them"
            )
        channels = pick_channels(image, self.spec)
        grid = patch_grid(image, self.spec, settings)
        seen = grid.height * grid.width / self.glance_downsample**2
        if config.task == "classify" and seen > MOST_SEEN:
            raise SettingsError(
                f"sources: {path} has {seen:.3g} pixels of the model's glance, and an image that is classified is seen whole, up to "
                f"{MOST_SEEN:.3g}; give a larger model.glance_downsample than {self.glance_downsample}, or a coarser model.pixel_size"
            )
        within = None if config.labels.within is None else labelled_area(config.folder / config.labels.within, path, image)
        things, scale = self._things(path, image, within), (grid.downsample_y, grid.downsample_x)
        targets = None if things is None else things.yx / scale
        pixels = None
        kinds: tuple[NDArray[np.float64], ...] = () if targets is None else (targets,)
        if config.task == "segment":
            assert config.labels.pixels is not None
            naming = ClassNames(classes=self.known.classes, values=config.labels.values, rest=config.labels.rest)
            pixels = pixel_labels(config.folder / config.labels.pixels, path, image, naming, self.masks)
            kinds = spots(pixels, image, len(self.known.classes), grid)
            kinds = kinds if within is None else tuple(kind[within.hold(kind * scale)] for kind in kinds)
            if not any(len(kind) for kind in kinds):
                raise SettingsError(
                    f"labels.pixels gives no pixel of {path} a class of {list(self.known.classes)}; leave it out of sources"
                )
        return Example(
            path=path,
            identity=image.identity,
            grid=grid,
            frame=read_frame(image.levels, grid, config.pieces.side, self.spec.resampling),
            channels=channels,
            targets=targets,
            sizes=None if things is None or not config.model.get("boxes") else self._sizes(path, things) / scale,
            label=self.known.classes.index(self.known.images[path]) if self.known.images else None,
            pixels=pixels,
            within=within,
            ground=Ground(
                top=0,
                bottom=grid.height,
                width=grid.width,
                targets=kinds,
                worth=self._worth(image, grid, kinds) if within is None else spots(within, image, 1, grid)[0],
                only=within is not None,
            ),
        )

    @property
    def _settings(self) -> RunSettings:
        sources = self.config.sources
        return RunSettings(mpp_override=sources.mpp_override, upsample=sources.upsample, saliency=self.config.pieces.saliency)

    def _things(self, path: Path, image: Image, within: PolygonLabels | None) -> Things | None:
        """The targets inside an image; None where nobody is asked for them."""
        config = self.config
        if self.known.objects is not None:
            things = self.known.objects.of(path, image)
            if things is None:
                raise SettingsError(
                    f"labels.objects says nothing of {path}; where it holds no object, give it a line with empty x and y, or a file "
                    "without lines"
                )
        elif config.task == "detect":
            assert config.labels.pixels is not None
            things = things_of_mask(config.folder / config.labels.pixels, path, image, self.masks)
        else:
            return None
        base, wanted = image.levels[0], things.of(config.labels.targets)
        there = np.asarray(((wanted.yx >= 0) & (wanted.yx < (base.height, base.width))).all(axis=1))
        if not there.all():
            count = int((~there).sum())
            self.say(f"patchdrive: {count} of {len(wanted)} objects of {path} lie outside of it, and are left out")
        wanted = wanted.at(there)
        return wanted if within is None else wanted.at(within.hold(wanted.yx))

    @staticmethod
    def _sizes(path: Path, things: Things) -> NDArray[np.float64]:
        """(n, 2) level-0 heights and widths, all above zero."""
        points = int((things.size <= 0).any(axis=1).sum())
        if points:
            raise SettingsError(
                f"model.boxes = true learns how large objects are, and {points} of {len(things)} in {path} are points; leave it out"
            )
        return things.size

    def _worth(self, image: Image, grid: Level, kinds: Sequence[NDArray[np.float64]]) -> NDArray[np.float64] | None:
        """Places where pieces without targets are drawn; None: anywhere."""
        config, side = self.config, self.config.pieces.side
        if config.task == "classify" or max(grid.height, grid.width) <= 2 * side:
            return None
        if config.task == "segment":
            return np.concatenate(kinds)  # elsewhere nobody says what a pixel is
        seen = glance(image, self._settings).saliency
        places = np.argwhere(seen.map >= WORTH_READING)
        if not len(places):
            name = saliency_of(image, self._settings)
            self.say(f"patchdrive: {image.source}: nothing in it is worth reading to the saliency {name}: pieces are drawn anywhere in it")
            return None
        chosen = places[np.linspace(0, len(places) - 1, min(len(places), _MOST_WORTH)).astype(np.int64)]
        scale = (seen.level.downsample_y / grid.downsample_y, seen.level.downsample_x / grid.downsample_x)
        return np.asarray((chosen + 0.5) * scale, np.float64)


def hold_out(examples: Sequence[Example], config: TrainConfig) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Those to train on, and those to judge by: `validation.share` of them, of each class where images have one.

    Raises:
        SettingsError: there are too few to share.
    """
    share = config.validation.share
    if config.sources.validation or not share:
        return tuple(examples), ()
    if config.validation.by == "area":
        cuts = [round(example.grid.height * (1 - share)) for example in examples]
        if min(cuts) < 1 or any(cut >= example.grid.height for cut, example in zip(cuts, examples, strict=True)):
            raise SettingsError(f"validation.share = {share:g} leaves no row of an image to one side; give it another share")
        upper = (example.rows(0, cut) for example, cut in zip(examples, cuts, strict=True))
        lower = (example.rows(cut, example.grid.height) for example, cut in zip(examples, cuts, strict=True))
        parts = [tuple(one for one in part if one.ground.worth is None or len(one.ground.worth)) for part in (upper, lower)]
        if not all(parts):
            raise SettingsError("labels.within leaves nothing to one side of validation.share; give it another share")
        return parts[0], parts[1]
    if len(examples) < 2:
        raise SettingsError(
            'validation.by = "image" holds out images, and there is one; give validation.by = "area", sources.validation, or '
            "validation.share = 0"
        )
    rng = np.random.default_rng([config.seed, 3])
    groups: dict[int, list[int]] = {}
    for index, example in enumerate(examples):
        groups.setdefault(example.label or 0, []).append(index)
    held: set[int] = set()
    for _, group in sorted(groups.items()):
        count = min(max(1, round(share * len(group))), len(group) - 1)
        held |= {group[place] for place in rng.permutation(len(group))[:count].tolist()}
    if not held:
        raise SettingsError("validation.share finds no class with two images; give sources.validation, or validation.share = 0")
    kept = tuple(example for index, example in enumerate(examples) if index not in held)
    return kept, tuple(example for index, example in enumerate(examples) if index in held)


def digest_of(parts: Sequence[Sequence[Example]]) -> str:
    """Hex digest of examples and their labels: what a resumed training must find again."""
    digest = hashlib.sha256()
    for part in parts:
        for example in part:
            digest.update(example.told())
        digest.update(b"|")
    return digest.hexdigest()
