"""Ways to read the scene, each a run of the pipeline with the same trained weights: which patches, and what was found."""

from __future__ import annotations

import dataclasses
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import geopandas
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from trees_score import Found

from patchdrive.models.drivers import best_peaks
from patchdrive.models.lattice import Lattice
from patchdrive.models.model import PatchDrive, patchdrivenet
from patchdrive.models.saliency import GlanceNet
from patchdrive.models.search import Asking, Gathered, Placing, Search
from patchdrive.pipeline import RunSettings, open_result, run
from patchdrive.pipeline.export_geoparquet import to_geoparquet
from patchdrive.readers import open_image


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reading:
    """A run."""

    centres: NDArray[np.float64]
    """(n, 2) of the patches read, scene pixels."""
    found: Found
    seconds: float


class ComplexityDriver(nn.Module):
    """The peaks of an untrained model, whose score is the Laplacian of Gaussian alone; placed and gated as trained."""

    def __init__(self, glance: GlanceNet, place: Placing) -> None:
        super().__init__()
        self.glance, self.place = glance, place

    def ask(self, search: Search) -> Asking:
        """Once."""
        seen = search.glance
        prior = (seen.score - self.glance.saliency(seen.features)[:, 0]) / self.glance.beta
        index, valid = best_peaks(prior, seen.valid, seen.valid, search.max_patches, None)
        weight = torch.sigmoid(seen.score.flatten(1).gather(1, index.clamp_min(0)))
        tokens = yield self.place(search, index, valid, weight)
        return Gathered(tokens=tokens)


class ShuffledDriver(nn.Module):
    """Patches of the dense grid in a random order, gated as trained."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed

    def ask(self, search: Search) -> Asking:
        """Once."""
        lattice = Lattice.over(search.grid, search.size)
        score = lattice.scores(search.glance, search.cells)
        order = torch.randperm(score.shape[1], generator=torch.Generator().manual_seed(self.seed)).to(score.device)
        index = order[score[0, order] > -torch.inf][None, : search.max_patches]
        valid = torch.ones_like(index, dtype=torch.bool)
        tokens = yield lattice.select(search.cells, index, valid, torch.sigmoid(score.gather(1, index)))
        return Gathered(tokens=tokens)


class BlindDriver(nn.Module):
    """Reads one patch, the first of the grid, and leaves it out: what is found is of the glance alone."""

    def ask(self, search: Search) -> Asking:
        """Once."""
        lattice = Lattice.over(search.grid, search.size)
        index = torch.zeros((len(search.glance.score), 1), dtype=torch.int64, device=search.glance.score.device)
        there = torch.ones_like(index, dtype=torch.bool)
        tokens = yield lattice.select(search.cells, index, there, torch.ones_like(index, dtype=torch.float32))
        return Gathered(tokens=tokens.take(index, ~there))


def glance_alone(model: PatchDrive) -> PatchDrive:
    """The same weights that are told of no patch."""
    other = _copy(model, "grid")
    other.driver = BlindDriver()
    return other


def by_complexity(model: PatchDrive) -> PatchDrive:
    """The same weights behind the saliency of an untrained model."""
    other = _copy(model, "saliency")
    place = other.driver.place
    assert isinstance(place, Placing)
    other.driver = ComplexityDriver(other.glance, place)
    return other


def shuffled(model: PatchDrive, seed: int) -> PatchDrive:
    """The same weights behind a draw."""
    other = _copy(model, "grid")
    other.driver = ShuffledDriver(seed)
    return other


def dense(model: PatchDrive) -> PatchDrive:
    """The same weights behind a grid without gaps or overlap."""
    return _copy(model, "grid")


def read(scene: Path, model: PatchDrive, store: Path, *, most: int) -> Reading:
    """One run of the pipeline over the scene."""
    with closing(open_image(scene)) as image:
        report = run(image, model, store, settings=RunSettings(max_patches=most, device="cpu"), overwrite=True)
    result = open_result(store)
    things = result.objects["objects"]
    return Reading(
        centres=np.concatenate([part.plan.centres_of(slice(0, len(part.plan))) for part in result.rounds]),
        found=Found(boxes=things.corners, score=things.score.astype(np.float64)),
        seconds=report.seconds["total"],
    )


def exported(store: Path) -> tuple[int | None, NDArray[np.float64], NDArray[np.float64]]:
    """What a GIS is given of the things found: EPSG code of their CRS, (n, 4) left, bottom, right and top edges in it, (n,) scores."""
    with tempfile.TemporaryDirectory() as folder:
        (path,) = (path for path in to_geoparquet(open_result(store), Path(folder)) if path.stem.endswith("_objects"))
        frame = geopandas.read_parquet(path)
    return frame.crs.to_epsg(), frame.bounds.to_numpy(np.float64), frame["score"].to_numpy(np.float64)


def _copy(model: PatchDrive, driver: str) -> PatchDrive:
    other = patchdrivenet(dataclasses.replace(model.config, driver=driver))
    known = other.state_dict()
    other.load_state_dict({name: weight for name, weight in model.state_dict().items() if name in known}, strict=driver != "grid")
    return other.eval()
