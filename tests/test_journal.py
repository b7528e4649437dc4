"""The commit journal: cut it anywhere, go on, and the bytes are those of an uncut run."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from patchdrive.pipeline import journal as journal_module
from patchdrive.pipeline.arrays import ArraySpec, ensure_array, ensure_group
from patchdrive.pipeline.journal import Journal, StoreInUseError, sweep

BLOCKS = 6
SPEC = ArraySpec(shape=(BLOCKS * 64 - 10, 100), dtype="uint8", chunks=(16, 50), shards=(64, 100), fill=255)


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


def tree(root: Path) -> dict[str, str]:
    """Every file of a store with the digest of its bytes."""
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def block(index: int) -> np.ndarray:
    rows = min(64, SPEC.shape[0] - index * 64)
    values = np.random.default_rng(index).integers(0, 255, (rows, 100)).astype(np.uint8)
    return np.full_like(values, 255) if index == 2 else values  # a block of nothing but fill is not written


def go_on(root: Path) -> None:
    """The run: make the array, place every block that has no record."""
    store = root / "s.zarr"
    journal = Journal(root / "s.patchdrive")
    try:
        if store.exists():
            sweep(store)
        ensure_group(store, {"a": 1})
        ensure_array(store / "map", SPEC, {"kind": "test"})
        done = journal.committed(0)
        for index in range(BLOCKS):
            if index not in done:
                values = block(index)
                journal.place(store / "map", [((slice(index * 64, index * 64 + len(values)), slice(0, 100)), values)])
                journal.commit(0, index, {"planned": 1})
    finally:
        journal.close()


@pytest.fixture(scope="module")
def uncut(tmp_path_factory):
    root = tmp_path_factory.mktemp("uncut")
    go_on(root)
    return tree(root / "s.zarr")


@given(cuts=st.lists(st.integers(0, 40), max_size=5))
@settings(max_examples=25, deadline=None)
def test_any_cut_by_kills_gives_the_same_bytes(uncut, tmp_path_factory, cuts):
    root = tmp_path_factory.mktemp("cut")
    for cut in cuts:
        left = [cut]

        def step_or_die(original, left=left):
            def wrapped(*arguments, **named):
                if left[0] == 0:
                    raise Killed
                left[0] -= 1
                return original(*arguments, **named)

            return wrapped

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(journal_module, "sync", step_or_die(journal_module.sync))
            patch.setattr(Path, "replace", step_or_die(Path.replace))
            patch.setattr(journal_module.os, "fsync", step_or_die(journal_module.os.fsync))
            try:
                go_on(root)
            except Killed:
                for record in (root / "s.patchdrive" / "commits" / "0").glob("*.json"):
                    index = int(record.stem)
                    held = zarr.open_array(store=root / "s.zarr" / "map", mode="r")[index * 64 : index * 64 + 64]
                    np.testing.assert_array_equal(held, block(index))  # what has a record is whole
    go_on(root)
    assert tree(root / "s.zarr") == uncut


def test_only_one_process_holds_a_store(tmp_path):
    held = Journal(tmp_path / "s.patchdrive")
    with pytest.raises(StoreInUseError, match="in use"):
        Journal(tmp_path / "s.patchdrive")
    held.close()
    Journal(tmp_path / "s.patchdrive").close()


def test_a_flipped_byte_is_an_error(tmp_path):
    go_on(tmp_path)
    shard = tmp_path / "s.zarr" / "map" / "c" / "0" / "0"
    torn = bytearray(shard.read_bytes())
    torn[100] ^= 0xFF
    shard.write_bytes(torn)
    with pytest.raises((RuntimeError, ValueError), match=r"(?i)zstd|checksum|corrupt"):
        zarr.open_array(store=tmp_path / "s.zarr" / "map", mode="r")[:64]
