"""What the numbers of a recording mean: its gripper's convention, and how its actions become the
simulator's. Told from the recorded motion, never guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from vlarl.data.dataset import LARGEST_ACTION
from vlarl_jobs.demonstrations.steps import Array

Gripper = Literal["closed-is-1", "open-is-1"]
"""What a gripper's highest command means; the lowest, -1 or 0, means the other."""

Said = TypeVar("Said")

_SETTLED = 12
"""Control steps after which the fingers have followed a command."""

_WIDE_OPEN = 0.065
"""Metres between fingers that hold nothing; wide open they are 0.079 apart."""

_BETWEEN = (0.1, 0.9)
_MOST_BETWEEN = 0.2
"""Share of commands strictly between 0 and 1 from which they aren't open and closed any more."""

_NEARLY_ALL = 0.75
"""Share of a file's demonstrations that must agree on what its numbers mean; the rest are wrong."""


class Conventions(BaseModel):
    """How a file's actions become those of the simulator."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gripper: Gripper = "closed-is-1"
    signed: bool = True
    """Whether commands lie in -1..1, and 0 holds what was; otherwise in 0..1, cut in the middle."""
    scale: tuple[float, float] = (1.0, 1.0)
    """What translation and rotation are multiplied by."""
    clip: bool = False
    """Whether translation and rotation are then cut off at 1."""

    def apply(self, actions: Array) -> Array:
        """Actions [T, 7] of the file as the simulator's: gripper -1 open, +1 closed."""
        applied = np.array(actions, dtype=np.float64)
        applied[:, :3] *= self.scale[0]
        applied[:, 3:6] *= self.scale[1]
        if self.clip:
            applied[:, :6] = np.clip(applied[:, :6], -1.0, 1.0)
        high = commanded_high(actions[:, 6], signed=self.signed)
        closed = high if self.gripper == "closed-is-1" else ~high
        applied[:, 6] = np.where(closed, 1.0, -1.0)
        return applied

    def words(self) -> str:
        """For people."""
        low, high = ("opens", "closes") if self.gripper == "closed-is-1" else ("closes", "opens")
        told = [f"gripper {-1 if self.signed else 0} {low}, 1 {high}"]
        if self.scale != (1.0, 1.0):
            told.append("translation times {:g}, rotation times {:g}".format(*self.scale))
        if self.clip:
            told.append("movements cut off at 1")
        return "; ".join(told)


def commanded_high(commands: Array, *, signed: bool) -> npt.NDArray[np.bool_]:
    """Whether each gripper's command [T] is the higher of the two. A signed 0 repeats the command
    before it, as the simulator does; at the start, the first that comes.
    """
    if not signed:
        return np.asarray(commands > 0.5)
    given = np.flatnonzero(commands)
    if not len(given):
        return np.zeros(len(commands), np.bool_)
    last = np.searchsorted(given, np.arange(len(commands)), side="right") - 1
    return np.asarray(commands[given[np.maximum(last, 0)]] > 0)


def fingers_tell(high: npt.NDArray[np.bool_], opening: Array) -> Gripper | None:
    """What the higher command means by how far the fingers are open once they have followed.

    Args:
        high: [T], whether the higher command was given.
        opening: [T], metres between the fingers, before each command.

    Returns:
        None where nothing follows: no command was held long enough, or the fingers don't differ.
    """
    changes = np.flatnonzero(np.diff(high, prepend=~high[:1]))
    age = (
        np.arange(len(high)) - changes[np.searchsorted(changes, np.arange(len(high)), "right") - 1]
    )
    held = age >= _SETTLED
    up, down = opening[held & high], opening[held & ~high]
    if len(up) and len(down):
        difference = float(np.median(up) - np.median(down))
        return None if abs(difference) < 0.01 else _meaning(high_is_open=difference > 0)
    alone = up if len(up) else down
    if not len(alone) or alone.min() < _WIDE_OPEN < alone.max():
        return None
    return _meaning(high_is_open=bool(alone.min() > _WIDE_OPEN) == bool(len(up)))


def _meaning(*, high_is_open: bool) -> Gripper:
    return "open-is-1" if high_is_open else "closed-is-1"


def out_of_range(commands: Array) -> str | None:
    """Why a file's gripper commands can't be open and closed, whichever way; None: they can."""
    if commands.min() < 0:
        return None  # the simulator takes the sign
    if commands.max() > LARGEST_ACTION:
        return f"gripper commands from {commands.min():g} to {commands.max():g}"
    return None


def between(commands: Array) -> bool:
    """Whether commands of 0..1 say how far, rather than open or closed."""
    low, high = _BETWEEN
    return bool(((commands > low) & (commands < high)).mean() > _MOST_BETWEEN)


def prevailing(told: Sequence[Said | None]) -> Said | None:
    """What nearly all say of those that tell anything; None where too many contradict it."""
    said = [one for one in told if one is not None]
    for one in dict.fromkeys(said):
        if said.count(one) >= _NEARLY_ALL * len(said):
            return one
    return None
