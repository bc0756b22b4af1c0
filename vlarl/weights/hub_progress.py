"""How far a download is, for people: a bar on a terminal, now and then a line in a log."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from vlarl.disk import size_text
from vlarl.terminal import PlainConsole, clock, say, text_column

_LOOK_SECONDS = 0.5
_LINE_SECONDS = 10.0


@contextlib.contextmanager
def shown_growth(name: str, total: int, grown: Callable[[], int], show: bool) -> Iterator[None]:
    """Shows how far something has grown, while the block makes it grow.

    The disk is looked at, not the library that writes: so what another process downloads of the
    same files counts, too.

    Args:
        name: of what is downloaded.
        total: bytes it will have grown by; 0: nothing is shown.
        grown: bytes so far.
        show: whether anything is shown.
    """
    if not show or not total:
        yield
        return
    console = PlainConsole(stderr=True)
    ended = threading.Event()
    watch = partial(_bar, console) if console.is_terminal else _lines
    watching = threading.Thread(target=watch, args=(name, total, grown, ended))
    watching.start()
    try:
        yield
    finally:
        ended.set()
        watching.join()


def _bar(
    console: PlainConsole, name: str, total: int, grown: Callable[[], int], ended: threading.Event
) -> None:
    columns = (
        text_column(f"downloading {name.replace('{', '{{').replace('}', '}}')}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=total)
        while not ended.wait(_LOOK_SECONDS):
            bar.update(task, completed=grown())
        bar.update(task, completed=grown())


def _lines(name: str, total: int, grown: Callable[[], int], ended: threading.Event) -> None:
    begin = time.monotonic()
    say(f"downloading {name}: {size_text(total)}", stderr=True)
    while not ended.wait(_LINE_SECONDS):
        so_far, seconds = grown(), time.monotonic() - begin
        if so_far:
            left = clock(max(0, total - so_far) * seconds / so_far)
            how_far = f"{size_text(so_far)} of {size_text(total)}"
            say(f"downloading {name}: {how_far}, {left} left", stderr=True)
