"""A `.pt2` travels with its spec, and opening one runs nothing of it: every attack below works on torch.export.load and fails on ours."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from examples import SMALL, Small
from torch._export.verifier import SpecViolationError

from patchdrive.models.program import load_program, save_program
from patchdrive.models.program_safety import safe_copy
from patchdrive.models.types import ModelSpec, OutputSpec
from patchdrive.readers.errors import ModelError

GRAPH = "models/model.json"
SAMPLES = "data/sample_inputs/model.pt"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
Records = dict[str, bytes]
Attack = Callable[[Records, Path], Records]


class Evil:
    """Unpickled, it makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("program") / "small.pt2"
    save_program(Small(), SMALL, path)
    return path


@pytest.fixture
def records(saved) -> Records:
    with zipfile.ZipFile(saved) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def write(records: Records, path: Path, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in records.items():
            archive.writestr(f"small/{name}", data)
    return path


def pickled(thing: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    return buffer.getvalue()


def changed(records: Records, name: str, change: Callable[[Any], None]) -> Records:
    """The records with one JSON record changed in place."""
    content = json.loads(records[name])
    change(content)
    return {**records, name: json.dumps(content).encode()}


def first(config: dict[str, Any]) -> dict[str, Any]:
    return next(iter(config["config"].values()))


def code(marker: Path) -> str:
    return f"__import__('os').mkdir({str(marker)!r})"


def in_samples(records, marker):
    return {**records, SAMPLES: pickled((Evil(marker),))}


def in_a_weight(records, marker):
    return changed(records, WEIGHTS, lambda config: first(config).update(use_pickle=True)) | {
        "data/weights/weight_0": pickled(Evil(marker))
    }


def in_a_constant(records, marker):
    return changed(records, CONSTANTS, lambda config: first(config).update(use_pickle=True)) | {
        "data/constants/tensor_0": pickled(Evil(marker))
    }


def in_an_object(records, marker):
    payload = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    return changed(records, CONSTANTS, lambda config: config["config"].update(thing=payload)) | {
        "data/constants/opaque_obj_0": pickle.dumps(Evil(marker))
    }


def in_old_weights(records, marker):
    return {**records, "data/weights/model.pt": pickled(Evil(marker))}


def in_a_size(records, marker):
    def change(program):
        program["graph_module"]["graph"]["tensor_values"]["pixels"]["sizes"][0]["as_expr"]["expr_str"] = code(marker)

    return changed(records, GRAPH, change)


def in_a_name(records, marker):
    return {**records, GRAPH: records[GRAPH].replace(b'"pixels"', json.dumps(f"pixels={code(marker)}").encode())}


ATTACKS: list[Attack] = [in_samples, in_a_weight, in_a_constant, in_an_object, in_old_weights, in_a_size, in_a_name]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_attacks_that_work_on_torch_are_refused(records, tmp_path, attack):
    marker = tmp_path / "marker"
    path = write(attack(records, marker), tmp_path / "evil.pt2")
    with pytest.raises(ModelError, match="is refused, nothing of it was run"):
        load_program(path)
    assert not marker.exists()
    # Whatever torch says, it says it afterwards (TypeError: its own log message does not format).
    with contextlib.suppress(ValueError, AssertionError, AttributeError, FileExistsError, RuntimeError, TypeError, SpecViolationError):
        torch.export.load(path)
    assert marker.exists(), "the attack is no attack: torch did not run it"


def set_target(target: str) -> Callable[[Any], None]:
    return lambda program: program["graph_module"]["graph"]["nodes"][0].update(target=target)


def set_size(text: Any) -> Callable[[Any], None]:
    def change(program):
        program["graph_module"]["graph"]["tensor_values"]["pixels"]["sizes"][0]["as_expr"]["expr_str"] = text

    return change


def hide_in_values(key: str) -> Callable[[Any], None]:
    """A tensor that bears the name of a field with rules of its own."""

    def change(program):
        values = program["graph_module"]["graph"]["tensor_values"]
        values[key] = json.loads(json.dumps(values["pixels"]))
        values[key]["sizes"][0]["as_expr"]["expr_str"] = "print()"

    return change


def set_tree(**fields: Any) -> Callable[[Any], None]:
    def change(program):
        signature = program["graph_module"]["module_call_graph"][0]["signature"]
        protocol, tree = json.loads(signature["out_spec"])
        signature["out_spec"] = json.dumps([protocol, {**tree, **fields}])

    return change


@pytest.mark.parametrize(
    "change",
    [
        set_target("torch.os.system"), set_target("torch.ops.aten.from_file.default"), set_target("torch.ops.aten.save.default"),
        set_target("torch.ops.aten.__class__.mro"), set_target("torch.ops.higher_order.cond"), set_target("_operator.methodcaller"),
        set_target("#extension:thing"), set_target("torch.ops.aten.no_such_operator.default"),
        set_size("print()"), set_size("Symbol('s0').__class__"), set_size("Max('print()', 1)"), set_size("Symbol('print()')"),
        set_size("(lambda: 1)()"), set_size("[1 for s0 in s1]"), set_size("1 +"), set_size("1" * 5000), set_size("(" * 3000),
        set_size({"a": 1}),
        hide_in_values("as_string"), hide_in_values("as_strings"), hide_in_values("in_spec"), hide_in_values("target"),
        set_tree(type="collections.defaultdict"), set_tree(context='[{"__enum__": true, "fqn": "os:x", "name": "y"}]'),
        set_tree(children_spec="x"), lambda program: program.update(verifiers=["a(b)"]),
        lambda program: program.update(range_constraints={"s0": {"min_val": "f()"}}), lambda program: program.update(range_constraints=[]),
    ],
)  # fmt: skip
def test_graphs_of_more_than_tensor_operators_are_refused(records, tmp_path, change):
    with pytest.raises(ModelError, match="is refused, nothing of it was run"):
        load_program(write(changed(records, GRAPH, change), tmp_path / "evil.pt2"))


def test_a_tree_spec_imports_nothing(records, tmp_path):
    change = set_tree(context='[{"__enum__": true, "fqn": "this:x", "name": "y"}]')
    with pytest.raises(ModelError, match="not the keys of a dict"):
        load_program(write(changed(records, GRAPH, change), tmp_path / "evil.pt2"))
    assert "this" not in sys.modules


def test_guards_and_metadata_are_left_out(records, tmp_path):
    marker = tmp_path / "marker"
    path = write(changed(records, GRAPH, lambda program: program.update(guards_code=[code(marker)])), tmp_path / "guarded.pt2")
    load_program(path)(torch.zeros(1, 3, 16, 16))
    assert not marker.exists()
    shown, _ = safe_copy(path)
    with zipfile.ZipFile(shown) as archive:
        program = json.loads(archive.read(f"model/{GRAPH}"))
        assert program["guards_code"] == []
        assert all(node["metadata"] == {} for node in program["graph_module"]["graph"]["nodes"])
        assert archive.read(f"model/{SAMPLES}") == b""


@pytest.mark.parametrize(
    "name", ["data/aotinductor/model/x.so", "data/constants/custom_obj_0", "data/constants/model.pt", "../x", "models/other.json"]
)
def test_records_that_may_carry_code_are_refused(records, tmp_path, name):
    with pytest.raises(ModelError, match="may carry code"):
        load_program(write({**records, name: b"x"}, tmp_path / "evil.pt2"))


def test_zip_bombs_are_refused(records, tmp_path):
    bomb = {**records, "extra/bomb": bytes(10_000_000)}
    with pytest.raises(ModelError, match="compressed"):
        load_program(write(bomb, tmp_path / "bomb.pt2", zipfile.ZIP_DEFLATED))
    path = tmp_path / "overlapping.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records.items():
            archive.writestr(f"small/{name}", data)
        archive.writestr("small/extra/0", bytes(1_000_000))
        for index in range(1, 50):  # one million bytes, listed fifty times
            again = copy.copy(archive.filelist[-1])
            again.filename = f"small/extra/{index}"
            archive.filelist.append(again)
    with pytest.raises(ModelError, match="larger than the file"):
        load_program(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_records_of_one_name_are_refused(records, tmp_path):
    path = write(records, tmp_path / "twice.pt2")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"small/{GRAPH}", records[GRAPH])
    with pytest.raises(ModelError, match="two records of one name"):
        load_program(path)


def test_damaged_graphs_are_errors_of_the_file(records, tmp_path):
    def forget(program):
        program["graph_module"]["graph"]["nodes"].pop()

    for damaged in (
        {**records, GRAPH: b"{"},
        {**records, GRAPH: b"[" * 100_000},
        {**records, GRAPH: b"{}"},
        changed(records, GRAPH, forget),
    ):
        with pytest.raises(ModelError):
            load_program(write(damaged, tmp_path / "damaged.pt2"))
    with pytest.raises(ModelError, match="has no"):
        load_program(write({name: data for name, data in records.items() if name != GRAPH}, tmp_path / "damaged.pt2"))


def test_without_a_spec_it_says_how_to_write_one(tmp_path):
    path = tmp_path / "bare.pt2"
    torch.export.save(torch.export.export(Small().eval(), (torch.zeros(2, 3, 16, 16),)), path)
    with pytest.raises(ModelError, match="save_program"):
        load_program(path)


@pytest.mark.parametrize("text", ["{}", "[]", "nonsense", '{"spec": {"name": 1}, "batch_size": null}'])
def test_a_spec_that_is_none_is_refused(records, tmp_path, text):
    with pytest.raises(ModelError, match="spec"):
        load_program(write({**records, "extra/patchdrive.json": text.encode()}, tmp_path / "x.pt2"))


@pytest.mark.parametrize(
    "outputs",
    [
        (OutputSpec(name="other", kind="probability", channels=("a", "b")),),
        (OutputSpec(name="maps", kind="probability", channels=("a",)),),
        (OutputSpec(name="maps", kind="vector", channels=("a", "b")),),
    ],
)
def test_a_spec_that_promises_other_outputs_is_refused(records, tmp_path, outputs):
    spec = ModelSpec(name="small", channels=3, size=16, outputs=outputs)
    lying = {**records, "extra/patchdrive.json": json.dumps({"spec": spec.to_dict(), "batch_size": None}).encode()}
    program = load_program(write(lying, tmp_path / "x.pt2"))
    with pytest.raises(ModelError, match="its spec promises"):
        program(torch.zeros(1, 3, 16, 16))
