"""Exports for those who train on slides: features and coordinates as TRIDENT, CLAM and STAMP keep them.

Coordinates are the top-left corners of patches, (x, y): level-0 pixels for TRIDENT and CLAM, micrometres for STAMP. Patches that were
skipped or failed are left out. Features are written a part at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from patchdrive.pipeline.drafts import draft_of
from patchdrive.pipeline.export_tables import Table, tables_of
from patchdrive.pipeline.result import Result
from patchdrive.pipeline.tables import ROWS
from patchdrive.readers.errors import StoreError

_STAMP = "2.0.0"
"""The first version of STAMP with coordinates in micrometres: one older than what a file names refuses the file."""
_CLAM_ROWS = 32
"""Rows of a chunk there."""


def to_trident(result: Result, out: Path) -> list[Path]:
    """`<mag>x_<side>px_<overlap>px_overlap/{patches/<slide>_patches.h5, features_<table>/<slide>.h5}`: a job folder of TRIDENT.

    Raises:
        StoreError: the store holds no features of a slide with a known pixel size.
    """
    written = []
    for table in tables_of(result):
        table.require_square_pixels()
        target = table.magnification(table.mpp)
        job = out / f"{target:g}x_{table.side}px_{table.overlap}px_overlap"
        patches, features = job / "patches" / f"{table.slide}_patches.h5", job / f"features_{table.name}" / f"{table.slide}.h5"
        about = {
            "patch_size": table.side,
            "patch_size_level0": table.side_level0,
            "level0_magnification": table.magnification(table.level0_mpp[1]),
            "target_magnification": target,
            "overlap": table.overlap,
            "name": table.slide,
            "savetodir": str(patches.parent),
            "level0_width": table.size[1],
            "level0_height": table.size[0],
            "mpp": table.mpp,
            "level0_mpp": table.level0_mpp[1],
        }
        _require_same(patches, table)
        with new_h5(patches) as file:
            _dataset(file, "coords", table.xy, about)
        with new_h5(features) as file:
            encoder = {"name": table.slide, "savetodir": str(features.parent), "encoder": table.name}
            _features(file, "features", table, table.dtype, rows=ROWS, about=encoder)
            _dataset(file, "coords", table.xy, about)
        written += [patches, features]
    return written


def _require_same(patches: Path, table: Table) -> None:
    """
    Raises:
        StoreError: the job folder has other patches of this slide, which features there belong to.
    """
    if not patches.exists():
        return
    with h5py.File(patches) as file:
        held = np.asarray(file["coords"][:])
    if not np.array_equal(held, table.xy):
        raise StoreError(f"{patches} holds other patches of this slide, and features beside it may be theirs; export into another folder")


def to_clam(result: Result, out: Path) -> list[Path]:
    """`<table>/h5_files/<slide>.h5` and `<table>/pt_files/<slide>.pt`: a feature folder of CLAM, patches as of level 0.

    Raises:
        StoreError: as `to_trident`.
    """
    written = []
    for table in tables_of(result):
        table.require_square_pixels()
        h5, pt = out / table.name / "h5_files" / f"{table.slide}.h5", out / table.name / "pt_files" / f"{table.slide}.pt"
        height, width = table.size
        about = {
            "patch_size": table.side_level0,
            "patch_level": 0,
            "downsample": (1.0, 1.0),
            "downsampled_level_dim": (width, height),
            "level_dim": (width, height),
            "name": table.slide,
            "save_path": str(h5.parent),
        }
        with new_h5(h5) as file:
            _features(file, "features", table, np.dtype(np.float32), rows=_CLAM_ROWS, about={})
            _dataset(file, "coords", table.xy.astype(np.int32), about)
        _save_tensor(table, pt)
        written += [h5, pt]
    return written


def to_stamp(result: Result, out: Path) -> list[Path]:
    """`<table>/<slide>.h5`: a feature folder of STAMP.

    Raises:
        StoreError: as `to_trident`.
    """
    written = []
    for table in tables_of(result):
        path = out / table.name / f"{table.slide}.h5"
        with new_h5(path) as file:
            _features(file, "feats", table, np.dtype(np.float16), rows=ROWS, about={})
            file.create_dataset("coords", data=table.um.astype(np.float32))
            file.attrs.update(
                {
                    "stamp_version": _STAMP,
                    "extractor": table.name,
                    "unit": "um",
                    "tile_size_um": table.side * table.mpp,
                    "tile_size_px": table.side,
                    "code_hash": f"patchdrive-{version('patchdrive')}",
                    "feat_type": "tile",
                }
            )
        written.append(path)
    return written


@contextmanager
def new_h5(path: Path) -> Iterator[h5py.File]:
    """A file that is there once it is whole."""
    with draft_of(path) as draft, h5py.File(draft, "w") as file:
        yield file


def _dataset(file: h5py.File, name: str, values: NDArray[Any], attributes: Mapping[str, Any]) -> None:
    file.create_dataset(name, data=values).attrs.update(attributes)


def _features(file: h5py.File, name: str, table: Table, dtype: np.dtype[Any], *, rows: int, about: Mapping[str, Any]) -> None:
    chunks = (min(rows, len(table)), table.width) if len(table) else None
    made = file.create_dataset(name, shape=(len(table), table.width), dtype=dtype, chunks=chunks)
    made.attrs.update(about)
    start = 0
    for part in table.features():
        with np.errstate(over="ignore"):
            stored = part.astype(dtype)
        if not np.isfinite(stored).all():
            raise StoreError(f"a feature of {table.name} does not fit {dtype}, which this form holds; export it --to another form")
        made[start : start + len(part)] = stored
        start += len(part)


def _save_tensor(table: Table, path: Path) -> None:
    """[n, D] float32 as torch.save has it, by way of a file: all features at once may be larger than memory."""
    with draft_of(path) as draft:
        if not len(table):
            torch.save(torch.empty(0, table.width), draft)
            return
        features = np.memmap(draft.with_name("raw"), np.float32, "w+", shape=(len(table), table.width))
        start = 0
        for part in table.features():
            features[start : start + len(part)] = part
            start += len(part)
        torch.save(torch.from_numpy(features), draft)
