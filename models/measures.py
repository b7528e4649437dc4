"""What can be measured on a patch without weights: moments, quantiles, gradients, scales, colour. Pure functions of tensors.

Every function takes maps `[n, C, H, W]` float32 and treats each of the n on its own; none divides by zero and none takes the logarithm
of zero, so finite input gives finite output. "Interior" results are smaller by the pixels their stencil needs: nothing is padded.

Ruifrok and Johnston 2001, "Quantification of histochemical staining by color deconvolution"; Ojala et al. 2002, "Multiresolution
gray-scale and rotation invariant texture classification with local binary patterns"; Ottosson 2020, "A perceptual color space for
image processing" (https://bottosson.github.io/posts/oklab/).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Optical density of red, green, blue per unit of stain; rows hematoxylin, eosin, DAB (Ruifrok and Johnston 2001, table 1).
_STAINS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))

_LMS = (
    (0.4122214708, 0.5363325363, 0.0514459929),
    (0.2119034982, 0.6806995451, 0.1073969566),
    (0.0883024619, 0.2817188376, 0.6299787005),
)
_OKLAB = (
    (0.2104542553, 0.7936177850, -0.0040720468),
    (1.9779984951, -2.4285922050, 0.4505937099),
    (0.0259040371, 0.7827717662, -0.8086757660),
)


def moments(maps: Tensor) -> tuple[Tensor, Tensor]:
    """[n, C, H, W] to the mean and the population standard deviation of each map, [n, C] and [n, C]."""
    flat = maps.flatten(2)
    mean = flat.mean(2)
    return mean, torch.linalg.vector_norm(flat - mean.unsqueeze(2), dim=2) / math.sqrt(flat.shape[2])


def energy(maps: Tensor) -> Tensor:
    """[n, C, H, W] to the mean square of each map, [n, C]."""
    flat = maps.flatten(2)
    norm: Tensor = torch.linalg.vector_norm(flat, dim=2)
    return norm.square() / flat.shape[2]


def quantile(maps: Tensor, share: float) -> Tensor:
    """[n, C, H, W] to the value that `share` of each map's pixels do not exceed (nearest rank), [n, C]."""
    flat = maps.flatten(2)
    values, _ = torch.kthvalue(flat, 1 + round(share * (flat.shape[2] - 1)), dim=2)
    return values


def share_above(maps: Tensor, threshold: float) -> Tensor:
    """[n, C, H, W] to the share of each map's pixels above `threshold`, [n, C] in [0, 1]."""
    # In place on floats: a comparison that makes bools, then floats of them, takes four times as long.
    above: Tensor = maps.clone().gt_(threshold)
    return above.flatten(2).mean(2)


def halve(maps: Tensor) -> Tensor:
    """2 x 2 area means, [n, C, H // 2, W // 2]; an odd last row or column is left out."""
    height, width = maps.shape[2] // 2 * 2, maps.shape[3] // 2 * 2
    rows = maps[:, :, 0:height:2, :width] + maps[:, :, 1:height:2, :width]
    return (rows[..., 0::2] + rows[..., 1::2]) * 0.25


def binomial(maps: Tensor) -> Tensor:
    """Smoothed by [1 2 1]/4 on both axes, a Gaussian of variance 1/2; interior, [n, C, H - 2, W - 2]."""
    rows = maps[:, :, :-2] + 2 * maps[:, :, 1:-1] + maps[:, :, 2:]
    return (rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]) * 0.0625


def laplacian(maps: Tensor) -> Tensor:
    """4 v - (north + south + west + east); interior, [n, C, H - 2, W - 2]."""
    beside = maps[:, :, :-2, 1:-1] + maps[:, :, 2:, 1:-1] + maps[:, :, 1:-1, :-2] + maps[:, :, 1:-1, 2:]
    return 4 * maps[:, :, 1:-1, 1:-1] - beside


