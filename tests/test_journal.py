"""The commit journal: cut it anywhere, go on, and the bytes are those of an uncut run."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from patchdrive.pipeline import journal as journal_module
from patchdrive.pipeline.arrays import ArraySpec, ensure_array, ensure_group
from patchdrive.pipeline.facts import remove_run
from patchdrive.pipeline.journal import Journal, StoreInUseError, StoreWriteError
from patchdrive.pipeline.lease import Holder, Pace
from patchdrive.pipeline.shard import Shard
from patchdrive.readers.errors import StoreError

BLOCKS = 6
FAST = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Where a thousand fsyncs cost nothing."""
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


def block(index: int, version: int = 0) -> np.ndarray:
    rows = min(64, SPEC.shape[0] - index * 64)
    values = np.random.default_rng([index, version]).integers(0, 255, (rows, 100)).astype(np.uint8)
    return np.full_like(values, 255) if index == 2 else values  # a block of nothing but fill is not written


def set_up(journal: Journal, version: int = 0) -> None:
    ensure_group(journal.store, {"version": version}, journal)
    ensure_array(journal.store / "map", SPEC, {"kind": "test"}, journal)


def compute(journal: Journal, index: int, version: int = 0) -> None:
    values = block(index, version)
    files = journal.place(journal.store / "map", [((slice(index * 64, index * 64 + len(values)), slice(0, 100)), values)])
    journal.commit(0, index, {"planned": 1, "files": files})


def go_on(root: Path, version: int = 0) -> None:
    """The run: make the array, place every block that has no record."""
    journal = Journal(root / "s.patchdrive")
    try:
        set_up(journal, version)
        done = journal.committed(0)
        for index in range(BLOCKS):
            if index not in done:
                compute(journal, index, version)
    finally:
        journal.close()


@contextmanager
def at_step(number, act):
    """Inside the body, `act` is called before the `number`-th thing that the recipe does to the disk."""
    left = [number]

    def counted(original):
        def wrapped(*arguments, **named):
            left[0] -= 1
            if left[0] == -1:
                act()
            return original(*arguments, **named)

        return wrapped

    with pytest.MonkeyPatch.context() as patch:
        for name in ("sync", "make_folder", "digest_of"):
            patch.setattr(journal_module, name, counted(getattr(journal_module, name)))
        patch.setattr(Path, "replace", counted(Path.replace))
        yield


def die():
    raise Killed


@pytest.fixture(scope="module")
def uncut(tmp_path_factory):
    root = tmp_path_factory.mktemp("uncut")
    go_on(root)
    return tree(root / "s.zarr")


@given(cuts=st.lists(st.integers(0, 80), max_size=5))
@settings(max_examples=25, deadline=None)
def test_any_cut_by_kills_gives_the_same_bytes(uncut, tmp_path_factory, cuts):
    root = tmp_path_factory.mktemp("cut")
    for cut in cuts:
        with at_step(cut, die):
            try:
                go_on(root)
            except Killed:
                for record in (root / "s.patchdrive" / "commits" / "0").glob("*.json"):
                    index = int(record.stem)
                    held = zarr.open_array(store=root / "s.zarr" / "map", mode="r")[index * 64 : index * 64 + 64]
                    np.testing.assert_array_equal(held, block(index))  # what has a record is whole
    go_on(root)
    assert tree(root / "s.zarr") == uncut


