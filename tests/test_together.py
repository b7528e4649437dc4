"""Models that eat the same patches in one pass give what each gives alone, to the bit; the others are refused with the way out."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from patchdrive.models import ImageTraits, ModelSpec, OutputSpec, PatchModel, Together, load_model, load_models, save_program, together
from patchdrive.models.answer import answer
from patchdrive.models.config import PatchDriveNetConfig
from patchdrive.models.descriptor import Descriptor
from patchdrive.models.digest import module_digest
from patchdrive.models.model import patchdrivenet
from patchdrive.pipeline.glance import traits_of
from patchdrive.pipeline.report_figures import canvas_of, figures
from patchdrive.pipeline.result import open_result
from patchdrive.pipeline.run import run
from patchdrive.pipeline.settings import RunSettings
from patchdrive.pipeline.watcher import Nobody
from patchdrive.readers import MemoryImage, open_image
from patchdrive.readers.errors import ModelError, StoreError

SETTINGS = RunSettings(patch_size=32, overlap=0, saliency="valid", batch_size=16, workers=2, memory=1 << 30)
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def vectors(name, *columns, **fields):
    """A spec of one vector, for white slides."""
    output = OutputSpec(name="features", kind="vector", channels=columns, dtype=fields.pop("dtype", "float32"))
    return ModelSpec(**{"name": name, "channels": 3, "size": 32, "any_size": True, "fill": 255.0, "outputs": (output,), **fields})


def maps(name, *outputs, **fields):
    """A spec of maps, for white slides."""
    return ModelSpec(**{"name": name, "channels": 3, "size": 32, "any_size": True, "fill": 255.0, "outputs": outputs, **fields})


class Model:
    """A PatchModel out of a spec and a function of pixels."""

    def __init__(self, spec, compute):
        self.spec, self._compute = spec, compute
        self.digest = hashlib.sha256(repr((spec, compute.__name__)).encode()).hexdigest()
        self.device = None

    def __call__(self, pixels):
        return self._compute(pixels)

    def to(self, device):
        self.device = device
        return self


def means(pixels):
    return {"features": pixels.mean((2, 3))}


def greedy(pixels):
    """Writes into what it is handed."""
    found = pixels.amax((2, 3))
    pixels.zero_()
    return {"features": found}


class Network(nn.Module):
    """Convolutions with weights of their own, normalised as timm's are."""

    def __init__(self, seed=0, name="network", **fields):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 5, stride=2), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        normal = {"scale": 1 / 255, "mean": (0.5, 0.4, 0.6), "std": (0.2, 0.3, 0.25)}
        self.spec = vectors(name, *(f"f{index}" for index in range(6)), **{"dtype": "float16", **normal, **fields})
        self.eval().requires_grad_(requires_grad=False)

    @property
    def digest(self):
        return module_digest(self, self.spec.to_dict())

    def forward(self, pixels):
        return {"features": self.layers(pixels)}


def detail(pixels):
    grey = pixels.mean(1, keepdim=True)
    smooth = functional.avg_pool2d(grey, 9, stride=1, padding=4)
    return {"detail": (grey - smooth).abs().clamp(0, 1), "grey": smooth}


def thirds(pixels):
    red = pixels[:, :1] / 86
    return {"third": torch.cat([(red.floor() == index).float() * 0.7 + 0.1 for index in range(3)], 1)}


DETAIL = maps(
    "detail",
    OutputSpec(name="detail", kind="probability", channels=("detail",), halo=4),
    OutputSpec(name="grey", kind="image", channels=("grey",), halo=4),
    scale=1 / 255,
)
THIRDS = maps("thirds", OutputSpec(name="third", kind="classes", channels=("a", "b", "c"), halo=4))


def image(height=1150, width=1060):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (height, width, 3)).astype(np.uint8)
    pixels[200:500, 300:700] = 0
    return MemoryImage([pixels], nodata=0.0, mpp=(0.5, 0.5))


def tree(root):
    found = {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in root.rglob("*") if path.is_file()}
    assert found
    return found


