"""RunSettings: what a user asks of a run. Everything that changes the answer is here; so is what only changes the way to it."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from patchdrive.pipeline.cutter import OnError
from patchdrive.pipeline.shard import WHOLE, Shard
from patchdrive.readers.errors import SettingsError

Select = Literal["grid", "topk"]
Blend = Literal["box", "hann", "gaussian", "pyramid"]

_HOW = ("memory", "device", "device_memory", "batch_size", "workers", "patience", "shard")
"""Settings that say how to compute, not what."""


_ABOVE_ZERO = (
    "mpp",
    "gsd",
    "mpp_override",
    "patch_size",
    "max_patches",
    "audit",
    "spacing",
    *(name for name in _HOW if name not in {"device", "shard"}),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """Defaults come from the model and the image; None means "as they say".

    Raises:
        SettingsError: two settings contradict each other, or a value makes no sense.
    """

    mpp: float | None = None
    """Target pixel size of a slide, micrometres; None: the model's, else level 0."""
    gsd: float | None = None
    """Target pixel size of a scene, units of its CRS; None: the model's, else level 0."""
    mpp_override: float | None = None
    """Micrometres per level-0 pixel, for a slide that does not say or says wrong."""
    upsample: bool = False
    """Allow a target pixel size finer than level 0."""
    patch_size: int | None = None
    """Footprint of a patch, target pixels; None: the size the model eats."""
    overlap: int | None = None
    """Patch side minus stride, target pixels; None: twice the model's halo, or a quarter of the patch for maps without a halo, or 0."""
    saliency: str | None = None
    """`tissue`, `valid`, `complexity` or `module:function`; None: tissue for slides, valid for scenes."""
    regions: str | None = None
    """Look inside these polygons only: a GeoJSON file, or a folder with one for each image."""
    select: Select = "grid"
    """`grid`: every patch that holds something worth reading; `topk`: the `max_patches` best ones, `spacing` apart."""
    coords: str | None = None
    """Patches that somebody else chose, instead: an .h5 file of TRIDENT or CLAM, or a folder with one for each slide."""
    max_patches: int | None = None
    """Most patches `topk`, or a model that drives, may ask for."""
    audit: int | None = None
    """Patches that a model which drives reads at random at the end, outside those it chose: they tell what share it missed."""
    spacing: int | None = None
    """`topk`: least distance between two patches' corners, target pixels, along the longer axis; None: one patch."""
    halo: int | None = None
    """Input pixels on each side of a map patch that are seen and not written; None: as the model's spec says."""
    blend: Blend | None = None
    """Weights where map patches overlap; None: gaussian, or box where they only share their halo."""
    all_classes: bool = False
    """Keep every class probability of a segmenter, not only the label and its probability."""
    on_error: OnError = "fail"
    """What becomes of patches whose pixels cannot be decoded: `fail`, `skip`, or `mask`: computed, with those pixels as invalid ones."""
    memory: int | None = None
    """Host bytes to stay under; None: half of what this process may have."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, or several that share the blocks: `cuda:0,1`."""
    device_memory: float = 0.9
    """Of each CUDA device: up to 1 a share of what is free there, above that bytes."""
    batch_size: int | None = None
    """Patches per batch; None: 32 (128 on CUDA), or fewer where the budgets say so. Kept on resume."""
    workers: int | None = None
    """Decode threads; None: the cores this process may use."""
    patience: float = 300.0
    """Seconds in which nothing of a source was decoded, after which it is given up."""
    shard: Shard = WHOLE
    """Which blocks are this process's, where several compute one image; the last of them finishes the store."""

    def __post_init__(self) -> None:
        for name in _ABOVE_ZERO:
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise SettingsError(f"{name} must be above zero and finite, got {value}")
        if self.overlap is not None and self.overlap < 0:
            raise SettingsError(f"overlap must be zero or more, got {self.overlap}; to leave gaps use select topk")
        if self.halo is not None and self.halo < 0:
            raise SettingsError(f"halo must be zero or more, got {self.halo}")
        if self.mpp is not None and self.gsd is not None:
            raise SettingsError("mpp is for slides and gsd for scenes; give one of them")
        if self.coords is not None and self.regions is not None:
            raise SettingsError("coords says which patches to take; leave regions out")
        if self.select == "topk" and self.coords is not None:
            raise SettingsError("coords says which patches to take; leave select topk out")
        if self.select == "topk" and self.max_patches is None:
            raise SettingsError("select topk needs max_patches, the number of patches to take")

    def answer_fields(self) -> dict[str, Any]:
        """The settings that decide the answer, as plain JSON: what a resumed run must repeat."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key not in _HOW}
