"""What every patch encoder promises: a patch's vector is its own, and everything in it learns."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from patchdrive.models.config import PatchDriveNetConfig
from patchdrive.models.encoders import SmallCNN
from patchdrive.models.inverted import InvertedEncoder, InvertedResidual
from patchdrive.models.types import ModelSpec, OutputSpec, PatchModel
from patchdrive.models.wrapped import wrap
from patchdrive.readers.errors import ModelError

SPEC = PatchDriveNetConfig(width=16).encoder_spec


def spec_of(size, width):
    names = tuple(f"f{i}" for i in range(width))
    return ModelSpec(name="wrapped", channels=3, size=size, outputs=(OutputSpec(name="features", kind="vector", channels=names),))


def batch_normed(*, track=True):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4),
        nn.BatchNorm2d(8, track_running_stats=track),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 16),
        nn.BatchNorm1d(16),
    )


def timm_encoder(name, size, **shape):
    timm = pytest.importorskip("timm", reason="needs the extra timm")
    network = timm.create_model(name, pretrained=False, num_classes=0, **shape)
    return wrap(network, spec_of(size, network.num_features))


ENCODERS = {
    "small": lambda: SmallCNN(SPEC, 16),
    "inverted": lambda: InvertedEncoder(SPEC, 16),
    "wrapped": lambda: wrap(batch_normed(), SPEC),
    "resnet18": lambda: timm_encoder("resnet18", 64),
    "swin": lambda: timm_encoder(
        "swin_tiny_patch4_window7_224", 56, img_size=56, embed_dim=24, depths=(1, 2), num_heads=(2, 4), drop_path_rate=0.0
    ),
}


@pytest.fixture(params=ENCODERS)
def encoder(request):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = ENCODERS[request.param]()
        generator = torch.Generator().manual_seed(1)
        for layer in made.modules():  # as after some training
            if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
                layer.running_mean.copy_(torch.randn(layer.running_mean.shape, generator=generator))
                layer.running_var.copy_(torch.rand(layer.running_var.shape, generator=generator) + 0.5)
                nn.init.constant_(layer.weight, 0.7)  # timm starts some at 0, which lets no gradient through
        return made


def patches(encoder, count, seed=0):
    spec = encoder.spec
    return torch.randn(count, spec.channels, spec.size, spec.size, generator=torch.Generator().manual_seed(seed))


class TestEveryEncoder:
    def test_is_a_patch_model(self, encoder):
        assert isinstance(encoder, PatchModel)
        (vector,) = encoder.spec.vectors
        given = encoder(patches(encoder, 3))
        assert {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in given.items()} == {
            vector.name: ((3, len(vector.channels)), torch.float32)
        }

    @pytest.mark.parametrize("training", [True, False])
    @torch.no_grad()
    def test_chunks_change_rounding_only(self, encoder, training):
        encoder.train(training)
        pixels = patches(encoder, 6)
        whole = encoder(pixels)["features"]
        assert whole.std(dim=0).max() > 0.01
        one_by_one = torch.cat([encoder(part)["features"] for part in pixels.split(1)])
        torch.testing.assert_close(one_by_one, whole, atol=1e-6 * float(whole.abs().max().clamp_min(1)), rtol=1e-6)

    @pytest.mark.parametrize("training", [True, False])
    @torch.no_grad()
    def test_other_patches_of_the_batch_do_not_matter(self, encoder, training):
        encoder.train(training)
        pixels = patches(encoder, 4)
        before = encoder(pixels)["features"][0]
        pixels[1:] = 50 * patches(encoder, 3, seed=9)
        torch.testing.assert_close(encoder(pixels)["features"][0], before, atol=1e-5, rtol=1e-5)

    @torch.no_grad()
    def test_computing_leaves_no_trace(self, encoder):
        digest = encoder.train().digest
        encoder(50 * patches(encoder, 4))
        assert encoder.digest == digest

    def test_gradient_reaches_every_parameter(self, encoder):
        features = encoder.train()(patches(encoder, 4))["features"]
        (features * torch.randn(features.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
        for name, weight in encoder.named_parameters():
            assert weight.grad is not None, name
            assert weight.grad.abs().max() > 0, name

    @torch.no_grad()
    def test_digest_follows_every_weight(self, encoder):
        digest = encoder.digest
        assert copy.deepcopy(encoder).digest == digest
        next(encoder.parameters()).view(-1)[0] += 1
        assert encoder.digest != digest


class TestInverted:
    @pytest.mark.parametrize(("inputs", "outputs", "stride", "residual"), [(8, 8, 1, True), (8, 16, 1, False), (16, 16, 2, False)])
    @torch.no_grad()
    def test_block(self, inputs, outputs, stride, residual):
        block = InvertedResidual(inputs, outputs, stride=stride, expansion=2)
        x = torch.randn(2, inputs, 7, 9, generator=torch.Generator().manual_seed(0))
        assert block(x).shape == (2, outputs, -(-7 // stride), -(-9 // stride))
        assert [layer.groups for layer in block.layers if isinstance(layer, nn.Conv2d)] == [1, 2 * inputs, 1]
        block.layers[-1].weight.zero_()
        assert torch.equal(block(x), x if residual else torch.zeros_like(block(x)))

    @torch.no_grad()
    def test_the_bottleneck_is_linear(self):
        block = InvertedResidual(8, 16)
        assert (block(torch.randn(1, 8, 9, 9, generator=torch.Generator().manual_seed(0))) < -1).any()  # SiLU gives no less than -0.28

    @pytest.mark.parametrize("size", [16, 32, 96])
    def test_small_patches_too(self, size):
        encoder = InvertedEncoder(spec_of(size, 24), 24)
        assert encoder(torch.zeros(1, 3, size, size))["features"].shape == (1, 24)

    def test_refusals(self):
        with pytest.raises(ModelError, match="multiple of 8"):
            InvertedResidual(12, 16)

    def test_learns_to_tell_textures(self):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            encoder, head = InvertedEncoder(spec_of(32, 16), 16), nn.Linear(16, 2)
        optimiser = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=3e-3)
        stripes = torch.arange(32).remainder(4).div(2, rounding_mode="floor").float()
        kinds = torch.stack([stripes.expand(3, 32, 32), stripes[:, None].expand(3, 32, 32)])
        generator = torch.Generator().manual_seed(0)
        for _ in range(12):
            label = torch.randint(0, 2, (16,), generator=generator)
            pixels = kinds[label] + torch.randn(16, 3, 32, 32, generator=generator)
            loss = nn.functional.cross_entropy(head(encoder(pixels)["features"]), label)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        assert loss < 0.2


class TestWrap:
    def test_is_the_network_in_evaluation(self):
        network = batch_normed()
        network(torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0)))  # gives it running statistics
        wrapped = wrap(network, SPEC)
        assert wrapped.training
        pixels = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
        assert torch.equal(wrapped(pixels)["features"], copy.deepcopy(network).eval()(pixels))

    def test_only_what_keeps_statistics_is_frozen(self):
        wrapped = wrap(nn.Sequential(nn.InstanceNorm2d(3, track_running_stats=True), batch_normed(), nn.Dropout(0.5)), SPEC)
        parent = nn.ModuleList([wrapped])
        for mode in (True, False, True):
            parent.train(mode)
            kinds = {type(layer): layer.training for layer in wrapped.modules()}
            frozen = {nn.InstanceNorm2d, nn.BatchNorm2d, nn.BatchNorm1d}
            assert {kind: training for kind, training in kinds.items() if training != mode} == (
                dict.fromkeys(frozen, False) if mode else {}
            )
        assert all(weight.requires_grad for weight in wrapped.parameters())

    @pytest.mark.parametrize("mode", [True, False])
    def test_keeps_the_mode_it_was_given(self, mode):
        assert wrap(batch_normed().train(mode), SPEC).training == mode

    def test_digest_tells_layers_apart(self):
        def made(activation):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                return wrap(nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 16), activation), SPEC).digest

        assert made(nn.ReLU()) == made(nn.ReLU())
        assert made(nn.ReLU()) != made(nn.GELU())

    def test_refusals(self):
        with pytest.raises(ModelError, match=r"one vector, got \['features: image', 'score: image'\]"):
            wrap(batch_normed(), PatchDriveNetConfig(width=16).glance_spec)
        with pytest.raises(ModelError, match="'1' keeps no running statistics"):
            wrap(batch_normed(track=False), SPEC)
        with pytest.raises(ModelError, match=r"makes \(2, 16\), its spec says \(2, 9\)"):
            wrap(batch_normed(), spec_of(64, 9))
        with pytest.raises(ModelError, match=r"makes \(2, 8, 62, 62\), .* pool it"):
            wrap(nn.Conv2d(3, 8, 3), spec_of(64, 8))
        with pytest.raises(ModelError, match=r"does not take \(2, 3, 64, 64\)"):
            wrap(nn.Conv2d(4, 8, 3), spec_of(64, 8))
        with pytest.raises(ModelError, match="makes tuple"):
            wrap(Pair(), SPEC)


class Pair(nn.Module):
    def forward(self, pixels):
        return pixels, pixels