def encoders():
    """Four of different normalisation, dtype and manners."""
    return [
        Model(vectors("means", "r", "g", "b"), means),
        Model(vectors("greedy", "r", "g", "b"), greedy),
        Network(),
        Descriptor(ImageTraits()),
    ]


@pytest.mark.parametrize("order", [(0, 1, 2, 3), pytest.param((1, 2, 0), marks=pytest.mark.slow)])
def test_tables_are_those_of_each_model_alone(tmp_path, order):
    models = [encoders()[index] for index in order]
    report = run(image(), together(models), tmp_path / "all.zarr", settings=SETTINGS)
    assert (report.status, report.planned > 1024) == ("done", True)  # more than one block
    names = {f"{model.spec.name}_round0" for model in models}
    assert {path.name for path in (tmp_path / "all.zarr" / "tables").iterdir() if path.is_dir()} == names
    for model in models:
        store = tmp_path / f"{model.spec.name}.zarr"
        run(image(), model, store, settings=SETTINGS)
        table = f"tables/{model.spec.name}_round0"
        assert tree(tmp_path / "all.zarr" / table) == tree(store / table)


def test_maps_are_those_of_each_model_alone(tmp_path):
    settings = replace(SETTINGS, patch_size=48, overlap=16, blend="gaussian", memory=16 << 30)  # the same map blocks for all
    models = [Model(DETAIL, detail), Model(THIRDS, thirds)]
    run(image(), together(models), tmp_path / "all.zarr", settings=settings)
    seen = set()
    for model in models:
        store = tmp_path / f"{model.spec.name}.zarr"
        run(image(), model, store, settings=settings)
        for folder in ("images", "labels"):
            for path in (one for one in (store / folder).iterdir() if one.is_dir()):
                assert tree(tmp_path / "all.zarr" / folder / path.name) == tree(path), path.name
                seen.add(path.name)
    held = open_result(tmp_path / "all.zarr").maps
    assert set(held) == {"detail", "grey", "grey_valid", "third", "third_probability"} == seen - {"saliency", "thumbnail"}


def test_maps_of_different_strides(tmp_path):
    def cells(pixels):
        return {"cells": functional.avg_pool2d(pixels.mean(1, keepdim=True), 8) / 255}

    coarse = Model(maps("coarse", OutputSpec(name="cells", kind="probability", channels=("cells",), stride=8)), cells)
    fine = Model(replace(THIRDS, outputs=(replace(THIRDS.outputs[0], halo=0),)), thirds)
    run(image(300, 420), together([coarse, fine]), tmp_path / "all.zarr", settings=SETTINGS)
    both = open_result(tmp_path / "all.zarr").maps
    for model, name in ((coarse, "cells"), (fine, "third")):
        run(image(300, 420), model, tmp_path / f"{name}.zarr", settings=SETTINGS)
        alone = open_result(tmp_path / f"{name}.zarr").maps[name].values()
        np.testing.assert_array_equal(both[name].values(), alone)


def test_a_real_slide(tmp_path, real_file):
    slide = open_image(real_file("wsi/CMU-1-Small-Region.svs"))
    settings = RunSettings(select="topk", max_patches=12, patch_size=128, mpp=0.5, batch_size=4)
    models = [Network(scale=1 / 255, size=128), Descriptor(traits_of(slide))]
    run(slide, together(models), tmp_path / "all.zarr", settings=settings)
    for model in models:
        run(slide, model, tmp_path / "one.zarr", settings=settings, overwrite=True)
        table = f"tables/{model.spec.name}_round0"
        assert tree(tmp_path / "all.zarr" / table) == tree(tmp_path / "one.zarr" / table)


