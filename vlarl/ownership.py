"""A folder that one process writes: a run, an evaluation, a table of ablations has one owner.

    RUN/.owner   locked (flock) as long as its owner lives; holds who that is, and its last beat

On one machine the kernel's lock decides, across containers too: it goes with its process, and with
what that lent it to, however they die. On a network volume a lock may be unknown, or known to one
machine only, so there the beat counts as well: an owner on another machine is believed to live
until it has been silent for a minute and stays silent while it is watched. An owner that finds
another one in its place ends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import platform
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from vlarl.errors import FatalError

_LOG = logging.getLogger(__name__)

_FILE = ".owner"
_BYTES = 1024
"""Size of the file: written at once, in place, and never cut, so that a reader sees it whole."""
_BEAT_SECONDS = 10.0
_SILENT_BEATS = 6
"""Beats that an owner on another machine may miss before it is watched, and taken for dead."""
_WATCHED_BEATS = 1.5
_SETTLE_SECONDS = 0.5
"""Without locks, of two that come at the same moment the one that wrote last has the folder."""
_ADMISSION = "VLARL_OWNER"
_DESCRIPTORS: dict[Path, int] = {}
"""The files that this process holds open, locked, by folder."""
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


class OwnedError(FatalError):
    """Another process has the folder; the message says which, since when and where."""


@dataclass(frozen=True)
class Owner:
    """Who has a folder."""

    what: str
    """The command."""
    host: str
    machine: str
    """Equal where one kernel runs, whatever the host's or the container's name."""
    processes: str
    """Equal where a process has the same number: in one container."""
    pid: int
    since: float
    """Unix time."""
    beat: float
    """Unix time of its last sign of life, by its own clock."""
    token: str
    """A secret of this ownership, by which the processes that the owner starts are let in."""


@contextlib.contextmanager
def owned(folder: Path, what: str, *, beat_seconds: float = _BEAT_SECONDS) -> Iterator[None]:
    """Has the folder for this process, until the end of the block or of the process.

    A folder that isn't there is made, and removed again if nothing was put into it. A process that
    the owner started with `admission` is let in.

    Args:
        folder: the folder.
        what: the command, for whoever is refused.
        beat_seconds: between two signs of life.

    Raises:
        OwnedError: another process has it.
        FatalError: the folder can't be made or written.
    """
    if os.environ.get(_ADMISSION) in _tokens(folder / _FILE):
        yield
        return
    with _made(folder):
        try:
            holding = _Holding(folder / _FILE, what, beat_seconds)
        except OSError as error:
            raise FatalError(f"{folder}: can't be written ({error.strerror})") from error
        try:
            yield
        finally:
            holding.end()


def admission(folder: Path) -> dict[str, str]:
    """The environment variable with which this process's children enter a folder that it has; none
    where it has not.
    """
    record = _read(folder / _FILE)
    ours = record is not None and (record.machine, record.pid) == (_machine(), os.getpid())
    return {_ADMISSION: record.token} if record is not None and ours else {}


def lock_of(folder: Path) -> tuple[int, ...]:
    """The descriptor of this process's lock on a folder, to be lent to a child that goes on writing
    for a while after this process was killed; none where it has none.
    """
    descriptor = _DESCRIPTORS.get(folder.resolve())
    return () if descriptor is None else (descriptor,)


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Makes a folder; what was made and is still empty at the end goes again."""
    try:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise FatalError(f"{folder}: can't be made ({reason}); choose another folder") from error
    try:
        yield
    finally:
        for path in missing:
            with contextlib.suppress(OSError):  # holds something
                path.rmdir()