class Interleaved(RuleBasedStateMachine):
    """One store and several processes, each of which may be killed or stand still anywhere, wake up late and go on regardless.

    All seem to be on other machines and nobody has patience: whoever wants the store takes it over.
    """

    uncut: tuple[dict[str, str], ...]

    def __init__(self):
        super().__init__()
        self.root = Path(mkdtemp(prefix="interleaved-", dir=FAST))
        self.active, self.version, self.asleep, self.born = None, 0, [], 0

    def teardown(self):
        if self.active is not None:
            self.stop()
        self.open()
        for index in range(BLOCKS):
            self.commit(index)
        assert tree(self.active.store) == self.uncut[self.version]
        for sleeper in (*self.asleep, self.active):
            sleeper.close()
        assert not any((self.root / "s.patchdrive" / "scratch").iterdir())
        shutil.rmtree(self.root)

    @precondition(lambda self: self.active is None)
    @rule()
    def open(self):
        self.born += 1
        elsewhere = replace(Holder.this_process(), boot=f"machine {self.born}")
        self.active = Journal(self.root / "s.patchdrive", pace=Pace(beat=3600, patience=0, poll=0), holder=elsewhere)
        set_up(self.active, self.version)
        self.active.leave_door()

    @precondition(lambda self: self.active is not None)
    @rule(index=st.integers(0, BLOCKS - 1))
    def commit(self, index):
        compute(self.active, index, self.version)

    @precondition(lambda self: self.active is not None)
    @rule()
    def stop(self):
        self.active.close()
        self.active = None

    @precondition(lambda self: self.active is not None)
    @rule(index=st.integers(0, BLOCKS - 1), step=st.integers(0, 14))
    def kill_inside(self, index, step):
        with at_step(step, die), suppress(Killed):
            compute(self.active, index, self.version)
        self.active._lease._over.set()  # its beat ends with it, and it gives nothing back
        self.active = None

    @precondition(lambda self: self.active is not None)
    @rule()
    def take_over(self):
        self.asleep.append(self.active)
        self.active = None
        self.open()

    @precondition(lambda self: self.active is not None)
    @rule()
    def take_over_and_start_anew(self):
        self.take_over()
        remove_run(self.active, anything=True)
        self.version = 1 - self.version
        set_up(self.active, self.version)

    @precondition(lambda self: self.asleep)
    @rule(data=st.data(), index=st.integers(0, BLOCKS - 1))
    def wake_up(self, data, index):
        sleeper = data.draw(st.sampled_from(self.asleep))
        with pytest.raises(StoreInUseError, match="took this work over"):
            compute(sleeper, index, 1 - self.version)
        with pytest.raises(StoreInUseError, match="took this work over"):
            sleeper.commit(0, index, {"files": {"map/c/9/9": "late"}})

    @precondition(lambda self: self.active is not None)
    @rule(index=st.integers(0, BLOCKS - 1), step=st.integers(0, 14), anew=st.booleans(), then=st.lists(st.integers(0, BLOCKS - 1)))
    def stand_still_inside(self, index, step, anew, then):
        """It stands still anywhere inside a commit; another takes over, goes on or starts anew, commits; then it goes on where it was."""
        before, version, met = self.active, self.version, []

        def meanwhile():
            met.append(True)
            (self.take_over_and_start_anew if anew else self.take_over)()
            for other in then:
                self.commit(other)

        with at_step(step, meanwhile):
            try:
                compute(before, index, version)
            except StoreInUseError:
                assert met

    @invariant()
    def what_has_a_record_is_whole_and_right(self):
        for record in (self.root / "s.patchdrive" / "commits" / "0").glob("*.json"):
            files = json.loads(record.read_text())["files"]
            index = int(record.stem)
            assert set(files) == ({f"map/c/{index}/0"} if index != 2 else set())
            for name, digest in files.items():
                assert digest == self.uncut[self.version][name]
                assert hashlib.sha256((self.root / "s.zarr" / name).read_bytes()).hexdigest() == digest

    @invariant()
    def nothing_else_is_ever_in_the_store(self):
        store = self.root / "s.zarr"
        for path in store.rglob("*"):
            if path.is_file():
                assert hashlib.sha256(path.read_bytes()).hexdigest() == self.uncut[self.version][path.relative_to(store).as_posix()]


def interleave(tmp_path, examples, steps):
    both = []
    for version in (0, 1):
        go_on(tmp_path / str(version), version)
        both.append(tree(tmp_path / str(version) / "s.zarr"))
    Interleaved.uncut = tuple(both)
    run_state_machine_as_test(Interleaved, settings=settings(max_examples=examples, stateful_step_count=steps, deadline=None))


def test_any_interleaving_gives_the_same_bytes(tmp_path):
    interleave(tmp_path, 50, 15)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_many_long_interleavings_give_the_same_bytes(tmp_path):
    interleave(tmp_path, 300, 40)


def test_only_one_process_holds_a_store(tmp_path):
    held = Journal(tmp_path / "s.patchdrive")
    with pytest.raises(StoreInUseError, match=f"in use by another process .process {os.getpid()} on "):
        Journal(tmp_path / "s.patchdrive")
    held.close()
    Journal(tmp_path / "s.patchdrive").close()


