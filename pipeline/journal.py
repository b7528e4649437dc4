"""Where a run stands: a folder beside the store, never inside it. And the one recipe by which a block becomes permanent.

    encode whole chunks in a scratch array -> fsync -> rename each file over its place -> fsync the folders -> the record

A kill at any instant leaves either no record (the block is computed again, to the same bytes) or a record whose files are
whole. Chunks that hold only the fill value are not written, so a chunk that is absent says nothing: the record does.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import zarr
from numpy.typing import NDArray

from patchdrive.readers.errors import StoreError


class Journal:
    """The state folder of one store. Only one process holds it at a time."""

    def __init__(self, folder: Path) -> None:
        """Create or open the folder and take its lease.

        Raises:
            StoreError: another process holds the lease, or nothing can be written there.
        """
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lease: IO[str] = (folder / "lease").open("w")
        except OSError as error:
            raise StoreError(f"{folder.parent} cannot be written to ({error.strerror}); choose another folder with -o") from error
        try:
            fcntl.flock(self._lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lease.close()
            raise StoreInUseError(f"{folder} is in use by another process; wait for it, or write elsewhere with -o") from error
        self.tidy()

    def close(self) -> None:
        """Give the lease back."""
        self._lease.close()

    def tidy(self) -> None:
        """Remove what only a run in progress needs."""
        shutil.rmtree(self.folder / "scratch", ignore_errors=True)

    def read(self, name: str) -> dict[str, Any] | None:
        """The JSON object called `name`, or None before it was written."""
        path = self.folder / name
        facts: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
        return facts

    def write(self, name: str, facts: dict[str, Any]) -> None:
        """Write a JSON object so that it is there whole or not at all, for good."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(facts, indent=1, sort_keys=True) + "\n")

    def committed(self, round_index: int) -> dict[int, dict[str, Any]]:
        """The records of a round, by block index."""
        folder = self.folder / "commits" / str(round_index)
        return {int(path.stem): json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}

    def commit(self, round_index: int, block_index: int, facts: dict[str, Any]) -> None:
        """Record that a block's files are in place."""
        self.write(f"commits/{round_index}/{block_index:08d}.json", facts)

    def place(self, array: Path, parts: Iterable[tuple[tuple[slice, ...], NDArray[Any]]]) -> None:
        """Put whole chunks (or shards) of the Zarr array at `array` in place, durably.

        Args:
            array: folder of the array.
            parts: (selection, values) pairs that cover whole chunks, clipped at the array's end.
        """
        scratch = self.folder / "scratch" / array.name
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        shutil.copyfile(array / "zarr.json", scratch / "zarr.json")
        draft = zarr.open_array(store=scratch, mode="r+")
        for selection, values in parts:
            draft[selection] = values
        folders = {array}
        for file in sorted(path for path in scratch.rglob("*") if path.is_file() and path.name != "zarr.json"):
            target = array / file.relative_to(scratch)
            target.parent.mkdir(parents=True, exist_ok=True)
            sync(file)
            file.replace(target)
            folders.update(parent for parent in target.parents if array in parent.parents)
        for folder in sorted(folders):
            sync(folder)


class StoreInUseError(StoreError):
    """Another process is writing this store; try again when it is done."""


def write_whole(path: Path, text: str) -> None:
    """Replace a file's content so that a reader, or a kill, sees the old or the new one."""
    draft = path.with_name(path.name + ".partial")
    with draft.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Make a file's bytes, or a folder's names, survive a crash of the machine."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sweep(store: Path) -> None:
    """Remove what a kill left half written inside a store."""
    for path in store.rglob("*.partial"):
        path.unlink()
