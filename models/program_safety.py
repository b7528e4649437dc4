"""What of a `.pt2` is shown to `torch.export.load`: a fresh copy that holds nothing but tensors as raw bytes and a checked graph.

`torch.export.load` trusts its file. Read in the sources of torch 2.13, a `.pt2` runs code of its author through

1. sample inputs, which fall back to plain pickle (`_export/serde/serialize.py`, `deserialize_torch_artifact`);
2. weights and constants marked `use_pickle`, `opaque_obj_*`, `custom_obj_*`, and the older `model.pt` of both folders;
3. compiled libraries under `data/aotinductor/`;
4. size expressions (`expr_str`), which `sympy.sympify` evaluates as Python;
5. guards, which become a Python function;
6. targets of nodes, which may be any attribute reachable from `torch`, `operator` or `math`, and names, which become Python source;
7. the tree specs of inputs and outputs, which may import any module.

So nothing of the file reaches it unread. Records are read once, checked against a list of what may be there, and written to a new archive
in memory: sample inputs, guards and metadata are left out, expressions may only be arithmetic, targets only tensor operators of `aten`
that touch no file, names only names, trees only tuples, lists and dicts. torch stores its records uncompressed, so a compressed record
is refused, and with it every zip bomb. Not promised: that a graph needs little memory or time, or that every kernel of torch is sound.
"""

from __future__ import annotations

import ast
import io
import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from patchdrive.readers.errors import ModelError

SPEC_RECORD = "extra/patchdrive.json"
_GRAPH = "models/model.json"
_SAMPLES = "data/sample_inputs/model.pt"
_CONFIGS = {"data/weights/model_weights_config.json": "weight_", "data/constants/model_constants_config.json": "tensor_"}
_NEEDED = ("archive_format", "archive_version", _GRAPH, *_CONFIGS)
_KNOWN = re.compile(r"archive_format|archive_version|byteorder|version|\.data/\w+|extra/[\w.-]+|data/(weights/weight|constants/tensor)_\d+")
_DROPPED = ("byteorder", "extra/", ".data/serialization_id")
_LARGEST_TEXT = 1 << 28
_LONGEST_EXPRESSION = 4096

_WORD = re.compile(r"[\w.+-]*", re.ASCII)
_SYMBOL = re.compile(r"[a-z]{1,3}\d+", re.ASCII)
_FILE_OPERATORS = frozenset({"from_file", "save", "load"})
_PLAIN_TARGETS = re.compile(
    r"_operator\.(add|sub|mul|truediv|floordiv|mod|pow|neg|pos|abs|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem)"
    r"|math\.(ceil|floor|trunc|sqrt)|torch\.sym_(int|float|max|min|not|ite|sum)|torch\._sym_(sqrt|log2)"
)
_ATEN = re.compile(r"torch\.ops\.aten\.(\w+)\.(\w+)", re.ASCII)
_FUNCTION = re.compile(
    "Symbol|Integer|Float|Rational|Mul|Add|Pow|Max|Min|Abs|Eq|Ne|Lt|Le|Gt|Ge|Equality|Unequality|(Strict)?(LessThan|GreaterThan)|And|Or|Not"
    "|FloorDiv|ModularIndexing|Where|PythonMod|Mod|CleanDiv|CeilToInt|FloorToInt|CeilDiv|LShift|RShift|PowByNatural|FloatPow"
    "|FloatTrueDiv|IntTrueDiv|TruncToFloat|TruncToInt|RoundToInt|RoundDecimal|ToFloat|Identity"
)
_ARITHMETIC = (ast.Expression, ast.Call, ast.keyword, ast.Name, ast.Load, ast.Constant, ast.BinOp, ast.UnaryOp, ast.Compare)
_SIGNS = (ast.operator, ast.unaryop, ast.cmpop)
_TREES = (None, "builtins.tuple", "builtins.list", "builtins.dict")


