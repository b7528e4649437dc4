"""The settings of system A: everything but its weights. Saved beside them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from patchdrive.models.saliency import HALO, STRIDE
from patchdrive.models.types import ImageTraits, ModelSpec, OutputSpec
from patchdrive.readers.errors import ModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchDriveNetConfig:
    """What PatchDriveNet looks at and says. The defaults are for 8-bit RGB slides.

    Raises:
        ModelError: a number is out of its range.
    """

    channels: int = 3
    """Input channels."""
    pixel_size: float | None = None
    """Of its patches, in `unit`; None: whatever the image has."""
    unit: Literal["um", "ground"] | None = None
    """As `ModelSpec.unit`."""
    patch_size: int = 64
    """Side of a patch, pixels; a multiple of 32."""
    glance_downsample: int = 8
    """Patch pixels per glance pixel."""
    max_patches: int = 256
    """K: the most patches it asks for."""
    width: int = 64
    """D: length of every token; a multiple of 8."""
    classes: tuple[str, ...] = ("clear", "target")
    """Answers about the whole image; empty for none."""
    target: str = "target"
    """What the detection map shows."""
    threshold: float = 0.5
    """Least probability of an object; what nobody read closely stays below a half."""
    scale: float = 1 / 255
    """Stored values are multiplied by this first."""
    mean: float = 0.5
    """Then this is subtracted."""
    std: float = 0.25
    """Then they are divided by this."""
    fill: float = 255.0
    """Stored value outside the image and where it is invalid; white, as slides are."""
    seed: int = 0
    """Of the untrained weights."""

    def __post_init__(self) -> None:
        if self.width < 8 or self.width % 8:
            raise ModelError(f"width is a positive multiple of 8, got {self.width}")
        if self.patch_size < 32 or self.patch_size % 32:
            raise ModelError(f"patch_size is a positive multiple of 32, got {self.patch_size}")
        if self.max_patches < 1 or self.glance_downsample < 1 or self.channels < 1:
            wrong = {name: getattr(self, name) for name in ("max_patches", "glance_downsample", "channels")}
            raise ModelError(f"each of these is at least 1, got {wrong}")

    @classmethod
    def for_traits(cls, traits: ImageTraits) -> Self:
        """The defaults, shaped to an image."""
        largest = traits.value_range
        return cls(channels=len(traits.channels), scale=1 / largest, fill=largest if traits.kind == "slide" else 0.0)

    @property
    def glance_spec(self) -> ModelSpec:
        """Of the coarse look: two maps, any size."""
        coarse = None if self.pixel_size is None else self.pixel_size * self.glance_downsample
        names = tuple(f"f{i}" for i in range(self.width))
        return self._spec(
            "glance",
            512,
            coarse,
            OutputSpec(name="features", kind="image", channels=names, stride=STRIDE, halo=HALO),
            OutputSpec(name="score", kind="image", channels=("logit",), stride=STRIDE, halo=HALO),
        )

    @property
    def encoder_spec(self) -> ModelSpec:
        """Of the patch encoder: one vector."""
        names = tuple(f"f{i}" for i in range(self.width))
        return self._spec("encoder", self.patch_size, self.pixel_size, OutputSpec(name="features", kind="vector", channels=names))

    def _spec(self, part: str, size: int, pixel_size: float | None, *outputs: OutputSpec) -> ModelSpec:
        return ModelSpec(
            name="patchdrivenet" if part == "encoder" else f"patchdrivenet-{part}",  # the encoder's table is the model's
            channels=self.channels,
            size=size,
            any_size=part == "glance",
            pixel_size=pixel_size,
            unit=self.unit,
            scale=self.scale,
            mean=(self.mean,) * self.channels,
            std=(self.std,) * self.channels,
            fill=self.fill,
            outputs=outputs,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` is the inverse."""
        return {**dataclasses.asdict(self), "classes": list(self.classes)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """Read what `to_dict` wrote.

        Raises:
            ModelError: a field is unknown, missing or out of its range.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if set(fields) != known:
            raise ModelError(f"not a PatchDriveNet config: fields {sorted(set(fields) ^ known)} are unknown or missing")
        return cls(**{**fields, "classes": tuple(fields["classes"])})
