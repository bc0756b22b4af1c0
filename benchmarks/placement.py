"""Keeps services on cores of their own, as they are where the policy has a GPU or a second node."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping

import psutil

_SWEEP_SECONDS = 1.0


@contextlib.contextmanager
def placed(cores: Mapping[str, set[int]]) -> Iterator[None]:
    """While it lasts, every `serve NAME` below this process runs on its cores, and what it starts.

    Args:
        cores: by the service's name, or "train" for `vlarl train`, the numbers of its cores. Other
            processes stay as they are.
    """
    ended = threading.Event()

    def sweep() -> None:
        while not ended.wait(_SWEEP_SECONDS):
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                    _place(process, cores)

    thread = threading.Thread(target=sweep)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _place(process: psutil.Process, cores: Mapping[str, set[int]]) -> None:
    words = process.cmdline()
    named = words.index("serve") + 1 if "serve" in words[:-1] else 3  # python -m vlarl NAME
    own = cores.get(words[named]) if named < len(words) else None
    if own is None:
        return
    # Linux places threads, not processes; and Mesa's renderer puts its own back on all cores.
    for member in (process, *process.children(recursive=True)):
        for thread in member.threads():
            os.sched_setaffinity(thread.id, own)
