"""One graph of ONNX on one device, computed by onnxruntime: tensors of torch in and out."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from patchdrive.readers.errors import ModelError

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_ERRORS_ONLY = 3


class Session:
    """A graph, ready to compute. As many threads as torch has."""

    def __init__(self, content: bytes, name: str, device: torch.device) -> None:
        """
        Args:
            content: of an `.onnx` file that points to no other.
            name: of the file, for errors.
            device: where to compute; tensors may lie anywhere.

        Raises:
            ModelError: onnxruntime cannot read it, or cannot compute there.
        """
        self.device = device
        self._name = name
        runtime = import_onnx("onnxruntime")
        self._errors = _errors()
        try:
            self._session = runtime.InferenceSession(content, _options(runtime), providers=_providers(runtime, device))
        except self._errors as error:
            raise ModelError(f"{name} cannot be read by onnxruntime {runtime.__version__}: {error}") from error
        if self._session.get_providers()[0] != _PROVIDERS[device.type]:  # it would go on with the CPU, and tell nobody
            raise ModelError(f"{name}: onnxruntime-gpu {runtime.__version__} found no CUDA that fits it; compute with --device cpu")
        self._input = self._session.get_inputs()[0].name

    def run(self, pixels: Tensor, names: Sequence[str]) -> Mapping[str, Tensor]:
        """The outputs `names` for `pixels`, on the device that these lie on.

        Raises:
            ModelError: the graph cannot compute them.
            torch.OutOfMemoryError: they do not fit.
        """
        try:
            given = self._session.run(list(names), {self._input: pixels.detach().cpu().contiguous().numpy()})
        except self._errors as error:
            if "llocate" in str(error):
                raise torch.OutOfMemoryError(f"{self._name}: {error}") from error
            raise ModelError(f"{self._name}: onnxruntime cannot compute pixels {tuple(pixels.shape)}: {error}") from error
        return {name: torch.from_numpy(values).to(pixels.device) for name, values in zip(names, given, strict=True)}


def import_onnx(module: str) -> Any:
    """A module of the extra `onnx`.

    Raises:
        ModelError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ModelError(f"models in .onnx need onnx, onnxruntime and onnxscript: pip install 'patchdrive[onnx]' ({error})") from error


def _options(runtime: Any) -> Any:
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # its threads would take the cores of those that decode
    options.use_deterministic_compute = True
    options.enable_mem_pattern = False  # it plans memory for each shape anew, and on top: 616 MB where 306 do (ViT-Ti, 64 patches)
    options.log_severity_level = _ERRORS_ONLY
    return options


def _providers(runtime: Any, device: torch.device) -> list[Any]:
    if device.type not in _PROVIDERS:
        raise ModelError(f"onnxruntime computes on cpu and cuda here, not on {device}")
    if _PROVIDERS[device.type] not in runtime.get_available_providers():
        raise ModelError(
            f"onnxruntime {runtime.__version__} was built without CUDA: pip uninstall onnxruntime, pip install onnxruntime-gpu; "
            "or compute with --device cpu"
        )
    if device.type == "cpu":
        return [_PROVIDERS["cpu"]]
    return [(_PROVIDERS["cuda"], {"device_id": device.index or 0}), _PROVIDERS["cpu"]]


def _errors() -> tuple[type[Exception], ...]:
    """What onnxruntime raises: a class for each of its status codes, with no common parent of their own."""
    state = import_onnx("onnxruntime.capi.onnxruntime_pybind11_state")
    return tuple(kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception))
