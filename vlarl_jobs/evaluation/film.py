"""Films of episodes: what the policy saw and did, with what the critic and the rewards said.

┌──────────────────┐
│      frame       │   enlarged
├──────────────────┤
│ instruction      │   task, initial state, step; action tokens and values;
│ step, tokens ... │   reward, return and the critic's value, where there are any
└──────────────────┘
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vlarl.answers import actions_of, executed_actions
from vlarl.config.libero import CONTROL_RATE
from vlarl.errors import FatalError
from vlarl.images import decode_image
from vlarl.rollout.v1 import rollout_pb2

Frame = NDArray[np.uint8]
"""[height, width, 3], RGB."""

Values = Callable[[Sequence[bytes], str], list[float]]
"""The critic: encoded frames and the instruction to a value each."""

WIDTH = 512
"""Pixels of a film's width; frames are square or nearly so."""

_MARGIN, _LINE, _TEXT, _SMALL = 14, 24, 18, 15
_LINES = 7
_BACKGROUND, _INK, _PALE = (24, 24, 27), (244, 244, 245), (161, 161, 170)
_SUCCESS, _FAILURE = (34, 160, 84), (205, 60, 60)
_BORDER = 10


class FilmError(FatalError):
    """A film that can't be written."""


class FilmMaker:
    """Keeps, of each task, the first films of successes and of failures."""

    def __init__(
        self, folder: Path, each: int, action_repeat: int, values: Values | None = None
    ) -> None:
        """Opens the folder; films that lie there already count.

        Args:
            folder: receives task-03_init-07_success.mp4.
            each: films of each task and outcome.
            action_repeat: control steps of an action: films run in real time.
            values: the critic, if there is one.
        """
        self._folder = folder
        self._each = each
        self._rate = CONTROL_RATE / action_repeat
        self._values = values
        folder.mkdir(parents=True, exist_ok=True)
        self._have = Counter(_kind(path) for path in folder.glob("task-*.mp4"))

    def wants(self, task: int) -> bool:
        """Whether there are too few films of one of this task's outcomes."""
        return any(self._have[f"task-{task:02d}", end] < self._each for end in _ENDS.values())

    def take(self, trajectory: rollout_pb2.Trajectory) -> Path | None:
        """Films an episode, if it has frames and its outcome is wanted; returns the file."""
        spec, end = trajectory.spec, _ENDS[trajectory.outcome]
        kind = (f"task-{spec.task.index:02d}", end)
        if not spec.record_frames or self._have[kind] >= self._each:
            return None
        path = self._folder / f"{kind[0]}_init-{spec.init_state:02d}_{end}.mp4"
        write_film(path, draw_frames(trajectory, self._values, round(self._rate)), self._rate)
        self._have[kind] += 1
        return path


_ENDS = {rollout_pb2.OUTCOME_SUCCESS: "success", rollout_pb2.OUTCOME_TIME_LIMIT: "failure"}


def _kind(path: Path) -> tuple[str, str]:
    task, _, end = path.stem.split("_")
    return task, end


def write_film(path: Path, frames: Iterator[Frame], rate: float) -> None:
    """Writes an mp4; it appears under its name when it is whole.

    Args:
        path: the file.
        frames: all of one size, which is even.
        rate: frames a second.

    Raises:
        FilmError: OpenCV can't write films here.
    """
    partial = path.with_name(f".{path.name}")
    writer: cv2.VideoWriter | None = None
    for frame in frames:
        if writer is None:
            size = (frame.shape[1], frame.shape[0])
            # OpenCV's wheels have no H.264, and VP9 takes seventy times as long as this.
            writer = cv2.VideoWriter(str(partial), cv2.VideoWriter.fourcc(*"mp4v"), rate, size)
            if not writer.isOpened():
                raise FilmError(f"OpenCV can't write the film {path}; leave --videos out")
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    if writer is not None:
        writer.release()
        partial.replace(path)


def draw_frames(
    trajectory: rollout_pb2.Trajectory, values: Values | None, hold: int
) -> Iterator[Frame]:
    """An episode's pictures, one an action, then the last one framed in the outcome's colour.

    What was seen before several actions is shown as long as these took.

    Args:
        trajectory: with its frames.
        values: the critic, if there is one.
        hold: how many times the last picture comes.
    """
    encoded = [step.image for step in trajectory.steps] + [trajectory.final_image]
    critic = values(encoded[:-1], trajectory.instruction) if values else []
    returns = list(accumulate(trajectory.scores.total))
    for index, step in enumerate(trajectory.steps):
        numbers = []
        if returns:
            reward = trajectory.scores.total[index]
            numbers += [f"reward {reward:.3f}", f"return {returns[index]:.3f}"]
        if critic:
            numbers.append(f"value {critic[index]:+.3f}")
        lines = [
            f"step {index + 1} of {len(trajectory.steps)}",
            *_action_lines(step),
            "   ".join(numbers),
        ]
        picture = _picture(trajectory, encoded[index], lines)
        for _ in range(executed_actions(step)):
            yield picture
    last = _last_picture(trajectory, encoded[-1])
    for _ in range(max(1, hold)):
        yield last


def _action_lines(step: rollout_pb2.Step) -> list[str]:
    """Tokens and values of an answer's first action, and how many of its actions were executed."""
    action = step.action
    horizon = max(1, action.horizon)
    tokens = action.token_ids[: len(action.token_ids) // horizon]
    values = action.values[: len(action.values) // horizon]
    some = f"   first of {step.executed} actions" if horizon > 1 else ""
    return [
        "tokens " + " ".join(str(token) for token in tokens),
        "action " + " ".join(f"{value:+.2f}" for value in values) + some,
    ]


def _last_picture(trajectory: rollout_pb2.Trajectory, encoded: bytes) -> Frame:
    success = trajectory.outcome == rollout_pb2.OUTCOME_SUCCESS
    words = "success" if success else "failure: the time is up"
    actions = actions_of(trajectory.steps)
    picture = _picture(trajectory, encoded, [f"{words} after {actions} actions"])
    corner = (picture.shape[1] - 1, picture.shape[0] - 1)
    cv2.rectangle(picture, (0, 0), corner, _SUCCESS if success else _FAILURE, _BORDER)
    return picture


def _picture(trajectory: rollout_pb2.Trajectory, encoded: bytes, lines: Sequence[str]) -> Frame:
    """The enlarged frame above its lines of text."""
    frame = Image.fromarray(decode_image(encoded))
    height = round(WIDTH * frame.height / frame.width / 2) * 2
    panel = 2 * _MARGIN + _LINES * _LINE
    picture = Image.new("RGB", (WIDTH, height + panel), _BACKGROUND)
    picture.paste(frame.resize((WIDTH, height), Image.Resampling.BICUBIC), (0, 0))
    draw = ImageDraw.Draw(picture)
    wrapped = textwrap.wrap(trajectory.instruction, 52, max_lines=2, placeholder=" …")
    spec = trajectory.spec
    place = f"{spec.task.suite} task {spec.task.index}, initial state {spec.init_state}"
    rows = [(line, _TEXT, _INK) for line in [*wrapped, ""][:2]]
    rows += [(line, _SMALL, _PALE) for line in (place, *lines)]
    for row, (text, size, colour) in enumerate(rows):
        font = ImageFont.load_default(size)
        draw.text((_MARGIN, height + _MARGIN + row * _LINE), text, colour, font)
    return np.asarray(picture).copy()
