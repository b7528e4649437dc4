"""Quality: where there is something to look at, and whether it is sharp. Local formulas at stride 8; no weights.

Nothing is normalised over space, so a tile with its halo gives what the whole image would (to float32 rounding). With v the stored value
times `spec.scale`, M the mean over an 8 x 8 cell, and B_r the mean over (2 r + 1)^2 cells, sigma(t) = 1 / (1 + e^-t):

Slides, at 1 um per pixel, tuned by eye and by the tests on bright-field and fluorescence:

- `tissue` = sigma((p - 0.085) / 0.01) * sigma((q - 0.06) / 0.01). A pixel is tissue unless it is empty glass of either kind, and the two
  kinds of glass lie at opposite ends: p = d + s + 2 e says "darker than white glass": d the mean optical density of B_1 M v (density as in
  `patchdrive.models.measures`), s the spread of density between channels, e the local deviation of v;
  q = max over channels of B_1 M v + 2 e says "brighter than black glass". So bright-field glass fails p, a dark field and unscanned black
  fail q, and any stain, and any signal above 6 % of the range, passes both. What it cannot tell: an all-white fluorescence saturation is
  glass, and faint signal in a 16-bit dark field that stays below 6 % of the range is background.
- `focus` = sigma((r - 0.155) / 0.015) rises with r = H / (H + L + 1e-4), H = B_2 M (Laplacian of g)^2 the fine and L = B_2 M (Laplacian
  of the 2 x 2 means of g)^2 the coarse detail of the mean channel g. Blur takes H first: r is 0.2 to 0.5 where sharp at 1 um, and 0.13
  or less from a Gaussian blur of 1 um on. The floor 1e-4 is above the noise of 8-bit rounding, so empty glass is called unsharp: read
  it where there is tissue.

Scenes, at the pixel size they have (fill is 0):

- `valid` = M (any band is finite and not 0).
- `bright` = sigma((B_1 M g / white - 0.3) / 0.04), cloud and snow among reflectances: white is 255 for uint8, 10000 for other
  integers (the usual scale of surface reflectance), 1 for floats.
- `texture` = t / (t + 0.1), t = (standard deviation of g over B_1) / (|B_1 M g| + 0.02 white): 0 for water and shadow, high for cities.

The receptive field reaches 20 px beyond a cell; the halo is 24.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from patchdrive.models import measures
from patchdrive.models.digest import description_digest
from patchdrive.models.types import ImageTraits, ModelSpec, OutputSpec

_VERSION = 1
STRIDE = 8
HALO = 24
_REFLECTANCE_WHITE = 10000.0
_MOST = 1e6


class Quality:
    """A PatchModel: maps `tissue` and `focus` of a slide, `valid`, `bright` and `texture` of a scene; each one channel in [0, 1]."""

    def __init__(self, traits: ImageTraits) -> None:
        self._slide = traits.kind == "slide"
        self._white = _white(traits) / traits.value_range
        names = ("tissue", "focus") if self._slide else ("valid", "bright", "texture")
        self.spec = ModelSpec(
            name="quality",
            channels=len(traits.channels),
            size=1024,
            any_size=True,
            pixel_size=1.0 if self._slide else None,
            unit="um" if self._slide else None,
            scale=1.0 / traits.value_range,
            fill=traits.value_range if self._slide and len(traits.channels) == 3 else 0.0,
            outputs=tuple(OutputSpec(name=name, kind="probability", channels=(name,), stride=STRIDE, halo=HALO) for name in names),
        )

    @cached_property
    def digest(self) -> str:
        """See `PatchModel.digest`."""
        return description_digest({"version": _VERSION, **self.spec.to_dict()})

    def __call__(self, pixels: Tensor, /) -> Mapping[str, Tensor]:
        """[n, C, S, S], S a multiple of 8, to maps [n, 1, S / 8, S / 8] in [0, 1]."""
        if self._slide:
            values = torch.nan_to_num(pixels, nan=0.0).clamp(0.0, 1.0)
            return {"tissue": tissue(values), "focus": focus(values.mean(1, keepdim=True))}
        finite = torch.nan_to_num(pixels, nan=0.0).clamp(-_MOST, _MOST)
        grey = finite.mean(1, keepdim=True)
        seen = (torch.isfinite(pixels) & (pixels != 0)).any(1, keepdim=True).to(pixels.dtype)
        return {"valid": _cells(seen), "bright": bright(grey, self._white), "texture": texture(grey, self._white)}

    def to(self, _device: torch.device, /) -> Self:
        """Nothing to move: it computes where its input is."""
        return self


def tissue(values: Tensor) -> Tensor:
    """[n, C, S, S] in [0, 1] to [n, 1, S / 8, S / 8]: neither white glass nor black."""
    cells = _cells(values)
    level = _around(cells, 1)
    deviation = _deviation(values, cells, 1).mean(1, keepdim=True)
    density = measures.optical_density(level)
    spread = density.amax(1, keepdim=True) - density.amin(1, keepdim=True)
    # On black glass the logarithm turns noise into spread; there the second factor decides.
    darker = density.mean(1, keepdim=True) + spread + 2 * deviation
    brighter = level.amax(1, keepdim=True) + 2 * deviation
    return torch.sigmoid((darker - 0.085) / 0.01) * torch.sigmoid((brighter - 0.06) / 0.01)


def focus(grey: Tensor) -> Tensor:
    """[n, 1, S, S] to [n, 1, S / 8, S / 8]: the share of fine detail in all detail."""
    fine = _around(_cells(_edge_laplacian(grey).square()), 2)
    coarse = _around(_pooled(_edge_laplacian(_pooled(grey, 2)).square(), STRIDE // 2), 2)
    return torch.sigmoid((fine / (fine + coarse + 1e-4) - 0.155) / 0.015)


def bright(grey: Tensor, white: float) -> Tensor:
    """[n, 1, S, S] to [n, 1, S / 8, S / 8]: reflectance like that of cloud and snow."""
    return torch.sigmoid((_around(_cells(grey), 1) / white - 0.3) / 0.04)


def texture(grey: Tensor, white: float) -> Tensor:
    """[n, 1, S, S] to [n, 1, S / 8, S / 8]: the local coefficient of variation, squashed."""
    cells = _cells(grey)
    variation = _deviation(grey, cells, 1) / (_around(cells, 1).abs() + 0.02 * white)
    return variation / (variation + 0.1)


def _white(traits: ImageTraits) -> float:
    """Stored value of a perfect reflector."""
    if np.dtype(traits.dtype).kind == "f":
        return 1.0
    return 255.0 if traits.dtype == "uint8" else _REFLECTANCE_WHITE


def _pooled(maps: Tensor, side: int) -> Tensor:
    return functional.avg_pool2d(maps, side)


def _cells(maps: Tensor) -> Tensor:
    """Means over 8 x 8 cells."""
    return _pooled(maps, STRIDE)


def _around(cells: Tensor, radius: int) -> Tensor:
    """Mean over (2 radius + 1)^2 cells; beyond the border the outermost cells repeat."""
    padded = functional.pad(cells, (radius,) * 4, mode="replicate")
    return functional.avg_pool2d(padded, 2 * radius + 1, stride=1)


def _deviation(maps: Tensor, cells: Tensor, radius: int) -> Tensor:
    """Standard deviation over (2 radius + 1)^2 cells: of pixels in their cell, and of cells among each other.

    Each is a mean of squared differences, never a difference of squared means: float32 would lose faint texture on a bright ground.
    """
    inside = _cells((maps - functional.interpolate(cells, scale_factor=float(STRIDE), mode="nearest")).square())
    padded = functional.pad(cells, (radius,) * 4, mode="replicate")
    middle = _around(cells, radius)
    height, width = cells.shape[2:]
    steps = range(2 * radius + 1)
    among = sum((padded[:, :, dy : dy + height, dx : dx + width] - middle).square() for dy in steps for dx in steps) / len(steps) ** 2
    return (_around(inside, radius) + among).sqrt()


def _edge_laplacian(maps: Tensor) -> Tensor:
    """Laplacian of the same size: beyond the border the outermost pixels repeat."""
    return measures.laplacian(functional.pad(maps, (1, 1, 1, 1), mode="replicate"))
