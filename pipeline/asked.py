"""as_asked(): a model as the settings want it."""

from __future__ import annotations

from patchdrive.models.halo import with_halo
from patchdrive.models.types import DriveModel, PatchModel
from patchdrive.pipeline.settings import RunSettings
from patchdrive.readers.errors import SettingsError


def as_asked(model: PatchModel | DriveModel, settings: RunSettings) -> PatchModel | DriveModel:
    """The same weights, with so many patches at most, or with another halo.

    Raises:
        SettingsError: a model that drives is given a halo.
        ModelError: the halo does not go with the model.
    """
    if isinstance(model, DriveModel):
        if settings.halo is not None:
            raise SettingsError("a model that drives joins its patches itself; leave --halo out")
        return model if settings.max_patches is None else model.with_max_patches(settings.max_patches)
    return model if settings.halo is None else with_halo(model, settings.halo)
