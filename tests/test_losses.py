"""The terms of the loss are their formulas, and stay finite where formulas would not."""

from __future__ import annotations

import math

import pytest
import torch

from patchdrive.models.losses import budget_loss, centre_target, entropy_loss, multi_instance_loss, selection_loss, size_loss
from patchdrive.models.types import Selection
from patchdrive.readers.geometry import Level


def chosen(weight, valid):
    """A Selection of these gates [B, K]."""
    weight, valid = torch.as_tensor(weight), torch.tensor(valid)
    return Selection(
        yx=torch.zeros(*valid.shape, 2),
        side=torch.ones(valid.shape),
        cell=torch.zeros(valid.shape, dtype=torch.int64),
        weight=weight,
        valid=valid,
    )


def drawn(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class TestSelection:
    def test_mean_is_per_image_and_sum_is_the_plain_one(self):
        selection = chosen([[0.5, 0.1, 1.0], [0.3, 0.9, 0.9], [1.0, 1.0, 1.0]], [[True, True, False], [True, False, False], [False] * 3])
        assert selection_loss(selection).item() == pytest.approx(((0.5 + 0.1) / 2 + 0.3 + 0) / 3)
        assert selection_loss(selection, reduction="sum").item() == pytest.approx((0.5 + 0.1 + 0.3 + 0) / 3)

    def test_gradient_is_the_price(self):
        weight = torch.full((2, 4), 0.5, requires_grad=True)
        selection_loss(chosen(weight, [[True] * 4, [True, True, False, False]])).backward()
        assert weight.grad.tolist() == [[1 / 8] * 4, [1 / 4, 1 / 4, 0, 0]]


class TestBudget:
    def test_is_its_formula(self):
        weight = torch.tensor([[0.5, 0.1, 1.0], [0.3, 0.9, 0.8], [1.0, 1.0, 1.0]])
        valid = torch.tensor([[True, True, False], [True, True, True], [False] * 3])
        wanted = ((0.3 - 0.25) ** 2 + (2 / 3 - 0.25) ** 2) / 2  # the image without cells does not count
        assert budget_loss(weight, valid, 0.25).item() == pytest.approx(wanted)

    def test_ends_at_its_target(self):
        logit = torch.full((1, 20), -3.0, requires_grad=True)
        valid = torch.arange(20)[None] < 15
        optimiser = torch.optim.Adam([logit], lr=0.1)
        for _ in range(80):
            optimiser.zero_grad()
            budget_loss(torch.sigmoid(logit), valid, 0.4).backward()
            optimiser.step()
        assert torch.sigmoid(logit)[valid].mean().item() == pytest.approx(0.4, abs=1e-3)
        assert (logit[~valid] == -3).all()


class TestEntropy:
    def test_is_its_formula(self):
        score, valid = drawn(2, 3, 4), torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(1)) > 0.3
        wanted = []
        for b in range(2):
            p = torch.softmax(score[b][valid[b]], dim=0)
            wanted.append(-(p * p.log()).sum())
        torch.testing.assert_close(entropy_loss(score, valid), torch.stack(wanted).mean())
        torch.testing.assert_close(entropy_loss(score.flatten(1), valid.flatten(1)), torch.stack(wanted).mean())

    def test_scale_is_fixed(self):
        valid = torch.ones(1, 64, dtype=torch.bool)
        assert entropy_loss(torch.zeros(1, 64), valid).item() == pytest.approx(math.log(64))
        assert entropy_loss(torch.full((1, 64), 1e4), valid).item() == pytest.approx(math.log(64))  # a level says nothing
        score = drawn(1, 64)
        assert entropy_loss(9 * score, valid) < entropy_loss(score, valid)  # a range does

    def test_gradient_is_that_of_finite_differences(self):
        valid = torch.tensor([[True, True, False, True], [False] * 4])
        assert torch.autograd.gradcheck(lambda score: entropy_loss(score, valid), drawn(2, 4).requires_grad_())

    def test_certainty_and_nothing_to_see_are_finite(self):
        score = torch.tensor([[1e4, -1e4, 0.0], [1.0, 2.0, 3.0]], requires_grad=True)
        loss = entropy_loss(score, torch.tensor([[True] * 3, [False] * 3]))
        loss.backward()
        assert loss.item() == pytest.approx(0, abs=1e-6)
        assert torch.isfinite(score.grad).all()
        assert (score.grad[1] == 0).all()


