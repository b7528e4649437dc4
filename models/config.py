"""The settings of systems A and D: everything but their weights. Saved beside them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from patchdrive.models.answers import AnswerSpec
from patchdrive.models.saliency import HALO, STRIDE
from patchdrive.models.types import ImageTraits, ModelSpec, OutputSpec
from patchdrive.readers.errors import ModelError

DRIVERS = ("saliency", "grid", "recurrent", "iterative", "drill-down")
MIXERS = ("none", "neighbours")
ENCODERS = ("small", "inverted")


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchDriveNetConfig:
    """What PatchDriveNet looks at and says. The defaults are for 8-bit RGB slides.

    Raises:
        ModelError: a number is out of its range.
    """

    name: str = "patchdrivenet"
    """Of its tables in a store."""
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
    audit: int = 0
    """Patches read at random at the end, outside those it chose, to estimate what it missed."""
    width: int = 64
    """D: length of every token; a multiple of 8."""
    driver: str = "saliency"
    """Who decides what is read: `saliency`, the best peaks; `grid`, the best of a grid; `recurrent`, an LSTM step by step; `iterative`,
    all patches with the best kept; `drill-down`, a middle level first."""
    per_step: int = 64
    """Patches a recurrent or iterative driver asks for at once."""
    zoom: int = 4
    """Fine pixels along a pixel of the middle level of `drill-down`."""
    share: float = 0.25
    """Of `max_patches`, what `drill-down` reads at the middle level."""
    encoder: str = "small"
    """Of patches: `small` CNN or `inverted` residuals."""
    mixer: str = "none"
    """Whether patches that were read tell each other: `none`, or `neighbours`."""
    heads: int = 4
    """Of the attention."""
    answers: tuple[AnswerSpec, ...] = (AnswerSpec(name="class", classes=("clear", "target")),)
    """About the whole image; empty for none."""
    target: str = "target"
    """What the detection map shows; empty for no detection."""
    boxes: bool = False
    """Whether a thing has a size, not only a centre."""
    threshold: float = 0.5
    """Least probability of an object; what nobody read closely stays below a half."""
    segments: tuple[str, ...] = ()
    """Classes of the segmentation map; empty for none."""
    embedding: bool = False
    """Whether the image as a whole becomes a vector."""
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
        if self.heads < 1 or self.width % self.heads:
            raise ModelError(f"width is a multiple of heads, got {self.width} and {self.heads}")
        if self.patch_size < 32 or self.patch_size % 32:
            raise ModelError(f"patch_size is a positive multiple of 32, got {self.patch_size}")
        positive = {name: getattr(self, name) for name in ("max_patches", "glance_downsample", "channels", "per_step")}
        if min(positive.values()) < 1:
            raise ModelError(f"each of these is at least 1, got {positive}")
        if self.audit < 0 or (self.audit and not self.target):
            raise ModelError(f"an audit counts targets in 0 or more patches, got {self.audit} of {self.target or 'no target'!r}")
        if self.zoom < 2 or not 0 < self.share < 1:
            raise ModelError(f"zoom is 2 or more, share between 0 and 1; got {self.zoom} and {self.share}")
        for name, known in (("driver", DRIVERS), ("mixer", MIXERS), ("encoder", ENCODERS)):
            if getattr(self, name) not in known:
                raise ModelError(f"{name} is one of {', '.join(known)}; got {getattr(self, name)!r}")
        self._check_answers()

    def _check_answers(self) -> None:
        if len({answer.name for answer in self.answers}) < len(self.answers):
            raise ModelError(f"every answer has a name of its own, got {[answer.name for answer in self.answers]}")
        if not (self.answers or self.target or self.segments or self.embedding):
            raise ModelError("a model has something to say: answers, a target, segments or an embedding")
        if self.boxes and not self.target:
            raise ModelError("boxes are of the target: say what it is called")

    @classmethod
    def for_traits(cls, traits: ImageTraits) -> Self:
        """The defaults, shaped to an image."""
        largest = traits.value_range
        return cls(channels=len(traits.channels), scale=1 / largest, fill=largest if traits.kind == "slide" else 0.0)

    def modular(self) -> Self:
        """The same as system D: small patches that tell their neighbours what they saw before they are joined."""
        return dataclasses.replace(self, name="patchdrivenet-modular", patch_size=32, glance_downsample=4, mixer="neighbours")

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
            name=self.name if part == "encoder" else f"{self.name}-{part}",  # the encoder's table is the model's
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
        fields = dataclasses.asdict(self)
        return {**fields, "answers": [_listed(answer) for answer in fields["answers"]], "segments": list(self.segments)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """Read what `to_dict` wrote; what is left out is as by default.

        Raises:
            ModelError: a field is unknown or out of its range.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if not known.issuperset(fields):
            raise ModelError(f"not a PatchDriveNet config: there is no {', '.join(sorted(set(fields) - known))}; it has {sorted(known)}")
        try:
            answers = {"answers": tuple(AnswerSpec(**{**one, "classes": tuple(one["classes"])}) for one in fields.get("answers", ()))}
            lists = {name: tuple(fields[name]) for name in ("segments",) if name in fields}
            return cls(**{**fields, **lists, **(answers if "answers" in fields else {})})
        except (TypeError, KeyError) as error:
            raise ModelError(f"not a PatchDriveNet config: {error!r}") from error


def _listed(answer: Mapping[str, Any]) -> dict[str, Any]:
    return {**answer, "classes": list(answer["classes"])}
