"""Perturbed top-k against its exact expectation and against explicit one-hots; the merge of iterative selection against one sort."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from largest import Largest

from patchdrive.models import select
from patchdrive.models.select import keep_best, topk_hard, topk_perturbed
from patchdrive.readers.errors import ModelError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def expected(score, worth, sigma):
    """E[sum_r worth[r, idx_r]], exactly: each set is the top k with the probability that its least exceeds the others' greatest.

    That is the integral over t of the density of the others' greatest at t, times the chance that all of the set lie above t.
    """
    ranks, count = worth.shape
    t = torch.linspace(float(score.min()) - 9 * sigma, float(score.max()) + 9 * sigma, 8001, dtype=torch.float64)
    normal = torch.distributions.Normal(score[:, None], sigma)
    below, density = normal.cdf(t), normal.log_prob(t).exp()
    total = torch.zeros((), dtype=torch.float64)
    for chosen in itertools.combinations(range(count), ranks):
        others = [n for n in range(count) if n not in chosen]
        greatest = sum(density[o] * below[[p for p in others if p != o]].prod(dim=0) for o in others)
        chance = torch.trapezoid(greatest * (1 - below[list(chosen)]).prod(dim=0), t)
        total = total + chance * sum(worth[rank, n] for rank, n in enumerate(chosen))
    return total


def whole(perturbed, count):
    """Shares over all cells, [B, k, N]."""
    at = perturbed.cell.where(perturbed.valid, count)[:, None].expand_as(perturbed.share)
    return perturbed.share.new_zeros(*perturbed.share.shape[:2], count + 1).scatter(2, at, perturbed.share)[:, :, :count]


class TestPerturbed:
    @pytest.mark.parametrize("sigma", [0.3, 1.0])
    def test_gradient_is_that_of_the_expectation(self, sigma):
        score = torch.tensor([0.4, -0.2, 0.5, 0.1], dtype=torch.float64)
        worth = torch.randn(2, 4, dtype=torch.float64, generator=generator(1))
        asked = score[None].clone().requires_grad_()
        found = topk_perturbed(asked, 2, generator(), reads=4, samples=400_000, sigma=sigma)
        value = (whole(found, 4)[0] * worth).sum()
        value.backward()
        step = 1e-4
        wanted = torch.stack(
            [(expected(score + d, worth, sigma) - expected(score - d, worth, sigma)) / (2 * step) for d in step * torch.eye(4)]
        )
        assert wanted.abs().max() > 0.2
        assert value.item() == pytest.approx(expected(score, worth, sigma).item(), abs=5e-3)
        torch.testing.assert_close(asked.grad[0], wanted, atol=0.015, rtol=0)  # five times the error of that many samples, and more

    @pytest.mark.parametrize("reads", [3, 5, 40])
    def test_is_what_explicit_one_hots_give(self, reads):
        """The twin: every sample's k x N one-hot, every Jacobian, by loops; then cells that are not read cut away."""
        batch, count, k, samples, sigma = 2, 9, 3, 13, 0.7
        score = torch.randn(batch, count, dtype=torch.float64, generator=generator(3)).requires_grad_()
        found = topk_perturbed(score, k, generator(4), reads=reads, samples=samples, sigma=sigma)
        upstream = torch.randn(found.share.shape, dtype=torch.float64, generator=generator(5))
        (gradient,) = torch.autograd.grad((found.share * upstream).sum(), score)
        noise = torch.randn(batch, samples, count, dtype=torch.float64, generator=generator(4))
        for b in range(batch):
            one_hots = []
            for s in range(samples):
                noisy = (score[b] + sigma * noise[b, s]).tolist()
                best = sorted(range(count), key=noisy.__getitem__, reverse=True)[:k]
                one_hots.append(torch.eye(count, dtype=torch.float64)[sorted(best)])
            mean = sum(one_hots) / samples
            cells = found.cell[b][found.valid[b]].tolist()
            assert cells == sorted(cells)
            assert len(cells) == min(reads, int((mean.sum(0) > 0).sum()))
            torch.testing.assert_close(found.share[b][:, found.valid[b]], mean[:, cells])
            assert (found.share[b][:, ~found.valid[b]] == 0).all()
            jacobian = sum(torch.einsum("kn,m->knm", one_hots[s] - mean, noise[b, s]) for s in range(samples)) / (samples * sigma)
            wanted = torch.einsum("kn,knm->m", upstream[b][:, found.valid[b]], jacobian[:, cells])
            torch.testing.assert_close(gradient[b], wanted)

    def test_cap_keeps_the_most_picked(self):
        score = torch.tensor([[0.0, 0.1, 0.2, 5.0, 0.1, 0.0]])
        found = topk_perturbed(score, 2, generator(), reads=4, samples=500, sigma=1.0)
        everything = whole(topk_perturbed(score, 2, generator(), reads=6, samples=500, sigma=1.0), 6)[0]
        assert set(found.cell[0].tolist()) == set(everything.sum(dim=0).argsort(descending=True)[:4].tolist())
        assert found.share.sum(dim=2).min() < 1
        torch.testing.assert_close(found.indicator.sum(dim=2), torch.ones(1, 2))

    def test_no_cap_leaves_a_rank_without_its_most_frequent_cell(self):
        score = torch.randn(200, 40, generator=generator(1)).cumsum(dim=1) / 3
        free = topk_perturbed(score, 3, generator(2), reads=40, samples=6, sigma=1.0)
        capped = topk_perturbed(score, 3, generator(2), reads=3, samples=6, sigma=1.0)
        assert torch.equal(capped.share.amax(dim=2), free.share.amax(dim=2))
        torch.testing.assert_close(capped.indicator.sum(dim=2), torch.ones(200, 3))

    def test_mix_is_the_mean_token_of_each_rank(self):
        score, tokens = torch.randn(2, 12, generator=generator(1)), torch.randn(2, 12, 5, generator=generator(2))
        found = topk_perturbed(score, 3, generator(3), reads=12, samples=50, sigma=0.5)
        read = tokens.gather(1, found.cell.clamp_min(0)[..., None].expand(-1, -1, 5))
        torch.testing.assert_close(found.mix(read), whole(found, 12) @ tokens)

    def test_learns_where_the_worth_lies_from_tokens_alone(self):
        tokens = torch.zeros(1, 30, 1)
        tokens[0, [4, 17, 21]] = 1.0
        score = torch.zeros(1, 30, requires_grad=True)
        optimiser = torch.optim.Adam([score], lr=0.1)
        for step in range(60):
            found = topk_perturbed(score, 3, generator(step), reads=30, samples=100, sigma=0.5)
            read = tokens.gather(1, found.cell.clamp_min(0)[..., None])
            optimiser.zero_grad()
            (-found.mix(read).sum()).backward()
            optimiser.step()
        assert sorted(topk_hard(score.detach(), 3)[0][0].tolist()) == [4, 17, 21]

    def test_inclusion_is_a_gate_with_gradient(self):
        score = torch.randn(1, 8, generator=generator(1)).requires_grad_()
        found = topk_perturbed(score, 3, generator(2), reads=8, samples=2000, sigma=0.5)
        assert ((found.inclusion[found.valid] > 0) & (found.inclusion[found.valid] < 1 + 1e-5)).all()
        assert found.inclusion.sum().item() == pytest.approx(3, abs=1e-4)
        found.inclusion[0, 2].backward()
        assert score.grad[0, found.cell[0, 2]] > 0
        assert score.grad[0, found.cell[0, 2]] == score.grad.max()

    def test_little_noise_is_hard_by_position(self):
        score = torch.randn(3, 50, generator=generator(1)).requires_grad_()
        found = topk_perturbed(score, 4, generator(2), reads=6, samples=20, sigma=1e-6)
        hard = topk_hard(score.detach(), 4)[0].sort(dim=1).values
        assert torch.equal(found.cell[:, :4], hard)
        assert (found.cell[:, 4:] == -1).all()
        torch.testing.assert_close(found.share[:, :, :4], torch.eye(4).expand(3, -1, -1))
        found.share.mul(torch.randn(3, 4, 6, generator=generator(3))).sum().backward()
        assert (score.grad == 0).all()

    def test_what_may_not_be_picked_is_not_and_ranks_may_stay_empty(self):
        score = torch.full((2, 7), -torch.inf)
        score[0, [1, 5]] = torch.tensor([0.1, 0.2])
        score.requires_grad_()
        found = topk_perturbed(score, 3, generator(), reads=5, samples=30, sigma=1.0)
        assert found.cell.tolist() == [[1, 5, -1, -1, -1], [-1] * 5]
        assert found.indicator.sum(dim=2).tolist() == [[1, 1, 0], [0, 0, 0]]
        (found.mix(torch.randn(2, 5, 4, generator=generator(1))).square().sum() + found.inclusion.square().sum()).backward()
        assert torch.isfinite(score.grad).all()
        assert (score.grad[score == -torch.inf] == 0).all()

    def test_more_ranks_than_cells(self):
        found = topk_perturbed(torch.zeros(1, 2), 4, generator(), reads=4, samples=9, sigma=1.0)
        assert found.cell.tolist() == [[0, 1, -1, -1]]
        assert found.share[0, :, :2].tolist() == [[1, 0], [0, 1], [0, 0], [0, 0]]

    def test_makes_no_one_hot_and_no_jacobian(self):
        samples, k, count = 50, 40, 500
        with Largest() as largest:
            score = torch.zeros(1, count, requires_grad=True)
            found = topk_perturbed(score, k, generator(), reads=60, samples=samples, sigma=1.0)
            found.mix(torch.randn(1, 60, 8, generator=generator(1))).square().sum().backward()
        assert score.grad.abs().max() > 0
        assert largest.bytes <= 8 * samples * (k + count)  # a one-hot would be 4 * S * k * N, forty times that

    def test_refusals(self):
        score = torch.zeros(1, 9)
        for k, reads, samples, sigma in [(0, 3, 5, 1.0), (4, 3, 5, 1.0), (2, 3, 0, 1.0), (2, 3, 5, 0.0)]:
            with pytest.raises(ModelError, match="perturbed top-k needs"):
                topk_perturbed(score, k, generator(), reads=reads, samples=samples, sigma=sigma)


