"""The learned saliency as a DriveModel: what sees a slide at 32x and 4x and only then reads full resolution where it is worth it.

    PYTHONPATH=benchmarks NEEDLE_WEIGHTS=FILE patchdrive run SLIDE --model needle_model:needles --saliency needle_model:everywhere -o OUT

Round 0, the glance at 32x: wherever there is ink there may be a needle, nothing more can be seen. Round 1, a patch of the 4x level on each
peak of ink: the saliency learned from the answers about images says what looks like a digit. Round 2, the `max_patches` best of all of
them at full resolution: the network that learned to answer ranks them. Needles found are the run's objects, surest first.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from megapixel_network import SIZE, Network
from needle_reads import CELL, STEP
from needle_training import Saliency, rank_reads
from numpy.typing import NDArray
from scipy.spatial import KDTree
from torch import Tensor, nn
from torch.nn import functional

from patchdrive.models.digest import module_digest
from patchdrive.models.types import Drive, Glance, ModelSpec, Objects, Output, OutputSpec, Selection
from patchdrive.readers.geometry import Level

GLANCE = 32
"""Level-0 pixels per pixel of the glance."""
BLOBS = 3
"""At most so many candidates in a patch of the 4x level."""
REACH = 12
"""Of the patch's centre, thumbnail pixels: what lies further off has a peak of its own."""
APART = 14.0
"""Candidates nearer than this, level-0 pixels, are one."""
NOTHING = -100.0
"""Logit of a candidate that is not there."""
MOST = 2000
"""Full-resolution reads of a slide, unless said otherwise."""
COLUMNS = tuple(f"{what}{index}" for index in range(BLOBS) for what in ("logit", "y", "x"))


