"""A lease: one name in a folder, held by one process at a time, on any file system that several hosts may share.

    <name>.<number:08d>     the highest number counts; numbers only grow
        line 1              who holds it, JSON, never changed; `{}` once it was given back
        line 2              a counter of fixed width, written again every few seconds for as long as the holder lives

A holder on this machine is looked up: its process lives or it does not. A holder elsewhere is watched: bytes that change are a
life, bytes that do not for half a minute are none. Only the watcher's own monotonic clock is asked, and a pause in its own looking
(it was stopped, the file server was away) counts for one beat at most. So no clock that jumps, here or there, takes a lease away.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import socket
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self
from uuid import uuid4


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How often a holder beats, and how long another waits for it. Seconds."""

    beat: float = 3.0
    """Between two beats of a holder."""
    patience: float = 30.0
    """Without a beat for this long, a holder on another machine is dead."""
    poll: float = 0.05
    """Between two looks of one who waits."""


PACE = Pace()
_NO_LINKS = {errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}
"""What file systems without hard links answer."""
_TRIES = 100
"""Looks at a file that is listed and not there, before the file system is at fault."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A process, told from every other one that ever was."""

    token: str
    """Random: no two holders share it."""
    host: str
    """For people."""
    boot: str | None
    """Which start of which machine; None where the system does not say."""
    namespace: str | None
    """In which process ids count: a container has its own; None where the system does not say."""
    pid: int
    """Process id."""
    start: int | None
    """When the process began, ticks after boot: ids are used again. None where the system does not say."""

    @classmethod
    def this_process(cls) -> Self:
        """Us."""
        try:
            start = _start(os.getpid())
        except OSError:
            start = None
        return cls(token=uuid4().hex, host=socket.gethostname(), boot=_boot(), namespace=_namespace(), pid=os.getpid(), start=start)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    def lives(self) -> bool | None:
        """Whether the process is there; None where that cannot be seen from here."""
        if None in {self.boot, self.namespace, self.start} or (self.boot, self.namespace) != (_boot(), _namespace()):
            return None
        try:
            return _start(self.pid) == self.start
        except (FileNotFoundError, ProcessLookupError):
            return None if _hidden(self.pid) else False
        except OSError:
            return None


def _boot() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def _namespace() -> str | None:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return None


def _start(pid: int) -> int | None:
    """Field 22 of a process's `stat`; None: it has ended, and its parent has not asked yet."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return None if fields[0] in {"Z", "X"} else int(fields[19])


def _hidden(pid: int) -> bool:
    """Whether there is such a process although /proc does not show it: another user's, on a system that hides those."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is known of a lease."""

    live: bool | None
    """Held, or free; None: it must be watched a little longer."""
    number: int
    """Highest so far, 0 before the first."""
    holder: Holder | None
    """Who holds it, or held it last; None where nobody, or the file is not whole."""


class Watch:
    """One who looks at a lease, and remembers what it saw."""

    def __init__(self, folder: Path, name: str, pace: Pace = PACE) -> None:
        self.folder, self.name, self.pace = folder, name, pace
        self._seen: tuple[int, bytes] | None = None
        self._moved = False
        self._quiet = 0.0
        self._looked = 0.0

    def look(self) -> Verdict:
        """One look. Returns at once."""
        number, content = self._read()
        holder, free = _parse(content)
        if free:
            return Verdict(live=False, number=number, holder=None)
        lives = None if holder is None else holder.lives()
        return Verdict(live=self._moves(number, content) if lives is None else lives, number=number, holder=holder)

    def settle(self) -> Verdict:
        """Look until it is known: at once for a holder on this machine or a live one, `patience` for a dead one elsewhere."""
        while (verdict := self.look()).live is None:
            time.sleep(self.pace.poll)
        return verdict

    def _read(self) -> tuple[int, bytes]:
        for _ in range(_TRIES):
            number = max(held_numbers(self.folder, self.name), default=0)
            if not number:
                return 0, b"{}\n"
            with contextlib.suppress(FileNotFoundError):  # removed since: then there is a higher one
                return number, lease_path(self.folder, self.name, number).read_bytes()
            time.sleep(self.pace.poll)
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(self.folder))

    def _moves(self, number: int, content: bytes) -> bool | None:
        now = time.monotonic()
        if self._seen is None or self._seen[0] != number:
            self._moved, self._quiet = False, 0.0
        elif self._seen[1] != content:
            self._moved, self._quiet = True, 0.0
        else:
            self._quiet += min(now - self._looked, self.pace.beat)
        self._seen, self._looked = (number, content), now
        return False if self._quiet >= self.pace.patience else True if self._moved else None


