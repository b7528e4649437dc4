"""A coarser level of a map from the finer one: half its size. Pure."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Reduction = Literal["mean", "nearest", "max"]
"""How four pixels become one."""


def halve(values: NDArray[Any], reduction: Reduction, *, none: float | None = None, valid: NDArray[np.bool_] | None = None) -> NDArray[Any]:
    """A level from the finer one, as stored.

    `mean`: of those of its four pixels that have a value, rounded to stored numbers. `nearest`: the first of its four. `max`: the highest.
    What an odd edge lacks is taken for the edge itself, which a mean then counts twice.

    Args:
        values: (..., height, width).
        reduction: which.
        none: the stored number that means no value; None: there is none.
        valid: (height, width), which pixels have a value; None: all that are not `none`. Where no pixel of four has one, the result is
            `none`, or zero.

    Returns:
        (..., height / 2, width / 2), rounded up, of the same dtype.
    """
    if reduction == "nearest":
        return np.ascontiguousarray(values[..., ::2, ::2])
    quarters = _quarters(values)
    if reduction == "max":
        return np.asarray(np.maximum(np.maximum(quarters[0], quarters[1]), np.maximum(quarters[2], quarters[3])))
    exact = np.float32 if values.dtype.kind in "iu" and values.dtype.itemsize <= 2 else np.float64  # 4 x 65535 fits either
    total, count = np.zeros(quarters[0].shape, exact), np.zeros(quarters[0].shape, exact)
    theres = _quarters(valid) if valid is not None else [True] * 4 if none is None else [quarter != none for quarter in quarters]
    for quarter, there in zip(quarters, theres, strict=True):
        np.add(total, quarter, out=total, where=there)
        count += there
    mean = np.divide(total, count, out=np.full_like(total, 0 if none is None else none), where=count > 0)
    halved: NDArray[Any] = (np.rint(mean, out=mean) if values.dtype.kind in "iu" else mean).astype(values.dtype)
    return halved


def _quarters(values: NDArray[Any]) -> list[NDArray[Any]]:
    """The first, second, third and fourth of every four pixels."""
    odd = [(0, 0)] * (values.ndim - 2) + [(0, values.shape[-2] % 2), (0, values.shape[-1] % 2)]
    even = np.pad(values, odd, mode="edge") if any(after for _, after in odd) else values
    return [even[..., row::2, column::2] for row in (0, 1) for column in (0, 1)]
