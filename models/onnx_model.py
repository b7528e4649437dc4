"""A PatchModel in one `.onnx` file, computed by onnxruntime, with the ModelSpec inside: `metadata_props["patchdrive"]`, as JSON.

The graph has one input, float32 [n, C, S, S] normalised by the spec, and one output for each of the spec's, by its name. `save_onnx` writes
such a file from any model of torch, `add_spec` makes one of a file that somebody else exported. The extra `onnx` brings what it takes.

Opening a file runs no code of it: onnxruntime knows its own operators, and no library of others is ever registered. What a file could still
do is point to other files for its weights (`external_data`), anywhere on the disk, and the digest would not know of them: that is refused.
Protocol buffers end at 2 GiB, so larger models are `.pt2`. Not promised: that a graph needs little memory or time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_unflatten

from patchdrive.models.onnx_memory import WorkingSet
from patchdrive.models.onnx_session import Session, import_onnx
from patchdrive.models.program import check_outputs, export, in_batches, output_shape
from patchdrive.models.types import ModelSpec, PatchModel
from patchdrive.readers.errors import ModelError

KEY = "patchdrive"
"""Of the metadata that holds the spec."""
_OPSET = 20
_FLOAT = 1  # TensorProto.FLOAT
_EXTERNAL = 1  # TensorProto.EXTERNAL
Shape = Sequence[int | None]
"""Of a tensor in a graph; None where a side is left open."""


class OnnxModel:
    """A PatchModel read from an `.onnx` file."""

    def __init__(self, path: Path) -> None:
        """As `load_onnx`."""
        content = _content(path)
        self.digest = hashlib.sha256(content).hexdigest()
        proto = _parsed(path, content)
        self.spec = _spec(path, proto)
        self._batch_size = _checked(path, proto, self.spec)
        self._working_set = WorkingSet(import_onnx("onnx"), proto)
        self._path = path
        self._session = Session(content, str(path), torch.device("cpu"))

    def __call__(self, pixels: Tensor, /) -> Mapping[str, Tensor]:
        """[n, C, S, S] to one tensor per output of the spec; any n, also where the graph was made for one batch size."""
        return in_batches(self._run, pixels, self._batch_size)

    def to(self, device: torch.device, /) -> Self:
        """Open the file again for another device.

        Raises:
            ModelError: onnxruntime cannot compute there, or the file is another one by now.
        """
        if device != self._session.device:
            content = _content(self._path)
            if hashlib.sha256(content).hexdigest() != self.digest:
                raise ModelError(f"{self._path} was changed since it was loaded; load it again")
            self._session = Session(content, str(self._path), device)
        return self

    def _run(self, pixels: Tensor) -> Mapping[str, Tensor]:
        if self._session.device.type == "cpu":
            # For whoever counts the tensors of torch (`pipeline.probe`): as many bytes as onnxruntime holds, never touched, gone at once.
            torch.empty(self._working_set.bytes(pixels.shape), dtype=torch.uint8)
        outputs = self._session.run(pixels, [output.name for output in self.spec.outputs])
        check_outputs(outputs, self.spec, pixels)
        return outputs


def load_onnx(path: Path) -> OnnxModel:
    """Read an `.onnx` with a spec inside.

    Raises:
        ModelError: it is no such file, its weights lie in others, or it is not what its spec says; the message says how to write one.
    """
    return OnnxModel(path)


def save_onnx(model: nn.Module | PatchModel, spec: ModelSpec, path: Path, *, batch_size: int | None = None) -> None:
    """Write `model` and `spec` to an `.onnx` that `load_onnx`, and any other runtime of ONNX, reads.

    Args:
        model: as `patchdrive.models.program.export` takes it.
        spec: any size of patch stays possible when `spec.any_size`.
        path: ends in `.onnx`; written whole or not at all.
        batch_size: None leaves n open; a number fixes it, for models whose graph depends on it.

    Raises:
        ModelError: its outputs are not those of the spec, or it cannot be said in ONNX.
    """
    if path.suffix != ".onnx":
        raise ModelError(f"a model of ONNX is saved as .onnx, got {path.name}")
    import_onnx("onnxscript")
    program = export(model, spec, batch_size=batch_size)
    signature = program.call_spec.out_spec
    names: Mapping[str, int] = tree_unflatten(list(range(signature.num_leaves)), signature)
    with _quiet_exporter():
        try:
            written = torch.onnx.export(
                program,
                dynamo=True,
                external_data=False,
                verbose=False,
                opset_version=_OPSET,
                input_names=["pixels"],
                output_names=sorted(names, key=lambda name: names[name]),
            )
        except (torch.onnx.OnnxExporterError, RuntimeError, ValueError, TypeError) as error:
            raise ModelError(f"{spec.name} cannot be said in ONNX: {error}; save it as .pt2") from error
    assert written is not None
    proto = written.model_proto
    _forget_origin(proto)
    _put_spec(proto, spec, path)


def add_spec(source: Path, spec: ModelSpec, path: Path) -> None:
    """Write a copy of an `.onnx` of somebody else's to `path`, with `spec` inside.

    Raises:
        ModelError: `source` is no such file, or not what `spec` says.
    """
    proto = _parsed(source, _content(source))
    _checked(source, proto, spec)
    _put_spec(proto, spec, path)


def _put_spec(proto: Any, spec: ModelSpec, path: Path) -> None:
    """Write `proto` with the spec, whole or not at all."""
    kept = [(entry.key, entry.value) for entry in proto.metadata_props if entry.key != KEY]
    del proto.metadata_props[:]
    for key, value in [*kept, (KEY, json.dumps(spec.to_dict(), sort_keys=True))]:
        proto.metadata_props.add(key=key, value=value)
    try:
        content = proto.SerializeToString()
    except (ValueError, import_onnx("google.protobuf.message").EncodeError) as error:
        raise ModelError(f"{spec.name} does not fit into one .onnx, which ends at 2 GiB ({error}); save it as .pt2") from error
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """What torch's exporter says of itself: of its own deprecated calls, and of a torchvision that nobody needs here."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r".*treespec, LeafSpec", category=FutureWarning)
            yield
    finally:
        log.setLevel(before)


