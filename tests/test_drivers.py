"""Drivers: that each is what it says beside its slow twin, and that tensors and the pipeline take the same road."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import KDTree

from patchdrive.models.answers import AnswerSpec
from patchdrive.models.config import DRIVERS, PatchDriveNetConfig
from patchdrive.models.drivers import SaliencyDriver
from patchdrive.models.explain import influence
from patchdrive.models.fuse import QUERIES, Frame
from patchdrive.models.heads import Fused
from patchdrive.models.iterative import IterativeDriver
from patchdrive.models.lattice import Lattice
from patchdrive.models.load import load_model
from patchdrive.models.mixers import NeighbourMixer
from patchdrive.models.model import PatchDrive, converse, patchdrivenet
from patchdrive.models.recurrent import RecurrentDriver
from patchdrive.models.search import Sampling
from patchdrive.models.step import LossWeights, Wanted, step_losses
from patchdrive.models.types import Audit, Glance, Selection, Tokens
from patchdrive.pipeline import RunSettings, open_result, run
from patchdrive.pipeline.missed import missed_of
from patchdrive.readers import MemoryImage
from patchdrive.readers.geometry import Level

SMALL = PatchDriveNetConfig(
    width=16,
    patch_size=32,
    max_patches=12,
    per_step=4,
    zoom=2,
    answers=(AnswerSpec(name="class", classes=("clear", "target")), AnswerSpec(name="marks", classes=("a", "b", "c"), many=True)),
    segments=("ground", "thing"),
    boxes=True,
    embedding=True,
    threshold=0.02,
)


EACH = [driver if driver in {"recurrent", "drill-down"} else pytest.param(driver, marks=pytest.mark.slow) for driver in DRIVERS]
"""All drivers; in a hurry, those of several rounds."""


def shaken(config: PatchDriveNetConfig = SMALL) -> PatchDrive:
    """A model none of whose weights is zero, so that every path counts."""
    model = patchdrivenet(config)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return model.eval()


def picture(height: int, width: int, *, batch: int = 1) -> torch.Tensor:
    """Noise with dark blobs."""
    generator = torch.Generator().manual_seed(3)
    noise = torch.rand(batch, 3, height, width, generator=generator) * 60 + 150
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    for _ in range(8):
        cy, cx = (torch.rand(2, generator=generator) * torch.tensor([height, width])).tolist()
        noise = noise.where(torch.hypot(y - cy, x - cx) > 15, noise * 0.5)
    return noise.to(torch.uint8)


def rounds(model: PatchDrive, image: torch.Tensor) -> list[Selection]:
    """What it asks for, round by round."""
    grid, cells = model.frames(image)
    asked: list[Selection] = []

    def read(selection: Selection) -> Tokens:
        asked.append(selection)
        return model.read(image, selection, grid)

    converse(model.drive(model.look(image), cells, grid), read)
    return asked


def level(height: int, width: int, downsample: float = 1.0) -> Level:
    return Level(
        index=0, height=height, width=width, downsample_y=downsample, downsample_x=downsample, tile_height=height, tile_width=width
    )


class TestRoads:
    @pytest.mark.parametrize("driver", EACH)
    def test_a_run_over_a_slide_is_forward(self, driver: str, tmp_path: Path) -> None:
        config = dataclasses.replace(SMALL, driver=driver, fill=0.0, per_step=64 if driver == "iterative" else 4)  # a round is 20 files
        model, pixels = shaken(config), picture(704, 512)
        stored = pixels[0].permute(1, 2, 0).numpy().copy()
        coarse = stored.reshape(352, 2, 256, 2, 3).mean(axis=(1, 3)).round().astype(np.uint8)
        image = MemoryImage([stored, coarse], mpp=(0.5, 0.5))
        with torch.no_grad():
            wanted = model(pixels)
        report = run(image, model, tmp_path / "s.zarr", settings=RunSettings(saliency="valid"))
        assert report.status == "done"
        result = open_result(tmp_path / "s.zarr")
        assert [len(one.plan) for one in result.rounds] == [int(one.valid.sum()) for one in rounds(model, pixels)]
        assert result.answers["class"]["target"] == pytest.approx(wanted.values["class"][0, 1].item(), abs=2e-3)
        assert result.answers["marks"]["b"] == pytest.approx(wanted.values["marks"][0, 1].item(), abs=2e-3)
        objects = result.objects["objects"]
        assert objects.boxes is not None
        assert len(objects) == len(wanted.objects[0].yx) > 0
        assert wanted.objects[0].size is not None
        ours = np.concatenate([objects.yx, objects.boxes.size], axis=1)
        theirs = torch.cat([wanted.objects[0].yx, wanted.objects[0].size], dim=1).numpy()
        apart, twin = KDTree(theirs[:, :2]).query(ours[:, :2])
        assert sorted(twin) == list(range(len(theirs)))  # equal scores may change places
        assert apart.max() < 0.2
        np.testing.assert_allclose(ours[:, 2:], theirs[twin, 2:], rtol=0.02)
        assert objects.boxes.classes == ("target",)
        top = np.asarray(result.maps["segmentation"].array[:])
        assert top.shape == tuple(wanted.maps["segmentation"].shape[2:])
        right = top == wanted.maps["segmentation"][0].argmax(dim=0).numpy()
        assert right.mean() > 0.99
        assert result.embedding is not None
        assert wanted.embedding is not None
        np.testing.assert_allclose(result.embedding, wanted.embedding[0].numpy(), atol=0.02)
        assert result.attention is not None
        assert wanted.attended is not None
        assert np.nansum(result.attention) == pytest.approx(wanted.attended.attention.sum().item(), abs=1e-3)
        assert np.count_nonzero(~np.isnan(result.attention)) == int(wanted.attended.selection.valid.sum())

    @pytest.mark.parametrize("driver", EACH)
    @torch.no_grad()
    def test_one_patch_at_a_time_is_all_at_once(self, driver: str) -> None:
        model, image = shaken(dataclasses.replace(SMALL, driver=driver)), picture(400, 300, batch=2)
        one, many = model(image, chunk=1), model(image, chunk=256)
        for name, values in many.maps.items():
            torch.testing.assert_close(one.maps[name], values, atol=1e-5, rtol=1e-4)
        for name, values in many.values.items():
            torch.testing.assert_close(one.values[name], values, atol=1e-5, rtol=1e-4)
        assert many.attended is not None
        assert one.attended is not None
        torch.testing.assert_close(one.attended.attention, many.attended.attention, atol=1e-5, rtol=1e-4)

    @torch.no_grad()
    def test_the_modular_preset_mixes_neighbours(self, tmp_path: Path) -> None:
        model = load_model("patchdrivenet-modular")
        assert isinstance(model, PatchDrive)
        assert isinstance(model.mixer, NeighbourMixer)
        assert model.encoder.spec.size == 32
        pixels = picture(512, 480)
        image = MemoryImage([pixels[0].permute(1, 2, 0).numpy().copy()], mpp=(0.5, 0.5))
        run(image, model, tmp_path / "s.zarr", settings=RunSettings(saliency="valid", max_patches=9))
        wanted = model.with_max_patches(9)(pixels)
        assert open_result(tmp_path / "s.zarr").answers["class"]["target"] == pytest.approx(wanted.values["class"][0, 1].item(), abs=2e-3)
        assert "patchdrivenet-modular" in open_result(tmp_path / "s.zarr").tables

    @torch.no_grad()
    def test_a_map_made_in_strips_is_the_map(self) -> None:
        model, image = shaken(), picture(2400, 2304)
        grid, cells = model.frames(image)
        assert cells.height * cells.width > QUERIES
        glance = model.look(image)
        tokens = model.read(image, next(model.driver.ask(model.search(glance, cells, grid))), grid)
        extent = (cells.height * cells.downsample_y, cells.width * cells.downsample_x)
        fused, queries = model.fuse(glance, tokens, cells, Frame(origin=(0.0, 0.0), extent=extent), queries=10**9)
        said = model.answer(glance, tokens, cells)
        for head in model.heads.values():
            for name, values in head(Fused(map=fused, queries=queries)).items():
                torch.testing.assert_close(said[name], values, atol=1e-4, rtol=1e-4)


class TestRecurrent:
    @torch.no_grad()
    def test_one_step_is_parallel_top_k(self) -> None:
        model, image = shaken(dataclasses.replace(SMALL, driver="recurrent", per_step=12)), picture(512, 480, batch=2)
        assert isinstance(model.driver, RecurrentDriver)
        parallel = SaliencyDriver(16)
        parallel.place.load_state_dict(model.driver.place.state_dict())
        grid, cells = model.frames(image)
        search = model.search(model.look(image), cells, grid)
        ours, theirs = next(model.driver.ask(search)), next(parallel.ask(search))
        for field in ("yx", "side", "cell", "weight", "valid"):
            assert torch.equal(getattr(ours, field), getattr(theirs, field))
        assert len(rounds(model, image)) == 1

    @torch.no_grad()
    def test_steps_stay_apart_and_stop_at_k(self) -> None:
        asked = rounds(shaken(dataclasses.replace(SMALL, driver="recurrent", max_patches=30, per_step=8)), picture(700, 600))
        assert [one.valid.shape[1] for one in asked] == [8, 8, 8, 6]
        cells = torch.cat([one.cell[one.valid] for one in asked])
        place = torch.stack([cells // 19, cells % 19], dim=1)
        apart = (place[:, None] - place[None]).abs().amax(dim=2) + 9 * torch.eye(len(cells), dtype=torch.long)
        assert apart.min() > 1

    @torch.no_grad()
    def test_what_was_read_decides_where_it_looks(self) -> None:
        model, image = shaken(dataclasses.replace(SMALL, driver="recurrent")), picture(700, 600)
        grid, cells = model.frames(image)
        asking = [model.driver.ask(model.search(model.look(image), cells, grid)) for _ in range(2)]
        first = [next(one) for one in asking]
        assert torch.equal(first[0].yx, first[1].yx)
        tokens = model.read(image, first[0], grid)
        then = [asking[0].send(tokens), asking[1].send(Tokens(x=-3 * tokens.x, selection=tokens.selection))]
        assert not torch.equal(then[0].weight, then[1].weight)

    @torch.no_grad()
    def test_halts(self) -> None:
        model, image = shaken(dataclasses.replace(SMALL, driver="recurrent")), picture(700, 600, batch=2)
        assert isinstance(model.driver, RecurrentDriver)
        model.driver.halt.bias.fill_(50.0)
        assert [int(one.valid.sum()) for one in rounds(model, image)] == [8]

    def test_ponder_is_the_steps_not_halted(self) -> None:
        model, image = patchdrivenet(dataclasses.replace(SMALL, driver="recurrent")), picture(512, 512)
        losses = step_losses(model, image, Wanted(), Sampling(generator=torch.Generator().manual_seed(0)))
        p = torch.sigmoid(torch.tensor(-4.0))  # nothing but the bias speaks yet
        assert losses["ponder"].item() == pytest.approx(3 * (1 - p.item()), rel=1e-5)


class TestIterative:
    @torch.no_grad()
    def test_a_buffer_that_holds_all_is_full_attention(self) -> None:
        image = picture(256, 320)
        config = dataclasses.replace(SMALL, driver="iterative", max_patches=1000)
        model = shaken(config)
        grid, cells = model.frames(image)
        glance = model.look(image)
        lattice = Lattice.over(grid, 32)
        every = torch.arange(lattice.rows * lattice.columns)[None]
        whole = lattice.select(cells, every, torch.ones_like(every, dtype=torch.bool), torch.ones(every.shape))
        said = model.answer(glance, model.read(image, whole, grid), cells)
        torch.testing.assert_close(model(image).values["class"], torch.softmax(said["class"], dim=1), atol=1e-5, rtol=1e-4)

    @torch.no_grad()
    def test_keeps_the_most_attended_in_constant_memory(self) -> None:
        model, image = shaken(dataclasses.replace(SMALL, driver="iterative", max_patches=5, per_step=7)), picture(256, 320)
        asked = rounds(model, image)
        assert {one.valid.shape[1] for one in asked} == {7, 80 % 7}
        assert sum(int(one.valid.sum()) for one in asked) == 80
        grid, cells = model.frames(image)
        search = model.search(model.look(image), cells, grid)
        tokens = [model.read(image, one, grid) for one in asked]
        kept = tokens[0]  # the slow twin: one buffer, ranked anew each time
        for part in tokens[1:]:
            joined = Tokens.joined([kept, part])
            best = search.rank(joined)[0].argsort(descending=True, stable=True)[:5]
            kept = joined.take(best[None], torch.ones(1, 5, dtype=torch.bool))
        attended = model(image).attended
        assert attended is not None
        assert {tuple(yx) for yx in attended.selection.yx[0].tolist()} == {tuple(yx) for yx in kept.selection.yx[0].tolist()}

    def test_trains_on_what_stays(self) -> None:
        model, image = shaken(dataclasses.replace(SMALL, driver="iterative", max_patches=5, per_step=7)), picture(256, 320)
        assert isinstance(model.driver, IterativeDriver)
        grid, cells = model.frames(image)
        sampling = Sampling(generator=torch.Generator().manual_seed(0))
        gathered = model.gather(image, model.look(image), cells, grid, sampling=sampling)
        assert gathered.tokens.x.shape[1] == 5
        assert gathered.tokens.x.requires_grad


class TestDrillDown:
    @torch.no_grad()
    def test_children_lie_in_their_parents_and_the_limit_holds(self) -> None:
        middle, fine = rounds(shaken(dataclasses.replace(SMALL, driver="drill-down", share=0.34)), picture(700, 600))
        assert (middle.valid.sum(), fine.valid.sum()) == (4, 8)
        assert (middle.side == 64).all()
        assert (fine.side == 32).all()
        apart = (fine.yx[0, :, None] - middle.yx[0, None]).abs().amax(dim=2)
        assert ((apart - 16).abs() < 1e-3).any(dim=1).all()
        assert len({tuple(yx) for yx in fine.yx[0].tolist()}) == 8

    @torch.no_grad()
    def test_follows_its_wish(self) -> None:
        model, image = shaken(dataclasses.replace(SMALL, driver="drill-down", max_patches=3)), picture(700, 600)
        wish = model.driver.wish
        wish.weight.zero_()
        wish.bias.copy_(torch.tensor([-90.0, -90.0, 90.0, -90.0]))  # lower left
        middle, fine = rounds(model, image)
        assert torch.equal(fine.yx[0, 0], middle.yx[0, 0] + torch.tensor([16.0, -16.0]))


class TestExplaining:
    @torch.no_grad()
    def test_influence_is_what_leaving_it_out_changes(self) -> None:
        model, image = shaken(dataclasses.replace(SMALL, mixer="neighbours")), picture(256, 224)
        output = model(image)
        assert output.attended is not None
        grid, cells = model.frames(image)
        glance = model.look(image)
        (selection,) = rounds(model, image)
        tokens = model.read(image, selection, grid)
        assert selection.valid.sum() >= 4
        for slot in selection.valid[0].nonzero()[:, 0].tolist():
            valid = selection.valid.clone()
            valid[0, slot] = False
            left = Tokens(x=tokens.x, selection=dataclasses.replace(selection, valid=valid))
            said = torch.softmax(model.answer(glance, model.mixer(left), cells)["class"], dim=1)
            best = output.values["class"].argmax()
            wanted = (output.values["class"] - said)[0, best].item()
            assert output.attended.influence["class"][0, slot].item() == pytest.approx(wanted, abs=1e-5)

    def test_only_the_most_attended_are_tried(self) -> None:
        x = torch.arange(20.0)[None, :, None]
        ones, valid = torch.ones(1, 20), torch.arange(20)[None] < 18
        tokens = Tokens(x=x, selection=Selection(yx=torch.zeros(1, 20, 2), side=ones, cell=ones.long(), weight=ones, valid=valid))

        def ask(some: Tokens) -> dict[str, torch.Tensor]:
            return {"a": (some.x[..., 0] * some.selection.valid).sum(dim=1, keepdim=True)}

        told = influence(tokens, x[..., 0], ask)["a"][0]
        assert torch.equal(told[2:18], torch.arange(2.0, 18.0))
        assert told[[0, 1, 18, 19]].isnan().all()

    @torch.no_grad()
    def test_an_audit_reads_what_was_not_chosen(self, tmp_path: Path) -> None:
        model, pixels = shaken().with_audit(40), picture(704, 512)
        model.evidence.weight.zero_()
        model.evidence.bias.fill_(9.0)  # sees a target wherever it looks
        chosen, sample = rounds(model, pixels)
        assert sample.valid.sum() == 40
        assert (sample.side == chosen.side[0, 0]).all()
        apart = (sample.yx[0, :, None] - chosen.yx[0, None]).abs().amax(dim=2)
        assert apart.min() > 16
        assert len({tuple(yx) for yx in sample.yx[0].tolist()}) == 40
        (told,) = model(pixels).audits
        assert (told.sampled, told.hits, told.found) == (40, 40, 12)
        image = MemoryImage([pixels[0].permute(1, 2, 0).numpy().copy()], mpp=(0.5, 0.5))
        settings = RunSettings(saliency="valid", audit=40)
        run(image, shaken(), tmp_path / "s.zarr", settings=settings)
        result = open_result(tmp_path / "s.zarr")
        assert [len(one.plan) for one in result.rounds] == [12, 40]
        assert result.audit is not None
        assert result.audit["outside"] == told.outside

    @given(st.integers(0, 30), st.integers(0, 200), st.integers(0, 50), st.floats(0, 0.6))
    @settings(deadline=None, max_examples=40)
    def test_the_interval_holds_the_truth(self, seed: int, more: int, found: int, share: float) -> None:
        n, outside = 60, 60 + more
        rng = np.random.default_rng(seed)
        targets = round(share * outside)
        hits = [int(rng.hypergeometric(targets, outside - targets, n)) for _ in range(60)]
        told = [missed_of(Audit(sampled=n, outside=outside, hits=hit, found=found)) for hit in hits]
        truth = targets / (targets + found) if targets + found else 0.0
        held = [one["missed_low"] - 1e-6 <= truth <= one["missed_high"] + 1e-6 for one in told]
        assert np.mean(held) >= 0.88
        assert all(one["missed_low"] <= one["missed"] <= one["missed_high"] for one in told)


class TestLattice:
    @given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([8, 24, 64]), st.integers(0, 5))
    @settings(deadline=None, max_examples=40)
    def test_scores_are_the_highest_inside(self, height: int, width: int, size: int, seed: int) -> None:
        grid, cells = level(height, width), level(-(-height // 16), -(-width // 16), 16.0)
        generator = torch.Generator().manual_seed(seed)
        score = torch.randn(1, cells.height, cells.width, generator=generator)
        valid = torch.rand(score.shape, generator=generator) > 0.3
        lattice = Lattice.over(grid, size)
        ours = lattice.scores(Glance(features=torch.zeros(1, 8, *score.shape[1:]), score=score, valid=valid), cells)
        for index in range(lattice.rows * lattice.columns):
            top, left = index // lattice.columns * size, index % lattice.columns * size
            home = (min(int(top + size / 2) // 16, cells.height - 1), min(int(left + size / 2) // 16, cells.width - 1))
            inside = {home} | {
                (y, x)
                for y in range(cells.height)
                for x in range(cells.width)
                if min((16 * y + 8) // size, lattice.rows - 1) == index // lattice.columns
                and min((16 * x + 8) // size, lattice.columns - 1) == index % lattice.columns
            }
            wanted = max([score[0, y, x].item() for y, x in inside if valid[0, y, x]], default=-np.inf)
            assert ours[0, index].item() == wanted

    def test_children_tile_their_parent(self) -> None:
        coarse = Lattice.over(level(640, 900), 32, 4)
        inside = coarse.children(torch.arange(coarse.rows * coarse.columns)[None], 4)
        assert sorted(inside.flatten().tolist()) == list(range(coarse.rows * coarse.columns * 16))


class TestTraining:
    def test_a_perturbed_draw_teaches_the_score_and_ends_as_top_k(self) -> None:
        model, image = shaken().train(), picture(400, 380)
        grid, cells = model.frames(image)
        best = next(model.driver.ask(model.search(model.look(image), cells, grid)))
        for sigma, same in ((1e-4, True), (1.0, False)):
            sampling = Sampling(generator=torch.Generator().manual_seed(0), sigma=sigma, jitter=0.0)
            drawn = next(model.driver.ask(model.search(model.look(image), cells, grid, sampling=sampling)))
            assert (int(drawn.valid.sum()) == 12) is same
            if same:
                assert {tuple(yx) for yx in drawn.yx[drawn.valid].tolist()} == {tuple(yx) for yx in best.yx[0].tolist()}
            else:
                (slope,) = torch.autograd.grad(drawn.weight[drawn.valid].square().sum(), model.glance.saliency.weight)
                assert slope.abs().max() > 0

    @pytest.mark.parametrize("driver", EACH)
    def test_constant_memory_gives_the_same_gradient(self, driver: str) -> None:
        image = picture(256, 320, batch=2)
        wanted = Wanted(answers={"class": torch.tensor([0, 1])}, mask=torch.zeros(2, 256, 320, dtype=torch.long))
        gradients = []
        for constant in (False, True):
            model = shaken(dataclasses.replace(SMALL, driver=driver)).train()
            sampling = Sampling(generator=torch.Generator().manual_seed(0))
            losses = step_losses(model, image, wanted, sampling, constant_memory=constant)
            sum(losses.values(), torch.zeros(())).backward()
            gradients.append({name: weight.grad for name, weight in model.named_parameters()})
        assert any(grad is not None and grad.abs().max() > 0 for name, grad in gradients[0].items() if name.startswith("encoder"))
        for name, grad in gradients[0].items():
            if grad is None:
                assert gradients[1][name] is None
            else:
                torch.testing.assert_close(gradients[1][name], grad, atol=1e-6, rtol=1e-4)

    @pytest.mark.parametrize("driver", EACH)
    def test_every_weight_of_a_driver_learns(self, driver: str) -> None:
        model = shaken(dataclasses.replace(SMALL, driver=driver)).train()
        places = [torch.tensor([[60.0, 80.0], [200.0, 130.0]])]
        wanted = Wanted(targets=places, sizes=[torch.full((2, 2), 30.0)], answers={"class": torch.tensor([1])})
        losses = step_losses(model, picture(256, 320), wanted, Sampling(generator=torch.Generator().manual_seed(0)))
        assert set(losses) <= set(LossWeights.__slots__)
        sum(losses.values(), torch.zeros(())).backward()
        for name, weight in model.driver.named_parameters():
            assert weight.grad is not None, name
            assert weight.grad.abs().max() > 0, name


def tree(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }
