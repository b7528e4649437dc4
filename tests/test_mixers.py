"""Mixers against loops over slots; what must hold of both whatever their weights."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from largest import Largest
from torch import nn
from torch.nn import functional

from patchdrive.models.lattice import Lattice
from patchdrive.models.mixers import NeighbourMixer, WindowMixer, grid_place, nearest
from patchdrive.models.types import Selection, Tokens
from patchdrive.readers.errors import ModelError
from patchdrive.readers.geometry import Level

WIDTH = 16
SIDE = 32.0


def selection(yx, *, side=SIDE, valid=None):
    """[B, K, 2] centres."""
    return Selection(
        yx=yx,
        side=torch.full(yx.shape[:2], side),
        cell=torch.zeros(yx.shape[:2], dtype=torch.int64),
        weight=torch.ones(yx.shape[:2]),
        valid=torch.ones(yx.shape[:2], dtype=torch.bool) if valid is None else valid,
    )


def tokens_of(chosen, seed=0):
    x = torch.randn(*chosen.valid.shape, WIDTH, generator=torch.Generator().manual_seed(seed))
    return Tokens(x=x.where(chosen.valid[..., None], 0.0), selection=chosen)


def grid(height, width, *, holes=0.0, seed=0, batch=1):
    """Patches side by side, slots in no order; `holes` is the share of empty slots."""
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width)) + 0.5
    generator = torch.Generator().manual_seed(seed)
    yx = torch.stack([places[torch.randperm(len(places), generator=generator)] * SIDE for _ in range(batch)])
    return selection(yx, valid=torch.rand(yx.shape[:2], generator=generator) >= holes)


def scattered(count, *, batch=2, holes=0.2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    yx = torch.rand(batch, count, 2, generator=generator) * 1000
    return selection(yx, valid=torch.rand(batch, count, generator=generator) >= holes)


def shaken(mixer):
    """None of its weights is zero."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in mixer.parameters():
            weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
    return mixer


def attended(attention, x, yx, asking, heard):
    """What attention adds to one slot, by its formula: x [K, D], yx [K, 2], slots."""
    normed = attention.norm(x)
    q, (k, v) = attention.query(normed[asking]), attention.key_value(normed).chunk(2, dim=1)
    size = x.shape[1] // attention.heads
    parts = []
    for head in range(attention.heads):
        part = slice(head * size, (head + 1) * size)
        logits = []
        for other in heard:
            apart = (yx[other] - yx[asking]) / SIDE
            place = attention.place(torch.sign(apart) * torch.log(1 + apart.abs()))[head]
            logits.append(q[part] @ k[other, part] / size**0.5 + place)
        parts.append(torch.softmax(torch.stack(logits), dim=0) @ v[heard, part])
    return attention.output(torch.cat(parts))


def near_by_hand(mixer, tokens):
    """The twin of NeighbourMixer: every slot on its own, all distances of it in a list."""
    out, chosen = torch.zeros_like(tokens.x), tokens.selection
    for b, row in enumerate(chosen.valid):
        filled = torch.nonzero(row)[:, 0].tolist()
        for i in filled:
            others = sorted((o for o in filled if o != i), key=lambda o: float((chosen.yx[b, o] - chosen.yx[b, i]).norm()))
            heard = [i, *others[: mixer.neighbours]]
            out[b, i] = tokens.x[b, i] + attended(mixer.attention, tokens.x[b], chosen.yx[b], i, heard)
    return out


