"""A model in a file, `.pt2` or `.onnx`, is the module it was made of: one contract, and a fixture for each kind of file."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from examples import SMALL, Pooled, Small
from torch import Tensor, nn

from patchdrive.models import ModelSpec, OutputSpec, PatchModel, load_model, save_onnx, save_program
from patchdrive.models.config import PatchDriveNetConfig
from patchdrive.models.model import patchdrivenet
from patchdrive.readers.errors import ModelError

POOLED = ModelSpec(
    name="pooled", channels=3, size=32, outputs=(OutputSpec(name="features", kind="vector", channels=tuple("abcdefghijklmnop")),)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of file, and how far its answers may be from those of the module."""

    suffix: str
    save: Callable[..., None]
    atol: float


@pytest.fixture(scope="module", params=["pt2", "onnx"])
def kind(request) -> Kind:
    if request.param == "pt2":
        return Kind(suffix=".pt2", save=save_program, atol=0.0)
    for module in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(module, reason="needs the extra onnx")
    return Kind(suffix=".onnx", save=save_onnx, atol=1e-5)


@pytest.fixture(scope="module")
def small(kind, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / f"small{kind.suffix}"
    kind.save(Small(), SMALL, path)
    return path


BOTH_SLOW_ONNX = pytest.mark.parametrize("kind", ["pt2", pytest.param("onnx", marks=pytest.mark.slow)], indirect=True)
"""Torch takes 3 s for any graph that it writes in ONNX."""


def noise(count: int, size: int) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(count))


def assert_same(model: PatchModel, module: nn.Module, pixels: Tensor, atol: float) -> None:
    with torch.inference_mode():
        given, wanted = model(pixels), module(pixels)
    assert given.keys() == wanted.keys()
    for name, values in wanted.items():
        torch.testing.assert_close(given[name], values, rtol=0, atol=atol)


@pytest.mark.parametrize(("count", "size"), [(1, 16), (2, 16), (5, 9), (3, 40)])
def test_gives_what_the_module_gives_at_any_batch_and_size(small, kind, count, size):
    model = load_model(str(small))
    assert isinstance(model, PatchModel)
    assert model.spec == SMALL
    assert_same(model.to(torch.device("cpu")), Small(), noise(count, size), kind.atol)


@BOTH_SLOW_ONNX
def test_an_encoder_with_a_fixed_size_and_batch_normalisation(kind, tmp_path):
    network, path = Pooled(), tmp_path / f"pooled{kind.suffix}"
    network.body[1].eval().running_mean.fill_(0.3)
    kind.save(network, POOLED, path)
    assert [part.training for part in network.body] == [True, False, True, True, True]
    assert_same(load_model(str(path)), network.eval(), noise(3, 32), kind.atol)


@BOTH_SLOW_ONNX
def test_a_fixed_batch_size_is_padded_and_cut(kind, tmp_path):
    path = tmp_path / f"four{kind.suffix}"
    kind.save(Small(), SMALL, path, batch_size=4)
    model = load_model(str(path))
    for count in (1, 4, 7):
        assert_same(model, Small(), noise(count, 16), max(kind.atol, 1e-6))


def test_the_encoder_of_a_patchdrivenet(kind, tmp_path):
    encoder, path = patchdrivenet(PatchDriveNetConfig(seed=3, patch_size=32)).encoder, tmp_path / f"encoder{kind.suffix}"
    kind.save(encoder, encoder.spec, path)
    model = load_model(str(path))
    assert model.spec == encoder.spec
    assert_same(model, encoder, noise(5, 32), max(kind.atol, 1e-6))


@BOTH_SLOW_ONNX
def test_a_model_that_is_no_module(kind, tmp_path):
    class Tint:
        """What a `module:function` may give: it computes without gradients, and has no parameters that torch knows of."""

        spec = dataclasses.replace(POOLED, name="tint", outputs=(OutputSpec(name="tint", kind="vector", channels=("r", "g", "b")),))
        digest = "tint-1"

        def __init__(self) -> None:
            self._network = nn.Conv2d(3, 3, 1)

        def __call__(self, pixels):
            with torch.no_grad():
                return {"tint": self._network(pixels).mean((2, 3))}

        def to(self, device):
            return self

    model, path = Tint(), tmp_path / f"tint{kind.suffix}"
    kind.save(model, model.spec, path)
    assert_same(load_model(str(path)), model, noise(2, 32), max(kind.atol, 1e-6))


def test_digest_is_of_the_bytes(small):
    assert load_model(str(small)).digest == hashlib.sha256(small.read_bytes()).hexdigest()


def test_nothing_of_this_machine_is_in_the_file(small):
    content = small.read_bytes()
    for word in (str(Path(__file__).parent), sys.prefix, "site-packages", "stack_trace", "examples"):
        assert word.encode() not in content


@pytest.mark.parametrize(
    "outputs",
    [
        (OutputSpec(name="other", kind="probability", channels=("a", "b")),),
        (OutputSpec(name="maps", kind="probability", channels=("a",)),),
        (OutputSpec(name="maps", kind="vector", channels=("a", "b")),),
    ],
)
def test_a_spec_that_promises_other_outputs_is_not_saved(kind, tmp_path, outputs):
    spec = ModelSpec(name="small", channels=3, size=16, outputs=outputs)
    with pytest.raises(ModelError, match="its spec promises"):
        kind.save(Small(), spec, tmp_path / f"x{kind.suffix}")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_said(kind, tmp_path):
    class Undecided(Small):
        def forward(self, pixels: Tensor) -> dict[str, Tensor]:
            return {"maps": super().forward(pixels)["maps"] * (2.0 if pixels.sum().item() > 0 else 1.0)}

    with pytest.raises(ModelError, match=r"torch\.export cannot write small"):
        kind.save(Undecided(), SMALL, tmp_path / f"x{kind.suffix}")
    with pytest.raises(ModelError, match=rf"saved as \{kind.suffix}"):
        kind.save(Small(), SMALL, tmp_path / "x.pt")


@pytest.mark.parametrize("content", [b"", b"PK", b"\x80\x02K\x01."])
def test_other_files_are_refused(kind, tmp_path, content):
    path = tmp_path / f"x{kind.suffix}"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="cannot be opened"):
        load_model(str(path))
