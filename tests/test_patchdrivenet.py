"""System A: what must hold of its mathematics, whatever its weights."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from patchdrive.models.answers import AnswerSpec
from patchdrive.models.config import PatchDriveNetConfig
from patchdrive.models.crop import coarsen, crop
from patchdrive.models.fuse import Frame
from patchdrive.models.losses import SIGMA, centre_focal, centre_target
from patchdrive.models.model import PatchDrive, patchdrivenet
from patchdrive.models.saliency import HALO, STRIDE, log_complexity
from patchdrive.models.search import Sampling
from patchdrive.models.select import nms, topk_gumbel, topk_hard
from patchdrive.models.types import DriveModel, Glance, ImageTraits, ModelSpec, Output, PatchModel, Selection, Tokens
from patchdrive.models.weights import load_patchdrivenet, save_patchdrivenet
from patchdrive.readers.errors import ModelError
from patchdrive.readers.geometry import Level

SMALL = PatchDriveNetConfig(width=16, max_patches=6)


def shaken(config: PatchDriveNetConfig) -> PatchDrive:
    """A model none of whose weights is zero, so that every path counts."""
    model = patchdrivenet(config)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return model.eval()


def answers(*classes: str) -> tuple[AnswerSpec, ...]:
    return (AnswerSpec(name="class", classes=classes),) if classes else ()


def asked(model: PatchDrive, glance: Glance, cells: Level, grid: Level, sampling: Sampling | None = None) -> Selection:
    """The first thing its driver asks for."""
    return next(model.driver.ask(model.search(glance, cells, grid, sampling=sampling)))


def picture(height: int, width: int, *, batch: int = 1, channels: int = 3, seed: int = 0) -> torch.Tensor:
    """Noise with a few dark blobs of 40 pixels, uint8."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(batch, channels, height, width, generator=generator) * 60 + 150
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    for _ in range(6):
        cy, cx = (torch.rand(2, generator=generator) * torch.tensor([height, width])).tolist()
        noise = noise.where(torch.hypot(y - cy, x - cx) > 20, noise * 0.5)
    return noise.to(torch.uint8)