class _Holding:
    """The file, held open and locked, and the thread that beats."""

    def __init__(self, path: Path, what: str, beat_seconds: float) -> None:
        """Raises OwnedError where somebody else has it."""
        self._path = path
        self._beat_seconds = beat_seconds
        self._descriptor, locks = _lock(path, beat_seconds)
        now = time.time()
        self._record = Owner(
            what=what,
            host=platform.node(),
            machine=_machine(),
            processes=_processes(),
            pid=os.getpid(),
            since=now,
            beat=now,
            token=secrets.token_hex(16),
        )
        self._write()
        if not locks:
            time.sleep(_SETTLE_SECONDS)
            if not self._still_ours():
                os.close(self._descriptor)
                raise _refusal(path)
        _DESCRIPTORS[path.parent.resolve()] = self._descriptor
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="folder's owner", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Leaves the folder without a trace."""
        self._ended.set()
        self._thread.join()
        if self._still_ours():
            self._path.unlink(missing_ok=True)
        _DESCRIPTORS.pop(self._path.parent.resolve(), None)
        os.close(self._descriptor)

    def _beat(self) -> None:
        while not self._ended.wait(self._beat_seconds):
            found = _read(self._path)
            if found is None:
                continue  # the folder is gone or its volume away: there is nobody to tell
            if found.token != self._record.token:
                folder = self._path.parent
                _LOG.error("%s: taken over by %s; this process ends", folder, _described(found))
                os.kill(os.getpid(), signal.SIGTERM)
                return
            self._record = replace(self._record, beat=time.time())
            try:
                self._write()
            except OSError as error:  # a full disk, say: the lock still holds
                _LOG.warning("%s can't be written (%s)", self._path, error.strerror)

    def _write(self) -> None:
        text = json.dumps(asdict(self._record)).encode()
        os.pwrite(self._descriptor, text.ljust(_BYTES), 0)
        os.fsync(self._descriptor)

    def _still_ours(self) -> bool:
        return self._record.token in _tokens(self._path)


def _lock(path: Path, beat_seconds: float) -> tuple[int, bool]:
    """The file, open and locked, and whether its volume knows locks at all.

    Raises:
        OwnedError: somebody else has it.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            known = _try_lock(descriptor)
            if known is False or _lives(path, beat_seconds, locks=bool(known)):
                raise _refusal(path)
            # Whoever had it before may have removed the very file that is locked now.
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor, bool(known)
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool | None:
    """Whether the lock was free, and is ours now; None: this volume knows no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return None
    return True


def _lives(path: Path, beat_seconds: float, *, locks: bool) -> bool:
    """Whether an owner lives that the lock says nothing of."""
    record = _read(path)
    if record is None:
        return False
    if record.machine == _machine() and (locks or _is_gone(record)):
        return False
    if abs(time.time() - record.beat) < _SILENT_BEATS * beat_seconds:
        return True
    # Its clock, or ours, may be wrong: what counts is whether it beats.
    watched = _WATCHED_BEATS * beat_seconds
    _LOG.info("%s: watching for %g s whether %s lives", path.parent, watched, _described(record))
    time.sleep(watched)
    return _read(path) != record


def _is_gone(record: Owner) -> bool:
    if record.processes != _processes():
        return False
    try:
        os.kill(record.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # another user's
        pass
    return False


def _refusal(path: Path) -> OwnedError:
    record = _read(path)
    if record is None:
        time.sleep(0.1)  # whoever has just locked it is about to say who it is
        record = _read(path)
    away = record is not None and record.machine != _machine()
    hint = f" (or, if it is dead, wait {_SILENT_BEATS * _BEAT_SECONDS:g} s)" if away else ""
    return OwnedError(
        f"{path.parent} is in use by {_described(record)}: wait for its end, or stop it{hint}"
    )


def _described(record: Owner | None) -> str:
    if record is None:
        return "another process"
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.since))
    gone = record.machine == _machine() and _is_gone(record)
    ending = ", which is gone while what it started is still ending" if gone else ""
    return f"`{record.what}`, process {record.pid} on {record.host}, since {since}{ending}"


def _read(path: Path) -> Owner | None:
    """The owner that a file names; None: it is missing, or names none yet."""
    try:
        return Owner(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _tokens(path: Path) -> set[str]:
    record = _read(path)
    return {record.token} if record else set()


def _machine() -> str:
    """The kernel, since it was booted."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return platform.node()


def _processes() -> str:
    """The namespace of this process's number."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""