class Lease:
    """A lease we hold, until `release`; a thread beats for us."""

    def __init__(self, watch: Watch, number: int, holder: Holder) -> None:
        self._folder, self._name, self._number, self._pace = watch.folder, watch.name, number, watch.pace
        self._path = lease_path(watch.folder, watch.name, number)
        self._line = _line(holder)
        self._lost = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"lease {watch.name}", daemon=True)
        self._thread.start()

    @property
    def held(self) -> bool:
        """False once another took it over, as far as the last beat saw."""
        return not self._lost

    def check(self) -> bool:
        """Whether it is ours at this moment. Reads the folder."""
        try:
            numbers = held_numbers(self._folder, self._name)
        except FileNotFoundError:
            numbers = set()
        except OSError:
            return self.held  # the file server is away; that says nothing
        self._lost = self._lost or max(numbers, default=0) != self._number
        return self.held

    def release(self) -> None:
        """Give it back. The file stays, so that numbers never fall, and says that it is free."""
        self._over.set()
        self._thread.join()
        _mark_free(self._path, self._line)

    def _beat(self) -> None:
        beats = 0
        while not self._over.wait(self._pace.beat) and self.check():
            beats += 1
            with contextlib.suppress(OSError), self._path.open("r+b", buffering=0) as file:  # the next beat may do better
                file.seek(len(self._line))
                file.write(_beats(beats))


def take(watch: Watch, holder: Holder) -> Lease | Verdict:
    """Hold the lease that `watch` looks at, or say who does.

    Raises:
        OSError: nothing can be written there.
    """
    while (verdict := watch.settle()).live is False:
        number = verdict.number + 1
        if not _create(watch, number, holder):
            continue  # another was faster: look at that one
        numbers = held_numbers(watch.folder, watch.name)
        if max(numbers) > number:  # we were slow, and what we looked at is long gone
            lease_path(watch.folder, watch.name, number).unlink(missing_ok=True)
            continue
        for old in sorted(numbers - {number}):
            if old < number - 1:
                lease_path(watch.folder, watch.name, old).unlink(missing_ok=True)
            elif verdict.holder is not None:
                _mark_free(lease_path(watch.folder, watch.name, old), _line(verdict.holder))
        return Lease(watch, number, holder)
    return verdict


def lease_path(folder: Path, name: str, number: int) -> Path:
    """File of a lease."""
    return folder / f"{name}.{number:08d}"


def held_numbers(folder: Path, name: str) -> set[int]:
    """Every number of a lease that has a file."""
    wanted = re.compile(rf"{re.escape(name)}\.([0-9]{{8,}})")
    return {int(found[1]) for entry in folder.iterdir() if (found := wanted.fullmatch(entry.name))}


def lease_names(folder: Path) -> set[str]:
    """Names of all leases of a folder."""
    found = (re.fullmatch(r"(door|lease(?:-[0-9]+-of-[0-9]+)?)\.[0-9]{8,}", entry.name) for entry in folder.iterdir())
    return {match[1] for match in found if match}


def _create(watch: Watch, number: int, holder: Holder) -> bool:
    """Make the file of that number, whole and by us alone. False: it is there already."""
    path = lease_path(watch.folder, watch.name, number)
    draft = watch.folder / f".{watch.name}.{holder.token}"
    content = _line(holder) + _beats(0)
    with draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(draft, path)
    except FileExistsError:
        return draft.stat().st_nlink == 2  # NFS may ask twice and be told that it is there: by us
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return _create_exclusively(path, content)
    finally:
        draft.unlink(missing_ok=True)
    return True


def _create_exclusively(path: Path, content: bytes) -> bool:
    """Where there are no hard links. For an instant the file is not whole; then nobody judges it in less than `patience`."""
    try:
        with path.open("xb") as file:
            file.write(content)
    except FileExistsError:
        return False
    return True


def _line(holder: Holder) -> bytes:
    return json.dumps(asdict(holder)).encode() + b"\n"


def _beats(count: int) -> bytes:
    return f"{count:016d}\n".encode()


def _mark_free(path: Path, line: bytes) -> None:
    """Write `{}` over line 1, in place and of its length: needs no space on a full disk."""
    with contextlib.suppress(OSError), path.open("r+b", buffering=0) as file:  # left as it is, it is found dead by its process
        file.write(b"{}".ljust(len(line) - 1) + b"\n")


def _parse(content: bytes) -> tuple[Holder | None, bool]:
    """(who, whether it says that it is free)."""
    try:
        facts: dict[str, Any] = json.loads(content.partition(b"\n")[0])
        return (None, True) if not facts else (Holder(**facts), False)
    except (ValueError, TypeError):
        return None, False
