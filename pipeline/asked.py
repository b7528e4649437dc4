"""as_asked(): a model as the settings want it."""

from __future__ import annotations

from patchdrive.models.halo import with_halo
from patchdrive.models.types import DriveModel, PatchModel
from patchdrive.pipeline.settings import RunSettings
from patchdrive.readers.errors import SettingsError


def as_asked(model: PatchModel | DriveModel, settings: RunSettings) -> PatchModel | DriveModel:
    """The same weights, with so many patches at most and an audit, or with another halo.

    Raises:
        SettingsError: a model that drives is given a halo, or one that does not an audit.
        ModelError: the halo does not go with the model.
    """
    if isinstance(model, DriveModel):
        if settings.halo is not None:
            raise SettingsError("a model that drives joins its patches itself; leave --halo out")
        fewer = model if settings.max_patches is None else model.with_max_patches(settings.max_patches)
        return fewer if settings.audit is None else fewer.with_audit(settings.audit)
    if settings.audit is not None:
        raise SettingsError("an audit is of a model that drives; leave --audit out")
    return model if settings.halo is None else with_halo(model, settings.halo)
