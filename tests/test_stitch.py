"""Stitching by blocks against stitching in memory."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from patchdrive.models.digest import module_digest
from patchdrive.models.types import ModelSpec, OutputSpec
from patchdrive.pipeline import RunSettings, open_result, run
from patchdrive.pipeline.batches import Batch
from patchdrive.pipeline.infer import Values
from patchdrive.pipeline.plan import Layout, map_blocks, ordered, positions, target_grid
from patchdrive.pipeline.stitch import stitch, window_weights
from patchdrive.pipeline.timings import Timings
from patchdrive.readers import Level, MemoryImage

BASE = Level(index=0, height=700, width=650, downsample_y=1.0, downsample_x=1.0, tile_height=256, tile_width=256)


def a_run(stride, halo, overlap, *, seed=0):
    """A plan over BASE, a spec, and random model outputs for every patch."""
    side = 96
    grid = target_grid(BASE, 1.0, 1.0)
    layout = Layout(side=side, stride=side - overlap, halo=halo)
    y, x = np.meshgrid(positions(grid.height, layout), positions(grid.width, layout), indexing="ij")
    plan = ordered(y.ravel(), x.ravel(), np.ones(y.size, np.float32), side, grid)
    output = OutputSpec(name="m", kind="image", channels=("a", "b"), stride=stride, halo=halo)
    spec = ModelSpec(name="t", channels=1, size=side, outputs=(output,))
    values = np.random.default_rng(seed).random((len(plan), 2, side // stride, side // stride)).astype(np.float32)
    return plan, spec, values


def as_values(blocks, values, batch=8):
    for block in blocks:
        for start in range(0, len(block.rows), batch):
            rows = block.rows[start : start + batch]
            last = start + batch >= len(block.rows)
            yield Values(
                batch=Batch(
                    block=block,
                    rows=rows,
                    places=np.arange(len(rows)),
                    held=np.zeros((batch, 1, 1, 1)),
                    valid=None,
                    dropped=(),
                    holed=(),
                    last=last,
                ),
                outputs={"m": values[rows]},
            )


def in_memory(plan, spec, values, blend):
    """The twin: one canvas, one loop."""
    output = spec.outputs[0]
    s, h = output.stride, output.halo
    cells = (plan.side - 2 * h) // s
    weight = window_weights(cells, blend)
    big = 2000
    sums, weights = np.zeros((2, big, big)), np.zeros((big, big))
    for row in range(len(plan)):
        y, x = (int(plan.y[row]) + h) // s, (int(plan.x[row]) + h) // s
        inner = values[row][:, h // s : h // s + cells, h // s : h // s + cells]
        sums[:, y : y + cells, x : x + cells] += weight * inner
        weights[y : y + cells, x : x + cells] += weight
    height, width = -(-plan.grid.height // s), -(-plan.grid.width // s)
    return sums[:, :height, :width] / weights[:height, :width]


@pytest.mark.parametrize("blend", ["box", "hann", "gaussian", "pyramid"])
@pytest.mark.parametrize(("stride", "halo", "overlap"), [(1, 0, 0), (1, 0, 41), (1, 16, 32), (4, 8, 32), (2, 0, 48)])
def test_blocks_equal_one_canvas(blend, stride, halo, overlap):
    plan, spec, values = a_run(stride, halo, overlap)
    wanted = in_memory(plan, spec, values, blend)
    for edge in (128, 512):
        got = np.full_like(wanted, np.nan)
        for done in stitch(as_values(map_blocks(plan, edge=edge, halo=halo), values), plan, spec, blend, Timings()):
            part = done.maps["m"]
            y, x = done.block.window.y // stride, done.block.window.x // stride
            got[:, y : y + part.valid.shape[0], x : x + part.valid.shape[1]] = part.values
            assert part.valid.all()
        np.testing.assert_allclose(got, wanted, rtol=2e-7)  # given back as float32


@pytest.mark.parametrize("blend", ["box", "hann", "gaussian", "pyramid"])
@pytest.mark.parametrize("cells", [1, 2, 97, 512])
def test_every_cell_has_weight_and_weights_are_symmetric(blend, cells):
    weight = window_weights(cells, blend)
    assert weight.min() >= 1e-3
    np.testing.assert_allclose(weight, weight[::-1, ::-1])
    np.testing.assert_allclose(weight, weight.T)


class SmallNetwork(nn.Module):
    """A PatchModel: three convolutions of 3 x 3, so that a pixel's answer depends on three pixels around it."""

    def __init__(self, halo):
        super().__init__()
        output = OutputSpec(name="answer", kind="image", channels=("answer",), halo=halo)
        self.spec = ModelSpec(name="small", channels=3, size=96, scale=1 / 255, fill=200.0, outputs=(output,))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.layers = nn.Sequential(*(nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.ReLU()) for a, b in pairwise((3, 16, 16, 4))))

    @property
    def digest(self):
        return module_digest(self, self.spec.to_dict())

    def forward(self, pixels):
        return {"answer": self.layers(pixels).sum(dim=1, keepdim=True)}


def run_and_whole(tmp_path, *, halo, overlap, blend):
    """What a run joins, and what the network gives of the whole image at once, surrounded by the fill."""
    pixels = np.random.default_rng(5).integers(0, 256, (301, 410, 3), np.uint8)
    network = SmallNetwork(halo)
    around = np.pad(pixels, ((8, 8), (8, 8), (0, 0)), constant_values=200)
    with torch.inference_mode():
        whole = network(network.spec.normalise(torch.from_numpy(around)[None]))["answer"][0, 0, 8:-8, 8:-8].numpy()
    settings = RunSettings(saliency="valid", overlap=overlap, blend=blend, device="cpu")
    run(MemoryImage([pixels]), network, tmp_path / "run.zarr", settings=settings)
    joined = open_result(tmp_path / "run.zarr").maps["answer"].values()
    assert not np.ma.getmaskarray(joined).any()  # every pixel of every patch outside its halo has weight
    return joined.data[0], whole


def test_a_halo_of_the_receptive_field_gives_whole_image_inference_to_the_bit(tmp_path):
    joined, whole = run_and_whole(tmp_path, halo=3, overlap=6, blend=None)
    assert len(np.unique(whole)) > 10000
    np.testing.assert_array_equal(joined, whole)


@pytest.mark.parametrize("blend", ["box", "hann", "gaussian", "pyramid"])
def test_without_a_halo_only_what_is_near_a_border_of_a_patch_differs(tmp_path, blend):
    joined, whole = run_and_whole(tmp_path, halo=0, overlap=32, blend=blend)
    differ = np.abs(joined - whole) > 1e-5
    assert differ.any()
    near = np.zeros(whole.shape, bool)
    for axis, extent in enumerate(whole.shape):
        for first in positions(extent, Layout(side=96, stride=64)).tolist():
            for border in (first, first + 96):
                near[(slice(None),) * axis + (slice(max(0, border - 3), border + 3),)] = True
    assert not differ[~near].any()