class TestMultiInstance:
    def test_is_its_formula(self):
        logits, labels = drawn(3, 5, 4), torch.randint(0, 2, (3, 4), generator=torch.Generator().manual_seed(1)).double()
        valid = torch.rand(3, 5, generator=torch.Generator().manual_seed(2)) > 0.3
        valid[2] = False  # vouches for nothing
        wanted = []
        for b in range(2):
            present = 1 - (1 - torch.sigmoid(logits[b][valid[b]])).prod(dim=0)
            wanted.append(-(labels[b] * present.log() + (1 - labels[b]) * (1 - present).log()).mean())
        torch.testing.assert_close(multi_instance_loss(logits, labels, valid), torch.stack(wanted).mean())

    def test_gradient_is_that_of_finite_differences(self):
        labels, valid = torch.tensor([[0.0, 1.0, 0.3]]).double(), torch.tensor([[True, True, False]])
        for scale, shift in [(1.0, 0.0), (1.0, -14.5), (5.0, 5.0)]:
            logits = (drawn(1, 3, 3, scale=scale) + shift).requires_grad_()
            assert torch.autograd.gradcheck(lambda z: multi_instance_loss(z, labels, valid), logits)

    @pytest.mark.parametrize("level", [-1e4, -200.0, -90.0, -15.0, -5.0, 5.0, 90.0, 1e4])
    @pytest.mark.parametrize("label", [0.0, 1.0])
    def test_float32_is_right_at_every_level(self, level, label):
        """Against float64 in logs by another road: log(1 - e^-a) = log(a) - a / 2 + a^2 / 24 for small a, log1p(-e^-a) else."""
        spread = torch.tensor([[[0.0], [0.5], [-0.7]]])
        logits = (spread + level).requires_grad_()
        loss = multi_instance_loss(logits, torch.full((1, 1), label), torch.ones(1, 3, dtype=torch.bool))
        loss.backward()
        z = (spread + level).double().flatten()
        if level < -4:
            p = torch.exp(z)
            log_a = torch.logsumexp(z, dim=0) + torch.log1p(-(p * p / 2 - p**3 / 3 + p**4 / 4).sum() / p.sum().clamp_min(1e-300))
            a = log_a.exp()
            log_present = log_a - a / 2 + a * a / 24
        else:
            a = torch.nn.functional.softplus(z).sum()
            log_present = torch.log1p(-torch.exp(-a))
        wanted = -log_present if label else a
        assert loss.item() == pytest.approx(wanted.item(), rel=1e-5, abs=1e-6)
        assert torch.isfinite(logits.grad).all()
        if label and level < -14:  # every patch is taught, by shares of softmax
            torch.testing.assert_close(logits.grad.flatten(), -torch.softmax(z, dim=0).float(), rtol=1e-3, atol=0)

    def test_no_patches_at_all(self):
        logits = torch.randn(2, 3, 4, requires_grad=True)
        loss = multi_instance_loss(logits, torch.ones(2, 4), torch.zeros(2, 3, dtype=torch.bool))
        loss.backward()
        assert loss.item() == 0
        assert (logits.grad == 0).all()

    def test_empty_slots_say_nothing(self):
        logits, labels = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([[1.0, 0.0, 1.0, 0.0]])
        few = multi_instance_loss(logits, labels, torch.ones(1, 3, dtype=torch.bool))
        padded = torch.cat([logits, torch.full((1, 2, 4), torch.nan)], dim=1)
        assert multi_instance_loss(padded, labels, torch.tensor([[True, True, True, False, False]])) == few

    @pytest.mark.slow  # 10 s
    def test_labels_of_images_find_the_patch(self):
        """Which patch holds what is never said: the image's labels alone bring it out."""
        generator = torch.Generator().manual_seed(0)
        patches = torch.rand(400, 6, 10, generator=generator) < 0.03  # ten things, each seldom in a patch
        labels = patches.any(dim=1).float()
        seen = (patches.float() + 0.1 * torch.randn(patches.shape, generator=generator)) @ torch.randn(10, 10, generator=generator)
        linear = torch.nn.Linear(10, 10)
        torch.nn.init.zeros_(linear.weight)
        torch.nn.init.constant_(linear.bias, -2.0)
        optimiser = torch.optim.Adam(linear.parameters(), lr=0.1)
        for _ in range(150):
            optimiser.zero_grad()
            multi_instance_loss(linear(seen), labels, torch.ones(400, 6, dtype=torch.bool)).backward()
            optimiser.step()
        assert ((linear(seen) > 0) == patches).float().mean() > 0.99


class TestSize:
    def test_the_cells_near_a_target_say_its_size_and_no_others(self):
        cells = Level(index=0, height=4, width=6, downsample_y=16.0, downsample_x=8.0, tile_height=4, tile_width=6)
        targets = [torch.tensor([[24.0, 12.0], [40.0, 44.0]]), torch.zeros(0, 2)]  # in the middle of the cells 1, 1 and 2, 5
        sizes = [torch.tensor([[32.0, 8.0], [16.0, 24.0]]), torch.zeros(0, 2)]
        said = torch.full((2, 2, 4, 6), 100.0)
        for (y, x), size in (((1, 1), (32 / 16, 8 / 8)), ((2, 5), (16 / 16, 24 / 8))):
            said[0, :, y - 1 : y + 2, x - 1 : x + 2] = torch.tensor(size).log()[:, None, None]
        target = centre_target(targets, cells)
        assert size_loss(said, target, sizes, cells).item() == pytest.approx(0, abs=1e-6)
        said[0, 0, 0, 0] += 1.5  # of 15 cells near a target, two sizes each
        assert size_loss(said, target, sizes, cells).item() == pytest.approx(1.5 / 30)
        said.requires_grad_()
        size_loss(said, target, sizes, cells).backward()
        assert said.grad[1].abs().max() == 0

    def test_without_any_target_it_is_zero(self):
        cells = Level(index=0, height=2, width=2, downsample_y=16.0, downsample_x=16.0, tile_height=2, tile_width=2)
        none = [torch.zeros(0, 2)]
        assert size_loss(torch.ones(1, 2, 2, 2), centre_target(none, cells), none, cells).item() == 0
