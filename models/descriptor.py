"""Descriptor: one documented vector per patch, from formulas alone. Needs no weights, and every column has a name and a meaning.

Below, v is the stored value times `spec.scale` (1 / the largest value of an integer dtype; floats as they are), clamped to +-1e6, with NaN
as 0; for colour slides clamped to [0, 1]. `v_s` is v after s halvings by 2 x 2 area means. Means, standard deviations (population) and
quantiles (nearest rank, after halving to s = 2) are over the patch. Patches below 16 px are extended to 16 by their last row and column.

Colour slides (channels red, green, blue of a slide), 60 columns:

| columns | formula |
|---|---|
| `od_<c>_mean`, `_std`, `_q10`, `_q50`, `_q90` | optical density D = -log10((255 v_1 + 1) / 256) of channel c |
| `hematoxylin_mean`, `_std`, `_share`; `eosin_`; `dab_` | stain amount, D times the inverse of Ruifrok's matrix; share above 0.15 |
| `tissue_share`, `dark_share` | share of pixels whose mean density is above 0.08; above 1.0 (folds, pen, black glass) |
| `lightness_*`, `green_red_*`, `blue_yellow_*` mean and std | Oklab of v_2 |
| `saturation_mean`, `_std` | (max - min) / max over the channels of v_2 |

Everything else, per band b, 7 columns each, and 2 for each of the first 12 neighbouring pairs:

| columns | formula |
|---|---|
| `<b>_mean`, `_std`, `_min`, `_max`, `_q10`, `_q50`, `_q90` | of v |
| `nd_<a>_<b>_mean`, `_std` | normalised difference (a - b) / (|a| + |b|) of v_2 |

Both, 26 columns of g, the luma (0.299, 0.587, 0.114) of a colour slide or the mean of the bands (g_s as v_s):

| columns | formula |
|---|---|
| `focus_laplacian` | log10(1e-6 + variance of the Laplacian of g) |
| `focus_ratio` | E_0 / (E_0 + E_1 + E_2), E_s the mean square of the Laplacian of g_s: the share of fine detail |
| `log_energy_1`, `_2`, `_4`, `_8` | log10(1e-6 + mean square of the Laplacian of g_s smoothed by [1 2 1]/4 squared), 2^s = 1, 2, 4, 8 |
| `coherence`, `coherence_cos`, `coherence_sin` | structure tensor of grad g_1: anisotropy in [0, 1], times cos, sin of twice the angle |
| `orientation_0` .. `_7` | share of |grad g_1| per direction of the gradient, 22.5 degrees each, from the x axis towards y |
| `lbp_0` .. `_8` | share of pixels of g_1 with exactly k of 8 neighbours brighter |

Sources of the formulas: `patchdrive.models.measures`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from patchdrive.models import measures
from patchdrive.models.digest import description_digest
from patchdrive.models.types import ImageTraits, ModelSpec, OutputSpec

_VERSION = 1
_LEAST = 16
_MOST = 1e6
_PAIRS = 12
_QUANTILES = {"q10": 0.1, "q50": 0.5, "q90": 0.9}
_STAINS = ("hematoxylin", "eosin", "dab")
_STAIN_THRESHOLD = 0.15
_TISSUE_DENSITY = 0.08
_DARK_DENSITY = 1.0
_BINS = 8

Columns = dict[str, Tensor]


class Descriptor:
    """A PatchModel: one vector, `descriptor`, whose columns are named and explained in this module's text."""

    def __init__(self, traits: ImageTraits) -> None:
        self._bands = traits.channels
        self._colour = is_colour(traits)
        slide = traits.kind == "slide"
        self.spec = ModelSpec(
            name="descriptor",
            channels=len(traits.channels),
            size=256,
            any_size=True,
            pixel_size=0.5 if slide else None,
            unit="um" if slide else None,
            scale=1.0 / traits.value_range,
            fill=traits.value_range if self._colour else 0.0,
            outputs=(OutputSpec(name="descriptor", kind="vector", channels=self._names()),),
        )

    @cached_property
    def digest(self) -> str:
        """See `PatchModel.digest`."""
        return description_digest({"version": _VERSION, **self.spec.to_dict()})

    def __call__(self, pixels: Tensor, /) -> Mapping[str, Tensor]:
        """[n, C, S, S] of any S to {"descriptor": [n, D]}, float32, finite for any input."""
        if pixels.device.type != "cpu":
            return {"descriptor": self._rows(pixels)}
        # Patch by patch: a patch and what is made of it stay in the cache, and batches cannot matter.
        with _one_thread():
            return {"descriptor": torch.cat([self._rows(part) for part in pixels.unsqueeze(1).unbind()])}

    def _rows(self, pixels: Tensor) -> Tensor:
        return torch.stack(list(self._columns(pixels).values()), dim=1)

    def to(self, _device: torch.device, /) -> Self:
        """Nothing to move: it computes where its input is."""
        return self

    def _names(self) -> tuple[str, ...]:
        """The columns of a real answer, so that names and values cannot drift apart."""
        return tuple(self._columns(torch.zeros(1, len(self._bands), _LEAST, _LEAST)))

    def _columns(self, pixels: Tensor) -> Columns:
        values = torch.nan_to_num(pixels.float(), nan=0.0).clamp_(-_MOST, _MOST)
        values = functional.pad(values, (0, max(0, _LEAST - values.shape[3]), 0, max(0, _LEAST - values.shape[2])), mode="replicate")
        if self._colour:
            values = values.clamp_(0.0, 1.0)
            red, green, blue = values.unsqueeze(2).unbind(1)
            return _colour_columns(values, self._bands) | _texture_columns(0.299 * red + 0.587 * green + 0.114 * blue)
        return _band_columns(values, self._bands) | _texture_columns(values.mean(1, keepdim=True))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Operations as small as these gain nothing from a second thread, and wait for it at each when another program has its core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def is_colour(traits: ImageTraits) -> bool:
    """True for a slide in red, green and blue: the only image that optical density and stains mean something for."""
    return traits.kind == "slide" and tuple(name.lower() for name in traits.channels) == ("red", "green", "blue")


def _named(subjects: Sequence[str], measured: Mapping[str, Tensor]) -> Columns:
    """`<subject>_<measure>` for measures [n, len(subjects)], all measures of a subject together."""
    return {f"{subject}_{name}": values[:, index] for index, subject in enumerate(subjects) for name, values in measured.items()}


def _moments(maps: Tensor) -> Columns:
    mean, std = measures.moments(maps)
    return {"mean": mean, "std": std}


def _quantiles(maps: Tensor) -> Columns:
    return {name: measures.quantile(maps, share) for name, share in _QUANTILES.items()}


def _colour_columns(colour: Tensor, channels: tuple[str, ...]) -> Columns:
    """[n, 3, S, S] in [0, 1] to 34 columns."""
    half = measures.halve(colour)
    density = measures.optical_density(half)
    amounts = measures.stains(density)
    mean_density = density.mean(1, keepdim=True)
    quarter = measures.halve(half)
    return {
        **_named([f"od_{name.lower()}" for name in channels], _moments(density) | _quantiles(measures.halve(density))),
        **_named(_STAINS, _moments(amounts) | {"share": measures.share_above(amounts, _STAIN_THRESHOLD)}),
        **_named(["tissue"], {"share": measures.share_above(mean_density, _TISSUE_DENSITY)}),
        **_named(["dark"], {"share": measures.share_above(mean_density, _DARK_DENSITY)}),
        **_named(["lightness", "green_red", "blue_yellow"], _moments(measures.oklab(quarter))),
        **_named(["saturation"], _moments(measures.saturation(quarter))),
    }


def _band_columns(values: Tensor, bands: tuple[str, ...]) -> Columns:
    """[n, C, S, S] to 7 C + 2 min(C - 1, 12) columns."""
    quarter = measures.halve(measures.halve(values))
    extent = {"min": values.amin((2, 3)), "max": values.amax((2, 3))}
    columns = _named(bands, _moments(values) | extent | _quantiles(quarter))
    pairs = list(pairwise(range(len(bands))))[:_PAIRS]
    for one, other in pairs:
        difference = measures.normalised_difference(quarter[:, one : one + 1], quarter[:, other : other + 1])
        columns |= _named([f"nd_{bands[one]}_{bands[other]}"], _moments(difference))
    return columns


def _texture_columns(grey: Tensor) -> Columns:
    """[n, 1, S, S] to 26 columns."""
    scales = [grey]
    while len(scales) < 4:
        scales.append(measures.halve(scales[-1]))
    details = [measures.laplacian(scale) for scale in scales[:3]]
    fine, middle, coarse = (measures.energy(detail) for detail in details)
    along_y, along_x = measures.gradient(scales[1])
    coherence, cosine, sine = measures.structure_tensor(along_y, along_x)
    columns = {
        "focus_laplacian": torch.log10(1e-6 + measures.moments(details[0])[1].square()),
        "focus_ratio": fine / (fine + middle + coarse + 1e-12),
    }
    for index, scale in enumerate(scales):
        columns[f"log_energy_{2**index}"] = torch.log10(1e-6 + _log_energy(scale))
    columns |= {"coherence": coherence, "coherence_cos": cosine, "coherence_sin": sine}
    columns = {name: values[:, 0] for name, values in columns.items()}
    for name, shares in (("orientation", measures.orientations(along_y, along_x, _BINS)), ("lbp", measures.brighter_neighbours(scales[1]))):
        columns |= {f"{name}_{index}": shares[:, 0, index] for index in range(shares.shape[2])}
    return columns


def _log_energy(scale: Tensor) -> Tensor:
    """Energy of the Laplacian of the smoothed scale; a scale of 4 px or less has no interior, and is extended first."""
    least = 5
    missing = max(0, least - scale.shape[2]), max(0, least - scale.shape[3])
    scale = functional.pad(scale, (0, missing[1], 0, missing[0]), mode="replicate")
    return measures.energy(measures.laplacian(measures.binomial(scale)))
