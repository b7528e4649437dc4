"""Host memory that a CUDA device copies from by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


def host_array(shape: tuple[int, ...], dtype: np.dtype[Any], *, pinned: bool) -> NDArray[Any]:
    """An array of anything, `pinned` in page-locked memory, from which a CUDA device copies by itself, or not."""
    array: NDArray[Any] = np.empty(shape, dtype)
    if pinned and array.nbytes:
        array = torch.empty(array.nbytes, dtype=torch.uint8, pin_memory=True).numpy().view(dtype).reshape(shape)
    return array