def gradient(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Central differences along y and along x; interior, each [n, C, H - 2, W - 2]."""
    return (maps[:, :, 2:, 1:-1] - maps[:, :, :-2, 1:-1]) * 0.5, (maps[:, :, 1:-1, 2:] - maps[:, :, 1:-1, :-2]) * 0.5


def structure_tensor(along_y: Tensor, along_x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Coherence in [0, 1], and cosine and sine in [-1, 1] of twice the dominant gradient angle times it; each [n, C].

    With J the mean of grad grad^T: cosine = (Jxx - Jyy) / tr J, sine = 2 Jxy / tr J, coherence their length.
    """
    xx, yy = energy(along_x), energy(along_y)
    xy = (along_x * along_y).flatten(2).mean(2)
    trace = xx + yy + 1e-12
    cosine, sine = (xx - yy) / trace, 2 * xy / trace
    return torch.hypot(cosine, sine), cosine, sine


def orientations(along_y: Tensor, along_x: Tensor, bins: int) -> Tensor:
    """Share of the gradient magnitude in each of `bins` directions over half a turn, [n, C, bins]; zeros where all is flat."""
    strength = torch.hypot(along_y, along_x)
    turn = torch.atan2(along_y, along_x) / math.pi
    # One gradient and its opposite are one orientation; rounding may leave exactly `bins`, which is bin 0 again.
    index = torch.floor(torch.remainder(turn, 1.0) * bins) % bins
    sums = torch.stack([index.clone().eq_(k).mul_(strength).flatten(2).mean(2) for k in range(bins)], dim=2)
    return sums / (sums.sum(2, keepdim=True) + 1e-12)


def brighter_neighbours(maps: Tensor) -> Tensor:
    """Share of interior pixels with exactly k of their 8 neighbours brighter, k = 0..8; [n, C, 9], sums to one.

    The rotation-invariant reading of a local binary pattern by its number of ones.
    """
    height, width = maps.shape[2], maps.shape[3]
    centre = maps[:, :, 1:-1, 1:-1]
    count = torch.zeros_like(centre)
    for dy in range(3):
        for dx in range(3):
            if (dy, dx) != (1, 1):
                count += maps[:, :, dy : height - 2 + dy, dx : width - 2 + dx].clone().gt_(centre)
    return torch.stack([count.clone().eq_(k).flatten(2).mean(2) for k in range(9)], dim=2)


def optical_density(colour: Tensor) -> Tensor:
    """-log10((255 v + 1) / 256) for v in [0, 1]: 0 for white, 2.41 for black."""
    return -torch.log10(colour * (255 / 256) + 1 / 256)


def stains(density: Tensor) -> Tensor:
    """[n, 3, H, W] optical density of red, green, blue to amounts of hematoxylin, eosin, DAB: the inverse of the unit-row stain matrix."""
    matrix = torch.tensor(_STAINS, dtype=torch.float64)
    inverse = torch.linalg.inv(matrix / torch.linalg.vector_norm(matrix, dim=1, keepdim=True))
    return _mix(density, inverse.T.tolist())


def oklab(colour: Tensor) -> Tensor:
    """[n, 3, H, W] sRGB in [0, 1] to Oklab lightness (0 to 1), green-red and blue-yellow (about -0.4 to 0.4)."""
    linear = torch.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055).pow(2.4))
    return _mix(_mix(linear, _LMS).pow(1 / 3), _OKLAB)


def saturation(colour: Tensor) -> Tensor:
    """(max - min) / max over the channels, [n, 1, H, W] in [0, 1]; 0 where all are 0."""
    top = colour.amax(1, keepdim=True)
    return (top - colour.amin(1, keepdim=True)) / (top + 1e-6)


def normalised_difference(one: Tensor, other: Tensor) -> Tensor:
    """(a - b) / (|a| + |b|), in [-1, 1]; 0 where both are 0."""
    return (one - other) / (one.abs() + other.abs() + 1e-6)


def _mix(maps: Tensor, matrix: Sequence[Sequence[float]]) -> Tensor:
    """Row r of `matrix` weighs the three channels into channel r; written out, which is faster than a 3 x 3 product."""
    first, second, third = maps.unbind(1)
    return torch.stack([(first * row[0]).add_(second, alpha=row[1]).add_(third, alpha=row[2]) for row in matrix], dim=1)
