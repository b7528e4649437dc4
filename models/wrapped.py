"""Any network of torch that turns images into vectors, as a trainable patch encoder."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from patchdrive.models.digest import module_digest
from patchdrive.models.types import ModelSpec
from patchdrive.readers.errors import ModelError

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_RUNNING = (*_BATCH_NORMS, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
"""What may keep statistics of the patches it has seen."""


class WrappedEncoder(nn.Module):
    """A PatchModel around `network`; made by `wrap`.

    Its batch norms stay in evaluation mode, in training too: they normalise by their running statistics, which no longer change; their
    weights still learn. So a patch's features are its own, and any chunking gives the same numbers. Dropout is left as it is.
    """

    def __init__(self, network: nn.Module, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.network = network
        self.train(network.training)

    @property
    def digest(self) -> str:
        """As `PatchModel.digest`. The kinds of its layers count; what shows neither there nor in a weight, as a stride, does not."""
        layers = [f"{name} {type(layer).__module__}.{type(layer).__qualname__}" for name, layer in self.network.named_modules()]
        return module_digest(self.network, {"layers": layers, **self.spec.to_dict()})

    def train(self, mode: bool = True) -> Self:
        """As torch's, but what keeps running statistics stays in evaluation mode."""
        super().train(mode)
        for layer in self.network.modules():
            if isinstance(layer, _RUNNING):
                layer.eval()
        return self

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """[n, C, p, p] normalised to its vector, [n, D] float32."""
        vector: Tensor = self.network(pixels)
        return {self.spec.outputs[0].name: vector.float()}


def wrap(network: nn.Module, spec: ModelSpec) -> WrappedEncoder:
    """A patch encoder out of `network`, which is not copied: its weights go on being its own, and are trained in place.

    Args:
        network: [n, C, p, p] float32 to [n, D]; for timm's, `create_model(NAME, num_classes=0)`. In training or evaluation mode.
        spec: one vector of D columns, and the size p.

    Raises:
        ModelError: the spec has other outputs; the network gives another shape, or normalises by the batch alone.
    """
    if [output.kind for output in spec.outputs] != ["vector"]:
        raise ModelError(f"{spec.name}: an encoder gives one vector, got {[f'{o.name}: {o.kind}' for o in spec.outputs]}")
    for name, layer in network.named_modules():
        if isinstance(layer, _BATCH_NORMS) and layer.running_mean is None:
            raise ModelError(f"{spec.name}: the batch norm {name!r} keeps no running statistics, so patches would depend on each other")
    wrapped = WrappedEncoder(network, spec)
    _try_out(wrapped)
    return wrapped


def _try_out(wrapped: WrappedEncoder) -> None:
    """Compute two blank patches, to hear now what would fail later."""
    spec, mode = wrapped.spec, wrapped.training
    weight = next(wrapped.parameters(), torch.zeros(()))
    blank = torch.zeros(2, spec.channels, spec.size, spec.size, device=weight.device)
    wanted = (2, len(spec.outputs[0].channels))
    wrapped.eval()
    try:
        with torch.no_grad():
            given: Any = wrapped.network(blank)
    except (RuntimeError, ValueError, AssertionError) as error:  # torch's, and what timm says of a size it was not built for
        raise ModelError(f"{spec.name}: the network does not take {tuple(blank.shape)}: {error}") from error
    finally:
        wrapped.train(mode)
    found = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
    if found != wanted:
        raise ModelError(f"{spec.name}: of {tuple(blank.shape)} the network makes {found}, its spec says {wanted}; pool it to one vector")
