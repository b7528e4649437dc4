"""What an `.onnx` may hold, and what it is refused for: graphs written by hand, node by node."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from patchdrive.models import ModelSpec, OutputSpec, load_model
from patchdrive.models.onnx_model import add_spec, load_onnx
from patchdrive.pipeline.infer import TooLargeError, compute
from patchdrive.pipeline.probe import probe
from patchdrive.readers.errors import ModelError

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
pytest.importorskip("onnxruntime", reason="needs the extra onnx")
helper, numpy_helper, FLOAT = onnx.helper, onnx.numpy_helper, onnx.TensorProto.FLOAT

COLOUR = ModelSpec(
    name="colour", channels=3, size=16, any_size=True, outputs=(OutputSpec(name="means", kind="vector", channels=("r", "g", "b")),)
)
FIXED = dataclasses.replace(COLOUR, any_size=False)
PIXELS = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def graph(takes=("n", 3, "h", "w"), gives=("n", 3), *, output="means", kind=FLOAT, nodes=None, initializers=(), more=()):
    """means = mean of pixels * gain over rows and columns, stated to have these shapes."""
    gain = numpy_helper.from_array(np.ones((1, 3, 1, 1), np.float32), "gain")
    axes = numpy_helper.from_array(np.array([2, 3], np.int64), "axes")
    usual = [helper.make_node("Mul", ["pixels", "gain"], ["lit"]), helper.make_node("ReduceMean", ["lit", "axes"], [output], keepdims=0)]
    inputs = [helper.make_tensor_value_info("pixels", kind, takes), *more]
    outputs = [helper.make_tensor_value_info(output, FLOAT, gives)]
    return helper.make_graph(nodes or usual, "colour", inputs, outputs, [gain, axes, *initializers])


def write(path: Path, spec: ModelSpec | str | None = COLOUR, made=None) -> Path:
    proto = helper.make_model(made or graph(), opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    if spec is not None:
        helper.set_model_props(proto, {"patchdrive": spec if isinstance(spec, str) else json.dumps(spec.to_dict())})
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.parametrize(
    ("spec", "made"),
    [
        (COLOUR, graph()),
        (FIXED, graph()),
        (FIXED, graph(takes=("n", 3, 16, 16))),
        (FIXED, graph(takes=("n", "c", 16, 16), gives=None)),
        (FIXED, graph(takes=(2, 3, 16, 16), gives=(2, 3))),
        (COLOUR, graph(more=[helper.make_tensor_value_info("gain", FLOAT, (1, 3, 1, 1))])),  # as older exporters list their weights
    ],
    ids=["open", "open, fixed spec", "fixed", "unsaid", "two at a time", "weights among inputs"],
)
def test_it_is_read_and_computes(tmp_path, spec, made):
    model = load_model(str(write(tmp_path / "colour.onnx", spec, made)))
    assert model.spec == spec
    with torch.inference_mode():
        given = model(PIXELS)["means"]
    torch.testing.assert_close(given, PIXELS.mean((2, 3)))
    torch.testing.assert_close(model(PIXELS[:, :, ::1].flip(3))["means"], PIXELS.mean((2, 3)))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (None, r"metadata has no 'patchdrive'.*save_onnx\(model, spec, path\), or add_spec\(source, spec, path\)"),
        ("nonsense", "is not a spec"),
        ("[]", "is not a spec"),
        ("{}", "is not a spec"),
        ('{"name": 1, "outputs": []}', "is not a spec"),
    ],
)
def test_a_spec_that_is_none_is_refused(tmp_path, spec, message):
    with pytest.raises(ModelError, match=message):
        load_onnx(write(tmp_path / "x.onnx", spec))


TWO = OutputSpec(name="means", kind="vector", channels=("r", "g"))
MAP = OutputSpec(name="means", kind="image", channels=("r", "g", "b"))


@pytest.mark.parametrize(
    ("spec", "made", "message"),
    [
        (dataclasses.replace(FIXED, channels=4), graph(), r"takes \[any, 3, any, any\]; its spec promises \[any, 4, 16, 16\]"),
        (dataclasses.replace(FIXED, size=32), graph(takes=("n", 3, 16, 16)), r"takes .*16\]; its spec promises \[any, 3, 32, 32\]"),
        (COLOUR, graph(takes=("n", 3, 16, 16)), "promises that it takes any size"),
        (COLOUR, graph(takes=("n", 3, 16)), "its spec promises"),
        (COLOUR, graph(takes=None), "takes a tensor of no stated shape"),
        (COLOUR, graph(output="other"), r"gives \['other'\]; its spec promises \['means'\]"),
        (dataclasses.replace(FIXED, outputs=(TWO,)), graph(), r"'means' of .* is \[any, 3\]; its spec promises \[any, 2\]"),
        (dataclasses.replace(FIXED, outputs=(MAP,)), graph(), r"is \[any, 3\]; its spec promises \[any, 3, 16, 16\]"),
        (COLOUR, graph(kind=onnx.TensorProto.FLOAT16), "takes one float32 tensor"),
        (COLOUR, graph(more=[helper.make_tensor_value_info("second", FLOAT, (1,))]), r"takes \['pixels', 'second'\]; a patch"),
    ],
)  # fmt: skip
def test_shapes_that_contradict_the_spec_are_refused(tmp_path, spec, made, message):
    with pytest.raises(ModelError, match=message):
        load_onnx(write(tmp_path / "x.onnx", spec, made))


def test_a_shape_that_only_shows_when_it_computes_is_refused_then(tmp_path):
    spec = dataclasses.replace(FIXED, outputs=(TWO,))
    model = load_onnx(write(tmp_path / "x.onnx", spec, graph(gives=None)))
    with pytest.raises(ModelError, match="its spec promises"):
        model(PIXELS)


def external(name="gain"):
    tensor = onnx.TensorProto(name=name, data_type=FLOAT, dims=(1, 3, 1, 1), data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/hostname")
    return tensor


def inside_a_branch():
    """A graph inside a node, with a constant that lies elsewhere."""
    constant = helper.make_node("Constant", [], ["inner"], value=external("inner"))
    branch = helper.make_graph([constant], "branch", [], [helper.make_tensor_value_info("inner", FLOAT, None)])
    truth = helper.make_node("Constant", [], ["truth"], value=numpy_helper.from_array(np.array(True)))
    chosen = helper.make_node("If", ["truth"], ["chosen"], then_branch=branch, else_branch=branch)
    return graph(nodes=[truth, chosen, helper.make_node("ReduceMean", ["pixels", "axes"], ["means"], keepdims=0)])


@pytest.mark.parametrize("made", [graph(initializers=[external("more")]), inside_a_branch()], ids=["initializer", "branch"])
def test_weights_in_other_files_are_refused(tmp_path, made):
    with pytest.raises(ModelError, match="keeps weights in other files, which is refused"):
        load_onnx(write(tmp_path / "x.onnx", COLOUR, made))


def test_operators_that_nobody_knows_are_said(tmp_path):
    made = graph(nodes=[helper.make_node("NoSuchOperator", ["pixels"], ["means"], domain="elsewhere")])
    with pytest.raises(ModelError, match=r"cannot be read by onnxruntime .*NoSuchOperator"):
        load_onnx(write(tmp_path / "x.onnx", COLOUR, made))


def test_a_graph_that_cannot_compute_is_said(tmp_path):
    wide = numpy_helper.from_array(np.ones((1, 1, 1, 7), np.float32), "wide")
    nodes = [helper.make_node("Mul", ["pixels", "wide"], ["lit"]), helper.make_node("ReduceMean", ["lit", "axes"], ["means"], keepdims=0)]
    model = load_onnx(write(tmp_path / "x.onnx", COLOUR, graph(nodes=nodes, initializers=[wide])))
    with pytest.raises(ModelError, match=r"onnxruntime cannot compute pixels \(5, 3, 16, 16\)"):
        model(PIXELS)


def test_what_does_not_fit_is_too_large_and_no_other_error(tmp_path):
    shape = numpy_helper.from_array(np.array([1 << 20, 1 << 20, 1, 1], np.int64), "shape")
    one = numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "one")
    nodes = [
        helper.make_node("Expand", ["one", "shape"], ["vast"]),
        helper.make_node("ReduceMax", ["vast"], ["most"], keepdims=0),
        helper.make_node("Mul", ["pixels", "most"], ["lit"]),
        helper.make_node("ReduceMean", ["lit", "axes"], ["means"], keepdims=0),
    ]
    path = write(tmp_path / "x.onnx", COLOUR, graph(nodes=nodes, initializers=[shape, one]))
    with pytest.raises(TooLargeError, match="4 patches at once do not fit on cpu"):
        compute(load_onnx(path), np.zeros((4, 16, 16, 3), np.uint8), torch.device("cpu"))


def test_a_spec_is_given_to_a_file_of_somebody_elses(tmp_path):
    theirs = write(tmp_path / "theirs.onnx", None)
    add_spec(theirs, COLOUR, tmp_path / "ours.onnx")
    torch.testing.assert_close(load_onnx(tmp_path / "ours.onnx")(PIXELS)["means"], PIXELS.mean((2, 3)))
    add_spec(tmp_path / "ours.onnx", FIXED, tmp_path / "ours.onnx")
    assert load_onnx(tmp_path / "ours.onnx").spec == FIXED
    with pytest.raises(ModelError, match="its spec promises"):
        add_spec(theirs, dataclasses.replace(COLOUR, channels=4), tmp_path / "other.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours.onnx", "theirs.onnx"]


def test_another_device_is_asked_for_and_not_fallen_back_from(tmp_path, monkeypatch):
    path = write(tmp_path / "x.onnx")
    model = load_onnx(path)
    with pytest.raises(ModelError, match="not on meta"):
        model.to(torch.device("meta"))
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ModelError, match=r"was built without CUDA: .*onnxruntime-gpu; or compute with --device cpu"):
        model.to(torch.device("cuda"))
    write(path, FIXED)
    with pytest.raises(ModelError, match="was changed since it was loaded"):
        model.to(torch.device("cuda"))
    torch.testing.assert_close(model.to(torch.device("cpu"))(PIXELS)["means"], PIXELS.mean((2, 3)))


def test_what_onnxruntime_holds_is_counted(tmp_path):
    """Weights of 12 MB, and 4 MB that are made of each patch, twice at a time: torch sees neither."""
    long = 1 << 20
    weights = numpy_helper.from_array(np.random.default_rng(0).random((3, long), np.float32), "weights")
    last = numpy_helper.from_array(np.array([1], np.int64), "last")
    nodes = [
        helper.make_node("ReduceMean", ["pixels", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "weights"], ["made"]),
        helper.make_node("Sqrt", ["made"], ["root"]),
        helper.make_node("ReduceMax", ["root", "last"], ["most"], keepdims=1),
        helper.make_node("Concat", ["most", "most", "most"], ["means"], axis=1),
    ]
    model = load_onnx(write(tmp_path / "large.onnx", COLOUR, graph(nodes=nodes, initializers=[weights, last])))
    footprint = probe(model, side=16, dtype=np.dtype(np.uint8), device=torch.device("cpu"))
    assert 3 * long * 4 < footprint.fixed < 5 * 3 * long * 4
    assert 2 * long * 4 < footprint.patch < 5 * 2 * long * 4
    assert probe(model, side=16, dtype=np.dtype(np.uint8), device=torch.device("cpu")) == footprint
    with torch.inference_mode():
        wanted = torch.from_numpy(np.array(numpy_helper.to_array(weights))).mul(PIXELS.mean((2, 3))[:, :, None]).sum(1).sqrt().amax(1)
    torch.testing.assert_close(model(PIXELS)["means"][:, 1], wanted)


def test_onnx_is_an_extra(tmp_path, monkeypatch):
    path = write(tmp_path / "x.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModelError, match=r"pip install 'patchdrive\[onnx\]'"):
        load_model(str(path))
