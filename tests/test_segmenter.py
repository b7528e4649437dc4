"""The segmenter sees no further than its halo, learns a synthetic scene in seconds, and travels in one file."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from patchdrive.models.segmenter import IGNORED, Segmenter, SegmenterConfig, load_segmenter, save_segmenter, segmentation_loss
from patchdrive.models.types import PatchModel
from patchdrive.models.weights_file import write_weights
from patchdrive.readers.errors import ModelError

CLASSES = ("water", "meadow", "forest", "town")
CONFIG = SegmenterConfig(channels=4, classes=CLASSES, colors=("0000FF", "99DD66", "116611", "AA3333"), scale=1e-4)
TRAINED = dataclasses.replace(CONFIG, mean=(0.07, 0.08, 0.085, 0.2), std=(0.03, 0.03, 0.03, 0.12))
SMALL = SegmenterConfig(channels=2, classes=("a", "b"), width=4, dilations=(1, 2), size=32)


def scene(count: int, size: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Stored pixels (count, size, size, 4) uint16 and labels [count, size, size]: a class per 16-px field.

    Forest and town have one mean spectrum and differ only in texture, so a pixel alone does not tell.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (count, size // 16, size // 16), generator=generator)
    labels = labels.repeat_interleave(16, 1).repeat_interleave(16, 2)
    spectra = torch.tensor([[600, 500, 300, 100], [500, 900, 700, 3800], [800, 900, 900, 2000], [800, 900, 900, 2000]])
    y, x = torch.arange(size).view(-1, 1), torch.arange(size)
    texture = torch.where(labels == 3, 500.0 * ((y // 2 + x // 2) % 2 * 2 - 1), 0.0)
    noise = 120 * torch.randn(count, size, size, 4, generator=generator)
    stored = (spectra[labels] + texture.unsqueeze(3) * torch.tensor([0.3, 0.3, 0.3, 1.0]) + noise).clamp(1, 10000)
    return stored.to(torch.int32).to(torch.uint16), labels


@pytest.fixture
def one_thread():
    """On small tensors a second thread costs more than it does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def accuracy(segmenter: Segmenter, stored: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return (segmenter.logits(segmenter.spec.normalise(stored)).argmax(1) == labels).float().mean().item()


@pytest.mark.parametrize(("channels", "classes", "count", "size"), [(1, 2, 1, 1), (3, 5, 2, 31), (12, 3, 1, 64)])
def test_shapes_over_batch_channels_classes_and_size(channels, classes, count, size):
    segmenter = Segmenter(SegmenterConfig(channels=channels, classes=tuple(f"c{i}" for i in range(classes)), output="crop"))
    assert isinstance(segmenter, PatchModel)
    probabilities = segmenter(torch.randn(count, channels, size, size))["crop"]
    assert probabilities.shape == (count, classes, size, size)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(count, size, size))


def test_spec_says_what_the_config_says():
    segmenter = Segmenter(CONFIG)
    (output,) = segmenter.spec.outputs
    assert (output.name, output.kind, output.channels, output.colors) == ("landcover", "classes", CLASSES, CONFIG.colors)
    assert (output.halo, output.stride, segmenter.spec.channels, segmenter.spec.any_size) == (16, 1, 4, True)
    assert 10_000 < sum(parameter.numel() for parameter in segmenter.parameters()) < 50_000


@settings(max_examples=10, deadline=None)
@given(top=st.integers(0, 30), left=st.integers(0, 30), core=st.integers(1, 12), seed=st.integers(0, 99))
def test_a_tile_with_its_halo_is_the_whole(top, left, core, seed):
    segmenter, halo = Segmenter(SMALL, seed=seed), SMALL.halo
    whole = torch.randn(1, 2, 56, 56, generator=torch.Generator().manual_seed(seed))
    side = core + 2 * halo
    with torch.no_grad():
        expected = segmenter(whole)["landcover"][:, :, top + halo : top + halo + core, left + halo : left + halo + core]
        tile = segmenter(whole[:, :, top : top + side, left : left + side])["landcover"][:, :, halo : halo + core, halo : halo + core]
    torch.testing.assert_close(tile, expected, atol=1e-5, rtol=0)


