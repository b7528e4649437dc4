"""run(): the whole story. Look small, plan, read, infer, stitch, commit; ask the drive again until it has seen enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import zarr

from patchdrive.models.types import DriveModel, PatchModel
from patchdrive.pipeline.asked import as_asked
from patchdrive.pipeline.coords import read_coords
from patchdrive.pipeline.devices import Devices
from patchdrive.pipeline.drive import Drive, Outcome, model_drive, once
from patchdrive.pipeline.engine import Engine
from patchdrive.pipeline.glance import View, check, glance, kind_of, layout_of, make_plan, mpp_of, patch_grid
from patchdrive.pipeline.look import held_bytes
from patchdrive.pipeline.plan import Plan
from patchdrive.pipeline.regions import read_regions
from patchdrive.pipeline.run_report import RunReport
from patchdrive.pipeline.settings import RunSettings
from patchdrive.pipeline.store import ResultStore
from patchdrive.pipeline.timings import Timings
from patchdrive.pipeline.watcher import Nobody, Watcher
from patchdrive.readers import Image
from patchdrive.readers.errors import SourceChangedError


def run(
    image: Image,
    model: PatchModel | DriveModel,
    store: Path | str,
    *,
    settings: RunSettings | None = None,
    overwrite: bool = False,
    watcher: Watcher | None = None,
    devices: Devices | None = None,
    names: Sequence[str] = (),
) -> RunReport:
    """Look at `image` small, read the patches worth reading, run `model` on them, and leave a result store.

    The same call again resumes; on a finished store it gives back the report.

    Args:
        image: what to read.
        model: what computes.
        store: `<id>.zarr`, made where it is not there.
        settings: all that may be chosen.
        overwrite: start anew whatever is in the store.
        watcher: who looks on.
        devices: those of `settings.device`, where several runs share them.
        names: of the model, as `load_model` takes them; recorded for `verify`.

    Raises:
        BudgetError: the memory cannot hold one block; says how much would.
        StoreError: `store` holds another run; names the settings that differ.
        SourceChangedError: the image's file was changed while it was read.
        PatchdriveError: image, model and settings do not fit together; says why.
    """
    settings, timings = settings or RunSettings(), Timings()
    devices = (devices or Devices(settings.device)).joined()
    asked = as_asked(model, settings)
    if asked is model:
        settings = replace(settings, halo=None)  # its own anyway
    model = asked
    encoder = model.encoder if isinstance(model, DriveModel) else model
    check(image, encoder.spec, settings, drives=isinstance(model, DriveModel))
    opened = stamp(image)
    facts = facts_of(image, model, encoder, settings, devices)
    with ResultStore.open(
        Path(store), encoder.spec, facts, overwrite=overwrite, all_classes=settings.all_classes, shard=settings.shard
    ) as result:
        if result.report is not None:
            return RunReport.from_dict(result.report)
        with timings.stage("glance"):
            view = glance(image, settings)
        model.to(devices.first)
        result.put_view(view, names)
        engine = Engine(
            view=view,
            model=encoder,
            settings=settings,
            devices=devices,
            result=result,
            timings=timings,
            watcher=watcher or Nobody(),
            held=held_bytes(model, view, patch_grid(image, encoder.spec, settings)) if isinstance(model, DriveModel) else 0,
        )
        drive = drive_of(model, view, settings, devices, timings)
        plans: list[Plan] = []
        answer = step(drive)
        while isinstance(answer, Plan):
            plans.append(answer)
            if not engine.carry_out(answer, to_its_end=isinstance(model, DriveModel)):
                return engine.report(plans, partial=True)
            answer = step(drive, result.features(answer))
        if answer is not None:
            result.put_outcome(answer, view)
        with timings.stage("derive"):
            if not result.derive(view, layout_of(encoder.spec, settings), engine.watcher.wants_stop):
                return engine.report(plans, partial=True)
        if stamp(image) not in {None, opened}:
            raise SourceChangedError(
                f"{image.source} was changed while it was read; what is committed may be of both: run again with --overwrite"
            )
        return RunReport.from_dict(result.finish(engine.report(plans, partial=False).to_dict()))


def stamp(image: Image) -> tuple[int, int] | None:
    """Bytes and time of the last change of a source that is one file; None for any other, and where it is gone."""
    path = Path(image.source)
    if not path.is_file():
        return None
    state = path.stat()
    return state.st_size, state.st_mtime_ns


def drive_of(model: PatchModel | DriveModel, view: View, settings: RunSettings, devices: Devices, timings: Timings) -> Drive:
    """The model's own drive, or one plan for a model that does not drive."""
    if isinstance(model, DriveModel):
        return model_drive(model, view, settings, devices, timings)
    return once(make_plan(view, model.spec, settings))


def step(drive: Drive, features: zarr.Array[Any] | None = None) -> Plan | Outcome | None:
    """The drive's next Plan or, once it has returned, its Outcome."""
    try:
        return drive.send(features)
    except StopIteration as end:
        outcome: Outcome | None = end.value
        return outcome


def facts_of(image: Image, model: PatchModel | DriveModel, encoder: PatchModel, settings: RunSettings, devices: Devices) -> dict[str, Any]:
    """Everything that decides the answer, as plain JSON: a run with the same facts may be resumed. No times, no hosts, no paths."""
    base, mpp, answer = image.levels[0], mpp_of(image, settings), settings.answer_fields()
    if settings.coords is not None:
        answer["coords"] = read_coords(settings.coords, image.source).digest
    if settings.regions is not None:
        answer["regions"] = read_regions(settings.regions, image.source).digest
    return {
        "source": {"identity": image.identity, "height": base.height, "width": base.width, "kind": kind_of(image), "mpp": mpp},
        "model": {"digest": model.digest, "spec": encoder.spec.to_dict()},
        "settings": answer,
        "device": devices.first.type,
    }