def tiled_glance(model: PatchDrive, image: torch.Tensor, tile: int) -> Glance:
    """What the pipeline does: tiles of the coarse level with a halo, fill beyond the border, only the core kept."""
    spec = model.glance.spec
    coarse = coarsen(image, model.glance_downsample)[0].permute(1, 2, 0).numpy()
    rows, columns = (-(-side // STRIDE) for side in coarse.shape[:2])
    maps = {name: np.full((channels, rows, columns), np.nan, np.float32) for name, channels in (("features", 16), ("score", 1))}
    step = tile - 2 * HALO
    for y in range(0, coarse.shape[0], step):
        for x in range(0, coarse.shape[1], step):
            pixels = np.full((tile, tile, coarse.shape[2]), spec.fill, np.float32)
            top, left = max(0, y - HALO), max(0, x - HALO)
            part = coarse[top : y - HALO + tile, left : x - HALO + tile]
            pixels[top - y + HALO : top - y + HALO + part.shape[0], left - x + HALO : left - x + HALO + part.shape[1]] = part
            given = model.glance(spec.normalise(torch.from_numpy(pixels)[None]))
            for name, whole in maps.items():
                target = whole[:, y // STRIDE : (y + step) // STRIDE, x // STRIDE : (x + step) // STRIDE]
                edge = HALO // STRIDE
                target[:] = given[name][0, :, edge : edge + target.shape[1], edge : edge + target.shape[2]].numpy()
    features, score = (torch.from_numpy(maps[name])[None] for name in ("features", "score"))
    return Glance(features=features, score=score[:, 0], valid=torch.ones_like(score[:, 0], dtype=torch.bool))


def driven_by_hand(model: PatchDrive, image: torch.Tensor) -> Output:
    """The pipeline's road: glance in tiles, patches by integer corners one at a time, tokens sent back."""
    grid, cells = model.frames(image)
    drive = model.drive(tiled_glance(model, image, 64), cells, grid)
    selection = next(drive)
    spec = model.encoder.spec
    x = torch.zeros(*selection.valid.shape, 16)
    for k in torch.nonzero(selection.valid[0])[:, 0].tolist():
        corner = selection.yx[0, k].numpy() - spec.size / 2
        assert (corner == np.round(corner)).all()
        stored = np.full((spec.size, spec.size, 3), spec.fill, np.float32)
        for i in range(spec.size):
            for j in range(spec.size):
                y, c = int(corner[0]) + i, int(corner[1]) + j
                if 0 <= y < image.shape[2] and 0 <= c < image.shape[3]:
                    stored[i, j] = image[0, :, y, c].numpy()
        x[0, k] = model.encoder(spec.normalise(torch.from_numpy(stored)[None]))["features"][0]
    with pytest.raises(StopIteration) as end:
        drive.send(Tokens(x=x, selection=selection))
    output: Output = end.value.value
    return output


def assert_same(a: Output, b: Output, *, atol: float = 1e-5) -> None:
    torch.testing.assert_close(a.maps["detection"], b.maps["detection"], atol=atol, rtol=1e-4)
    torch.testing.assert_close(a.values["class"], b.values["class"], atol=atol, rtol=1e-4)
    for one, other in zip(a.objects, b.objects, strict=True):
        torch.testing.assert_close(one.yx, other.yx, atol=1e-2, rtol=1e-4)


class TestRoads:
    @pytest.mark.parametrize("shape", [(512, 640), (333, 290), (40, 500)])
    @torch.no_grad()
    def test_forward_is_the_pipelines_road(self, shape: tuple[int, int]) -> None:
        model, image = shaken(dataclasses.replace(SMALL, threshold=0.02, fill=37.0)), picture(*shape)
        ours = model(image)
        assert len(ours.objects[0].yx)
        assert_same(ours, driven_by_hand(model, image))

    @pytest.mark.parametrize("tile", [48, 64, 160])
    @torch.no_grad()
    def test_glance_tiles_join(self, tile: int) -> None:
        model, image = shaken(dataclasses.replace(SMALL, fill=37.0)), picture(900, 700)
        whole, tiled = model.look(image), tiled_glance(model, image, tile)
        torch.testing.assert_close(tiled.features, whole.features, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(tiled.score, whole.score, atol=1e-5, rtol=1e-5)

    @torch.no_grad()
    def test_halo_is_enough_and_is_needed(self) -> None:
        model = shaken(SMALL)
        noise = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
        other = noise.clone()
        other[:, :, :32] = 0  # a cell at row 48 is 16 pixels away
        edge = 48 // STRIDE
        for name, values in model.glance(noise).items():
            changed = model.glance(other)[name]
            torch.testing.assert_close(changed[:, :, edge:], values[:, :, edge:], atol=1e-6, rtol=1e-6)
            assert (changed[:, :, edge - 2] - values[:, :, edge - 2]).abs().max() > 1e-3

    @torch.no_grad()
    def test_chunks_change_rounding_only(self) -> None:
        model, image = shaken(SMALL), picture(512, 512, batch=2)
        assert_same(model(image, chunk=1), model(image, chunk=256))

    @given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 9))
    @settings(deadline=None, max_examples=30)
    def test_coarsen_is_the_mean_of_what_is_there(self, height: int, width: int, factor: int) -> None:
        image = picture(height, width)
        small = coarsen(image, factor)[0].numpy()
        for i in range(small.shape[1]):
            for j in range(small.shape[2]):
                part = image[0, :, i * factor : (i + 1) * factor, j * factor : (j + 1) * factor].numpy()
                np.testing.assert_allclose(small[:, i, j], part.mean(axis=(1, 2)), rtol=1e-5)


class TestSelection:
    @given(st.integers(1, 400), st.integers(1, 400), st.sampled_from([1.0, 2.0, 0.5, 4.0003]), st.integers(0, 3))
    @settings(deadline=None, max_examples=60)
    def test_never_leaves_the_image_and_corners_are_whole(self, height: int, width: int, step: float, seed: int) -> None:
        model = shaken(SMALL)
        grid = Level(index=0, height=height, width=width, downsample_y=step, downsample_x=step, tile_height=1, tile_width=1)
        gh, gw = -(-height // 32), -(-width // 32)
        cells = Level(index=0, height=gh, width=gw, downsample_y=32 * step, downsample_x=32 * step, tile_height=1, tile_width=1)
        generator = torch.Generator().manual_seed(seed)
        features, score = torch.randn(1, 16, gh, gw, generator=generator) * 9, torch.randn(1, gh, gw, generator=generator)
        glance = Glance(features=features, score=score, valid=torch.rand(score.shape, generator=generator) > 0.2)
        for sampling in (None, Sampling(generator=generator)):
            chosen = asked(model, glance, cells, grid, sampling)
            corner = chosen.yx[chosen.valid] / step - 32
            torch.testing.assert_close(corner, corner.round(), atol=1e-3, rtol=0)
            assert (corner >= -1e-3).all()
            limit = torch.tensor([max(0, height - 64), max(0, width - 64)])
            assert (corner <= limit + 1e-3).all()
            assert glance.valid.flatten(1)[0, chosen.cell[chosen.valid]].all()
            filled = chosen.cell[chosen.valid]
            assert len(filled) == len(filled.unique())
            assert (chosen.cell[~chosen.valid] == -1).all()

    def test_untrained_ranks_by_complexity(self) -> None:
        model, image = patchdrivenet(SMALL), picture(640, 640)
        glance = model.look(image)
        spec = model.glance.spec
        padded = functional.pad(coarsen(image, 8), (HALO,) * 4, value=spec.fill)
        grey = spec.normalise(padded.permute(0, 2, 3, 1)).mean(dim=1, keepdim=True)
        prior = functional.max_pool2d(log_complexity(grey), STRIDE)[0, 0, 4:-4, 4:-4]
        ours, theirs = topk_hard(glance.score.flatten(1), 400)[0], topk_hard(prior.reshape(1, -1), 400)[0]
        assert torch.equal(ours, theirs)

    def test_finds_the_blob(self) -> None:
        image = torch.full((1, 3, 640, 640), 200, dtype=torch.uint8)
        image[:, :, 300:340, 420:460] = 90
        model = patchdrivenet(dataclasses.replace(SMALL, fill=200.0, max_patches=1))
        grid, cells = model.frames(image)
        centre = asked(model, model.look(image), cells, grid).yx[0, 0]
        assert (centre - torch.tensor([320.0, 440.0])).abs().max() <= 32

    def test_blank_image_is_spread_and_the_same_again(self) -> None:
        model, image = patchdrivenet(SMALL), torch.full((1, 3, 1024, 1024), 255, dtype=torch.uint8)
        grid, cells = model.frames(image)
        first, second = (asked(model, model.look(image), cells, grid) for _ in range(2))
        assert torch.equal(first.yx, second.yx)
        assert (first.yx[0].amax(dim=0) - first.yx[0].amin(dim=0)).min() > 300

    def test_fewer_candidates_than_slots(self) -> None:
        index, valid = topk_hard(torch.tensor([[1.0, -torch.inf, 3.0]]), 5)
        assert index.tolist() == [[2, 0, -1, -1, -1]]
        assert valid.tolist() == [[True, True, False, False, False]]

    def test_peaks(self) -> None:
        score = torch.tensor([[[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 9.0, 0.0], [3.0, 0.0, 0.0, 0.0]]])
        valid = torch.ones_like(score, dtype=torch.bool)
        assert torch.nonzero(nms(score, valid)[0]).tolist() == [[1, 2], [2, 0]]
        valid[0, 1, 2] = False
        assert torch.nonzero(nms(score, valid)[0]).tolist()[:1] == [[0, 1]]

    def test_gumbel_draws_by_softmax(self) -> None:
        score, generator = torch.tensor([0.0, 1.0, 2.0]).log1p().expand(20_000, 3), torch.Generator().manual_seed(0)
        drawn = topk_gumbel(score, 1, generator)[0][:, 0]
        share = torch.bincount(drawn, minlength=3) / len(drawn)
        torch.testing.assert_close(share, torch.tensor([1 / 6, 2 / 6, 3 / 6]), atol=0.015, rtol=0)

    def test_crop_is_by_index(self) -> None:
        y, x = torch.meshgrid(torch.arange(90), torch.arange(50), indexing="ij")
        image = torch.stack([y, x, 0 * y])[None].to(torch.uint8)
        model = patchdrivenet(SMALL)
        grid, _ = model.frames(image)
        selection = Selection(
            yx=torch.tensor([[[33.0, 32.0], [0.0, 0.0]]]),
            side=torch.full((1, 2), 64.0),
            cell=torch.tensor([[0, -1]]),
            weight=torch.ones(1, 2),
            valid=torch.tensor([[True, False]]),
        )
        patches = crop(image, selection, selection.valid.nonzero(), grid, model.encoder.spec)
        assert patches.shape == (1, 3, 64, 64)
        assert torch.equal(patches[0, :, :, :50], image[0, :, 1:65])
        assert (patches[0, :, :, 50:] == 255).all()


class TestFusion:
    @torch.no_grad()
    def test_order_of_patches_and_block_of_queries_do_not_matter(self) -> None:
        model, image = shaken(SMALL), picture(512, 600, batch=2)
        grid, cells = model.frames(image)
        glance = model.look(image)
        tokens = model.read(image, asked(model, glance, cells, grid), grid)
        order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
        chosen = tokens.selection
        mixed = chosen.take(order.expand(2, -1), torch.ones(2, 6, dtype=torch.bool))
        frame = Frame(origin=(0.0, 0.0), extent=(512.0, 600.0))
        whole = model.fuse(glance, tokens, cells, frame)
        for other in (
            model.fuse(glance, Tokens(x=tokens.x[:, order], selection=mixed), cells, frame),
            model.fuse(glance, tokens, cells, frame, queries=7),
        ):
            for a, b in zip(whole, other, strict=True):
                torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)

    @torch.no_grad()
    def test_detail_lands_at_its_place(self) -> None:
        model, image = patchdrivenet(dataclasses.replace(SMALL, max_patches=1)), picture(1024, 1024)
        grid, cells = model.frames(image)
        glance = model.look(image)
        tokens = model.read(image, asked(model, glance, cells, grid), grid)
        other = Tokens(x=tokens.x + torch.randn(16, generator=torch.Generator().manual_seed(0)), selection=tokens.selection)
        change = (model.answer(glance, other, cells)["detection"] - model.answer(glance, tokens, cells)["detection"]).abs()[0, 0]
        y, x = (tokens.selection.yx[0, 0] / 32).long().tolist()
        away = change.clone()
        away[max(0, y - 3) : y + 4, max(0, x - 3) : x + 4] = 0
        assert change[y, x] > 3 * away.max()

    @torch.no_grad()
    def test_empty_slots_say_nothing(self) -> None:
        model, image = shaken(dataclasses.replace(SMALL, max_patches=3)), picture(256, 256)
        wider = model.with_max_patches(200)
        grid, cells = model.frames(image)
        assert not asked(wider, wider.look(image), cells, grid).valid.all()
        few = model.with_max_patches(int(asked(wider, wider.look(image), cells, grid).valid.sum()))
        assert_same(few(image), wider(image))

    def test_gradient_reaches_every_part(self) -> None:
        model, image = shaken(SMALL).train(), picture(512, 512)
        grid, cells = model.frames(image)
        glance = model.look(image)
        selection = asked(model, glance, cells, grid, Sampling(generator=torch.Generator().manual_seed(0)))
        answers = model.answer(glance, model.read(image, selection, grid), cells)
        (answers["detection"].sum() + answers["class"][:, 0].sum()).backward()  # no term touches the score itself
        for name in ("glance.saliency.weight", "glance.beta", "glance.fine.weight", "encoder.stages.0.0.weight", "fuse.locality"):
            gradient = model.get_parameter(name).grad
            assert gradient is not None
            assert gradient.abs().max() > 0, name


class TestLosses:
    def test_focal_is_its_formula(self) -> None:
        logits, heat = torch.tensor([[[0.3, -1.0, 2.0]]], dtype=torch.float64), torch.tensor([[[1.0, 0.4, 0.0]]], dtype=torch.float64)
        p = 1 / (1 + np.exp(-logits.numpy()[0, 0]))
        wanted = -((1 - p[0]) ** 2 * np.log(p[0]) + 0.6**4 * p[1] ** 2 * np.log(1 - p[1]) + p[2] ** 2 * np.log(1 - p[2]))
        assert centre_focal(logits, heat).item() == pytest.approx(wanted)

    def test_centre_target(self) -> None:
        _, cells = patchdrivenet(SMALL).frames(torch.zeros(1, 3, 128, 160))
        wanted = centre_target([torch.tensor([[40.0, 70.0]]), torch.zeros(0, 2)], cells)
        assert torch.nonzero(wanted.heat == 1).tolist() == [[0, 1, 2]]
        assert wanted.heat[0, 1, 1].item() == pytest.approx(np.exp(-((8 / 32) ** 2 + (22 / 32) ** 2) / (2 * SIGMA**2)))
        assert wanted.offset[0, :, 1, 2].tolist() == pytest.approx([-8 / 32, -10 / 32])
        assert wanted.near[0].sum() == 4
        assert not wanted.near[1].any()


class TestModel:
    @pytest.mark.parametrize(("batch", "channels", "classes"), [(1, 3, ("clear", "target")), (2, 1, ("a", "b", "c")), (3, 4, ())])
    @torch.no_grad()
    def test_shapes(self, batch: int, channels: int, classes: tuple[str, ...]) -> None:
        model = patchdrivenet(dataclasses.replace(SMALL, channels=channels, answers=answers(*classes))).eval()
        output = model(picture(300, 520, batch=batch, channels=channels))
        assert output.maps["detection"].shape == (batch, 1, 10, 17)
        assert ((output.maps["detection"] >= 0) & (output.maps["detection"] <= 1)).all()
        assert set(output.values) == set(model.values) == ({"class"} if classes else set())
        for name, names in model.values.items():
            assert output.values[name].shape == (batch, len(names))
            torch.testing.assert_close(output.values[name].sum(dim=1), torch.ones(batch))
        assert len(output.objects) == batch

    def test_is_what_it_says(self) -> None:
        model = patchdrivenet(SMALL)
        assert isinstance(model, DriveModel)
        assert isinstance(model.glance, PatchModel)
        assert isinstance(model.encoder, PatchModel)
        for spec in (model.glance.spec, model.encoder.spec):
            assert ModelSpec.from_dict(spec.to_dict()) == spec
        assert [o.name for o in model.glance.spec.outputs] == ["features", "score"]
        given = model.encoder(torch.zeros(2, 3, 64, 64))
        (vector,) = model.encoder.spec.vectors
        assert given[vector.name].shape == (2, len(vector.channels))
        sized = patchdrivenet(dataclasses.replace(SMALL, pixel_size=0.5, unit="um"))
        assert (sized.encoder.spec.pixel_size, sized.glance.spec.pixel_size) == (0.5, 4.0)

    def test_traits_shape_it(self) -> None:
        config = PatchDriveNetConfig.for_traits(ImageTraits(channels=("nir",), dtype="uint16", kind="scene"))
        assert (config.channels, config.scale, config.fill) == (1, 1 / 65535, 0.0)

    def test_saved_and_loaded_is_the_same(self, tmp_path) -> None:
        model = shaken(dataclasses.replace(SMALL, answers=answers("a", "b", "c"), pixel_size=0.5, unit="um"))
        save_patchdrivenet(model, tmp_path / "m.safetensors")
        again = load_patchdrivenet(tmp_path / "m.safetensors")
        assert again.digest == model.digest
        assert again.config == model.config
        assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]

    def test_digest_follows_what_decides(self) -> None:
        model = patchdrivenet(SMALL)
        assert patchdrivenet(SMALL).digest == model.digest
        view = model.with_max_patches(7)
        assert view.digest != model.digest
        assert view.encoder is model.encoder
        assert model.config.max_patches == 6
        with torch.no_grad():
            model.encoder.content.bias[0] += 1
        assert patchdrivenet(SMALL).digest != model.digest
        assert view.with_max_patches(6).digest == model.digest

    def test_refusals(self, tmp_path) -> None:
        with pytest.raises(ModelError, match="multiple of 8"):
            PatchDriveNetConfig(width=20)
        with pytest.raises(ModelError, match="at least 1"):
            patchdrivenet(SMALL).with_max_patches(0)
        (tmp_path / "no.safetensors").write_bytes(b"no")
        with pytest.raises(ModelError, match="cannot be opened"):
            load_patchdrivenet(tmp_path / "no.safetensors")