def everywhere(_pixels: NDArray[Any], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """A saliency for `patchdrive run`: the model itself decides."""
    return mask.astype(np.float32)


class Ink(nn.Module):
    """The glance, a PatchModel: peaks of ink, the highest of their 3x3 pixels.

    A cell is 2x2 pixels; `score` is the ink of the peak in it, or 0, and `features` says in which of the four it lies, row by row.
    """

    def __init__(self) -> None:
        super().__init__()
        self.spec = ModelSpec(
            name="needle-glance",
            channels=1,
            size=256,
            any_size=True,
            outputs=(
                OutputSpec(name="features", kind="image", channels=("pixel",), stride=2, halo=2),
                OutputSpec(name="score", kind="image", channels=("ink",), stride=2, halo=2),
            ),
        )
        self.digest = module_digest(self, self.spec.to_dict())

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """[n, 1, S, S] stored values, S even, to two maps [n, 1, S/2, S/2]."""
        peaks = pixels * (pixels >= functional.max_pool2d(pixels, 3, stride=1, padding=1))
        score, index = functional.max_pool2d(peaks, 2, return_indices=True)
        width = pixels.shape[3]
        return {"features": (index // width % 2 * 2 + index % 2).float(), "score": score}


class Eyes(nn.Module):
    """The patch encoder of both rounds: what the saliency thinks of up to three blobs in a patch, and what the network does of its middle.

    Which of them means something depends on the level that the patch was read at, which the drive knows.
    """

    def __init__(self, saliency: Saliency, network: Network) -> None:
        super().__init__()
        columns = (*COLUMNS, "evidence")
        self.spec = ModelSpec(name="needle", channels=1, size=SIZE, outputs=(OutputSpec(name="features", kind="vector", channels=columns),))
        self.saliency, self.network = saliency.eval(), network.eval()

    @property
    def digest(self) -> str:
        return module_digest(self, self.spec.to_dict())

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """[n, 1, 32, 32] stored values to [n, 3 * (logit, y, x) and the evidence]; y and x from the patch's centre, pixels of its level."""
        found, place = blobs(pixels[:, 0])
        small = _cut(pixels[:, 0], place.round(), CELL)
        logits = self.saliency.rank(small.flatten(0, 1)).view(found.shape).where(found, NOTHING)
        about = torch.cat([logits[..., None], (place - SIZE / 2) * found[..., None]], dim=2).flatten(1)
        return {"features": torch.cat([about, rank_reads(self.network, pixels[:, 0])[:, None]], dim=1)}


class Scanner(nn.Module):
    """The network alone, for patches everywhere: what a full scan costs."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.spec = ModelSpec(
            name="scanner", channels=1, size=SIZE, outputs=(OutputSpec(name="features", kind="vector", channels=("evidence",)),)
        )
        self.network = network.eval()

    @property
    def digest(self) -> str:
        return module_digest(self, self.spec.to_dict())

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        return {"features": rank_reads(self.network, pixels[:, 0])[:, None]}


def blobs(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Up to three blobs of ink in the middle of patches [n, p, p]: which are there [n, 3], and their centroids [n, 3, 2], pixels from the
    corner.
    """
    smooth = functional.avg_pool2d(pixels[:, None], 5, stride=1, padding=2)
    peak = (smooth >= functional.max_pool2d(smooth, 9, stride=1, padding=4)) & (smooth > 0)
    side = pixels.shape[1]
    edge = side // 2 - REACH
    peak[:, :, :edge], peak[:, :, side - edge :], peak[..., :edge], peak[..., side - edge :] = False, False, False, False
    best, index = (smooth * peak).flatten(1).topk(BLOBS)
    place = torch.stack([index // side, index % side], dim=2).float() + 0.5
    for _ in range(2):
        middle = place.round()
        ink = _cut(pixels, middle, 8)
        offset = torch.arange(8) - 3.5
        total = ink.sum(dim=(2, 3)).clamp_min(1e-9)
        shift = torch.stack([(ink * offset[:, None]).sum(dim=(2, 3)), (ink * offset).sum(dim=(2, 3))], dim=2)
        place = middle + shift / total[..., None]
    return best > 0, place


def _cut(pixels: Tensor, middle: Tensor, size: int) -> Tensor:
    """[n, m, size, size] out of [n, p, p] around whole-pixel places [n, m, 2]; zeros outside."""
    padded = functional.pad(pixels, (size,) * 4)
    span = torch.arange(size) - size // 2 + size
    y, x = (middle[..., axis, None].long() + span for axis in (0, 1))
    return padded[torch.arange(len(pixels))[:, None, None, None], y[..., :, None], x[..., None, :]]


class Needles(nn.Module):
    """The DriveModel."""

    def __init__(self, saliency: Saliency, network: Network, *, max_patches: int = MOST) -> None:
        super().__init__()
        self.glance, self.encoder = Ink(), Eyes(saliency, network)
        self.max_patches = max_patches
        self.glance_downsample = GLANCE
        self.maps: tuple[OutputSpec, ...] = ()
        self.values: Mapping[str, tuple[str, ...]] = {}

    @property
    def digest(self) -> str:
        return module_digest(self.encoder, {"max_patches": self.max_patches, "glance": GLANCE, **self.encoder.spec.to_dict()})

    def with_max_patches(self, count: int) -> Self:
        """The same weights, asking for at most `count` patches at full resolution."""
        view = copy.copy(self)
        view.max_patches = count
        return view

    def with_audit(self, _count: int) -> Self:
        """It has none."""
        return self

    def drive(self, glance: Glance, cells: Level, grid: Level) -> Drive:
        """Ask twice, return what was found."""
        rows, columns = ((glance.score > 0) & glance.valid)[0].nonzero(as_tuple=True)
        pixel = glance.features[0, 0, rows, columns]
        steps = pixel.new_tensor([cells.downsample_y, cells.downsample_x])
        inside = torch.stack([pixel.div(2, rounding_mode="floor"), pixel % 2], dim=1) / 2 + 0.25
        centres = (torch.stack([rows, columns], dim=1) + inside) * steps
        middle = select(centres, grid, STEP, torch.ones(len(rows)), rows * cells.width + columns)
        seen = yield middle
        logit, place = candidates_of(seen.x[0], seen.selection.yx[0])
        best = logit.argsort(descending=True, stable=True)[: self.max_patches]
        fine = select(place[best], grid, 1, torch.sigmoid(logit[best]), torch.full((len(best),), -1))
        read = yield fine
        order = read.x[0, :, -1].argsort(descending=True, stable=True)
        sure = torch.sigmoid(read.x[0, :, -1])
        return Output(objects=[Objects(yx=read.selection.yx[0, order], score=sure[order], name="needle")])


def select(centres: Tensor, grid: Level, zoom: int, weight: Tensor, cell: Tensor) -> Selection:
    """Patches of pixels `zoom` times as large, around centres [n, 2], held inside the image."""
    steps = centres.new_tensor([grid.downsample_y * zoom, grid.downsample_x * zoom])
    last = centres.new_tensor([-(-grid.height // zoom) - SIZE, -(-grid.width // zoom) - SIZE])
    corner = torch.minimum((centres / steps - SIZE / 2).round().clamp_min(0), last)
    side = SIZE * zoom * (grid.downsample_y + grid.downsample_x) / 2
    return Selection(
        yx=((corner + SIZE / 2) * steps)[None],
        side=torch.full((1, len(centres)), side),
        cell=cell[None],
        weight=weight[None],
        valid=torch.ones(1, len(centres), dtype=torch.bool),
    )


def candidates_of(x: Tensor, yx: Tensor) -> tuple[Tensor, Tensor]:
    """Out of the vectors [n, D] of patches of the 4x level at centres [n, 2]: logits [m] and level-0 places [m, 2], each blob once."""
    about = x[:, : 3 * BLOBS].view(-1, BLOBS, 3)
    place = (yx[:, None] + about[..., 1:] * STEP).flatten(0, 1)
    logit = about[..., 0].flatten()
    there = logit > NOTHING / 2
    place, logit = place[there], logit[there]
    order = logit.argsort(descending=True, stable=True)
    place, logit = place[order], logit[order]
    pairs = KDTree(place.numpy()).query_pairs(APART, p=np.inf, output_type="ndarray") if len(place) else np.zeros((0, 2), np.int64)
    once = np.ones(len(place), np.bool_)
    once[pairs.max(axis=1)] = False  # the less sure of two
    return logit[once], place[once]


def save(path: Path, saliency: Saliency, network: Network) -> None:
    """Both nets in one file."""
    torch.save({"saliency": saliency.state_dict(), "network": network.state_dict()}, path)


def load(path: Path) -> tuple[Saliency, Network]:
    """What `save` wrote."""
    stored = torch.load(path, weights_only=True)
    saliency, network = Saliency(), Network(3000)
    saliency.load_state_dict(stored["saliency"])
    network.load_state_dict(stored["network"])
    return saliency.eval(), network.eval()


def load_drive(path: Path) -> Needles:
    """The drive with stored weights."""
    return Needles(*load(path))


def load_scan(path: Path) -> Scanner:
    """The scan with stored weights."""
    return Scanner(load(path)[1])


def needles() -> Needles:
    """For `load_model`: weights from the file that NEEDLE_WEIGHTS names."""
    return load_drive(Path(os.environ["NEEDLE_WEIGHTS"]))
