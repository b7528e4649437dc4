"""verify(): is a store what its run left? Every record is checked, and a sample of patches is computed again. Changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from patchdrive.models.load import load_models
from patchdrive.models.types import DriveModel, PatchModel
from patchdrive.pipeline.asked import as_asked
from patchdrive.pipeline.budget import cores
from patchdrive.pipeline.glance import traits_of
from patchdrive.pipeline.ledger import Ledger, read_ledger
from patchdrive.pipeline.problems import Verdict
from patchdrive.pipeline.recompute import draw, recompute
from patchdrive.pipeline.records import check_blocks, check_counts, check_facts, check_files, check_states
from patchdrive.pipeline.settings import RunSettings
from patchdrive.readers import Image, open_image
from patchdrive.readers.errors import SettingsError, StoreError

_NO_SAMPLE = "check the records alone with --no-recompute (Python: sample=0)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """With what a sample is computed again; no answer depends on it."""

    memory: int | None = None
    """Host bytes to stay under; None: half of what this process may have."""
    device: str = "auto"
    """As `RunSettings.device`; `auto`: the kind that the run had."""
    workers: int | None = None
    """Threads that decode, and that read the store; None: the cores this process may use."""


def verify(
    store: Path | str,
    image: Image | str | None = None,
    model: PatchModel | DriveModel | Sequence[str] | None = None,
    *,
    sample: int = 32,
    seed: int = 0,
    means: Means | None = None,
) -> Verdict:
    """Check every file and record of a store, and compute a sample of its patches again.

    Args:
        store: `<id>.zarr`, with its state beside it; finished or not.
        image: the source, open or where it lies now; None: where the run found it.
        model: what the run was given, or its names; None: the names that the run recorded.
        sample: how many patches are computed again, of all rounds together; 0: none, and neither image nor model is needed.
        seed: which ones; the same seed draws the same ones.
        means: with what.

    Raises:
        SettingsError: the sample or the seed is below zero, or there is no such device.
        StoreError: there is no store, it is of another version, or image or model are not those of the run.
        ModelError: the model cannot be loaded.
        FormatError: the source cannot be opened.
        BudgetError: the memory cannot hold one block.
    """
    if sample < 0:
        raise SettingsError(f"a sample is of zero or more patches, got {sample}")
    if seed < 0:
        raise SettingsError(f"a seed is zero or more, got {seed}")
    path, means = Path(store), means or Means()
    ledger = read_ledger(path)
    files, found = check_files(ledger, means.workers or cores())
    bad = [problem.where.partition("/")[2] for problem in found]
    problems = [*ledger.problems, *found]
    problems += [*check_blocks(ledger), *check_counts(ledger), *check_facts(ledger, bad), *check_states(ledger, bad)]
    patches = 0
    if sample:
        damaged = {(problem.round, problem.block) for problem in problems if problem.round is not None and problem.block is not None}
        picks = draw(ledger, damaged, sample, seed)
        with closing(_open(ledger, image)) if image is None or isinstance(image, str) else nullcontext(image) as source:
            _check_source(ledger, source)
            settings = _settings_of(ledger, means)
            encoder = _encoder_of(ledger, model, source, settings)
            again = recompute(ledger, picks, source, encoder, settings) if picks else []
        patches, problems = len(picks), [*problems, *again]
    return Verdict(store=path, finished=ledger.finished, files=files, patches=patches, problems=tuple(problems))


def _open(ledger: Ledger, where: str | None) -> Image:
    """The source, where it lay or where it lies now, by the reader of the run."""
    held = ledger.state("source.json")
    source = where if where is not None else held.get("source")
    if not isinstance(source, str):
        raise StoreError(f"{ledger.path}: no source is recorded; say where it lies with --source, or {_NO_SAMPLE}")
    if where is None and "://" not in source and not Path(source).exists():
        what = f"{source}, which {ledger.path.name} was made of, is not there"
        raise StoreError(f"{what}; say where it lies now with --source, or {_NO_SAMPLE}")
    return open_image(source, reader=held.get("reader"))


def _check_source(ledger: Ledger, image: Image) -> None:
    """
    Raises:
        StoreError: it is another image than the run's.
    """
    then, now = ledger.facts["source"]["identity"], image.identity
    if then != now:
        raise StoreError(
            f"{image.source} is not what {ledger.path.name} was made of: its identity is {now[:12]}, recorded is {then[:12]}; "
            f"give the same file with --source, or {_NO_SAMPLE}"
        )


def _settings_of(ledger: Ledger, means: Means) -> RunSettings:
    """The run's settings, with other means."""
    kind = ledger.facts["device"]
    device = kind if means.device == "auto" else means.device
    if device.partition(":")[0] != kind:
        raise StoreError(f"{ledger.path.name} was computed on {kind}, and {device} answers otherwise in the last bits; {_NO_SAMPLE}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise StoreError(f"{ledger.path.name} was computed on cuda, which is not here; verify it where there is one, or {_NO_SAMPLE}")
    try:
        return RunSettings(**ledger.facts["settings"], memory=means.memory, device=device, workers=means.workers)
    except TypeError as error:
        raise StoreError(f"{ledger.path.name}: run.json has settings of another version ({error}); verify with that one") from error


def _encoder_of(ledger: Ledger, model: PatchModel | DriveModel | Sequence[str] | None, image: Image, settings: RunSettings) -> PatchModel:
    """The model that saw the patches.

    Raises:
        StoreError: it is not known, or it is another one than the run's.
    """
    given: Any = ledger.state("source.json").get("models") if model is None else model
    if given is None:
        raise StoreError(f"{ledger.path.name} does not say by what name its model was loaded; say it with --model, or {_NO_SAMPLE}")
    if isinstance(given, list | tuple):
        pixel_size = settings.mpp if settings.mpp is not None else settings.gsd
        given = load_models(given, traits_of(image), pixel_size=pixel_size)
    given = as_asked(given, settings)
    then = ledger.facts["model"]["digest"]
    encoder: PatchModel = given.encoder if isinstance(given, DriveModel) else given
    if given.digest != then:
        raise StoreError(
            f"{encoder.spec.name} is not the model of {ledger.path.name}: its digest is {given.digest[:12]}, recorded is {then[:12]} "
            f"({ledger.spec.name}); give the same weights with --model, or {_NO_SAMPLE}"
        )
    return encoder
