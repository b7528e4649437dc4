"""Segmenter: a small fully convolutional network that names every pixel of a scene.

    x_0 = relu(conv3x3(pixels)),  x_k = x_(k-1) + relu(conv3x3, dilation d_k, of x_(k-1)),  logits = conv1x1(relu(conv1x1(x_K)))

Dilated context at full resolution after Yu and Koltun 2016, "Multi-scale context aggregation by dilated convolutions", with the residual
sum of He et al. 2016; the loss is cross-entropy plus the soft Dice of Milletari et al. 2016 (V-Net) averaged over the classes present.
No normalisation over space and no pooling: a tile with its halo (the receptive field, 1 + sum d_k) gives what the whole scene would.
Parameters with the defaults, four channels and five classes: 22,445.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from patchdrive.models.digest import module_digest
from patchdrive.models.types import ModelSpec, OutputSpec
from patchdrive.models.weights_file import read_description, read_weights, write_weights
from patchdrive.readers.errors import ModelError

_VERSION = 1
NAME = "segmenter"
IGNORED = 255
"""Label of pixels that no loss looks at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmenterConfig:
    """What a Segmenter eats, what it names, and how wide it is. Travels with its weights.

    Raises:
        ModelError: the fields contradict each other.
    """

    channels: int
    """Input channels."""
    classes: tuple[str, ...]
    """Class names, two or more; the label of a pixel is an index into them."""
    colors: tuple[str, ...] = ()
    """One RRGGBB per class, or empty."""
    output: str = "landcover"
    """Name of its map."""
    width: int = 24
    """Feature channels."""
    dilations: tuple[int, ...] = (1, 2, 4, 8)
    """One residual block each."""
    size: int = 256
    """Default side of a patch, pixels."""
    scale: float = 1.0
    """As `ModelSpec.scale`."""
    mean: tuple[float, ...] = ()
    """As `ModelSpec.mean`."""
    std: tuple[float, ...] = ()
    """As `ModelSpec.std`."""
    fill: float = 0.0
    """As `ModelSpec.fill`."""
    pixel_size: float | None = None
    """As `ModelSpec.pixel_size`."""
    unit: Literal["um", "ground"] | None = None
    """As `ModelSpec.unit`."""

    def __post_init__(self) -> None:
        if self.channels < 1 or self.width < 1 or min(self.dilations, default=0) < 1:
            raise ModelError(f"channels, width and dilations are at least 1, got {self.channels}, {self.width} and {self.dilations}")
        if not 2 <= len(self.classes) < IGNORED:
            raise ModelError(f"a segmenter has 2 to {IGNORED - 1} classes, got {len(self.classes)}")
        if self.colors and len(self.colors) != len(self.classes):
            raise ModelError(f"{len(self.classes)} classes need as many colors or none, got {len(self.colors)}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values and len(values) != self.channels:
                raise ModelError(f"{name} has one value per channel or none: {self.channels} channels, got {len(values)}")

    @property
    def halo(self) -> int:
        """Receptive field beyond a pixel, input pixels."""
        return 1 + sum(self.dilations)

    @property
    def spec(self) -> ModelSpec:
        """The ModelSpec of a Segmenter with this config."""
        return ModelSpec(
            name=NAME,
            channels=self.channels,
            size=self.size,
            any_size=True,
            pixel_size=self.pixel_size,
            unit=self.unit,
            scale=self.scale,
            mean=self.mean,
            std=self.std,
            fill=self.fill,
            outputs=(OutputSpec(name=self.output, kind="classes", channels=self.classes, halo=self.halo, colors=self.colors),),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` is the inverse."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """Read what `to_dict` wrote.

        Raises:
            ModelError: a field is unknown, missing or of the wrong type.
        """
        known: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
        try:
            return cls(**known)
        except TypeError as error:
            raise ModelError(f"not a segmenter's config: {error}; write one with SegmenterConfig.to_dict") from error


class Segmenter(nn.Module):
    """A PatchModel: class probabilities of every pixel, in the map `config.output`."""

    def __init__(self, config: SegmenterConfig, *, seed: int = 0) -> None:
        """Untrained, its weights drawn from `seed` alone."""
        super().__init__()
        self.config = config
        self.spec = config.spec
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.stem = nn.Conv2d(config.channels, config.width, 3, padding=1)
            self.blocks = nn.ModuleList(nn.Conv2d(config.width, config.width, 3, padding=step, dilation=step) for step in config.dilations)
            self.mix = nn.Conv2d(config.width, config.width, 1)
            self.head = nn.Conv2d(config.width, len(config.classes), 1)

    @property
    def digest(self) -> str:
        """See `PatchModel.digest`; of the weights as they are now."""
        return module_digest(self, {"version": _VERSION, **self.config.to_dict()})

    def logits(self, pixels: Tensor) -> Tensor:
        """[n, C, S, S] normalised by the spec to [n, classes, S, S], before the softmax: what the loss wants."""
        x = functional.relu(self.stem(pixels.contiguous(memory_format=torch.channels_last)))  # twice as fast on a CPU
        for block in self.blocks:
            x = x + functional.relu(block(x))
        answer: Tensor = self.head(functional.relu(self.mix(x)))
        return answer

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """[n, C, S, S] of any S to {output: [n, classes, S, S]}, probabilities that sum to one over the classes."""
        return {self.config.output: torch.softmax(self.logits(pixels), dim=1)}


def segmentation_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy plus one minus the soft Dice, over pixels whose label is not 255; 0 where there is none.

    Dice of class c: (2 sum p_c y_c + 1) / (sum p_c + sum y_c + 1), over the batch, averaged over the classes that occur in `labels`.

    Args:
        logits: [n, classes, H, W].
        labels: [n, H, W] int64 class indices.
    """
    known = labels != IGNORED
    if not known.any():
        return logits.sum() * 0.0
    classes = logits.shape[1]
    truth = functional.one_hot(torch.where(known, labels, 0), classes).permute(0, 3, 1, 2).to(logits.dtype) * known.unsqueeze(1)
    guess = torch.softmax(logits, dim=1) * known.unsqueeze(1)
    overlap, guessed, true = ((guess * truth).sum((0, 2, 3)), guess.sum((0, 2, 3)), truth.sum((0, 2, 3)))
    dice = ((2 * overlap + 1) / (guessed + true + 1))[true > 0].mean()
    return functional.cross_entropy(logits, labels, ignore_index=IGNORED) + 1 - dice


def save_segmenter(segmenter: Segmenter, path: Path) -> None:
    """Write weights and config to a `.safetensors` file that `load_model("segmenter:PATH")` reads."""
    write_weights(segmenter, path, model=NAME, config=segmenter.config.to_dict())


def load_segmenter(path: Path) -> Segmenter:
    """Read what `save_segmenter` wrote, in evaluation mode.

    Raises:
        ModelError: not such a file, or weights that are not those of its config.
    """
    name, config = read_description(path)
    if name != NAME:
        raise ModelError(f"{path} holds the weights of {name!r}, not of {NAME!r}; load it as {name}:{path}")
    segmenter = Segmenter(SegmenterConfig.from_dict(config))
    read_weights(segmenter, path)
    return segmenter.eval()
