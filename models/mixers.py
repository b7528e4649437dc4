"""System D's interaction: tokens of neighbouring patches talk before they are fused.

A mixer takes Tokens and gives Tokens of the same Selection; `nn.Identity` is the one that does nothing. Both mixers here learn what
to add (untrained they are the identity), know where patches lie by their centres alone, in patch sides, and leave empty slots zero:

    NeighbourMixer  any Selection: each patch attends to its nearest                       x += MHA(norm x)
    WindowMixer     patches side by side on a grid, its dense form: time goes with K       x += DW3x3(norm x);  x += MHA(norm x) in windows

Attention is by content and by relative place, through the log-spaced position bias of Swin V2 (Liu et al. 2022), so that a patch a
thousand sides away is as well-behaved as the next one.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from patchdrive.models.types import Selection, Tokens
from patchdrive.readers.errors import ModelError

_AT_ONCE = 2**20
"""Distances computed at once, per image."""
_SQUINT = (0.0061803, 0.0029289)
"""A patch measures distances from a point this far (in sides) from its centre, in a direction that no grid shares: neighbours that
are equally near are told apart by their place, not by their slot."""


class _Attention(nn.Module):
    """Multi-head attention of each query to its own few keys; gives what to add to the queries, nothing at the start."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ModelError(f"width is a multiple of heads, got {width} and {heads}")
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.place = nn.Sequential(nn.Linear(2, 32), nn.SiLU(), nn.Linear(32, heads, bias=False))
        self.output = nn.Linear(width, width)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[..., D] to queries [..., D], and keys and values side by side [..., 2 D]."""
        x = self.norm(x)
        return self.query(x), self.key_value(x)

    def attend(self, queries: Tensor, keys_values: Tensor, apart: Tensor, heard: Tensor) -> Tensor:
        """Attend.

        Args:
            queries: [n, q, D].
            keys_values: [n, m, 2 D].
            apart: [n, q, m, 2] or broadcast to it, from query to key, patch sides.
            heard: [n, q, m] bool, which keys count; at least one for each query.

        Returns:
            [n, q, D].
        """
        bias = self.place(apart.sign() * apart.abs().log1p()).movedim(-1, 1)
        bias = bias.masked_fill(~heard[:, None], -torch.inf)
        q, k, v = (part.reshape(*part.shape[:2], self.heads, -1).transpose(1, 2) for part in (queries, *keys_values.chunk(2, dim=2)))
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        added: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return added


class NeighbourMixer(nn.Module):
    """Each patch attends to itself and to the `neighbours` nearest patches of its image, however far they are.

    Time is O(K^2) distances, memory O(K * neighbours). Slots have no order: mixed slots give mixed tokens. Distances are in sides of the
    patch that asks.
    """

    def __init__(self, width: int, heads: int = 4, neighbours: int = 8) -> None:
        super().__init__()
        if neighbours < 1:
            raise ModelError(f"a patch has at least one neighbour, got {neighbours}")
        self.neighbours = neighbours
        self.attention = _Attention(width, heads)

    def forward(self, tokens: Tokens) -> Tokens:
        """Tokens [B, K, D] to the same with what their neighbours add."""
        selection = tokens.selection
        batch, count, width = tokens.x.shape
        near, known = nearest(selection, self.neighbours)
        itself = torch.arange(count, device=near.device).expand(batch, count)[..., None]
        near = torch.cat([itself, near], dim=2)
        heard = torch.cat([torch.ones_like(known[..., :1]), known], dim=2)
        x = tokens.x.where(selection.valid[..., None], 0.0)
        queries, keys_values = self.attention.project(x)
        side = selection.side.where(selection.valid, 1.0)
        apart = (_rows(selection.yx, near) - selection.yx[:, :, None]) / side[..., None, None]
        apart = apart.where((heard & selection.valid[..., None])[..., None], 0.0)
        added = self.attention.attend(
            queries.reshape(-1, 1, width),
            _rows(keys_values, near).flatten(0, 1),
            apart.flatten(0, 1)[:, None],
            heard.flatten(0, 1)[:, None],
        )
        return Tokens(x=(x + added.view_as(x)).where(selection.valid[..., None], 0.0), selection=selection)


class WindowMixer(nn.Module):
    """Depthwise 3x3 over the grid that the patches form, then attention in windows of `window` x `window` grid places.

    The grid begins at the image's upper left corner, and so do the windows: what is read elsewhere moves no window. Places that nobody read
    are zeros for the convolution and unheard in the windows. Time and memory are O(K * window^2), whatever the grid's size.
    """

    def __init__(self, width: int, heads: int = 4, window: int = 8) -> None:
        super().__init__()
        if window < 1:
            raise ModelError(f"a window has at least one place, got {window}")
        self.window = window
        self.norm = nn.LayerNorm(width)
        self.taps = nn.Parameter(torch.zeros(9, width))
        self.attention = _Attention(width, heads)

    def forward(self, tokens: Tokens) -> Tokens:
        """Tokens [B, K, D] to the same with what their neighbours add.

        Raises:
            ModelError: patches overlap or differ in side.
        """
        selection = tokens.selection
        image = torch.nonzero(selection.valid)[:, 0]
        place = grid_place(selection)[selection.valid]
        x = tokens.x[selection.valid]
        if len(x):
            around, there = _around(image, place)
            x = x + (self.norm(x)[around] * there[..., None] * self.taps).sum(dim=1)
            x = x + self._in_windows(x, image, place)
        return Tokens(x=torch.zeros_like(tokens.x).masked_scatter(selection.valid[..., None], x), selection=selection)

    def _in_windows(self, x: Tensor, image: Tensor, place: Tensor) -> Tensor:
        """What attention adds to [n, D] at `place` [n, 2] of `image` [n]."""
        size = self.window**2
        windows, which = torch.unique(torch.cat([image[:, None], place.floor_divide(self.window)], dim=1), dim=0, return_inverse=True)
        within = place.remainder(self.window)
        seat = which * size + within[:, 0] * self.window + within[:, 1]
        queries, keys_values = (
            part.new_zeros(len(windows) * size, part.shape[1]).index_copy(0, seat, part).view(-1, size, part.shape[1])
            for part in self.attention.project(x)
        )
        taken = torch.zeros(len(windows) * size, dtype=torch.bool, device=x.device).index_fill(0, seat, True)
        itself = torch.eye(size, dtype=torch.bool, device=x.device)  # so that an empty seat hears something
        every = torch.cartesian_prod(*[torch.arange(self.window, device=x.device)] * 2).to(x.dtype)
        added = self.attention.attend(queries, keys_values, (every - every[:, None])[None], taken.view(-1, 1, size) | itself)
        return added.flatten(0, 1)[seat]


def grid_place(selection: Selection) -> Tensor:
    """Rows and columns [B, K, 2] int64 of patches that lie side by side from the image's upper left corner; 0 in empty slots.

    A place is what half a side around it rounds to: pixels that are a little taller than wide do no harm.

    Raises:
        ModelError: patches differ in side.
    """
    valid = selection.valid
    side = selection.side.where(valid, 0.0).amax().clamp_min(1e-6)
    if bool(((selection.side != side) & valid).any()):
        raise ModelError("patches on a grid have one side; patches of several sides mix by NeighbourMixer")
    return torch.floor(selection.yx / side).long().where(valid[..., None], 0)


def _around(image: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """Index [n, 9] of the patches in the 3x3 around each, row-major, and whether there is one.

    Raises:
        ModelError: two patches have one place.
    """
    place = place - place.amin(dim=0) + 1  # a free place on every side, so that rows do not run into each other
    height, width = (place.amax(dim=0) + 2).tolist()
    key = (image * height + place[:, 0]) * width + place[:, 1]
    ordered, order = torch.sort(key)
    if bool((ordered[1:] == ordered[:-1]).any()):
        raise ModelError("patches on a grid do not overlap; patches that do mix by NeighbourMixer")
    steps = torch.arange(-1, 2, device=key.device)
    wanted = key[:, None] + (steps[:, None] * width + steps).flatten()
    at = torch.searchsorted(ordered, wanted).clamp_max(len(key) - 1)
    return order[at], ordered[at] == wanted


def nearest(selection: Selection, k: int) -> tuple[Tensor, Tensor]:
    """The `k` nearest other patches of each patch, by distance of centres.

    Returns:
        index [B, K, k] int64 (0 where there are not so many) and known [B, K, k] bool. Empty slots are nobody's neighbour.
    """
    count = selection.yx.shape[1]
    found = [_nearest_of(selection, rows, min(k, count)) for rows in _blocks(count, max(1, _AT_ONCE // count))]
    index, apart = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
    known = torch.isfinite(apart)
    short = (0, max(k - count, 0))
    return functional.pad(index.masked_fill(~known, 0), short), functional.pad(known, short, value=False)


def _nearest_of(selection: Selection, rows: slice, k: int) -> tuple[Tensor, Tensor]:
    """Of some patches: index and squared distance [B, rows, k]; inf for what does not count."""
    yx = selection.yx.detach()
    side = selection.side.where(selection.valid, 1.0)[:, rows, None]
    squint = yx.new_tensor(_SQUINT)
    apart = torch.zeros((), device=yx.device)
    for axis in (0, 1):
        apart = apart + ((yx[:, None, :, axis] - yx[:, rows, None, axis]) / side - squint[axis]).square()
    apart = apart.masked_fill(~selection.valid[:, None], torch.inf)
    slots = torch.arange(yx.shape[1], device=yx.device)
    apart = apart.masked_fill(slots[rows, None] == slots, torch.inf)
    distance, index = apart.topk(k, dim=2, largest=False)
    return index, distance


def _blocks(count: int, size: int) -> Iterator[slice]:
    return (slice(first, min(first + size, count)) for first in range(0, count, size))


def _rows(values: Tensor, index: Tensor) -> Tensor:
    """[B, K, D] at [B, K, k] to [B, K, k, D]."""
    image = torch.arange(len(values), device=values.device)[:, None, None]
    return values[image, index]