@pytest.mark.slow
def test_stopped_and_resumed_gives_the_same_bytes(tmp_path):
    class Impatient(Nobody):
        def wants_stop(self):
            return True

    run(image(), together(encoders()), tmp_path / "whole.zarr", settings=SETTINGS)
    first = run(image(), together(encoders()), tmp_path / "a" / "whole.zarr", settings=SETTINGS, watcher=Impatient())
    assert first.status == "partial"
    half = open_result(tmp_path / "a" / "whole.zarr")
    assert 0 < (half.patches.state == "done").sum() < first.planned
    assert run(image(), together(encoders()), tmp_path / "a" / "whole.zarr", settings=SETTINGS).status == "done"
    assert tree(tmp_path / "whole.zarr") == tree(tmp_path / "a" / "whole.zarr")
    with pytest.raises(StoreError, match=r"holds another run.*model\.digest"):
        run(image(), together(encoders()[::-1]), tmp_path / "whole.zarr", settings=SETTINGS)


def test_results_by_name(tmp_path):
    store = tmp_path / "all.zarr"
    run(image(300, 420), together([Model(vectors("means", "r", "g", "b"), means), Network()]), store, settings=SETTINGS)
    result = open_result(store)
    assert list(result.tables) == ["means", "network"]
    np.testing.assert_array_equal(result.features, result.features_of("means"))
    assert result.features_of("network").shape == (len(result.patches), 6)
    assert result.features_of("network").dtype == np.float16
    with pytest.raises(StoreError, match=r"no features of 'resnet'.*'means', 'network'"):
        result.features_of("resnet")
    drawn = {figure.name: figure for figure in figures(result, result.rounds, canvas_of(result))}
    assert {"features_means", "features_network"} <= drawn.keys()
    assert "6 features of network" in drawn["features_network"].caption


def test_it_is_a_patch_model():
    models = encoders()
    both = together(models)
    assert isinstance(both, PatchModel)
    assert both.spec.name == "means+greedy+network+descriptor"
    assert [output.name for output in both.spec.outputs] == ["means", "greedy", "network", "descriptor"]
    assert ModelSpec.from_dict(both.spec.to_dict()) == both.spec
    assert both.digest == hashlib.sha256("\n".join(model.digest for model in models).encode()).hexdigest()
    assert both.digest != together(models[::-1]).digest
    stored = torch.randint(0, 255, (5, 64, 64, 3), dtype=torch.uint8)
    given = both(both.spec.arrange(stored))
    for model, output in zip(models, both.spec.outputs, strict=True):
        alone = model(model.spec.normalise(stored))[model.spec.outputs[0].name]
        assert alone.shape == (5, len(output.channels))
        assert torch.equal(given[output.name], alone)
    assert both.to(torch.device("cpu")) is both
    assert [model.device for model in models[:2]] == [torch.device("cpu")] * 2


def test_one_model_is_itself():
    model = Network()
    assert together([model]) is model
    with pytest.raises(ModelError, match="no model is given"):
        together([])


def test_together_within_together():
    models = encoders()
    nested = together([together(models[:2]), *models[2:]])
    assert nested.spec.outputs == together(models).spec.outputs
    pixels = torch.rand(3, 3, 32, 32) * 255
    for name, values in together(models)(pixels).items():
        assert torch.equal(nested(pixels)[name], values)


def test_a_model_of_several_vectors(tmp_path):
    def both(pixels):
        return {"low": pixels.amin((2, 3)), "high": pixels.amax((2, 3))}

    columns = ("r", "g", "b")
    spec = maps("range", *(OutputSpec(name=name, kind="vector", channels=columns) for name in ("low", "high")))
    model = Model(spec, both)
    run(image(300, 420), model, tmp_path / "alone.zarr", settings=SETTINGS)
    run(image(300, 420), together([Network(), model]), tmp_path / "all.zarr", settings=SETTINGS)
    assert list(open_result(tmp_path / "all.zarr").tables) == ["network", "low", "high"]
    for table in ("low_round0", "high_round0"):
        assert tree(tmp_path / "alone.zarr" / "tables" / table) == tree(tmp_path / "all.zarr" / "tables" / table)
    result = open_result(tmp_path / "alone.zarr")
    known = ~np.isnan(result.features).any(axis=1)
    assert (result.features_of("low")[known] <= result.features_of("high")[known]).all()
    assert (result.features == result.features_of("low"))[known].all()


