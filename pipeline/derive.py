"""What follows from patches that are all done: things of their boxes, painted maps, and the coarser levels of all maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from patchdrive.models.types import ModelSpec
from patchdrive.pipeline.boxes import NO_BOXES, joined
from patchdrive.pipeline.coarsen import coarsen, create_painted
from patchdrive.pipeline.detections import things
from patchdrive.pipeline.glance import View
from patchdrive.pipeline.journal import Journal
from patchdrive.pipeline.paint import Painting
from patchdrive.pipeline.plan import Layout, Plan
from patchdrive.pipeline.tables import FoundBoxes, FoundObjects, create_objects

Tables = Mapping[str, Sequence[zarr.Array[Any]]]


def write_things(store: Path, spec: ModelSpec, plans: Sequence[Plan], tables: Tables, journal: Journal) -> None:
    """Of a detection head: each thing once, in one table. Nothing for other models.

    Args:
        store: `<id>.zarr`.
        spec: of the model.
        plans: one per round.
        tables: of every table of the model, by name, one per round.
        journal: through which it is written.
    """
    for table, output in spec.boxes.items():
        parts = [part for plan, given in zip(plans, tables[table], strict=True) for part in things(plan, given, output)]
        found = joined([NO_BOXES, *parts])
        size = np.stack([found.height, found.width], axis=1)
        boxes = FoundBoxes(size=size, kind=found.kind.astype(np.int8), classes=output.channels)
        merged = FoundObjects(yx=found.centres, score=found.score.astype(np.float32), boxes=boxes)
        create_objects(store / "tables" / f"{spec.name}_{output.name}", merged, journal)


def painting_of(spec: ModelSpec, plans: Sequence[Plan], tables: Tables, view: View, layout: Layout) -> Painting | None:
    """What maps are painted from; None where there is no patch, or no table."""
    if not spec.vectors or not any(len(plan) for plan in plans):
        return None
    features = {name: tables[name] for name in spec.features}
    return Painting.of(plans, features, view.frame(plans[0].grid), layout.stride / layout.side)


def draw_maps(store: Path, painting: Painting | None, journal: Journal, wants_stop: Callable[[], bool]) -> bool:
    """Paint, and build the coarser levels; False where a stop was wished for before their end."""
    if painting is not None:
        with journal.door():
            create_painted(store, painting, journal)
    return coarsen(store, journal, painting, wants_stop)