def test_the_halo_is_exactly_the_receptive_field():
    segmenter = Segmenter(CONFIG)
    pixels = torch.zeros(1, 4, 65, 65, requires_grad=True)
    segmenter.logits(pixels)[0, :, 32, 32].sum().backward()
    rows = pixels.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    assert (rows.min().item(), rows.max().item()) == (32 - CONFIG.halo, 32 + CONFIG.halo)


def test_learns_what_a_pixel_alone_does_not_tell(one_thread):
    segmenter = Segmenter(TRAINED)
    stored, labels = scene(24, 64, seed=1)
    before = accuracy(segmenter, *scene(4, 64, seed=2))
    optimiser = torch.optim.AdamW(segmenter.parameters(), lr=4e-3)
    for step in range(45):
        batch = torch.arange(4) + 4 * (step % 6)
        loss = segmentation_loss(segmenter.logits(segmenter.spec.normalise(stored[batch])), labels[batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    after = accuracy(segmenter, *scene(4, 64, seed=2))
    assert before < 0.5
    assert after > 0.9


def test_loss_is_cross_entropy_plus_dice():
    logits = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 2, (2, 4, 4), generator=torch.Generator().manual_seed(1))  # class 2 does not occur
    probabilities = logits.softmax(1)
    dice = [(2 * probabilities[:, c][labels == c].sum() + 1) / (probabilities[:, c].sum() + (labels == c).sum() + 1) for c in range(2)]
    nll = -probabilities.gather(1, labels.unsqueeze(1)).log().mean()
    torch.testing.assert_close(segmentation_loss(logits, labels), nll + 1 - (dice[0] + dice[1]) / 2)


def test_loss_does_not_look_at_ignored_pixels():
    logits = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.randint(0, 3, (1, 8, 8), generator=torch.Generator().manual_seed(1))
    labels[:, :4] = IGNORED
    segmentation_loss(logits, labels).backward()
    assert logits.grad[:, :, :4].abs().max() == 0
    assert logits.grad[:, :, 4:].abs().min() > 0
    torch.testing.assert_close(segmentation_loss(logits, labels), segmentation_loss(logits[:, :, 4:], labels[:, 4:]))
    assert segmentation_loss(logits, torch.full_like(labels, IGNORED)).item() == 0.0


def test_travels_in_one_file(tmp_path):
    segmenter = Segmenter(CONFIG, seed=3).eval()
    save_segmenter(segmenter, tmp_path / "seg.safetensors")
    again = load_segmenter(tmp_path / "seg.safetensors")
    assert again.config == CONFIG
    assert again.digest == segmenter.digest
    assert not again.training
    pixels = torch.randn(1, 4, 32, 32)
    assert torch.equal(again(pixels)["landcover"], segmenter(pixels)["landcover"])


def test_digest_follows_weights_and_config():
    digest = Segmenter(SMALL).digest
    assert digest == Segmenter(SMALL).digest
    assert digest != Segmenter(SMALL, seed=1).digest
    assert digest != Segmenter(dataclasses.replace(SMALL, scale=0.5)).digest


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"no such thing")
    with pytest.raises(ModelError, match="cannot be opened"):
        load_segmenter(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ModelError, match="does not say which model"):
        load_segmenter(path)
    write_weights(Segmenter(SMALL), path, model="segmenter", config=dataclasses.replace(SMALL, width=5).to_dict())
    with pytest.raises(ModelError, match="other weights"):
        load_segmenter(path)
    write_weights(Segmenter(SMALL), path, model="segmenter", config={"channel": 2})
    with pytest.raises(ModelError, match="not a segmenter's config"):
        load_segmenter(path)
    write_weights(Segmenter(SMALL), path, model="other", config={})
    with pytest.raises(ModelError, match="'other'"):
        load_segmenter(path)


@pytest.mark.parametrize(
    "change",
    [{"channels": 0}, {"width": 0}, {"classes": ("one",)}, {"colors": ("FF0000",)}, {"mean": (1.0,)}, {"std": (1.0,)}, {"dilations": ()}],
)
def test_configs_that_contradict_themselves_are_refused(change):
    with pytest.raises(ModelError):
        dataclasses.replace(SMALL, **change)
