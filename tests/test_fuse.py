"""The task queries of the cross-attention fusion: what they promise, whatever the weights."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch.nn import functional

from patchdrive.models.fuse import CrossAttentionFuse, Frame, coord_encoding
from patchdrive.models.types import Glance, Selection, Tokens
from patchdrive.readers.geometry import Level

WIDTH, HEADS, TASKS, READS = 32, 4, 3, 7
FRAME = Frame(origin=(0.0, 0.0), extent=(900.0, 900.0))


def some_tokens(*, filled: tuple[int, int] = (READS, 4)) -> Tokens:
    """Two images of up to seven reads."""
    generator = torch.Generator().manual_seed(0)
    valid = torch.arange(READS)[None] < torch.tensor(filled)[:, None]
    selection = Selection(
        yx=torch.rand(2, READS, 2, generator=generator) * 900,
        side=torch.full((2, READS), 32.0),
        cell=torch.full((2, READS), -1),
        weight=torch.rand(2, READS, generator=generator) * 0.5 + 0.5,
        valid=valid,
    )
    return Tokens(x=torch.randn(2, READS, WIDTH, generator=generator), selection=selection)


def shaken(*, gated: bool = True, sloped: bool = True) -> CrossAttentionFuse:
    """No weight is zero."""
    torch.manual_seed(0)
    fuse = CrossAttentionFuse(WIDTH, HEADS, TASKS, octaves=8, lowest=0.5, gated=gated, sloped=sloped)
    with torch.no_grad():
        for weight in fuse.parameters():
            weight.add_(0.2 * torch.randn(weight.shape))
    return fuse.eval()


@torch.no_grad()
def test_answers_are_the_formula():
    """One query and one head at a time, by hand."""
    fuse, tokens = shaken(), some_tokens()
    found = fuse.answer(tokens, FRAME)
    assert fuse.slope is not None
    assert fuse.gate is not None
    chosen, width = tokens.selection, WIDTH // HEADS
    for image in range(2):
        kept = torch.nonzero(chosen.valid[image])[:, 0]
        normed = fuse.norm_patch(tokens.x[image, kept])
        code = coord_encoding(chosen.yx[image, kept], chosen.side[image, kept], FRAME, 32.0, 8, lowest=0.5)
        keys, values = fuse.key_value(normed * chosen.weight[image, kept, None] + fuse.position(code)).chunk(2, dim=1)
        bias = chosen.weight[image, kept].log() + 4 * functional.logsigmoid(fuse.gate(normed)[:, 0])
        for task in range(TASKS):
            query = fuse.query(fuse.norm_query(fuse.tasks[task]))
            parts, given = [], []
            for head in range(HEADS):
                own = slice(head * width, (head + 1) * width)
                down = chosen.yx[image, kept, 0] / 900
                slope = fuse.slope[task, head] * fuse.slope[task, head].abs()
                logits = keys[:, own] @ query[own] / math.sqrt(width) + bias + slope * down
                given.append(torch.softmax(logits, dim=0))
                parts.append(given[-1] @ values[:, own])
            x = fuse.tasks[task] + fuse.output(torch.cat(parts))
            torch.testing.assert_close(found.tokens[image, task], x + fuse.mlp(fuse.norm_mlp(x)), atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(found.attention[image, task, kept], torch.stack(given).mean(dim=0), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_attention_sums_to_one_and_empty_slots_have_none():
    fuse, tokens = shaken(), some_tokens()
    attention = fuse.answer(tokens, FRAME).attention
    assert attention.shape == (2, TASKS, READS)
    torch.testing.assert_close(attention.sum(dim=2), torch.ones(2, TASKS))
    assert (attention.masked_select(~tokens.selection.valid[:, None]) == 0).all()
    assert (attention.masked_select(tokens.selection.valid[:, None]) > 0).all()


@torch.no_grad()
def test_what_lies_in_empty_slots_changes_nothing():
    fuse, tokens = shaken(), some_tokens()
    other = dataclasses.replace(tokens, x=tokens.x.where(tokens.selection.valid[..., None], 99.0))
    assert torch.equal(fuse.answer(tokens, FRAME).tokens, fuse.answer(other, FRAME).tokens)
    nothing = fuse.answer(some_tokens(filled=(0, 2)), FRAME)
    assert nothing.tokens.isfinite().all()
    assert (nothing.attention[0] == 0).all()


@torch.no_grad()
def test_a_gate_shuts_a_token_out_and_a_slope_prefers_the_top():
    fuse, tokens = shaken(), some_tokens(filled=(READS, READS))
    assert fuse.slope is not None
    assert fuse.gate is not None
    fuse.slope.fill_(-100)
    topmost = tokens.selection.yx[..., 0].argmin(dim=1)
    assert (fuse.answer(tokens, FRAME).attention.argmax(dim=2) == topmost[:, None]).all()
    fuse.slope.zero_()
    fuse.gate.weight.zero_()
    before = fuse.answer(tokens, FRAME).attention
    fuse.gate.weight.copy_(-20 * fuse.norm_patch(tokens.x[0, 2])[None])
    assert (fuse.answer(tokens, FRAME).attention[0, :, 2] < 1e-3 * before[0, :, 2]).all()


@torch.no_grad()
def test_codes_of_half_a_period_tell_the_ends_apart():
    ends = torch.tensor([[0.0, 0.0], [900.0, 900.0]])
    for lowest, same in ((1.0, True), (0.5, False)):
        code = coord_encoding(ends, torch.full((2,), 32.0), FRAME, 32.0, 8, lowest=lowest)
        assert torch.allclose(code[0], code[1], atol=1e-3) is same


@pytest.mark.parametrize("option", [{}, {"gated": True}, {"sloped": True}])
def test_options_come_with_their_weights_only(option: dict[str, bool]):
    names = {"gated": {"gate.weight", "gate.bias"}, "sloped": {"slope"}}
    plain, made = (set(CrossAttentionFuse(WIDTH, HEADS, TASKS, **given).state_dict()) for given in ({}, option))
    assert made - plain == set().union(*(names[name] for name in option))


@torch.no_grad()
def test_a_map_too_is_made_with_every_option():
    fuse, tokens = shaken(), some_tokens()
    cells = Level(index=0, height=9, width=9, downsample_y=100.0, downsample_x=100.0, tile_height=9, tile_width=9)
    glance = Glance(features=torch.randn(2, WIDTH, 9, 9), score=torch.zeros(2, 9, 9), valid=torch.ones(2, 9, 9, dtype=torch.bool))
    fused, answers = fuse(glance, tokens, cells, FRAME)
    assert fused.shape == (2, WIDTH, 9, 9)
    assert answers.shape == (2, TASKS, WIDTH)
