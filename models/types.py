"""What a model eats, what it gives, and the three shapes a model can have. Dataclasses and protocols; no layers.

Tensors are written `[B, K, D]`; coordinates are level-0 pixels, (y, x), pixel centres at i + 0.5.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, Self, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from patchdrive.readers.errors import ModelError
from patchdrive.readers.geometry import Level

OutputKind = Literal["vector", "boxes", "probability", "classes", "image"]
_MOST_CLASSES = 127
"""Of boxes: a class is stored as int8, as AnnData's categories are."""
BOX = ("y", "x", "height", "width", "score", "class")
"""What a detection head says of a box: its upper left corner and its size in input pixels, how sure it is, 0 to 1, and its class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageTraits:
    """What a model may need to know of an image before it sees a pixel. Built-ins shape themselves to it."""

    channels: tuple[str, ...] = ("red", "green", "blue")
    """Channel names."""
    dtype: str = "uint8"
    """Of the stored pixels, numpy's name."""
    kind: Literal["slide", "scene"] = "slide"
    """Microscopy, or anything with a place on a map."""

    @property
    def value_range(self) -> float:
        """Largest stored value of an integer image; 1.0 for floats."""
        dtype = np.dtype(self.dtype)
        return float(np.iinfo(dtype).max) if dtype.kind in "iu" else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputSpec:
    """One named output of a model."""

    name: str
    """Key in the mapping the model returns, and name in the store."""
    kind: OutputKind
    """`vector` [n, C]; `boxes` [n, most, 6] as `BOX` says, what is not there with score 0; the others are maps
    [n, C, size/stride, size/stride]: `probability` C independent maps in [0, 1], `classes` C probabilities that sum to one (the store
    leaves the label map and the top probability), `image` values of any range."""
    channels: tuple[str, ...]
    """C names: of a vector's columns, of classes, of an image's channels."""
    dtype: str = "float32"
    """Stored dtype of a vector or an image; probabilities and labels are uint8 in the store."""
    stride: int = 1
    """Input pixels per map pixel."""
    halo: int = 0
    """Input pixels on each side that are context only and are not written; a multiple of `stride`."""
    colors: tuple[str, ...] = ()
    """One RRGGBB per channel, for viewers; empty for defaults."""
    most: int = 0
    """Boxes that the model gives of a patch, those of score 0 counted."""
    iou: float = 0.5
    """Of boxes: intersection over union above which two of one class are one thing.

    Raises:
        ModelError: the fields contradict each other.
    """

    def __post_init__(self) -> None:
        if (self.kind == "boxes") != (self.most > 0) or not 0 <= self.iou < 1:
            raise ModelError(
                f"{self.name} is of kind {self.kind}: boxes alone say how many (`most`) of a patch are given, got {self.most}, "
                f"and an iou from 0 to below 1, got {self.iou:g}"
            )
        if self.kind == "boxes" and len(self.channels) > _MOST_CLASSES:
            raise ModelError(f"{self.name}: boxes are of at most {_MOST_CLASSES} classes, got {len(self.channels)}")

    @property
    def by_rows(self) -> bool:
        """Whether it is kept by rows of a table, not by area."""
        return self.kind in {"vector", "boxes"}

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what the model gives for one patch, but for the cells of a map."""
        return (self.most, len(BOX)) if self.kind == "boxes" else (len(self.channels),)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of a table's columns."""
        if self.kind != "boxes":
            return self.channels
        return tuple(f"{column}_{index}" for index in range(self.most) for column in BOX)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """What a model eats and gives. Travels with the weights and into the store.

    Outputs are vectors, or maps that share a halo, never both: a table is computed by rows and a map by area.

    Raises:
        ModelError: the fields contradict each other.
    """

    name: str
    """Short name, used for tables and maps in the store."""
    channels: int
    """Input channels."""
    size: int
    """Side of the square it eats, in pixels."""
    any_size: bool = False
    """True when any side (a multiple of the largest output stride) will do and `size` is only the default."""
    pixel_size: float | None = None
    """Pixel size it was made for, in `unit`; None: whatever the image has."""
    unit: Literal["um", "ground"] | None = None
    """`um`: micrometres per pixel; `ground`: units of the scene's CRS."""
    scale: float = 1.0
    """Stored values are multiplied by this first (1/255 for uint8)."""
    mean: tuple[float, ...] = ()
    """Then this is subtracted, per channel; empty for zeros."""
    std: tuple[float, ...] = ()
    """Then they are divided by this, per channel; empty for ones."""
    fill: float = 0.0
    """Stored value that stands for pixels that are invalid or outside the image."""
    resampling: Literal["area", "nearest"] = "area"
    """How another pixel size is reached; `nearest` for label images."""
    autocast: Literal["float16", "bfloat16"] | None = None
    """Dtype to compute in on CUDA, by `torch.autocast`; None: what the weights are. The CPU computes in float32."""
    channels_last: bool = False
    """True where the network is faster on CUDA with pixels in that memory format."""
    outputs: tuple[OutputSpec, ...]
    """What it gives."""

    def __post_init__(self) -> None:
        if not self.outputs or 0 < len(self.vectors) < len(self.outputs):
            raise ModelError(
                f"{self.name}: outputs are vectors or maps, not both (a table is computed by rows and a map by area), "
                f"got {[f'{o.name}: {o.kind}' for o in self.outputs]}; run them into two OUTs"
            )
        if len({output.name for output in self.outputs}) < len(self.outputs):
            raise ModelError(f"{self.name}: every output has a name of its own, got {[o.name for o in self.outputs]}")
        if self.autocast not in {None, "float16", "bfloat16"}:
            raise ModelError(f"{self.name}: autocast is float16, bfloat16 or None, got {self.autocast!r}")
        if len({output.halo for output in self.outputs}) > 1:
            raise ModelError(f"{self.name}: maps of one model share one halo, got {[o.halo for o in self.outputs]}")
        if (self.pixel_size is None) != (self.unit is None):
            raise ModelError(f"{self.name}: pixel_size and unit are given together, got {self.pixel_size} and {self.unit}")
        least = min(output.stride for output in self.outputs)
        for output in self.outputs:
            if output.stride % least or (output.stride // least).bit_count() != 1:
                raise ModelError(f"{self.name}: map strides are powers of two times the smallest, got {output.stride} and {least}")
            if self.size % output.stride or output.halo % output.stride or 2 * output.halo >= self.size:
                raise ModelError(
                    f"{self.name}: size {self.size} and halo {output.halo} of {output.name!r} must be multiples of its stride "
                    f"{output.stride}, with something left between the halos"
                )

    @property
    def halo(self) -> int:
        """The halo its maps share, input pixels."""
        return self.outputs[0].halo

    @property
    def vectors(self) -> tuple[OutputSpec, ...]:
        """Its outputs that are rows of tables, boxes too: all of them, or none for a map model."""
        return tuple(output for output in self.outputs if output.by_rows)

    @property
    def tables(self) -> Mapping[str, OutputSpec]:
        """The vectors by the names of their tables: the model's name for one vector, their own names for several."""
        return {self.name if len(self.vectors) == 1 else output.name: output for output in self.vectors}

    @property
    def features(self) -> Mapping[str, OutputSpec]:
        """Those of `tables` that hold features."""
        return {name: output for name, output in self.tables.items() if output.kind == "vector"}

    @property
    def boxes(self) -> Mapping[str, OutputSpec]:
        """Those of `tables` that hold boxes."""
        return {name: output for name, output in self.tables.items() if output.kind == "boxes"}

    def normalise(self, stored: Tensor) -> Tensor:
        """Stored pixels (n, size, size, channels) of any dtype to what the model eats: `standardise` of `arrange`."""
        return self.standardise(self.arrange(stored))

    @staticmethod
    def arrange(stored: Tensor, *, into: Tensor | None = None) -> Tensor:
        """Stored pixels (n, size, size, channels) of any dtype to float32 (n, channels, size, size), values as they are.

        Written `into` a tensor of that shape where one is given: fresh pages cost more than the pixels.
        """
        pixels = stored.permute(0, 3, 1, 2)
        return pixels.to(torch.float32, memory_format=torch.contiguous_format) if into is None else into.copy_(pixels)

    def standardise(self, pixels: Tensor, *, in_place: bool = False) -> Tensor:
        """Arranged pixels (n, channels, size, size) to (v * scale - mean) / std; the same tensor where that changes nothing."""
        out = pixels if in_place else None
        if self.scale != 1.0:
            pixels = torch.mul(pixels, self.scale, out=out)
        if self.mean:
            pixels = torch.sub(pixels, pixels.new_tensor(self.mean).view(1, -1, 1, 1), out=out)
        if self.std:
            pixels = torch.div(pixels, pixels.new_tensor(self.std).view(1, -1, 1, 1), out=out)
        return pixels

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` is the inverse. JSON has no NaN: a fill of NaN is the string "nan".

        How to compute on CUDA, and what only boxes have, is left out where nothing is asked: digests stay what they were before there was
        a choice.
        """
        fields = dataclasses.asdict(self)
        for name in ("autocast", "channels_last"):
            if not fields[name]:
                del fields[name]
        for output in fields["outputs"]:
            if output["kind"] != "boxes":
                del output["most"], output["iou"]
        return {**fields, "fill": "nan" if math.isnan(self.fill) else self.fill}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """Read what `to_dict` wrote.

        Raises:
            ModelError: a field is unknown, missing or of the wrong type.
        """
        try:
            outputs = tuple(OutputSpec(**_tuples(output)) for output in fields["outputs"])
            return cls(**{**_tuples(fields), "outputs": outputs, "fill": float(fields.get("fill", 0.0))})
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"not a model spec: {error}; write one with ModelSpec.to_dict") from error


def _tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has lists where our dataclasses have tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}


@runtime_checkable
class PatchModel(Protocol):
    """A patch in, a vector or maps out: every encoder and segmenter."""

    @property
    def spec(self) -> ModelSpec:
        """What it eats and gives."""
        ...

    @property
    def digest(self) -> str:
        """Hex digest of everything that decides its answers: spec, weights, version of its mathematics."""
        ...

    def __call__(self, pixels: Tensor, /) -> Mapping[str, Tensor]:
        """[n, channels, size, size] float32, normalised by the spec, to one tensor per output."""
        ...

    def to(self, device: torch.device, /) -> Any:
        """Move it, in place, to where it shall compute."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Glance:
    """What a DriveModel saw of the whole image at its coarse pixel size."""

    features: Tensor
    """[B, D, gh, gw], the global stream."""
    score: Tensor
    """[B, gh, gw], saliency as logits."""
    valid: Tensor
    """[B, gh, gw] bool, cells that hold valid pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which patches a drive asks for; K may hold empty slots (`valid` False)."""

    yx: Tensor
    """[B, K, 2] float32, level-0 centres; corners fall on whole pixels of the patch grid."""
    side: Tensor
    """[B, K] float32, level-0 pixels."""
    cell: Tensor
    """[B, K] int64, flat index into the glance's grid; -1 off the grid."""
    weight: Tensor
    """[B, K] float32, gate in (0, 1]; carries gradient to the saliency head."""
    valid: Tensor
    """[B, K] bool."""
    grad: bool = True
    """False where training learns nothing through these patches: they are read to be ranked."""

    def take(self, order: Tensor, valid: Tensor) -> Selection:
        """Slots [B, M] of this one, those of them that are `valid` [B, M]."""
        return Selection(
            yx=self.yx.gather(1, order[..., None].expand(-1, -1, 2)),
            side=self.side.gather(1, order),
            cell=self.cell.gather(1, order),
            weight=self.weight.gather(1, order),
            valid=self.valid.gather(1, order) & valid,
            grad=self.grad,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Features of the patches of a Selection."""

    x: Tensor
    """[B, K, D] float32."""
    selection: Selection
    """Whose patches they are."""

    def take(self, order: Tensor, valid: Tensor) -> Tokens:
        """Slots [B, M] of these, those of them that are `valid` [B, M]."""
        return Tokens(x=self.x.gather(1, order[..., None].expand(-1, -1, self.x.shape[2])), selection=self.selection.take(order, valid))

    @classmethod
    def joined(cls, parts: Sequence[Tokens]) -> Tokens:
        """Those of several Selections, one after the other."""
        chosen = [part.selection for part in parts]
        selection = Selection(
            yx=torch.cat([one.yx for one in chosen], dim=1),
            side=torch.cat([one.side for one in chosen], dim=1),
            cell=torch.cat([one.cell for one in chosen], dim=1),
            weight=torch.cat([one.weight for one in chosen], dim=1),
            valid=torch.cat([one.valid for one in chosen], dim=1),
        )
        return cls(x=torch.cat([part.x for part in parts], dim=1), selection=selection)


@dataclass(frozen=True, slots=True, kw_only=True)
class Objects:
    """Things found in one image."""

    yx: Tensor
    """[n, 2] float32, level-0 centres."""
    score: Tensor
    """[n] float32 in [0, 1], highest first."""
    name: str = "object"
    """What they are."""
    size: Tensor | None = None
    """[n, 2] float32 heights and widths, level-0 pixels; None: only centres are known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attended:
    """What the answers about the whole image were made of."""

    selection: Selection
    """The patches that were kept."""
    attention: Tensor
    """[B, K] float32, mean over heads and task queries; with what goes to the global stream they sum to one."""
    influence: Mapping[str, Tensor] = field(default_factory=dict)
    """By answer, [B, K]: how much of the probability of its likeliest class each of the most attended patches brings, found by leaving
    that one out; NaN for the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """A random sample from outside the patches that were chosen, read too: what it says of those that nobody read."""

    sampled: int
    """Patches of the sample."""
    outside: int
    """Patches, without gaps or overlap, whose centres lie in no patch that was read."""
    hits: int
    """Of the sample, those in which the model takes a target to be."""
    found: int
    """Of the patches that were chosen, those in which it does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What a drive returns."""

    maps: Mapping[str, Tensor] = field(default_factory=dict)
    """Per map of the model's `maps`: [B, C, h, w], a pixel per `stride` glance pixels; probabilities where its kind says so."""
    values: Mapping[str, Tensor] = field(default_factory=dict)
    """Answers about the whole image, [B, C]: class probabilities."""
    objects: Sequence[Objects] = ()
    """One per image."""
    embedding: Tensor | None = None
    """[B, D], the whole image as one vector."""
    attended: Attended | None = None
    """Which patches counted how much."""
    audits: Sequence[Audit] = ()
    """One per image, where one was asked for."""


Drive = Generator[Selection, Tokens, Output]


@runtime_checkable
class DriveModel(Protocol):
    """A model that asks for what it wants to see."""

    @property
    def digest(self) -> str:
        """As `PatchModel.digest`."""
        ...

    @property
    def glance(self) -> PatchModel:
        """The map model of the coarse look: outputs `features` (image, D channels) and `score` (image, one channel, logits)."""
        ...

    @property
    def encoder(self) -> PatchModel:
        """The shared patch encoder: one vector output; its spec says what a patch is."""
        ...

    @property
    def maps(self) -> tuple[OutputSpec, ...]:
        """Its fused maps, on the glance's grid."""
        ...

    @property
    def values(self) -> Mapping[str, tuple[str, ...]]:
        """Class names of each answer about the whole image."""
        ...

    @property
    def glance_downsample(self) -> int:
        """Patch-grid pixels per pixel of the glance."""
        ...

    def with_max_patches(self, count: int) -> Self:
        """The same weights, asking for at most `count` patches; another digest."""
        ...

    def with_audit(self, count: int) -> Self:
        """The same weights, asking at the end for `count` patches at random that it did not choose; another digest."""
        ...

    def drive(self, glance: Glance, cells: Level, grid: Level) -> Drive:
        """Ask for patches, be sent their tokens, return the output.

        Args:
            glance: what was seen.
            cells: the glance's grid as a Level: its size, and level-0 pixels per cell.
            grid: the grid that patches lie on, as a Level: its size, and level-0 pixels per patch pixel.
        """
        ...

    def to(self, device: torch.device, /) -> Any:
        """Move it, in place, to where it shall compute."""
        ...
