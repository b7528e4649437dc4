"""Zarr groups and arrays on disk, made once and found again: creating what is there already changes nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.buffer import Buffer
from zarr.codecs import ZstdCodec
from zarr.storage import MemoryStore

from patchdrive.pipeline.journal import Journal, make_folder, write_whole


@dataclass(frozen=True, slots=True, kw_only=True)
class ArraySpec:
    """What an array is, before it holds anything."""

    shape: tuple[int, ...]
    """Of the whole array."""
    dtype: str
    """numpy's name, or `string`."""
    chunks: tuple[int, ...]
    """Of a chunk; what is decoded at once."""
    shards: tuple[int, ...] | None = None
    """Of a shard, the file that holds many chunks; None: one file per chunk."""
    fill: float | str = 0
    """Value of what is not written."""
    names: tuple[str, ...] | None = None
    """Dimension names."""


def ensure_group(path: Path, attributes: dict[str, Any], journal: Journal | None = None) -> None:
    """Write a group's metadata; the same attributes give the same bytes. Without a journal, nobody else may be writing there."""
    document = {"attributes": attributes, "zarr_format": 3, "node_type": "group"}
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    metadata = path / "zarr.json"
    if not metadata.exists() or metadata.read_text() != text:
        _put(metadata, text, journal)


def ensure_array(path: Path, spec: ArraySpec, attributes: dict[str, Any], journal: Journal | None = None) -> None:
    """Create an array where there is none: zstd 1 with a checksum, so that a flipped byte is an error and not a pixel."""
    metadata = path / "zarr.json"
    if metadata.exists():
        return
    held: dict[str, Buffer] = {}
    with nullcontext() if journal is None else journal.writing(path):  # zarr opens files of its own, for its threads
        zarr.create_array(
            store=MemoryStore(held),  # zarr syncs nothing: it makes the document, we put it in place
            shape=spec.shape,
            dtype=str if spec.dtype == "string" else np.dtype(spec.dtype),
            chunks=spec.chunks,
            shards=spec.shards,
            fill_value="" if spec.dtype == "string" else spec.fill,
            compressors=ZstdCodec(level=1, checksum=True),
            dimension_names=spec.names,
            attributes=attributes,
        )
    _put(metadata, held["zarr.json"].to_bytes().decode(), journal)


def _put(path: Path, text: str, journal: Journal | None) -> None:
    if journal is None:
        make_folder(path.parent)
        write_whole(path, text)
    else:
        journal.put_text(path, text)


def ensure_filled(path: Path, values: NDArray[Any], journal: Journal, *, attributes: dict[str, Any], names: Sequence[str] = ()) -> None:
    """An array that is written once, whole."""
    text = values.dtype.kind in "UTO"
    spec = ArraySpec(
        shape=values.shape,
        dtype="string" if text else values.dtype.name,
        chunks=tuple(max(1, min(extent, 1 << 20 if values.ndim == 1 else 1024)) for extent in values.shape),
        fill="" if text else 0,
        names=tuple(names) or None,
    )
    ensure_array(path, spec, attributes, journal)
    if values.size:
        journal.place(path, [(tuple(slice(0, extent) for extent in values.shape), values)])