def _forget_origin(proto: Any) -> None:
    """Take out what says where the model was made: stack traces with the paths of this machine, on every node and value."""
    for part in _parts(proto):
        if "doc_string" in part.DESCRIPTOR.fields_by_name:
            part.ClearField("doc_string")
        if "metadata_props" in part.DESCRIPTOR.fields_by_name:
            part.ClearField("metadata_props")


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be opened as .onnx: {error}") from error


def _checked(path: Path, proto: Any, spec: ModelSpec) -> int | None:
    """The batch size that a graph was made for; None for any.

    Raises:
        ModelError: it is not what the spec says, or not all of it is here.
    """
    if _points_elsewhere(proto):
        raise ModelError(
            f"{path} keeps weights in other files, which is refused: a digest of it would not know of them. Save it as one file "
            "(onnx.save without save_as_external_data), or the model as .pt2"
        )
    _check_outputs(path, proto.graph, spec)
    return _batch_size(path, proto.graph, spec)


def _parsed(path: Path, content: bytes) -> Any:
    onnx = import_onnx("onnx")
    broken = import_onnx("google.protobuf.message").DecodeError
    try:
        proto = onnx.load_model_from_string(content)
    except (ValueError, broken) as error:
        raise ModelError(f"{path} cannot be opened as .onnx: {error}") from error
    if not proto.ir_version or not proto.graph.output:
        raise ModelError(f"{path} cannot be opened as .onnx: it holds no graph")
    return proto


def _spec(path: Path, proto: Any) -> ModelSpec:
    found = {entry.key: entry.value for entry in proto.metadata_props}
    how = (
        "write it with patchdrive.models.onnx_model: save_onnx(model, spec, path), or add_spec(source, spec, path) for a file that is there"
    )
    if KEY not in found:
        raise ModelError(f"{path} does not say what it eats and gives: its metadata has no {KEY!r}; {how}")
    try:
        return ModelSpec.from_dict(json.loads(found[KEY]))
    except (ValueError, ModelError) as error:
        raise ModelError(f"{path}: {KEY!r} in its metadata is not a spec ({error}); {how}") from error


def _parts(proto: Any) -> Iterator[Any]:
    """`proto` and every message inside it, in graphs of nodes and in functions too."""
    yield proto
    for field, value in proto.ListFields():
        if field.message_type is not None:
            for one in (value,) if hasattr(value, "DESCRIPTOR") else value:
                yield from _parts(one)


def _points_elsewhere(proto: Any) -> bool:
    """Whether any tensor of it lies in another file."""
    tensors = (part for part in _parts(proto) if part.DESCRIPTOR.name == "TensorProto")
    return any(tensor.data_location == _EXTERNAL or tensor.external_data for tensor in tensors)


def _batch_size(path: Path, graph: Any, spec: ModelSpec) -> int | None:
    pixels, side = _input(path, graph), None if spec.any_size else spec.size
    if pixels is None or len(pixels) != 4 or not _agree(pixels, (None, spec.channels, side, side)):
        raise ModelError(f"{path} takes {_show(pixels)}; its spec promises {_show((None, spec.channels, side, side))}")
    if spec.any_size and (pixels[2] is not None or pixels[3] is not None):
        raise ModelError(f"{path} takes {_show(pixels)}, and its spec promises that it takes any size (any_size)")
    return pixels[0]


def _input(path: Path, graph: Any) -> Shape | None:
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    if len(inputs) != 1 or inputs[0].type.tensor_type.elem_type != _FLOAT:
        raise ModelError(f"{path} takes {[value.name for value in inputs]}; a patch model takes one float32 tensor of pixels")
    return _dims(inputs[0])


def _check_outputs(path: Path, graph: Any, spec: ModelSpec) -> None:
    """What the graph states of its outputs; the rest is seen when it computes."""
    given = {value.name: _dims(value) for value in graph.output}
    if given.keys() != {output.name for output in spec.outputs}:
        raise ModelError(f"{path} gives {sorted(given)}; its spec promises {sorted(output.name for output in spec.outputs)}")
    like = torch.empty(1, spec.channels, spec.size, spec.size, device="meta")
    for output in spec.outputs:
        fixed = output_shape(output, like)[1:]
        wanted = (None, fixed[0], None, None) if spec.any_size and not output.by_rows else (None, *fixed)
        found = given[output.name]
        if found is not None and not _agree(found, wanted):
            raise ModelError(f"{output.name!r} of {path} is {_show(found)}; its spec promises {_show(wanted)}")


def _dims(value: Any) -> Shape | None:
    """The shape a graph states of an input or output, None for what is open; None where it states none."""
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        return None
    return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim)


def _agree(found: Shape, wanted: Shape) -> bool:
    """Whether two shapes can be one: what one of them leaves open is the other's."""
    return len(found) == len(wanted) and all(one is None or other is None or one == other for one, other in zip(found, wanted, strict=True))


def _show(shape: Shape | None) -> str:
    return "a tensor of no stated shape" if shape is None else f"[{', '.join('any' if side is None else str(side) for side in shape)}]"
