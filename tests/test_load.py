"""What a user types becomes the model it names, or an error that says what would."""

from __future__ import annotations

import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from patchdrive.models import (
    DriveModel,
    ImageTraits,
    ModelSpec,
    OutputSpec,
    PatchModel,
    Segmenter,
    SegmenterConfig,
    load_model,
    save_program,
)
from patchdrive.models.config import PatchDriveNetConfig
from patchdrive.models.model import patchdrivenet
from patchdrive.models.segmenter import save_segmenter
from patchdrive.models.weights import save_patchdrivenet
from patchdrive.models.weights_file import write_weights
from patchdrive.readers.errors import ModelError

SCENE = ImageTraits(channels=("B02", "B03", "B04", "B08"), dtype="uint16", kind="scene")
SEGMENTER = SegmenterConfig(channels=4, classes=("land", "water"), width=4, dilations=(1,), size=32)

OWN = """
from patchdrive.models.identity import Identity

def plain():
    from patchdrive.models.types import ImageTraits
    return Identity(ImageTraits())

def shaped(traits):
    return Identity(traits)

def chosen(seed=1, *, traits=None):
    assert seed == 1
    return Identity(traits)

def seeded(seed=1):
    assert seed == 1
    return plain()

def wrong():
    return 42

number = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_models.py").write_text(OWN)
    (tmp_path / "broken_models.py").write_text("import there_is_no_such_module\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own_models", None)


@pytest.mark.parametrize("name", ["identity", "descriptor", "quality"])
@pytest.mark.parametrize("traits", [None, SCENE], ids=["slide", "scene"])
def test_built_in_models_are_shaped_to_the_image(name, traits):
    model = load_model(name, traits)
    assert isinstance(model, PatchModel)
    assert model.spec.name == name
    assert model.spec.channels == len((traits or ImageTraits()).channels)
    outputs = model(torch.zeros(1, model.spec.channels, 64, 64))
    assert set(outputs) == {output.name for output in model.spec.outputs}
    for output in model.spec.outputs:
        assert outputs[output.name].shape[1] == len(output.channels)


def test_patchdrivenet_untrained_and_from_its_file(tmp_path):
    untrained = load_model("patchdrivenet", SCENE)
    assert isinstance(untrained, DriveModel)
    assert untrained.encoder.spec.channels == 4
    saved = patchdrivenet(PatchDriveNetConfig(seed=7))
    path = tmp_path / "net.safetensors"
    save_patchdrivenet(saved, path)
    for name in (f"patchdrivenet:{path}", str(path)):
        assert load_model(name).digest == saved.digest != load_model("patchdrivenet").digest


def test_a_segmenter_from_its_file(tmp_path):
    path = tmp_path / "seg.safetensors"
    save_segmenter(Segmenter(SEGMENTER, seed=5), path)
    for name in (f"segmenter:{path}", str(path)):
        assert load_model(name).digest == Segmenter(SEGMENTER, seed=5).digest
    with pytest.raises(ModelError, match="of 'segmenter', not of 'patchdrivenet'"):
        load_model(f"patchdrivenet:{path}")


def test_a_program_from_its_file(tmp_path):
    class Mean(nn.Module):
        def forward(self, pixels: Tensor) -> dict[str, Tensor]:
            return {"mean": pixels.mean((2, 3))}

    spec = ModelSpec(name="mean", channels=3, size=16, outputs=(OutputSpec(name="mean", kind="vector", channels=("r", "g", "b")),))
    save_program(Mean(), spec, tmp_path / "mean.pt2")
    model = load_model(str(tmp_path / "mean.pt2"))
    assert model.spec == spec
    torch.testing.assert_close(model(torch.ones(3, 3, 16, 16))["mean"], torch.ones(3, 3))


def test_weights_of_something_else_are_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    write_weights(nn.Linear(1, 1), path, model="other", config={})
    with pytest.raises(ModelError, match="'other', which is not built in"):
        load_model(str(path))
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ModelError, match="does not say which model"):
        load_model(str(path))


def test_your_own_function(own):
    assert load_model("own_models:plain").spec.channels == 3
    assert load_model("own_models:shaped", SCENE).spec.channels == 4
    assert load_model("own_models:chosen", SCENE).spec.channels == 4
    assert load_model("own_models:seeded", SCENE).spec.channels == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_models:wrong", "returned a int, which is neither"),
        ("own_models:number", "not a function"),
        ("own_models:absent", "has no 'absent'"),
        ("no_such_models:plain", "no module 'no_such_models'"),
        ("own_models.deeper:plain", r"no module 'own_models\.deeper'"),
    ],
)
def test_functions_that_give_no_model_are_said(own, name, message):
    with pytest.raises(ModelError, match=message):
        load_model(name)


def test_a_mistake_in_your_own_module_is_shown_as_it_is(own):
    with pytest.raises(ModuleNotFoundError, match="there_is_no_such_module"):
        load_model("broken_models:plain")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("descripter", r"did you mean 'descriptor'\?"),
        ("Quality", r"did you mean 'quality'\?"),
        ("resnet18", r"there are descriptor, identity, .*segmenter:FILE.*timm:NAME"),
        ("", "no model is called ''"),
        ("identity:a.safetensors", "takes no weights"),
        ("segmenter", r"needs weights: segmenter:FILE\.safetensors"),
        ("segmenter:", "needs weights"),
        ("segmenter:absent.safetensors", r"absent\.safetensors is not a file"),
        ("absent.pt2", r"absent\.pt2 is not a file"),
        ("absent.safetensors", "is not a file"),
        ("absent.onnx", r"absent\.onnx is not a file"),
        ("hf-hub:resnet18", "is not hf-hub:ORG/NAME"),
        ("hfhub:timm/resnet18", r"did you mean 'hf-hub'\?"),
        ("timm:", "no model is called"),
        ("model.pth", "no model is called"),
    ],
)
def test_anything_else_says_what_there_is(name, message):
    with pytest.raises(ModelError, match=message):
        load_model(name)


def test_timm_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelError, match=r"pip install 'patchdrive\[timm\]'"):
        load_model("timm:resnet18")


def test_timm_from_a_file(tmp_path):
    timm = pytest.importorskip("timm", reason="needs the extra timm")
    classifier = timm.create_model("resnet10t", pretrained=False)
    path = tmp_path / "resnet10t.safetensors"
    save_file(classifier.state_dict(), path)
    model = load_model(f"timm:resnet10t:{path}")
    assert isinstance(model, PatchModel)
    settings = timm.data.resolve_model_data_config(classifier)
    assert (model.spec.size, model.spec.mean, model.spec.std) == (settings["input_size"][1], settings["mean"], settings["std"])
    assert model.spec.scale == 1 / 255
    pixels = torch.randn(2, 3, model.spec.size, model.spec.size)
    features = model(pixels)["features"]
    assert features.shape == (2, len(model.spec.outputs[0].channels))
    expected = classifier.eval().forward_head(classifier.forward_features(pixels), pre_logits=True)
    torch.testing.assert_close(features, expected)
    assert model.digest == load_model(f"timm:resnet10t:{path}").digest
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(f"timm:resnet18:{path}")


def test_timm_networks_that_cannot_be_had_are_said(monkeypatch):
    pytest.importorskip("timm", reason="needs the extra timm")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("no_such_network", "resnet10t.no_such_tag", "resnet10t:absent.safetensors", "resnet10t@abc:file.safetensors"):
        with pytest.raises(ModelError, match="timm:"):
            load_model(f"timm:{name}")
