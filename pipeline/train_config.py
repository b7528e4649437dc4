"""TrainConfig: what `patchdrive train` is asked for, a TOML file as dataclasses. All that can be refused is, before an image is opened."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from patchdrive.models.config import PatchDriveNetConfig
from patchdrive.models.segmenter import SegmenterConfig
from patchdrive.models.step import LossWeights
from patchdrive.pipeline.toml_table import bounded, check_bounds, read_table
from patchdrive.readers.errors import ModelError, SettingsError

Task = Literal["classify", "detect", "segment"]
_HOW = ("path", "out", "device", "workers")
"""Fields that say how to train, not what comes out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """What a task needs to be told, and what it is judged by."""

    models: tuple[str, ...]
    """Which may be trained; the first where nobody says."""
    labels: tuple[str, ...]
    """Fields of `[labels]`, one of which is needed."""
    besides: tuple[str, ...]
    """Fields of `[labels]` that may be given with it."""
    metrics: tuple[str, ...]
    """By name; the first is what early stopping and the choice of the best weights go by where nobody says another."""


TERMS = tuple(term.name for term in dataclasses.fields(LossWeights))
"""Of a driving model's loss."""
_DRIVING = ("patchdrivenet", "patchdrivenet-modular")
AIMS: Mapping[Task, Aim] = {
    "classify": Aim(
        models=_DRIVING,
        labels=("images",),
        besides=("objects", "classes", "targets"),
        metrics=("auroc", "accuracy", "balanced_accuracy", "average_precision"),
    ),
    "detect": Aim(
        models=_DRIVING,
        labels=("objects", "pixels"),
        besides=("targets", "within"),
        metrics=("average_precision", "f1", "precision", "recall", "read"),
    ),
    "segment": Aim(
        models=("segmenter", *_DRIVING),
        labels=("pixels",),
        besides=("classes", "values", "rest", "within"),
        metrics=("mean_iou", "accuracy", "balanced_accuracy"),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """`[sources]`: the images. Names are meant from the folder of the config file."""

    train: tuple[str, ...]
    """Files that a reader opens, folders of such files, and patterns with * and **."""
    validation: tuple[str, ...] = ()
    """The same, of images to judge by; empty: `[validation]` says which share of `train`."""
    reader: str | None = None
    """As `--reader`."""
    mpp_override: float | None = bounded(None, above=0)
    """As `--mpp-override`."""
    upsample: bool = False
    """As `--upsample`."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if not self.train:
            raise SettingsError('train names no image; write train = ["images"]')


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """`[labels]`: what is known of the images. Names are meant from the folder of the config file."""

    images: str | None = None
    """Per image: a CSV with the columns `source` and `label`."""
    objects: str | None = None
    """Per object: points or boxes, CSV or GeoJSON; one CSV with a column `source`, or a folder with one file for each image."""
    pixels: str | None = None
    """Per pixel: masks, or GeoJSON of polygons; a folder with one file for each image."""
    classes: tuple[str, ...] = ()
    """Of images or pixels, in the order of the model's answers; empty: all there are, sorted."""
    targets: tuple[str, ...] = ()
    """Labels of the objects that are to be found; empty: all."""
    values: tuple[int, ...] = ()
    """Of masks: the value of each of `classes`; empty: 0, 1, 2 and so on. Pixels of other values are not asked for."""
    within: str | None = None
    """Where everything is labelled: GeoJSON of polygons, a file for each image; what lies outside is never shown. None: everywhere."""
    rest: str | None = None
    """Of polygons: the class of pixels that lie in none; None: they are not asked for."""

    def __post_init__(self) -> None:
        for name in ("classes", "targets", "values"):
            held = getattr(self, name)
            if len(set(held)) < len(held):
                raise SettingsError(f"{name} names something twice: {list(held)}")
        if self.values and len(self.values) != len(self.classes):
            raise SettingsError(f"values has one value for each of classes: {len(self.classes)} classes, got {len(self.values)} values")
        if self.rest is not None and self.rest not in self.classes:
            raise SettingsError(f"rest is one of classes {list(self.classes)}, got {self.rest!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """`[pieces]`: the squares of large images that training sees, at the model's pixel size."""

    side: int = bounded(512, least=32, most=8192)
    """Of a piece, pixels of the model. Images are classified whole, so there it says nothing."""
    with_targets: float = bounded(0.5, least=0, most=1)
    """Share of the pieces that are drawn around a target; to segment, around a pixel of a class drawn by lot."""
    saliency: str | None = None
    """Where pieces without targets are drawn, as `--saliency`; None: as there."""

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Augment:
    """`[augment]`: how a piece is changed each time it is seen. Labels are changed with it."""

    flips: bool = True
    """Mirror half of them."""
    turns: bool = True
    """Turn them by a multiple of 90 degrees."""
    brightness: float = bounded(0.2, least=0)
    """All channels are shifted by up to this, in standard deviations of the model's input."""
    contrast: float = bounded(0.1, least=0, most=1)
    """Distances from the model's mean are changed by up to this share."""
    color: float = bounded(0.1, least=0)
    """Each channel is shifted by up to this, in standard deviations of the model's input."""

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """`[training]`: how long and how fast."""

    steps: int = bounded(1000, least=1)
    """Batches."""
    batch_size: int = bounded(4, least=1)
    """Pieces in a batch."""
    learning_rate: float = bounded(2e-3, above=0)
    """Of AdamW at its height."""
    weight_decay: float = bounded(0.05, least=0)
    """On matrices and kernels only."""
    warm_up: float = bounded(0.05, least=0, most=1)
    """Share of the steps in which the rate rises; then it falls along a cosine."""
    clip: float = bounded(1.0, above=0)
    """Largest norm of the gradient."""
    average: float | None = bounded(0.99, least=0, most=1)
    """Decay of the moving average of the weights, which is what is judged and saved."""
    max_patches: int = bounded(16, least=1)
    """Patches that a driving model asks for in each piece while it is trained."""
    constant_memory: bool = False
    """Of a driving model: keep one chunk of patches in memory, not all, at the price of encoding each twice; the same gradient."""
    losses: Mapping[str, float] = field(default_factory=dict)
    """What terms of the loss count, where it is not as usual."""
    checkpoint_every: int = bounded(100, least=1)
    """Steps between two checkpoints; a kill costs no more."""

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """`[validation]`: what is held out, how it is judged, and when training ends early."""

    share: float = bounded(0.2, least=0, most=0.9)
    """Of `sources.train` that is held out, where `sources.validation` is empty; 0: nothing is judged."""
    by: Literal["image", "area"] = "image"
    """`image`: whole images are held out; `area`: the lower part of each image, for one or two large ones."""
    every: int = bounded(100, least=1)
    """Steps between two looks."""
    pieces: int = bounded(64, least=1)
    """Most pieces of large images that are looked at; half of them hold targets where there are so many."""
    near: float | None = bounded(None, above=0)
    """An object is found where one is reported within this many pixels of the model; None: a quarter of its patch."""
    metric: str | None = None
    """The one that says which weights are the best."""
    patience: int | None = bounded(None, least=1)
    """Looks without a better one after which training ends; None: it goes on to the last step."""
    confidence: float = bounded(0.95, above=0, most=0.999)
    """Of the intervals."""
    resamples: int = bounded(500, least=10)
    """Bootstrap draws for them."""

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """All of it.

    Raises:
        SettingsError: two fields contradict each other.
    """

    path: Path
    """Of the file: names in it are meant from its folder."""
    task: Task
    """What is learned: the class of images, where objects are, the class of each pixel."""
    out: str
    """Folder for what training leaves."""
    seed: int = bounded(0, least=0)
    """Of every draw: weights, pieces, augmentation, patches, what is held out."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:1`."""
    workers: int | None = bounded(None, least=1)
    """Threads that read; None: the cores this process may use."""
    sources: Sources
    """Images."""
    labels: Labels
    """What is known of them."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """Its `name`, and fields of its config, but for those that images and labels decide."""
    pieces: Pieces = field(default_factory=Pieces)
    """Squares of large images."""
    augment: Augment = field(default_factory=Augment)
    """Changes."""
    training: Course = field(default_factory=Course)
    """How long and how fast."""
    validation: Validation = field(default_factory=Validation)
    """How it is judged."""

    def __post_init__(self) -> None:
        check_bounds(self)
        aim = AIMS[self.task]
        given = [
            name for name in ("images", "objects", "pixels", "classes", "targets", "values", "within", "rest") if getattr(self.labels, name)
        ]
        asked = [name for name in given if name in aim.labels]
        needed = " or ".join(f"labels.{name}" for name in aim.labels)
        if len(asked) != 1:
            raise SettingsError(f'task = "{self.task}" needs {needed}, {"and not both" if asked else "which is missing"}')
        for name in given:
            if name not in (*aim.labels, *aim.besides):
                raise SettingsError(f'labels.{name} says nothing to task = "{self.task}", which learns from {needed}')
        if self.task == "segment" and len(self.labels.classes) < 2:
            raise SettingsError(f"labels.classes names the classes of pixels, two or more, got {list(self.labels.classes)}")
        if self.model_name not in aim.models:
            raise SettingsError(f'model.name of task = "{self.task}" is {" or ".join(aim.models)}, got {self.model_name!r}')
        terms = TERMS if self.drives else ()
        for name in self.training.losses:
            if name not in terms:
                raise SettingsError(
                    f"training.losses.{name} is no term of the loss of {self.model_name}; there are {', '.join(terms) or 'none to weigh'}"
                )
        self._check_validation(aim)

    def _check_validation(self, aim: Aim) -> None:
        held = self.validation
        if held.metric is not None and held.metric not in aim.metrics:
            raise SettingsError(f'validation.metric of task = "{self.task}" is one of {", ".join(aim.metrics)}, got {held.metric!r}')
        if not self.judged and (held.patience is not None or held.metric is not None):
            raise SettingsError("validation.patience and validation.metric need images to judge by; give validation.share above 0")
        if held.by == "area" and self.task == "classify":
            raise SettingsError('validation.by = "area" holds out parts of images, and images are classified whole; leave it out')
        if held.by == "area" and self.sources.validation:
            raise SettingsError('validation.by = "area" holds out parts of sources.train; leave sources.validation out')

    @property
    def model_name(self) -> str:
        """Which is trained."""
        return str(self.model.get("name", AIMS[self.task].models[0]))

    @property
    def drives(self) -> bool:
        """Whether that is a PatchDriveNet."""
        return self.model_name in _DRIVING

    @property
    def judged(self) -> bool:
        """Whether something is held out."""
        return bool(self.sources.validation) or self.validation.share > 0

    @property
    def metric(self) -> str:
        """The one that says which weights are the best."""
        return self.validation.metric or AIMS[self.task].metrics[0]

    @property
    def folder(self) -> Path:
        """Where names are meant from."""
        return self.path.parent

    @property
    def out_folder(self) -> Path:
        """Where training leaves what it leaves."""
        return self.folder / self.out

    def answer_fields(self) -> dict[str, Any]:
        """What decides the weights, as plain JSON: what a resumed training must repeat."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key not in _HOW}


def read_config(path: Path) -> TrainConfig:
    """The config in a TOML file.

    Raises:
        SettingsError: it cannot be read, or a field is unknown, missing, of another type, out of its bounds, or contradicts another.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is no TOML: {error}") from error
    where = f"{path.name}: "
    config = read_table(TrainConfig, table, where, given={"path": path})
    return dataclasses.replace(config, model=_model_fields(config, where))


def _model_fields(config: TrainConfig, where: str) -> Mapping[str, Any]:
    """The fields of `[model]`, as the model's config has them."""
    where = f"{where}model."
    fields = {name: value for name, value in config.model.items() if name != "name"}
    trial: PatchDriveNetConfig | SegmenterConfig
    try:
        if config.drives:
            given: dict[str, Any] = {
                "name": "any",
                "channels": 3,
                "seed": config.seed,
                "embedding": False,
                "audit": 0,
                "answers": (),
                "segments": ("any",),
            }
            trial = read_table(PatchDriveNetConfig, fields, where, given={**given, "target": "" if config.task == "segment" else "any"})
            trial.encoder_spec  # noqa: B018  which checks what is left
        else:
            given = {"channels": 3, "classes": ("one", "other"), "scale": 1.0, "mean": (), "std": (), "fill": 0.0}
            trial = read_table(SegmenterConfig, fields, where, given=given)
            trial.spec  # noqa: B018
    except ModelError as error:
        raise SettingsError(f"{where[:-1]}: {error}") from error
    return {**config.model, **{name: getattr(trial, name) for name in fields}}
