"""With what a result was made, as far as it may lie in the store: no time, no host, no path."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

_DECIDES = ("patchdrive", "torch", "numpy", "zarr", "imagecodecs", "simplejpeg", "openslide-python", "openslide-bin", "rasterio")
"""What decodes pixels, computes and writes: other versions may answer otherwise in the last bits."""


def provenance(reader: str, plans: Sequence[str]) -> dict[str, Any]:
    """What the root of a finished store says beside the facts of its run.

    Args:
        reader: that opened the source.
        plans: digest of each round's plan.
    """
    return {"reader": reader, "plans": list(plans), "versions": {name: version(name) for name in _DECIDES}}
