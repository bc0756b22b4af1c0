"""What processes hold in memory, watched from outside while they work."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable
from pathlib import Path

_SECONDS = 0.01


class MemoryWatch:
    """Looks a hundred times a second at some processes, until it is stopped."""

    def __init__(self, processes: dict[str, int]) -> None:
        """processes: their ids by name."""
        self._processes = processes
        self._before = {name: anonymous(pid) for name, pid in processes.items()}
        self._most = dict(self._before)
        self._together = 0
        self._shared = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stopped.wait(_SECONDS):
            now = {name: anonymous(pid) for name, pid in self._processes.items()}
            shared = in_memory_files(self._processes.values())
            self._most = {name: max(most, now[name]) for name, most in self._most.items()}
            self._shared = max(self._shared, shared)
            grown = sum(now[name] - before for name, before in self._before.items())
            self._together = max(self._together, grown + shared)

    def stop(self) -> None:
        """Looks no more."""
        self._stopped.set()
        self._thread.join()

    def grown(self, name: str) -> int:
        """Most bytes that a process had of its own since the watch began, over those of then."""
        return self._most[name] - self._before[name]

    @property
    def shared(self) -> int:
        """Most bytes of files in memory that the processes had open, each counted once."""
        return self._shared

    @property
    def together(self) -> int:
        """Most bytes of all processes at one time, those that they share counted once."""
        return self._together


def anonymous(pid: int) -> int:
    """Bytes of a process that are no file's; 0 of one that is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    for line in status.splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def in_memory_files(pids: Iterable[int]) -> int:
    """Bytes of the anonymous files (memfd) that these processes have open."""
    found: dict[int, int] = {}
    for pid in pids:
        with contextlib.suppress(OSError):  # it is gone
            for file in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):  # closed meanwhile
                    if str(file.readlink()).startswith("/memfd:vlarl"):
                        status = file.stat()
                        found[status.st_ino] = status.st_blocks * 512
    return sum(found.values())


def file_bytes(pid: int) -> tuple[int, int]:
    """Bytes that a process has read from files, and written to them."""
    lines = Path(f"/proc/{pid}/io").read_text(encoding="utf-8").splitlines()
    counts = dict(line.split(": ") for line in lines)
    return int(counts["rchar"]), int(counts["wchar"])
