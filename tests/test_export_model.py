"""`patchdrive export-model`: the file gives what the model gives, in a whole run too; what cannot be written is said and leaves nothing."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from patchdrive.models import Segmenter, SegmenterConfig, load_model
from patchdrive.models.config import PatchDriveNetConfig
from patchdrive.models.model import patchdrivenet
from patchdrive.models.onnx_model import add_spec
from patchdrive.models.segmenter import save_segmenter
from patchdrive.models.weights import save_patchdrivenet
from patchdrive.pipeline import RunSettings, open_result, run
from patchdrive.pipeline.cli import main
from patchdrive.readers import MemoryImage

SLIDE = np.random.default_rng(0).integers(0, 256, (200, 260, 3)).astype(np.uint8)
FORMS = pytest.mark.parametrize("suffix", [".pt2", pytest.param(".onnx", marks=pytest.mark.slow)])


def needed(suffix):
    if suffix == ".onnx":
        pytest.importorskip("onnxscript", reason="needs the extra onnx")
        pytest.importorskip("onnxruntime", reason="needs the extra onnx")


@FORMS
def test_the_encoder_of_a_trained_patchdrivenet_runs_without_it(tmp_path, capsys, suffix):
    needed(suffix)
    net, path = patchdrivenet(PatchDriveNetConfig(seed=7, patch_size=32)), tmp_path / f"encoder{suffix}"
    save_patchdrivenet(net, tmp_path / "net.safetensors")
    assert main(["export-model", str(tmp_path / "net.safetensors"), "-o", str(path)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(
        f"{path}: the encoder of patchdrivenet; 3 channels of 32 x 32 to features (vector, 64); the same as the model to "
    )
    assert float(said.split()[-1]) < 1e-5
    stores = []
    for model in (net.encoder, load_model(str(path))):
        assert model.spec == net.encoder.spec
        store = tmp_path / f"{len(stores)}.zarr"
        run(MemoryImage([SLIDE]), model, store, settings=RunSettings(saliency="valid", batch_size=4))
        stores.append(open_result(store).features)
    assert stores[0].shape == (63, 64)
    np.testing.assert_allclose(stores[1], stores[0], rtol=0, atol=1e-6 if suffix == ".pt2" else 1e-5)


@FORMS
def test_a_segmenter_of_any_size(tmp_path, suffix):
    needed(suffix)
    config = SegmenterConfig(channels=3, classes=("a", "b"), width=4, dilations=(1, 2), size=32, scale=1 / 255)
    save_segmenter(Segmenter(config, seed=5), tmp_path / "seg.safetensors")
    path = tmp_path / f"seg{suffix}"
    assert main(["export-model", f"segmenter:{tmp_path / 'seg.safetensors'}", "-o", str(path)]) == 0
    pixels = torch.rand(3, 3, 50, 50)
    with torch.inference_mode():
        given, wanted = (load_model(str(file))(pixels)["landcover"] for file in (path, tmp_path / "seg.safetensors"))
    torch.testing.assert_close(given, wanted, rtol=0, atol=1e-5)


WRONG = """
import torch

from patchdrive.models import ModelSpec, OutputSpec

SPEC = ModelSpec(name="wrong", channels=3, size=8, outputs=(OutputSpec(name="f", kind="vector", channels=("r", "g", "b")),))


class Whimsical(torch.nn.Module):
    digest, spec = "whimsical", SPEC

    def forward(self, pixels):
        return {"f": pixels.mean((2, 3)) + (1.0 if torch.compiler.is_exporting() else 0.0)}


class Undecided(torch.nn.Module):
    digest, spec = "undecided", SPEC

    def forward(self, pixels):
        return {"f": pixels.mean((2, 3)) if pixels.sum().item() > 0 else pixels.amax((2, 3))}
"""


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        ("quality", "quality.pth", "exported to FILE.pt2 or FILE.onnx, got quality.pth"),
        ("wrong_models:Undecided", "x.pt2", "torch.export cannot write wrong"),
        ("wrong_models:Whimsical", "x.pt2", "wrong gives something else as .pt2: 1.0e+00 off"),
        ("no_such_model", "x.pt2", "no model is called"),
    ],
)
def test_what_cannot_be_written_is_said_and_leaves_nothing(tmp_path, monkeypatch, capsys, name, file, message):
    (tmp_path / "wrong_models.py").write_text(WRONG)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "out").mkdir()
    assert main(["export-model", name, "-o", str(tmp_path / "out" / file)]) == 2
    assert message in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_a_model_of_onnx_is_not_taken_apart(tmp_path, capsys):
    onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    spec = load_model("identity").spec
    image = onnx.helper.make_tensor_value_info("pixels", onnx.TensorProto.FLOAT, ("n", 3, "h", "w"))
    out = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ("n", 3, "h", "w"))
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["pixels"], ["image"])], "identity", [image], [out])
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    (tmp_path / "theirs.onnx").write_bytes(proto.SerializeToString())
    add_spec(tmp_path / "theirs.onnx", dataclasses.replace(spec, name="theirs"), tmp_path / "ours.onnx")
    assert main(["export-model", str(tmp_path / "ours.onnx"), "-o", str(tmp_path / "x.pt2")]) == 2
    assert "is ONNX, which torch cannot take apart" in capsys.readouterr().err
