"""Archive: many images, two at a time. The next one opens, glances and reads while this one computes; one bad image costs only itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event, Lock
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

    def __post_init__(self) -> None:
        object.__setattr__(self, "devices", Devices(self.settings.device))

    def run_all(self, sources: Sequence[str], *, in_flight: int, stop: Event) -> Iterator[Ended]:
        """How each source ended, in their order; none is begun once `stop` is set, which a bug in one of them does."""
        at_once = max(1, min(in_flight, len(sources)))
        settings = replace(self.settings, memory=(self.settings.memory or host_limit() // 2) // at_once)

        def one(source: str) -> Ended | None:
            try:
                return None if stop.is_set() else self._run_one(source, settings, at_once)
            except BaseException:
                stop.set()  # the others end with their block in hand; then this one's error is told
                raise

        with ThreadPoolExecutor(at_once, thread_name_prefix="patchdrive-image") as images:
            yield from (ended for ended in images.map(one, sources) if ended is not None)

    def _run_one(self, source: str, settings: RunSettings, at_once: int) -> Ended:
        try:
            with closing(open_image(source, reader=self.reader)) as image, self.watch(source) as watcher:
                model = self.models.of(image)
                self._warn(source, image, model, settings)
                report = run(
                    image,
                    model,
                    self.out / store_name(image),
                    settings=settings,
                    overwrite=self.overwrite,
                    watcher=watcher,
                    devices=self.devices,
                    names=self.models.names,
                )
                return Ended(report=report)
        except PatchdriveError as error:
            also = (
                f" for each of the {at_once} images in flight, or give --in-flight 1"
                if isinstance(error, BudgetError) and at_once > 1
                else ""
            )
            self.say(f"patchdrive: {error}{also}")
            return Ended(report=RunReport(source=source, store="", status="failed", reasons={str(error): 1}), error=error)

    def _warn(self, source: str, image: Image, model: PatchModel | DriveModel, settings: RunSettings) -> None:
        spec = model.encoder.spec if isinstance(model, DriveModel) else model.spec
        if spec.unit == "um" and kind_of(image) == "slide" and mpp_of(image, settings) is None:
            self.say(
                f"patchdrive: {source} does not say how many µm a pixel is: {spec.name}, made for {spec.pixel_size:g}, reads level-0 "
                "pixels as they are; tell it with --mpp-override"
            )
