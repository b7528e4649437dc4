"""Features as colours: their first three principal components. Pure, and the same for the same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

_SAMPLE = 1024
"""Rows that the components are found from."""
_ROWS = 1024
"""Rows read at once: a chunk of a feature table."""


class Table(Protocol):
    """Rows of features, read by slices."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, D)."""
        ...

    def __getitem__(self, rows: slice, /) -> Any: ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FeatureColors:
    """One colour per computed row, over several tables."""

    rows: tuple[NDArray[np.int64], ...]
    """Per table: its rows that have features."""
    colors: tuple[NDArray[np.uint8], ...]
    """Per table: (len(rows), 3)."""
    share: tuple[float, ...]
    """Of the variance that each component explains, over the rows they were found from."""


def feature_colors(tables: Sequence[Table]) -> FeatureColors | None:
    """Colours of the rows of all tables; None where fewer than three rows have features.

    Columns are standardised, the components found from up to 1024 rows spread evenly, each with its largest loading positive;
    colours run from the sample's 1st to its 99th percentile.
    """
    sample = _sample(tables)
    if len(sample) < 3:
        return None
    mean, std = sample.mean(axis=0), sample.std(axis=0)
    std = np.where(std > 0, std, 1.0)
    loadings, share = _components((sample - mean) / std)
    projected = (sample - mean) / std @ loadings
    low, high = np.percentile(projected, (1, 99), axis=0)
    rows, colors = [], []
    for table in tables:
        found = [_project(table, start, mean, loadings / std[:, None]) for start in range(0, table.shape[0], _ROWS)]
        values = np.concatenate([value for _, value in found])
        rows.append(np.concatenate([row for row, _ in found]))
        colors.append(np.clip((values - low) / np.maximum(high - low, 1e-12) * 255, 0, 255).astype(np.uint8))
    return FeatureColors(rows=tuple(rows), colors=tuple(colors), share=share)


def _sample(tables: Sequence[Table]) -> NDArray[np.float64]:
    """Up to 1024 computed rows, spread over 32 of the tables' chunks at most."""
    blocks = [(table, start) for table in tables for start in range(0, table.shape[0], _ROWS)]
    chosen = [blocks[index] for index in np.unique(np.linspace(0, len(blocks) - 1, min(32, len(blocks))).astype(np.int64))]
    each = -(-_SAMPLE // max(1, len(chosen)))
    parts = [_computed(table, start)[1] for table, start in chosen]
    taken = [part[np.unique(np.linspace(0, len(part) - 1, min(each, len(part))).astype(np.int64))] for part in parts if len(part)]
    return np.concatenate(taken) if taken else np.zeros((0, 1))


def _computed(table: Table, start: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    values = np.asarray(table[start : start + _ROWS], np.float64)
    known = np.nonzero(np.isfinite(values).all(axis=1))[0]
    return known + start, values[known]


def _components(standard: NDArray[np.float64]) -> tuple[NDArray[np.float64], tuple[float, ...]]:
    """(D, 3) unit loadings and their shares of the variance; columns of zeros where there are fewer than three components."""
    _, singular, axes = np.linalg.svd(standard, full_matrices=False)
    variance = singular**2
    kept = int(np.count_nonzero(variance[:3] > 1e-12 * max(float(variance[0]), 1e-300)))
    loadings = np.zeros((standard.shape[1], 3))
    loadings[:, :kept] = axes[:kept].T
    largest = np.abs(loadings).argmax(axis=0)
    loadings *= np.where(loadings[largest, np.arange(3)] < 0, -1.0, 1.0)
    total = max(float(variance.sum()), 1e-300)
    return loadings, tuple(float(value / total) for value in variance[:kept])


def _project(
    table: Table, start: int, mean: NDArray[np.float64], loadings: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    rows, values = _computed(table, start)
    return rows, (values - mean) @ loadings