def safe_copy(path: Path) -> tuple[io.BytesIO, str | None]:
    """An archive that `torch.export.load` may be given, and the text of the spec inside it, if there is one.

    Raises:
        ModelError: not a `.pt2`, or one that holds more than tensors and a graph of tensor operators; nothing of it has been run.
    """
    records = _read_records(path)
    missing = [name for name in _NEEDED if name not in records]
    if missing:
        raise ModelError(f"{path} is not a .pt2 of torch 2.8 or newer: it has no {missing[0]}; write it with save_program")
    for name, prefix in _CONFIGS.items():
        _check_payloads(path, name, _parsed(path, name, records[name]), prefix)
    _check_samples(path, records.get(_SAMPLES, b""))
    graph = _without_extras(_parsed(path, _GRAPH, records[_GRAPH]))
    _check_graph(path, graph)
    spec = records.get(SPEC_RECORD)
    kept = {name: data for name, data in records.items() if not name.startswith(_DROPPED)}
    kept |= {_GRAPH: json.dumps(graph).encode(), _SAMPLES: b""}
    copy = io.BytesIO()
    with zipfile.ZipFile(copy, "w", zipfile.ZIP_STORED) as archive:
        for name, data in kept.items():
            archive.writestr(f"model/{name}", data)
    copy.seek(0)
    return copy, None if spec is None else spec.decode(errors="replace")


def _refused(path: Path, what: str) -> ModelError:
    return ModelError(f"{path} is refused, nothing of it was run: {what}. A .pt2 may hold tensors and tensor operators only")


def _read_records(path: Path) -> dict[str, bytes]:
    """Every record by its name below the archive's root folder."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            names = [entry.filename.partition("/")[2] for entry in entries]
            for entry, name in zip(entries, names, strict=True):
                if entry.compress_type != zipfile.ZIP_STORED:
                    raise _refused(path, f"{name!r} is compressed, which torch never does")
                if not (_KNOWN.fullmatch(name) or name in {_GRAPH, _SAMPLES, *_CONFIGS}):
                    raise _refused(path, f"{name!r} is a record that may carry code")
            if sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise _refused(path, "its records are larger than the file")
            if len(set(names)) != len(names) or len({entry.filename.partition("/")[0] for entry in entries}) != 1:
                raise _refused(path, "it holds two records of one name, or more than one folder")
            return {name: archive.read(entry) for entry, name in zip(entries, names, strict=True)}
    except (OSError, zipfile.BadZipFile) as error:
        raise ModelError(f"{path} cannot be opened as .pt2: {error}") from error


def _parsed(path: Path, name: str, data: bytes) -> Any:
    if len(data) > _LARGEST_TEXT:
        raise _refused(path, f"{name} is {len(data)} bytes of JSON, at most {_LARGEST_TEXT} are read")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _refused(path, f"{name} is not JSON ({error})") from error


def _check_payloads(path: Path, name: str, config: Any, prefix: str) -> None:
    """Every payload is raw bytes under its usual name."""
    payloads = config.get("config") if isinstance(config, dict) else None
    if not isinstance(payloads, dict):
        raise _refused(path, f"{name} lists no payloads")
    for label, payload in payloads.items():
        if not isinstance(payload, dict) or payload.get("use_pickle") is not False:
            raise _refused(path, f"{label!r} in {name} is marked as pickle")
        if not re.fullmatch(rf"{prefix}\d+", str(payload.get("path_name"))):
            raise _refused(path, f"{label!r} in {name} lies in {payload.get('path_name')!r}")
    _check_words(path, config)


def _check_samples(path: Path, data: bytes) -> None:
    """They are never used; but samples that need more than tensors say what the file is for."""
    if not data:
        return
    try:
        torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError, ArithmeticError, ValueError, TypeError, LookupError, EOFError, AttributeError) as error:
        raise _refused(path, "its sample inputs are a pickle of more than tensors") from error


def _without_extras(program: Any) -> Any:
    """The program without guards and metadata: hints for people, and source code for torch."""
    if isinstance(program, list):
        return [_without_extras(item) for item in program]
    if not isinstance(program, dict):
        return program
    empty: Mapping[str, Any] = {"guards_code": [], "metadata": {}, "treespec_namedtuple_fields": {}}
    return {key: empty[key] if key in empty else _without_extras(value) for key, value in program.items()}


def _check_graph(path: Path, program: Any) -> None:
    if not isinstance(program, dict) or not isinstance(program.get("range_constraints", {}), dict):
        raise _refused(path, f"{_GRAPH} is not a program")
    try:
        for key, value in program.items():
            # The keys of the ranges, such as "8*s39", are only looked up.
            _check_words(path, list(value.values()) if key == "range_constraints" else value)
    except RecursionError as error:
        raise _refused(path, f"{_GRAPH} is nested too deeply") from error


def _check_words(path: Path, value: Any) -> None:
    """Every string anywhere below is a word, but for those that have rules of their own."""
    if isinstance(value, list):
        for item in value:
            _check_words(path, item)
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_words(path, key)
            _check_entry(path, key, item)
    elif isinstance(value, str) and not _WORD.fullmatch(value):
        raise _refused(path, f"{value[:80]!r} stands where a name belongs")


def _check_entry(path: Path, key: str, item: Any) -> None:
    """A dict's value, by its key. A text that an operator is called with stays a text, whatever it says."""
    if key == "expr_str":
        _check_expression(path, item)
    elif key in {"in_spec", "out_spec"}:
        _check_tree_text(path, item)
    elif key == "target" and isinstance(item, str):
        _check_target(path, item)
    elif key == "as_strings" and isinstance(item, list) and all(isinstance(text, str) for text in item):
        return
    elif key != "as_string" or not isinstance(item, str):
        _check_words(path, item)


