r"""Pseudo labels of successful demonstrations: which actions led somewhere. No person labels.

    opening   ‾‾‾‾‾‾‾‾‾\_______________/‾‾‾   milestones: the fingers begin to close, to open
    speed     /‾‾\_/‾‾\_ /‾‾‾‾‾‾\_/‾\_  /‾‾   key frames, within each segment: the hand comes to
                 *     *        *   *      *  rest; and the end, which is the success
    label      ---- ---- ----------- --- ---  positive: actions that lead to a key frame

After VLA-RL (arXiv 2505.18719, "Robotic process reward model"), which says what to look for and
gives no numbers: milestones are significant changes of the gripper's opening, key frames moments
at which the end effector's speed is near zero. What is significant, near zero and leading is in
`LabelConfig`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlarl.config import LabelConfig
from vlarl.config.libero import CONTROL_RATE
from vlarl.data.dataset import DatasetError, TaskSamples

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
Bools = NDArray[np.bool_]

_LEAVES = 1.5
"""The hand moves again above so many times the speed below which it rests."""


@dataclass(frozen=True)
class EpisodeLabels:
    """What was found in an episode of T control steps and M samples. States are numbered from 0,
    before the first control step, to T, after the last.
    """

    milestones: Indices
    """States in which the fingers began to open or close, ascending."""
    key_frames: Indices
    """States in which the hand had come to rest and, where they count, milestones, ascending; the
    last is T, the success."""
    positive: Bools
    """[M], whether a sample's action led to a key frame."""
    segment: Indices
    """[M], number of the segment between milestones in which a sample begins."""


def label_task(task: TaskSamples, config: LabelConfig) -> list[tuple[Indices, EpisodeLabels]]:
    """Labels of each episode that has samples: the samples' numbers, and what was found.

    Raises:
        DatasetError: the recordings have no motion to label by.
    """
    if task.motion is None:
        raise DatasetError(
            f"{task.suite} task {task.index} has no motion of hand and fingers, by which rewards "
            "are labelled: its recordings have no robot_states, or it was converted by an earlier "
            "version; convert it again"
        )
    found = []
    for episode in np.unique(task.episodes):
        samples = np.flatnonzero(task.episodes == episode)
        steps = slice(*task.motion.offsets[episode : episode + 2])
        labels = label_episode(
            task.motion.hand[steps].astype(np.float64),
            task.motion.opening[steps].astype(np.float64),
            task.motion.starts[samples].astype(np.int64),
            config,
        )
        found.append((samples, labels))
    return found


def label_episode(
    hand: Floats, opening: Floats, starts: Indices, config: LabelConfig
) -> EpisodeLabels:
    """Labels an episode that reached its goal.

    Args:
        hand: [T, 3], positions in metres before each control step.
        opening: [T], metres between the fingers.
        starts: [M], the state that each sample's action begins in, ascending.
        config: what counts.
    """
    cuts = milestones(opening, config)
    keys = key_frames(speed(hand), cuts, config)
    bounds = np.concatenate([[0], cuts])
    segment = np.searchsorted(bounds, starts, side="right") - 1
    following = keys[np.searchsorted(keys, starts, side="right")]
    of_segment = np.searchsorted(bounds, following, side="left") - 1 == segment
    near = following - starts <= round(config.lead_seconds * CONTROL_RATE)
    return EpisodeLabels(cuts, keys, of_segment & near, segment)


def milestones(opening: Floats, config: LabelConfig) -> Indices:
    """Where the gripper's state changes significantly.

    The opening is followed to its extreme; a milestone is where it has turned back from there by
    `gripper_change`, and stays so for `gripper_settle_seconds`. So a closing is one milestone,
    slow or fast, and trembling fingers make none.

    Args:
        opening: [T], metres.
        config: what counts.
    """
    settle = max(1, round(config.gripper_settle_seconds * CONTROL_RATE))
    found: list[int] = []
    lowest = highest = float(opening[0])
    direction = 0  # of the last change: -1 closing, 1 opening, 0 none yet
    for step in range(len(opening)):
        soon = opening[step : step + settle]
        # An extreme, too, must last.
        lowest, highest = min(lowest, float(soon.max())), max(highest, float(soon.min()))
        if direction >= 0 and (soon <= highest - config.gripper_change).all():
            found.append(step)
            direction, lowest = -1, float(soon.max())
        elif direction <= 0 and (soon >= lowest + config.gripper_change).all():
            found.append(step)
            direction, highest = 1, float(soon.min())
    return np.array(found, dtype=np.int64)


def speed(hand: Floats) -> Floats:
    """[T], metres a second, from positions [T, 3]: central differences, one-sided at the ends."""
    if len(hand) < 2:
        return np.zeros(len(hand))
    moved: Floats = np.linalg.norm(np.gradient(hand, axis=0), axis=1) * CONTROL_RATE
    return moved


def key_frames(speeds: Floats, cuts: Indices, config: LabelConfig) -> Indices:
    """Where the hand comes to rest, segment by segment, the milestones that end them, and the end.

    The hand rests below `slow_share` of the episode's highest speed, or below `slow_floor` where
    that is more, until it moves again; the key frame is the slowest state of the rest. Nothing in
    a segment leads to a rest that it begins with.

    Args:
        speeds: [T], metres a second.
        cuts: milestones.
        config: what counts.
    """
    end = len(speeds)
    slow = max(config.slow_share * float(speeds.max()), config.slow_floor)
    found: list[int] = []
    for first, last in zip([0, *cuts], [*cuts, end], strict=True):
        rests = _rests(speeds[first:last], slow)
        # The rest that an episode ends with leads to the end.
        found += [
            first + begin + int(speeds[first + begin : first + stop].argmin())
            for begin, stop in rests
            if begin > 0 and first + stop < end
        ]
        if config.milestones_count and last < end:
            found.append(last)
    return np.array([*found, end], dtype=np.int64)


def _rests(speeds: Floats, slow: float) -> list[tuple[int, int]]:
    """Stretches [begin, stop) that begin below `slow` and end where the hand moves again."""
    found: list[tuple[int, int]] = []
    begin: int | None = None
    for step, value in enumerate(speeds):
        if begin is None and value < slow:
            begin = step
        elif begin is not None and value > _LEAVES * slow:
            found.append((begin, step))
            begin = None
    if begin is not None:
        found.append((begin, len(speeds)))
    return found