@pytest.mark.parametrize(
    ("first", "second", "both"),
    [
        ("0/1", "0/2", False),
        ("0/2", "0/1", False),
        ("0/2", "1/2", True),
        ("0/2", "0/2", False),
        ("0/2", "1/3", False),
        ("1/12", "11/12", True),
    ],
)
def test_which_parts_of_a_run_go_together(tmp_path, first, second, both):
    held = Journal(tmp_path / "s.patchdrive", shard=Shard.parse(first))
    held.leave_door()
    if both:
        other = Journal(tmp_path / "s.patchdrive", shard=Shard.parse(second))
        assert len(other.others()) == 1
        other.close()
    else:
        with pytest.raises(StoreInUseError, match="in use by another process"):
            Journal(tmp_path / "s.patchdrive", shard=Shard.parse(second))
    held.close()
    Journal(tmp_path / "s.patchdrive", shard=Shard.parse(second)).close()


def test_who_waits_at_the_door_is_told_at_once_that_it_is_not_let_in(tmp_path):
    held = Journal(tmp_path / "s.patchdrive")  # and stands in the door
    with pytest.raises(StoreInUseError):
        Journal(tmp_path / "s.patchdrive", shard=Shard(0, 2))
    with held.door():
        pass
    held.close()


def test_drafts_of_the_living_are_kept(tmp_path):
    one = Journal(tmp_path / "s.patchdrive", shard=Shard(0, 2))
    one.leave_door()
    (tmp_path / "s.patchdrive" / "scratch" / "0123").mkdir()
    other = Journal(tmp_path / "s.patchdrive", shard=Shard(1, 2))
    assert {path.name for path in (tmp_path / "s.patchdrive" / "scratch").iterdir()} == {one._holder.token, other._holder.token}
    other.close()
    set_up(one)
    compute(one, 0)
    one.close()
    assert not list((tmp_path / "s.patchdrive" / "scratch").iterdir())


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "No space left on device.*free some space"),
        (errno.EDQUOT, "free some space"),
        (errno.EROFS, "make it writable again"),
        (errno.EIO, "see that the disk is there"),
    ],
)
@pytest.mark.parametrize("step", range(0, 13, 3))
def test_what_cannot_be_written_says_so_and_the_same_run_goes_on(tmp_path, uncut, code, words, step):
    def refuse():
        raise OSError(code, os.strerror(code))

    journal = Journal(tmp_path / "s.patchdrive")
    set_up(journal)
    with at_step(step, refuse), pytest.raises(StoreWriteError, match=rf"{words}.*the same command goes on from the last block"):
        compute(journal, 0)
    journal.close()
    go_on(tmp_path)
    assert tree(tmp_path / "s.zarr") == uncut


def test_a_disk_that_is_really_full(tmp_path, uncut):
    """A tmpfs of one megabyte, where this system lets us make one."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.system(f"mount -t tmpfs -o size=1m none {folder} 2>/dev/null"):
        pytest.skip("only root makes a file system")
    try:
        journal = Journal(folder / "s.patchdrive")
        set_up(journal)
        compute(journal, 0)
        room = os.statvfs(folder)
        (folder / "filler").write_bytes(bytes(room.f_bavail * room.f_frsize))
        with pytest.raises(StoreWriteError, match=r"No space left on device.*free some space"):
            compute(journal, 1)
        journal.close()
        with pytest.raises(StoreWriteError, match="free some space"):
            Journal(folder / "s.patchdrive")
        (folder / "filler").unlink()
        go_on(folder)
        assert tree(folder / "s.zarr") == uncut
    finally:
        os.system(f"umount {folder}")


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="choose another folder with -o"):
        Journal(tmp_path / "file" / "s.patchdrive")


def test_place_names_what_it_placed(tmp_path):
    journal = Journal(tmp_path / "s.patchdrive")
    set_up(journal)
    rows = (slice(0, 192), slice(0, 100))
    values = np.concatenate([block(0), block(1), block(2)])
    placed = journal.place(journal.store / "map", [(rows, values)])
    assert placed == {name: digest for name, digest in tree(journal.store).items() if "/c/" in name}
    assert set(placed) == {"map/c/0/0", "map/c/1/0"}
    journal.close()


def test_a_flipped_byte_is_an_error(tmp_path):
    go_on(tmp_path)
    shard = tmp_path / "s.zarr" / "map" / "c" / "0" / "0"
    torn = bytearray(shard.read_bytes())
    torn[100] ^= 0xFF
    shard.write_bytes(torn)
    with pytest.raises((RuntimeError, ValueError), match=r"(?i)zstd|checksum|corrupt"):
        zarr.open_array(store=tmp_path / "s.zarr" / "map", mode="r")[:64]