def _check_target(path: Path, target: str) -> None:
    """A plain arithmetic function, or an overload of an `aten` operator that touches no file."""
    if _PLAIN_TARGETS.fullmatch(target):
        return
    found = _ATEN.fullmatch(target)
    if found and found[1] not in _FILE_OPERATORS:
        overload = getattr(getattr(torch.ops.aten, found[1], None), found[2], None)
        if isinstance(overload, torch._ops.OpOverload):  # noqa: SLF001 - the only name torch has for the type
            return
    raise _refused(path, f"{target[:80]!r} is not an operator that a file may call, or not one that torch {torch.__version__} has")


def _check_expression(path: Path, text: Any) -> None:
    """Arithmetic over sizes: whatever else sympy would evaluate is refused."""
    if not isinstance(text, str) or len(text) > _LONGEST_EXPRESSION:
        raise _refused(path, f"{str(text)[:80]!r} is not an expression of at most {_LONGEST_EXPRESSION} characters")
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _refused(path, f"{text[:80]!r} is not an expression ({error})") from error
    named = {id(node.args[0]) for node in nodes if isinstance(node, ast.Call) and _calls(node, "Symbol") and len(node.args) == 1}
    for node in nodes:
        if not _is_arithmetic(node, names_symbol=id(node) in named):
            raise _refused(path, f"{text[:80]!r} is more than arithmetic")


def _calls(node: ast.Call, name: str) -> bool:
    return isinstance(node.func, ast.Name) and node.func.id == name


def _is_arithmetic(node: ast.AST, *, names_symbol: bool) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and _FUNCTION.fullmatch(node.func.id) is not None
    if isinstance(node, ast.Name):
        return (_FUNCTION.fullmatch(node.id) or _SYMBOL.fullmatch(node.id)) is not None
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            return names_symbol and _SYMBOL.fullmatch(node.value) is not None
        return isinstance(node.value, int | float)
    return isinstance(node, _ARITHMETIC + _SIGNS)


def _check_tree_text(path: Path, text: Any) -> None:
    tree = _parsed(path, "a tree spec", text.encode()) if isinstance(text, str) else None
    if not isinstance(tree, list) or len(tree) != 2:
        raise _refused(path, f"{str(text)[:80]!r} is not a tree spec")
    _check_tree(path, tree[1])


def _check_tree(path: Path, node: Any) -> None:
    if not isinstance(node, dict) or node.get("type") not in _TREES:
        raise _refused(path, f"its inputs or outputs are a {str(node)[:80]!r}, not tuples, lists and dicts")
    context = node.get("context")
    keys = _parsed(path, "a tree spec", context.encode()) if isinstance(context, str) else context
    if not isinstance(keys, list | None) or not all(isinstance(key, str) and _WORD.fullmatch(key) for key in keys or []):
        raise _refused(path, f"{str(context)[:80]!r} are not the keys of a dict")
    children = node.get("children_spec", [])
    if not isinstance(children, list):
        raise _refused(path, f"{str(children)[:80]!r} are not the parts of a tree")
    for child in children:
        _check_tree(path, child)
