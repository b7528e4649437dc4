"""Archive: many images, two at a time. The next one opens, glances and reads while this one computes; one bad image costs only itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Condition, Event, Lock
from typing import Any

from patchdrive.models import load_models
from patchdrive.models.types import DriveModel, PatchModel
from patchdrive.pipeline.budget import host_limit
from patchdrive.pipeline.devices import Devices
from patchdrive.pipeline.glance import kind_of, mpp_of, traits_of
from patchdrive.pipeline.run import run
from patchdrive.pipeline.run_report import RunReport
from patchdrive.pipeline.settings import RunSettings
from patchdrive.pipeline.store import store_name
from patchdrive.pipeline.watcher import Watcher
from patchdrive.readers import Image, open_image
from patchdrive.readers.errors import BudgetError, PatchdriveError


class Models:
    """A model, or several in one pass, loaded once per kind of image and not once per image."""

    def __init__(self, names: Sequence[str], settings: RunSettings) -> None:
        """Nothing is loaded yet. `names` are what `load_model` takes."""
        self.names = tuple(names)
        self._settings = settings
        self._held: dict[Any, PatchModel | DriveModel] = {}
        self._loading = Lock()

    def of(self, image: Image) -> PatchModel | DriveModel:
        """The model for this image.

        Raises:
            ModelError: as `load_models`.
        """
        traits = traits_of(image)
        with self._loading:
            if traits not in self._held:
                size = self._settings.gsd if traits.kind == "scene" else self._settings.mpp
                self._held[traits] = load_models(self.names, traits, pixel_size=size)
            return self._held[traits]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How one image ended."""

    report: RunReport
    """Of its run; of status failed where it never came to one."""
    error: PatchdriveError | None = None
    """Why it never came to one."""


class _Air:
    """Who is in flight: several with their share of the memory, or one alone with all of it; one store never twice."""

    def __init__(self) -> None:
        self._news = Condition()
        self._count = 0
        self._stores: set[Path] = set()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Beside others."""
        with self._news:
            self._news.wait_for(lambda: self._count >= 0)
            self._count += 1
        yield from self._fly(1)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """With nobody else."""
        with self._news:
            self._news.wait_for(lambda: self._count == 0)
            self._count = -1
        yield from self._fly(-1)

    def _fly(self, weight: int) -> Iterator[None]:
        try:
            yield
        finally:
            with self._news:
                self._count -= weight
                self._news.notify_all()

    @contextmanager
    def store(self, path: Path) -> Iterator[None]:
        """The only one that writes there: a source that is given twice finds its store finished."""
        with self._news:
            self._news.wait_for(lambda: path not in self._stores)
            self._stores.add(path)
        try:
            yield
        finally:
            with self._news:
                self._stores.discard(path)
                self._news.notify_all()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Archive:
    """Where the stores of many images go, and how they are made."""

    out: Path
    """Folder of the stores."""
    models: Models
    """What computes."""
    settings: RunSettings
    """Of every run; the memory is shared out over the images in flight."""
    watch: Callable[[str], AbstractContextManager[Watcher]]
    """Who looks on while one source is run."""
    say: Callable[[str], None]
    """Where words for people go."""
    reader: str | None = None
    """As in `open_image`."""
    overwrite: bool = False
    """As in `run`."""
    devices: Devices = field(init=False)
    """Of all runs."""
    air: _Air = field(default_factory=_Air, init=False)
    """Who is in flight."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "devices", Devices(self.settings.device))

    def run_all(self, sources: Sequence[str], *, in_flight: int, stop: Event) -> Iterator[Ended]:
        """How each source ended, in their order; none is begun once `stop` is set, which a bug in one of them does."""
        at_once = max(1, min(in_flight, len(sources)))

        def one(source: str) -> Ended | None:
            try:
                return None if stop.is_set() else self._run_one(source, at_once)
            except BaseException:
                stop.set()  # the others end with their block in hand; then this one's error is told
                raise

        with ThreadPoolExecutor(at_once, thread_name_prefix="patchdrive-image") as images:
            yield from (ended for ended in images.map(one, sources) if ended is not None)

    def _run_one(self, source: str, at_once: int) -> Ended:
        try:
            with closing(open_image(source, reader=self.reader)) as image, self.watch(source) as watcher:
                model = self.models.of(image)
                self._warn(source, image, model)
                return Ended(report=self._run(image, model, watcher, at_once))
        except PatchdriveError as error:
            self.say(f"patchdrive: {error}")
            return Ended(report=RunReport(source=source, store="", status="failed", reasons={str(error): 1}), error=error)

    def _run(self, image: Image, model: PatchModel | DriveModel, watcher: Watcher, at_once: int) -> RunReport:
        """Beside others with a share of the memory or, where that is too little, alone with all of it."""
        store, whole = self.out / store_name(image), self.settings.memory or host_limit() // 2

        def fly(memory: int) -> RunReport:
            """The run, with so much of it."""
            settings = replace(self.settings, memory=memory)
            with self.air.store(store):
                return run(
                    image,
                    model,
                    store,
                    settings=settings,
                    overwrite=self.overwrite,
                    watcher=watcher,
                    devices=self.devices,
                    names=self.models.names,
                )

        try:
            with self.air.together():
                return fly(whole // at_once)
        except BudgetError:
            if at_once == 1:
                raise
        with self.air.alone():
            return fly(whole)

    def _warn(self, source: str, image: Image, model: PatchModel | DriveModel) -> None:
        spec = model.encoder.spec if isinstance(model, DriveModel) else model.spec
        if spec.unit == "um" and kind_of(image) == "slide" and mpp_of(image, self.settings) is None:
            self.say(
                f"patchdrive: {source} does not say how many µm a pixel is: {spec.name}, made for {spec.pixel_size:g}, reads level-0 "
                "pixels as they are; tell it with --mpp-override"
            )