def test_names_that_meet():
    both = together([Network(0), Network(1), Network(2, name="network_2")])
    assert [output.name for output in both.spec.outputs] == ["network", "network_2", "network_2_2"]
    assert both.spec.name == "network+network_2+network_2_2"
    one, other = (Model(replace(DETAIL, name=name), detail) for name in ("one", "other"))
    assert [output.name for output in together([one, other]).spec.outputs] == ["detail", "grey", "other_detail", "other_grey"]
    awkward = Model(maps("x", OutputSpec(name="other_grey", kind="image", channels=("grey",), halo=4)), detail)
    with pytest.raises(ModelError, match="'grey' would be called 'other_grey'"):
        together([awkward, one, other])
    with pytest.raises(ModelError, match="network is given twice"):
        together([Network(0), Network(0)])


def test_what_cannot_be_together_is_refused_with_the_way_out():
    base = Model(vectors("base", "r", "g", "b"), means)

    def other(**fields):
        return Model(vectors("other", "r", "g", "b", **fields), means)

    def mapped(name, **fields):
        return Model(maps(name, OutputSpec(name=name, kind="image", channels=("grey",), **fields), size=96), detail)

    for models, words in (
        ([base, Model(DETAIL, detail)], "base: vectors, detail: maps"),
        ([base, other(channels=4)], "base: 3 channels, other: 4 channels"),
        ([base, other(fill=0.0)], r"base: fill 255\.0, other: fill 0\.0"),
        ([base, other(resampling="nearest")], "base: resampling area, other: resampling nearest"),
        ([other(any_size=False), replace_size(other(any_size=False), 64)], "other: 32, stride 1, other: 64, stride 1"),
        ([mapped("a", halo=4), mapped("b", halo=8)], "a: halo 4, b: halo 8"),
        ([mapped("a", stride=4), mapped("b", stride=6)], "a: stride 4, b: stride 6"),
        ([mapped("a", stride=32), fixed(mapped("b"), 48)], "a: any, stride 32, b: 48, stride 1"),
        ([mapped("a", halo=20), fixed(mapped("b", halo=20), 44), fixed(mapped("c", halo=20), 48)], r"twice the halo \(20\)"),
        ([base, patchdrivenet(PatchDriveNetConfig())], "patchdrivenet chooses its patches itself"),
        ([made(base, 0.5, "um"), made(other(), 10.0, "ground")], "base: 0.5 um, other: 10 ground"),
    ):
        with pytest.raises(ModelError, match=words) as raised:
            together(models)
        assert "-o OUT" in str(raised.value)
    both = together([base, other(fill=255.0)])
    assert isinstance(both, Together)
    nan = together([other(fill=float("nan")), replace_size(other(fill=float("nan")), 64)])
    assert np.isnan(nan.spec.fill)


def replace_size(model, size):
    return Model(replace(model.spec, size=size), model._compute)


def fixed(model, size):
    return Model(replace(model.spec, size=size, any_size=False), model._compute)


def made(model, pixel_size, unit):
    return Model(replace(model.spec, pixel_size=pixel_size, unit=unit), model._compute)


def test_sizes_come_together():
    small, large = (replace_size(Model(vectors(name, "r", "g", "b"), means), size) for name, size in (("s", 32), ("l", 100)))
    assert (together([small, large]).spec.size, together([small, large]).spec.any_size) == (100, True)
    eats = together([small, fixed(large, 224)]).spec
    assert (eats.size, eats.any_size) == (224, False)
    strided = Model(maps("strided", OutputSpec(name="cells", kind="image", channels=("grey",), stride=16)), detail)
    plain = Model(maps("plain", OutputSpec(name="grey", kind="image", channels=("grey",)), size=40), detail)
    assert together([strided, plain]).spec.size == 48


def test_pixel_sizes_come_together():
    base, other = (Model(vectors(name, "r", "g", "b"), means) for name in ("base", "other"))
    assert together([base, other]).spec.pixel_size is None
    spec = together([base, made(other, 0.5, "um")]).spec
    assert (spec.pixel_size, spec.unit) == (0.5, "um")
    apart = [made(base, 1.0, "um"), made(other, 0.5, "um")]
    with pytest.raises(ModelError, match=r"base: 1 um, other: 0\.5 um; say which with --mpp"):
        together(apart)
    spec = together(apart, pixel_size=0.25).spec
    assert (spec.pixel_size, spec.unit) == (0.25, "um")
    with pytest.raises(ModelError, match="--gsd"):
        together([made(base, 10.0, "ground"), made(other, 20.0, "ground")])


