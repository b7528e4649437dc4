"""What onnxruntime holds on the CPU while it computes a graph. It says so to nobody, so it is estimated, from the graph alone.

Of the values between nodes: those alive at once, by their shapes for a batch and the order of the nodes, at the worst moment. Of the
weights: their bytes. Both times what was measured at most, of processes that ran ResNet-18 and ViT-Ti with 4 to 64 patches: onnxruntime
keeps weights in the order its kernels like beside the order of the file (up to 3.7 times), and its arena grows by doubling (up to 3.5
times, of which `pipeline.probe` allows 1.5 for every model).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

_WEIGHTS = 3.7
_VALUES = 2.4
_SMALL = 1024
"""Elements of a tensor that may say shapes to others, and is kept with its values."""


class WorkingSet:
    """Of one graph."""

    def __init__(self, onnx: Any, proto: Any) -> None:
        """
        Args:
            onnx: the package.
            proto: a ModelProto; it is left without the values of its larger weights.
        """
        self._onnx = onnx
        self._weights = sum(self._bytes_of(tensor.data_type, tensor.dims) for tensor in proto.graph.initializer)
        for tensor in proto.graph.initializer:
            if math.prod(tensor.dims) > _SMALL:
                for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
                    tensor.ClearField(field)
        self._proto = proto
        self._held: dict[tuple[int, ...], int] = {}

    def bytes(self, shape: Sequence[int]) -> int:
        """While pixels of `shape` are computed."""
        key = tuple(shape)
        if key not in self._held:
            self._held[key] = round(_WEIGHTS * self._weights + _VALUES * self._alive(key))
        return self._held[key]

    def _alive(self, shape: Sequence[int]) -> int:
        """Bytes of the values that are alive at once, where there are most."""
        graph = self._inferred(shape)
        sizes = {value.name: self._bytes_of(*_described(value)) for value in (*graph.value_info, *graph.output)}
        last = {name: index for index, node in enumerate(graph.node) for name in node.input}
        ends = {value.name for value in graph.output}
        alive: dict[str, int] = {}
        most = 0
        for index, node in enumerate(graph.node):
            unknown = max((alive.get(name, 0) for name in node.input), default=0)
            alive |= {name: sizes.get(name, unknown) for name in node.output}
            most = max(most, sum(alive.values()))
            alive = {name: size for name, size in alive.items() if name in ends or last.get(name, -1) > index}
        return most

    def _inferred(self, shape: Sequence[int]) -> Any:
        """The graph, with the shapes of its values as far as they follow from that of its pixels."""
        proto = type(self._proto)()
        proto.CopyFrom(self._proto)
        weights = {tensor.name for tensor in proto.graph.initializer}
        pixels = next(value for value in proto.graph.input if value.name not in weights)
        for dim, side in zip(pixels.type.tensor_type.shape.dim, shape, strict=True):
            dim.dim_value = side
        for value in proto.graph.output:
            value.type.tensor_type.ClearField("shape")
        del proto.graph.value_info[:]
        return self._onnx.shape_inference.infer_shapes(proto, data_prop=True).graph

    def _bytes_of(self, kind: int, sides: Sequence[int]) -> int:
        return math.prod(sides) * int(self._onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize)


def _described(value: Any) -> tuple[int, list[int]]:
    """Its kind and shape; a side that nobody could infer counts as one."""
    kind = value.type.tensor_type
    return kind.elem_type, [dim.dim_value if dim.HasField("dim_value") else 1 for dim in kind.shape.dim]
