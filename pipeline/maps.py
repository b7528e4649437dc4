"""The three kinds of map: how a model's output is put into stored numbers. Pure.

probability: uint8, value = round(p * 254), 255 = none.   label: uint8, 255 = none.   image: the output's own dtype, validity beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from patchdrive.models.types import OutputSpec
from patchdrive.pipeline.pyramid import Reduction
from patchdrive.pipeline.stitch import MapPart
from patchdrive.readers.errors import ModelError

NONE = 255
"""Stored value of a probability or label that is not there."""
PROBABILITY_STEPS = 254
"""Stored value of probability 1."""
_AT_ONCE = 1 << 18
"""Cells encoded at once: what is held meanwhile stays small, however large a block is."""
_RGB = {"red": "FF0000", "green": "00FF00", "blue": "0000FF"}
_PALETTE = ("4E79A7", "F28E2B", "59A14F", "E15759", "B07AA1", "76B7B2", "EDC948", "9C755F", "FF9DA7", "BAB0AC")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredMap:
    """One map of a store."""

    name: str
    """Of its group."""
    folder: Literal["images", "labels"]
    """Where it lies."""
    channels: tuple[str, ...]
    """Channel names of an image; class names of a label map."""
    colors: tuple[str, ...]
    """One RRGGBB per channel or class."""
    kind: Literal["probability", "label", "image"]
    """How its numbers are meant."""
    dtype: str
    """Stored."""
    fill: float | None
    """Reserved value for "none"; None: no value is reserved."""
    stride: int
    """Target pixels per map pixel."""

    @property
    def path(self) -> str:
        """Of its group, inside the store."""
        return f"{self.folder}/{self.name}"

    @property
    def reduction(self) -> Reduction:
        """How its coarser levels are made; where an image has values, there its coarser level has one."""
        if self.kind == "label":
            return "nearest" if self.fill is not None else "max"
        return "mean"


def stored_maps(output: OutputSpec, *, all_classes: bool) -> tuple[StoredMap, ...]:
    """What a map output leaves in the store: a segmenter its label map and top probability, an image its validity too.

    Raises:
        ModelError: more classes than a uint8 label map can name.
    """
    colors = output.colors or _usual_colors(output.channels)
    probability = StoredMap(
        name=output.name,
        folder="images",
        channels=output.channels,
        colors=colors,
        kind="probability",
        dtype="uint8",
        fill=NONE,
        stride=output.stride,
    )
    if output.kind == "probability":
        return (probability,)
    if output.kind == "classes":
        if len(output.channels) > NONE:
            raise ModelError(f"{output.name}: a label map names at most {NONE} classes, got {len(output.channels)}")
        label = replace(probability, folder="labels", kind="label")
        top = replace(probability, name=f"{output.name}_probability", channels=("top",), colors=("FFFFFF",))
        every = (replace(probability, name=f"{output.name}_classes"),) if all_classes else ()
        return (label, top, *every)
    image = replace(probability, kind="image", dtype=output.dtype, fill=None)
    valid = replace(
        probability, name=f"{output.name}_valid", folder="labels", channels=("invalid", "valid"), colors=("000000", "FFFFFF"), kind="label"
    )
    return (image, replace(valid, fill=None))


def _usual_colors(channels: Sequence[str]) -> tuple[str, ...]:
    """Red, green and blue by their names; else colours that differ."""
    names = [name.lower() for name in channels]
    if {"red", "green", "blue"} <= set(names):
        return tuple(_RGB.get(name, "FFFFFF") for name in names)
    return tuple(_PALETTE[index % len(_PALETTE)] for index in range(len(names)))


def encode(output: OutputSpec, part: MapPart, stored: StoredMap) -> NDArray[Any]:
    """A part of an output as `stored` holds it: (channel, height, width), or (height, width) for labels."""
    lead = () if stored.folder == "labels" else (len(stored.channels),)
    encoded: NDArray[Any] = np.empty((*lead, *part.valid.shape), stored.dtype)
    height, width = part.valid.shape
    rows = max(1, _AT_ONCE // max(1, width))
    for begin in range(0, height, rows):
        band = slice(begin, begin + rows)
        encoded[..., band, :] = _encode(output, part.values[:, band], part.valid[band], stored)
    return encoded


def _encode(output: OutputSpec, values: NDArray[Any], valid: NDArray[np.bool_], stored: StoredMap) -> NDArray[Any]:
    if output.kind != "image":
        valid = valid & np.isfinite(values).all(axis=0)  # a model that answers NaN has not answered
    if stored.name == f"{output.name}_valid":
        return valid.astype(np.uint8)
    if stored.kind == "label":
        return np.where(valid, values.argmax(axis=0), NONE).astype(np.uint8)
    if stored.name == f"{output.name}_probability":
        values = values.max(axis=0, keepdims=True)
    out = np.full(values.shape, NONE if stored.kind == "probability" else 0, stored.dtype)
    for channel, plane in zip(out, values, strict=True):
        kept = plane[valid]
        if stored.kind == "probability":
            kept = np.rint(np.clip(kept, 0.0, 1.0) * PROBABILITY_STEPS)
        elif out.dtype.kind in "iu":
            kept = np.clip(np.rint(kept), np.iinfo(out.dtype).min, np.iinfo(out.dtype).max)
        channel[valid] = kept
    return out


def decode_probability(stored: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Probabilities in [0, 1], NaN where there is none."""
    return np.where(stored == NONE, np.nan, stored / np.float32(PROBABILITY_STEPS)).astype(np.float32)


def value_window(stored: StoredMap) -> tuple[float, float]:
    """(low, high) a viewer shows."""
    if stored.kind == "probability":
        return 0.0, float(PROBABILITY_STEPS)
    dtype = np.dtype(stored.dtype)
    return (float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)) if dtype.kind in "iu" else (0.0, 1.0)