def test_a_member_that_breaks_its_promise_is_named():
    broken = Model(vectors("broken", "r", "g", "b"), lambda pixels: {"fetures": pixels.mean((2, 3))})
    with pytest.raises(ModelError, match=r"broken gave \['fetures'\] but its spec promises \['features'\]"):
        together([Network(), broken])(torch.zeros(1, 3, 32, 32))


def test_load_models(tmp_path):
    own = Network(any_size=False, size=64)
    save_program(own, own.spec, tmp_path / "own.pt2")
    names = ["descriptor", str(tmp_path / "own.pt2")]
    both = load_models(names, ImageTraits())
    assert [member.digest for member in both.members] == [load_model(name).digest for name in names]
    assert (both.spec.size, both.spec.pixel_size) == (64, 0.5)
    assert load_models(names[:1]).digest == load_model("descriptor").digest
    with pytest.raises(ModelError, match="chooses its patches itself"):
        load_models(["descriptor", "patchdrivenet"])
    with pytest.raises(ModelError, match=r"'descripter' \(did you mean 'descriptor'"):
        load_models(["descriptor", "descripter"])


def test_timm_networks_of_one_name(tmp_path):
    timm = pytest.importorskip("timm", reason="needs the extra timm")
    for seed in range(2):
        torch.manual_seed(seed)
        save_file(timm.create_model("resnet10t", pretrained=False).state_dict(), tmp_path / f"{seed}.safetensors")
    both = load_models([f"timm:resnet10t:{tmp_path / f'{seed}.safetensors'}" for seed in range(2)])
    assert [output.name for output in both.spec.outputs] == ["resnet10t", "resnet10t_2"]
    assert (both.spec.scale, both.spec.mean) == (1.0, ())


def test_the_cpu_computes_in_float32():
    model, asks = Network(), Network(autocast="bfloat16", channels_last=True)
    pixels = torch.rand(4, 3, 32, 32) * 255
    given = answer(asks, pixels)["features"]
    assert given.dtype == torch.float32
    assert torch.equal(given, answer(model, pixels)["features"])


@CUDA
@pytest.mark.parametrize("autocast", ["float16", "bfloat16"])
def test_each_member_computes_in_its_own_precision_on_cuda(autocast):
    device = torch.device("cuda")
    models = [Network(1, name="full"), Network(1, name="half", autocast=autocast, channels_last=True)]
    pixels = (torch.rand(4, 3, 64, 64) * 255).to(device)
    given = together(models).to(device)(pixels)
    assert (given["full"].dtype, given["half"].dtype) == (torch.float32, getattr(torch, autocast))
    torch.testing.assert_close(given["half"].float(), given["full"], rtol=0.05, atol=0.02)
    assert torch.equal(given["half"], answer(models[1], pixels)["features"])


def test_specs_written_before_there_was_a_choice():
    fields = Network().spec.to_dict()
    assert not {"autocast", "channels_last"} & fields.keys()  # so digests and stores stay what they were
    assert ModelSpec.from_dict(fields) == Network().spec
    asks = replace(Network().spec, autocast="float16", channels_last=True)
    assert ModelSpec.from_dict(asks.to_dict()) == asks
    with pytest.raises(ModelError, match="autocast is float16, bfloat16 or None, got 'float8'"):
        replace(asks, autocast="float8")
    with pytest.raises(ModelError, match="a name of its own"):
        replace(DETAIL, outputs=(DETAIL.outputs[0], DETAIL.outputs[0]))
    with pytest.raises(ModelError, match=r"vectors or maps, not both.*two OUTs"):
        replace(DETAIL, outputs=(*DETAIL.outputs, Network().spec.outputs[0]))