def windows_by_hand(mixer, tokens, height, width):
    """The twin of WindowMixer: the whole grid as a picture, a depthwise convolution, then attention slot by slot in its window."""
    out, chosen = torch.zeros_like(tokens.x), tokens.selection
    kernel = mixer.taps.T.reshape(WIDTH, 1, 3, 3)
    for b, row in enumerate(chosen.valid):
        filled = torch.nonzero(row)[:, 0].tolist()
        place = {i: tuple((chosen.yx[b, i] // SIDE).long().tolist()) for i in filled}
        picture = torch.zeros(1, WIDTH, height, width)
        for i in filled:
            picture[0, :, place[i][0], place[i][1]] = mixer.norm(tokens.x[b, i])
        around = functional.conv2d(picture, kernel, padding=1, groups=WIDTH)
        x = tokens.x[b].clone()
        for i in filled:
            x[i] += around[0, :, place[i][0], place[i][1]]
        for i in filled:
            home = [side // mixer.window for side in place[i]]
            heard = [o for o in filled if [side // mixer.window for side in place[o]] == home]
            out[b, i] = x[i] + attended(mixer.attention, x, chosen.yx[b], i, heard)
    return out


MIXERS = pytest.mark.parametrize(
    "mixer", [lambda: NeighbourMixer(WIDTH), lambda: WindowMixer(WIDTH, window=3), nn.Identity], ids=["near", "windows", "identity"]
)


class TestBoth:
    @MIXERS
    @torch.no_grad()
    def test_untrained_is_the_identity(self, mixer):
        tokens = tokens_of(grid(5, 7, holes=0.3, batch=2))
        mixed = mixer()(tokens)
        assert torch.equal(mixed.x, tokens.x)
        assert mixed.selection is tokens.selection

    @MIXERS
    @torch.no_grad()
    def test_order_of_slots_does_not_matter(self, mixer):
        mixer, tokens = shaken(mixer()), tokens_of(grid(6, 6, holes=0.2, batch=2))  # a grid is full of distances that tie
        order = torch.randperm(36, generator=torch.Generator().manual_seed(1)).expand(2, -1)
        mixed, again = mixer(tokens).x, mixer(tokens.take(order, torch.ones(2, 36, dtype=torch.bool))).x
        torch.testing.assert_close(again, mixed[:, order[0]], atol=1e-5, rtol=1e-5)

    @MIXERS
    @torch.no_grad()
    def test_empty_slots_say_nothing_and_stay_zero(self, mixer):
        mixer, tokens = shaken(mixer()), tokens_of(grid(5, 5, holes=0.4, batch=2))
        chosen = tokens.selection
        mixed = mixer(tokens).x
        assert (mixed[~chosen.valid] == 0).all()
        if isinstance(mixer, nn.Identity):
            return
        strange = torch.arange(25.0).remainder(2) * 999  # sides of 0 and of 999
        nonsense = Tokens(
            x=tokens.x.where(chosen.valid[..., None], 1e3),
            selection=dataclasses.replace(
                chosen, yx=chosen.yx.where(chosen.valid[..., None], torch.nan), side=chosen.side.where(chosen.valid, strange)
            ),
        )
        torch.testing.assert_close(mixer(nonsense).x, mixed, atol=1e-6, rtol=0)

    @pytest.mark.parametrize("mixer", [lambda: NeighbourMixer(WIDTH), lambda: WindowMixer(WIDTH, window=3)], ids=["near", "windows"])
    def test_gradient_is_finite_and_reaches_every_part(self, mixer):
        mixer = mixer()
        chosen = grid(4, 5, holes=0.4, batch=2)
        nowhere = dataclasses.replace(chosen, yx=chosen.yx.where(chosen.valid[..., None], torch.nan))
        tokens = tokens_of(nowhere)
        worth = torch.randn(tokens.x.shape, generator=torch.Generator().manual_seed(1))
        (mixer(tokens).x * worth).sum().backward()
        assert mixer.attention.output.weight.grad.abs().max() > 0  # what is zero at the start moves first
        shaken(mixer).zero_grad()
        tokens.x.requires_grad_()
        (mixer(tokens).x * worth).sum().backward()
        for name, weight in mixer.named_parameters():
            assert torch.isfinite(weight.grad).all(), name
            assert weight.grad.abs().max() > 1e-6, name
        assert torch.isfinite(tokens.x.grad).all()
        assert (tokens.x.grad[~chosen.valid] == 0).all()

    @MIXERS
    @torch.no_grad()
    def test_images_of_a_batch_do_not_meet(self, mixer):
        mixer = shaken(mixer())
        both = tokens_of(grid(4, 4, holes=0.2, batch=2))
        for b in range(2):
            twice = torch.tensor([b, b])
            chosen = both.selection
            same = selection(chosen.yx[twice], valid=chosen.valid[twice])
            alone = mixer(Tokens(x=both.x[twice], selection=same)).x[:1]
            torch.testing.assert_close(alone, mixer(both).x[b : b + 1], atol=1e-5, rtol=1e-5)

    @MIXERS
    @torch.no_grad()
    def test_nothing_read(self, mixer):
        tokens = tokens_of(selection(torch.rand(2, 3, 2) * 99, valid=torch.zeros(2, 3, dtype=torch.bool)))
        assert torch.equal(shaken(mixer())(tokens).x, torch.zeros(2, 3, WIDTH))

    @torch.no_grad()
    def test_one_window_and_all_neighbours_are_the_same(self):
        near, window = shaken(NeighbourMixer(WIDTH, neighbours=24)), WindowMixer(WIDTH, window=5)
        window.attention.load_state_dict(near.attention.state_dict())
        tokens = tokens_of(grid(5, 5, holes=0.2))
        torch.testing.assert_close(near(tokens).x, window(tokens).x, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("mixer", [lambda: NeighbourMixer(WIDTH), lambda: WindowMixer(WIDTH, window=3)], ids=["near", "windows"])
    @torch.no_grad()
    def test_distances_are_in_sides(self, mixer):
        mixer, tokens = shaken(mixer()), tokens_of(grid(4, 5, holes=0.2))
        chosen = tokens.selection
        larger = dataclasses.replace(chosen, yx=3 * chosen.yx, side=3 * chosen.side)
        torch.testing.assert_close(mixer(Tokens(x=tokens.x, selection=larger)).x, mixer(tokens).x, atol=1e-5, rtol=1e-5)
        apart = dataclasses.replace(chosen, yx=3 * chosen.yx)
        assert (mixer(Tokens(x=tokens.x, selection=apart)).x - mixer(tokens).x).abs().max() > 0.1

    @torch.no_grad()
    def test_a_far_neighbour_is_as_tame_as_a_near_one(self):
        mixer = shaken(NeighbourMixer(WIDTH))
        yx = torch.tensor([[[16.0, 16.0], [16.0, 48.0], [3e6, 2e6]]])
        assert torch.isfinite(mixer(tokens_of(selection(yx))).x).all()
        assert mixer(tokens_of(selection(yx))).x.abs().max() < 20


class TestNeighbours:
    @pytest.mark.parametrize("count", [1, 4, 9, 10, 60])
    @torch.no_grad()
    def test_is_what_loops_give(self, count):
        mixer, tokens = shaken(NeighbourMixer(WIDTH)), tokens_of(scattered(count))
        torch.testing.assert_close(mixer(tokens).x, near_by_hand(mixer, tokens), atol=1e-5, rtol=1e-5)

    def test_inside_a_grid_they_are_the_3x3_around(self):
        chosen = grid(7, 9)
        index, known = nearest(chosen, 8)
        places = (chosen.yx[0] / SIDE).floor().long()
        for i, (y, x) in enumerate(places.tolist()):
            if 0 < y < 6 and 0 < x < 8:
                assert known[0, i].all()
                found = {tuple(place) for place in (places[index[0, i]] - places[i]).tolist()}
                assert found == {(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1)} - {(0, 0)}

    def test_blocks_of_distances_change_nothing(self, monkeypatch):
        chosen = scattered(50)
        whole = nearest(chosen, 8)
        monkeypatch.setattr("patchdrive.models.mixers._AT_ONCE", 130)
        for a, b in zip(nearest(chosen, 8), whole, strict=True):
            assert torch.equal(a, b)

    def test_never_all_pairs_at_once(self):
        mixer, tokens = NeighbourMixer(WIDTH, heads=2, neighbours=4), tokens_of(scattered(4000, batch=1))
        tokens.x.requires_grad_()
        with Largest() as largest:
            mixer(tokens).x.square().sum().backward()
        assert largest.bytes <= 2**20 * 8  # the distances done at once; 4000 x 4000 of them would be 64 MB

    def test_refusals(self):
        with pytest.raises(ModelError, match="at least one neighbour"):
            NeighbourMixer(WIDTH, neighbours=0)
        with pytest.raises(ModelError, match="multiple of heads"):
            NeighbourMixer(WIDTH, heads=3)


class TestWindows:
    @pytest.mark.parametrize("window", [1, 3, 8])
    @pytest.mark.parametrize("holes", [0.0, 0.4])
    @torch.no_grad()
    def test_is_what_a_picture_and_loops_give(self, window, holes):
        mixer, tokens = shaken(WindowMixer(WIDTH, window=window)), tokens_of(grid(5, 7, holes=holes, batch=2))
        torch.testing.assert_close(mixer(tokens).x, windows_by_hand(mixer, tokens, 5, 7), atol=1e-5, rtol=1e-5)

    @torch.no_grad()
    def test_what_is_read_elsewhere_moves_no_window(self):
        mixer, tokens = shaken(WindowMixer(WIDTH, window=3)), tokens_of(grid(6, 9))
        part = torch.nonzero(tokens.selection.yx[0, :, 0] > 3 * SIDE).T  # a row of windows less
        mixer.taps.zero_()  # these reach over the edges of windows, as they should
        alone = mixer(tokens.take(part, torch.ones(part.shape, dtype=torch.bool))).x
        torch.testing.assert_close(alone, mixer(tokens).x[:, part[0]], atol=1e-6, rtol=1e-6)

    @pytest.mark.parametrize(("height", "width"), [(160, 96), (161, 127), (10, 65)])
    def test_places_are_those_of_a_lattice(self, height, width):
        level = Level(index=0, height=height, width=width, downsample_y=4.0003, downsample_x=3.9998, tile_height=1, tile_width=1)
        lattice = Lattice.over(level, 32)
        every = torch.arange(lattice.rows * lattice.columns)[None]
        chosen = lattice.select(level, every, every >= 0, torch.ones(every.shape))
        assert torch.equal(grid_place(chosen)[0], torch.stack([every[0] // lattice.columns, every[0] % lattice.columns], dim=1))

    def test_far_from_the_corner_rounding_moves_nothing(self):
        places = torch.tensor([[0, 0], [2047, 1024], [2048, 2047], [3000, 2999]])
        assert torch.equal(grid_place(selection((places + 0.5)[None] * (32 * 3.1234567), side=32 * 3.1234567))[0], places)

    def test_memory_goes_with_patches_not_with_area(self):
        yx = torch.tensor([[[0.5, 0.5], [0.5, 1.5], [60_000.5, 70_000.5]]]) * SIDE
        with Largest() as largest:
            WindowMixer(WIDTH, window=4)(tokens_of(selection(yx)))
        assert largest.bytes < 2**16

    def test_refusals(self):
        mixer = WindowMixer(WIDTH)
        apart = selection(torch.tensor([[[16.0, 16.0], [16.0, 20.0], [16.0, 24.0]]]))
        with pytest.raises(ModelError, match="do not overlap"):
            mixer(tokens_of(apart))
        chosen = grid(2, 2)
        with pytest.raises(ModelError, match="one side"):
            mixer(tokens_of(dataclasses.replace(chosen, side=torch.tensor([[32.0, 32.0, 64.0, 32.0]]))))
        with pytest.raises(ModelError, match="at least one place"):
            WindowMixer(WIDTH, window=0)