class TestKeepBest:
    @given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 15), st.integers(0, 10_000))
    @settings(deadline=None, max_examples=80)
    def test_any_chunks_in_any_order_end_as_one_sort(self, count, k, chunk, seed):
        draw = generator(seed)
        score = torch.randint(0, 4, (2, count), generator=draw).float()  # many ties
        score[torch.rand(score.shape, generator=draw) < 0.2] = -torch.inf
        best, held = torch.full((2, k), -torch.inf), torch.full((2, k), -1)
        for new in torch.randperm(count, generator=draw).split(chunk):
            joined = torch.cat([held, new.expand(2, -1)], dim=1)
            kept = keep_best(torch.cat([best, score[:, new]], dim=1), joined, k)
            taken = joined.gather(1, kept.place)
            assert torch.equal(taken.where(kept.valid, -1), kept.cell)
            best, held = kept.score, kept.cell
        index, valid = topk_hard(score, k)
        assert torch.equal(held, index)
        assert torch.equal(kept.valid, valid)
        assert torch.equal(best, score.gather(1, index.clamp_min(0)).masked_fill(~valid, -torch.inf))

    def test_fewer_than_slots(self):
        kept = keep_best(torch.tensor([[1.0, -torch.inf, 3.0]]), torch.tensor([[7, 8, 9]]), 5)
        assert kept.cell.tolist() == [[9, 7, -1, -1, -1]]
        assert kept.place.tolist() == [[2, 0, 0, 0, 0]]
        assert kept.score.tolist() == [[3.0, 1.0, -torch.inf, -torch.inf, -torch.inf]]


@given(
    st.lists(st.sampled_from([-np.inf, 0.0, 1.0, 1.5, 2.0]), min_size=1, max_size=300),
    st.integers(0, 320),
    st.integers(1, 50),
)
@settings(deadline=None, max_examples=150)
def test_the_best_are_those_of_putting_all_in_order(values: list[float], k: int, part: int) -> None:
    score = torch.tensor([values])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(select, "_PART", part)
        index, valid = select.topk_hard(score, k)
    hashed = [cell * 2_654_435_761 % 2**32 for cell in range(len(values))]
    order = sorted((cell for cell in range(len(values)) if values[cell] > -np.inf), key=lambda cell: (-values[cell], hashed[cell]))[:k]
    assert index.tolist() == [[*order, *[-1] * (k - len(order))]]
    assert valid.tolist() == [[True] * len(order) + [False] * (k - len(order))]
