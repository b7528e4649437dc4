"""Where a run stands: a folder beside the store, never inside it. And the one recipe by which a block becomes permanent.

    encode whole chunks in a scratch array -> fsync -> rename each file over its place -> fsync the folders -> the record

A kill at any instant leaves either no record (the block is computed again, to the same bytes) or a record whose files are
whole. Chunks that hold only the fill value are not written, so a chunk that is absent says nothing: the record does.

Every draft lies in `scratch/<token of the process>/` and nowhere else. Whoever takes a dead process's work over renames that folder
away first: should the dead one only have slept, no draft of its is found any more, and it can place nothing.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import zarr
from numpy.typing import NDArray

from patchdrive.pipeline.lease import PACE, Holder, Lease, Pace, Verdict, Watch, lease_names, take
from patchdrive.pipeline.shard import WHOLE, Shard
from patchdrive.readers.errors import StoreError

_DOOR = "door"
_FULL = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EROFS, errno.EACCES, errno.EPERM}
_TOO_MANY = {errno.EMFILE, errno.ENFILE}


class Journal:
    """The state folder of one store. One process holds it at a time, or one per shard."""

    def __init__(self, folder: Path, *, shard: Shard = WHOLE, pace: Pace = PACE, holder: Holder | None = None) -> None:
        """Create or open the folder, take its lease, and stand in the door: nobody else enters before `leave_door`.

        Args:
            folder: `<id>.patchdrive`, beside `<id>.zarr`.
            shard: which part of the run's blocks is ours.
            pace: of leases.
            holder: us.

        Raises:
            StoreInUseError: another process does this part, or works on the store in a way that does not go with it.
            StoreError: nothing can be written there.
        """
        self.folder, self.store, self.shard = folder, folder.with_suffix(".zarr"), shard
        self._pace, self._holder = pace, holder or Holder.this_process()
        self._watches: dict[str, Watch] = {}
        self._door: Lease | None = None
        self._scratch = folder / "scratch" / self._holder.token
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lease = self._enter()
        except OSError as error:
            raise _unopened(folder.parent, error) from error
        try:
            self.tidy()
            self._scratch.mkdir(parents=True)
        except OSError as error:
            self.close()
            raise _unopened(folder.parent, error) from error

    def close(self) -> None:
        """Give everything back."""
        shutil.rmtree(self._scratch, ignore_errors=True)
        self.leave_door()
        self._lease.release()

    def _enter(self) -> Lease:
        self._refuse_rivals()  # told at once, not after waiting for whoever stands in the door
        self._door = self._wait_for_door(self._refuse_rivals)
        with ExitStack() as refused:
            refused.callback(self.leave_door)
            self._refuse_rivals()
            found = take(self._watch(self.shard.lease), self._holder)
            if isinstance(found, Verdict):
                raise self._in_use(found)
            refused.pop_all()
        return found

    def _refuse_rivals(self) -> None:
        while True:
            found = [self._watch(name).look() for name in sorted(lease_names(self.folder) - {_DOOR}) if self.shard.bars(name)]
            for verdict in found:
                if verdict.live:
                    raise self._in_use(verdict)
            if all(verdict.live is False for verdict in found):
                return
            time.sleep(self._pace.poll)

    def _wait_for_door(self, look_out: Callable[[], None]) -> Lease:
        while isinstance(found := take(self._watch(_DOOR), self._holder), Verdict):
            look_out()
            time.sleep(self._pace.poll)
        return found

    def _watch(self, name: str) -> Watch:
        return self._watches.setdefault(name, Watch(self.folder, name, self._pace))

    def _in_use(self, verdict: Verdict) -> StoreInUseError:
        who = f"another process ({verdict.holder})" if verdict.holder else "another process"
        part = "" if self.shard == WHOLE else f", which does not go with shard {self.shard}"
        return StoreInUseError(f"{self.folder} is in use by {who}{part}; wait for it, or write elsewhere with -o")

    @contextmanager
    def door(self) -> Iterator[None]:
        """Alone in here, among all processes on this store, for as long as the body lasts."""
        if self._door is not None:
            yield
            return
        with self.writing(self.folder):
            self._door = self._wait_for_door(self._require_held)
        try:
            yield
        finally:
            self.leave_door()

    def leave_door(self) -> None:
        """Let others in."""
        if self._door is not None:
            self._door.release()
            self._door = None

    def others(self) -> Sequence[Holder | None]:
        """Who else works on this store now; None for one whose name cannot be read."""
        names = sorted(lease_names(self.folder) - {_DOOR, self.shard.lease})
        return [verdict.holder for verdict in (self._watch(name).settle() for name in names) if verdict.live]

    def absent_shards(self) -> frozenset[int]:
        """Parts of this run that nobody does now: never begun, ended, or dead. Returns at once; in doubt, a part is not absent."""
        shards = [Shard(index, self.shard.count) for index in range(self.shard.count)]
        return frozenset(shard.index for shard in shards if shard != self.shard and self._watch(shard.lease).look().live is False)

    def tidy(self) -> None:
        """Remove the drafts of every process that is no more."""
        verdicts = [self._watch(name).look() for name in lease_names(self.folder)]
        kept = {self._holder.token, *(verdict.holder.token for verdict in verdicts if verdict.live is not False and verdict.holder)}
        scratch = self._scratch.parent
        for entry in sorted(scratch.iterdir()) if scratch.exists() else ():
            if entry.name not in kept:
                gone = scratch / f".gone-{uuid4().hex}"
                entry.rename(gone)
                shutil.rmtree(gone, ignore_errors=True)

    def entries(self) -> Sequence[Path]:
        """What lies in the folder, without leases and drafts."""
        names = lease_names(self.folder)
        return [entry for entry in sorted(self.folder.iterdir()) if not entry.name.startswith((".", "scratch")) and entry.stem not in names]

    def read(self, name: str) -> dict[str, Any] | None:
        """The JSON object called `name`, or None before it was written."""
        path = self.folder / name
        facts: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
        return facts

    def write(self, name: str, facts: dict[str, Any]) -> None:
        """Write a JSON object so that it is there whole or not at all, for good."""
        self.put_text(self.folder / name, json.dumps(facts, indent=1, sort_keys=True) + "\n")

    def put_text(self, path: Path, text: str) -> None:
        """Put a text file in place, durably: a reader, or a kill, sees the old or the new one."""
        self.put(path, lambda draft: draft.write_text(text, encoding="utf-8"))

    def put(self, path: Path, make: Callable[[Path], object]) -> None:
        """Put the file that `make` writes at the path it is given in place, durably.

        Raises:
            StoreWriteError: it cannot be written.
            StoreInUseError: another process took our work over.
        """
        with self.writing(path):
            draft = self._scratch / uuid4().hex
            make(draft)
            sync(draft)
            make_folder(path.parent)
            draft.replace(path)
            sync(path.parent)

    def recorded(self, round_index: int) -> frozenset[int]:
        """Indices of the blocks of a round that have a record."""
        folder = self.folder / "commits" / str(round_index)
        return frozenset(int(path.stem) for path in folder.glob("*.json"))

    def committed(self, round_index: int) -> dict[int, dict[str, Any]]:
        """The records of a round, by block index."""
        folder = self.folder / "commits" / str(round_index)
        return {int(path.stem): json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}

    def commit(self, round_index: int, block_index: int, facts: dict[str, Any]) -> None:
        """Record that a block's files are in place.

        Raises:
            StoreInUseError: another process took our work over while we stood still. What we placed is what it places.
        """
        self._require_held()
        self.write(f"commits/{round_index}/{block_index:08d}.json", facts)

    def place(self, array: Path, parts: Iterable[tuple[tuple[slice, ...], NDArray[Any]]]) -> dict[str, str]:
        """Put whole chunks (or shards) of the Zarr array at `array` in place, durably.

        Args:
            array: folder of the array.
            parts: (selection, values) pairs that cover whole chunks, clipped at the array's end.

        Returns:
            SHA-256, hex, of every file placed, by its path inside the store.

        Raises:
            StoreWriteError: it cannot be written.
            StoreInUseError: another process took our work over.
        """
        with self.writing(array):
            draft = self._scratch / uuid4().hex
            draft.mkdir()
            shutil.copyfile(array / "zarr.json", draft / "zarr.json")
            drawn = zarr.open_array(store=draft, mode="r+")
            for selection, values in parts:
                drawn[selection] = values
            (draft / "zarr.json").unlink()
            placed = self._place_files(draft, array)
            shutil.rmtree(draft)
        return placed

    def _place_files(self, draft: Path, array: Path) -> dict[str, str]:
        folders, placed = {array}, {}
        for file in sorted(path for path in draft.rglob("*") if path.is_file()):
            target = array / file.relative_to(draft)
            make_folder(target.parent)
            sync(file)
            placed[target.relative_to(self.store).as_posix()] = digest_of(file)
            file.replace(target)
            folders.add(target.parent)
        for folder in sorted(folders):
            sync(folder)
        return placed

    @contextmanager
    def writing(self, path: Path) -> Iterator[None]:
        """Something is written at `path`: what the system says of it becomes a StoreWriteError, or a StoreInUseError where that is why."""
        try:
            yield
        except OSError as error:
            self._require_held(error)
            raise StoreWriteError(f"{path} cannot be written ({error.strerror or error}); {_way_out(error)}") from error

    def _require_held(self, cause: OSError | None = None) -> None:
        if not self._lease.check():
            message = f"{self.folder}: another process took this work over while this one stood still; it goes on there"
            raise StoreInUseError(message) from cause


class StoreInUseError(StoreError):
    """Another process is writing this store; try again when it is done."""


class StoreWriteError(StoreError):
    """What was computed cannot be written: the disk is full, say. Once that is mended, the same command goes on."""


def write_whole(path: Path, text: str) -> None:
    """Replace a file's content so that a reader, or a kill, sees the old or the new one. For one writer, outside a run."""
    draft = path.with_name(path.name + ".partial")
    with draft.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    sync(path.parent)


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, so that they survive a crash of the machine."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync(path.parent)


def sync(path: Path) -> None:
    """Make a file's bytes, or a folder's names, survive a crash of the machine."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def digest_of(path: Path) -> str:
    """SHA-256 of a file's bytes, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unopened(folder: Path, error: OSError) -> StoreError:
    if error.errno in _FULL:
        return StoreWriteError(f"{folder} cannot be written to ({error.strerror}); {_way_out(error)}")
    return StoreError(f"{folder} cannot be written to ({error.strerror}); choose another folder with -o")


def _way_out(error: OSError) -> str:
    if error.errno in _FULL:
        mend = "free some space"
    elif error.errno in _FORBIDDEN:
        mend = "make it writable again"
    elif error.errno in _TOO_MANY:
        mend = "allow more open files (ulimit -n)"
    else:
        mend = "see that the disk is there and sound"
    return f"{mend}; the same command goes on from the last block committed"
