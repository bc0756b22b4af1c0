"""An evaluation's films for a page.

They are MPEG-4 Part 2, which browsers don't play, and OpenCV's wheels write nothing that they do.
Every browser shows animated WebP, though, and Pillow writes it.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import cv2
from PIL import Image

from vlarl_jobs.report.records import Film

_WIDTH = 400
_MOST_FRAMES = 150
_QUALITY = 55
_MOST_FILMS = 6


@dataclass(frozen=True)
class Clip:
    """A film as a picture that moves, and one that doesn't, both as data addresses."""

    caption: str
    success: bool
    moving: str
    still: str
    height: int
    """Pixels, at a width of 400."""


def choose(films: Sequence[Film]) -> list[Film]:
    """At most six: successes and failures in turn, other tasks before further films of one."""
    chosen: list[Film] = []
    rest = list(films)
    while rest and len(chosen) < _MOST_FILMS:
        best = min(rest, key=partial(_rank, chosen))
        rest.remove(best)
        chosen.append(best)
    return chosen


def _rank(chosen: Sequence[Film], film: Film) -> tuple[bool, int, int, int]:
    """Least for the film that is to be shown next."""
    wanted = not chosen[-1].success if chosen else True
    shown = [one.task for one in chosen].count(film.task)
    return film.success != wanted, shown, film.task, film.init_state


def clip_of(film: Film, *, name_run: bool = False) -> Clip | None:
    """The film made small; None where it can't be read.

    Args:
        film: what is shown.
        name_run: whether its caption says which run it is of.
    """
    frames, rate = _frames(film)
    if not frames:
        return None
    moving = io.BytesIO()
    duration = round(1000 / rate)
    frames[0].save(
        moving,
        "WEBP",
        save_all=True,
        append_images=frames[1:],
        duration=[*[duration] * (len(frames) - 1), 1500],
        loop=0,
        quality=_QUALITY,
        method=4,
    )
    still = io.BytesIO()
    frames[-1].save(still, "WEBP", quality=_QUALITY)
    end = "success" if film.success else "failure"
    return Clip(
        caption=f"{film.run}, " * name_run
        + f"task {film.task}, initial state {film.init_state}: {end}",
        success=film.success,
        moving=_address(moving.getvalue()),
        still=_address(still.getvalue()),
        height=frames[0].height,
    )


def _frames(film: Film) -> tuple[list[Image.Image], float]:
    """Small frames, and how many of them a second has. Of a long film every second, third or
    n-th is kept.
    """
    opened = cv2.VideoCapture(str(film.path))
    count, rate = opened.get(cv2.CAP_PROP_FRAME_COUNT), opened.get(cv2.CAP_PROP_FPS)
    every = max(1, -(-int(count) // _MOST_FRAMES))
    try:
        read = _read(opened)
        small = [_small(frame) for number, frame in enumerate(read) if number % every == 0]
    finally:
        opened.release()
    return small, (rate or 20.0) / every


def _read(opened: cv2.VideoCapture) -> Iterator[cv2.typing.MatLike]:
    while True:
        whole, frame = opened.read()
        if not whole:
            return
        yield frame


def _small(frame: cv2.typing.MatLike) -> Image.Image:
    picture = Image.fromarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
    height = round(picture.height * _WIDTH / picture.width)
    return picture.resize((_WIDTH, height), Image.Resampling.LANCZOS)


def _address(content: bytes) -> str:
    return "data:image/webp;base64," + base64.b64encode(content).decode()
