"""run(): the whole story. Look small, plan, read, infer, stitch, commit; ask the drive again until it has seen enough."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import zarr

from patchdrive.models.types import DriveModel, PatchModel
from patchdrive.pipeline.drive import Drive, Outcome, model_drive, once
from patchdrive.pipeline.feed import feed
from patchdrive.pipeline.glance import check, glance, kind_of, make_plan, mpp_of
from patchdrive.pipeline.infer import infer, pick_device
from patchdrive.pipeline.plan import Plan, coverage
from patchdrive.pipeline.run_report import RunReport, measure
from patchdrive.pipeline.settings import RunSettings
from patchdrive.pipeline.stitch import stitch
from patchdrive.pipeline.store import ResultStore
from patchdrive.pipeline.timings import Timings
from patchdrive.pipeline.watcher import Nobody, Watcher
from patchdrive.pipeline.work import prepare
from patchdrive.readers import Image


def run(
    image: Image,
    model: PatchModel | DriveModel,
    store: Path | str,
    *,
    settings: RunSettings | None = None,
    overwrite: bool = False,
    watcher: Watcher | None = None,
) -> RunReport:
    """Look at `image` small, read the patches worth reading, run `model` on them, and leave a result store.

    The same call again resumes; on a finished store it gives back the report.

    Raises:
        BudgetError: the memory cannot hold one block; says how much would.
        StoreError: `store` holds another run; names the settings that differ.
        PatchdriveError: image, model and settings do not fit together; says why.
    """
    settings, watcher, timings = settings or RunSettings(), watcher or Nobody(), Timings()
    if isinstance(model, DriveModel) and settings.max_patches is not None:
        model = model.with_max_patches(settings.max_patches)
    encoder = model.encoder if isinstance(model, DriveModel) else model
    check(image, encoder.spec, settings, drives=isinstance(model, DriveModel))
    facts = facts_of(image, model, encoder, settings)
    with ResultStore.open(Path(store), encoder.spec, facts, overwrite=overwrite, all_classes=settings.all_classes) as result:
        if result.report is not None:
            return RunReport.from_dict(result.report)
        with timings.stage("glance"):
            view = glance(image, settings)
        model.to(pick_device(settings.device))
        result.put_view(view)
        drive = (
            model_drive(model, view, settings, timings) if isinstance(model, DriveModel) else once(make_plan(view, encoder.spec, settings))
        )
        plans: list[Plan] = []
        answer = step(drive)
        while isinstance(answer, Plan):
            plans.append(answer)
            work = prepare(view, encoder.spec, answer, settings, result.sizes())
            round_ = result.begin_round(answer, view.frame(answer.grid), work.sizes)
            watcher.began(len(answer), sum(len(block.owned) for block in round_.todo))
            with closing(feed(image, answer, round_.todo, work.feed, timings)) as batches:
                for block in stitch(infer(encoder, batches, work.device, timings), answer, encoder.spec, work.blend, timings):
                    with timings.stage("write"):
                        result.commit(block)
                    watcher.committed(len(block.block.owned))
                    if watcher.wants_stop():
                        return measure(result, image, timings, coverage=coverage(plans, view.saliency), partial=True)
            answer = step(drive, result.features(answer))
        if answer is not None:
            result.put_outcome(answer, view)
        report = measure(result, image, timings, coverage=coverage(plans, view.saliency), partial=False)
        result.finish(report.to_dict())
        return report


def step(drive: Drive, features: zarr.Array[Any] | None = None) -> Plan | Outcome | None:
    """The drive's next Plan or, once it has returned, its Outcome."""
    try:
        return drive.send(features)
    except StopIteration as end:
        outcome: Outcome | None = end.value
        return outcome


def facts_of(image: Image, model: PatchModel | DriveModel, encoder: PatchModel, settings: RunSettings) -> dict[str, Any]:
    """Everything that decides the answer, as plain JSON: a run with the same facts may be resumed. No times, no hosts, no paths."""
    base, mpp = image.levels[0], mpp_of(image, settings)
    return {
        "source": {"identity": image.identity, "height": base.height, "width": base.width, "kind": kind_of(image), "mpp": mpp},
        "model": {"digest": model.digest, "spec": encoder.spec.to_dict()},
        "settings": settings.answer_fields(),
        "device": pick_device(settings.device).type,
    }
