"""Which demonstrations of a file can be learned from, and what their numbers mean: seconds, before
anything is rendered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vlarl_jobs.demonstrations.arm import finger_opening, has_arm
from vlarl_jobs.demonstrations.conventions import (
    Conventions,
    Gripper,
    between,
    commanded_high,
    fingers_tell,
    out_of_range,
    prevailing,
)
from vlarl_jobs.demonstrations.episodes import Episode
from vlarl_jobs.demonstrations.hdf5 import DemoFileError, Header, read_episode, read_header
from vlarl_jobs.demonstrations.movements import check_movements
from vlarl_jobs.demonstrations.steps import kept_without_no_ops

GRIPPER_WAY_OUT = "say what 1 means with --gripper closed-is-1 or --gripper open-is-1"


@dataclass(frozen=True)
class Terms:
    """How files are to be read, where they don't say."""

    gripper: Gripper | None = None
    """None: as the file's own motion tells."""
    clip: bool = False
    """Whether movements beyond 1 are cut off there."""
    scale: tuple[float, float] = (1.0, 1.0)
    """What translation and rotation are multiplied by."""
    keep_failures: bool = False
    """Whether demonstrations that miss their goal are taken, too."""
    trust_actions: bool = False
    """Whether actions are taken that the hand's motion contradicts."""

    @property
    def reinterpret(self) -> bool:
        """Whether they say what a file's numbers mean."""
        return self.gripper is not None or self.clip or self.scale != (1.0, 1.0)


@dataclass(frozen=True)
class Examined:
    """A file that can be learned from."""

    header: Header
    conventions: Conventions
    told_by: str
    """What told the gripper's convention, for people."""
    demos: tuple[str, ...]
    """Those that can be used; at least one."""
    left_out: Mapping[str, str]
    """Why each of the others can't; the sentence doesn't name the file."""
    state_sizes: Mapping[str, int]
    """Of those that can, how many numbers a state has."""
    fixtures_known: bool
    """Whether all of those that can say where fixtures stood."""

    def without(self, path: Path, faults: Mapping[str, str]) -> Examined:
        """The same without some, and why.

        Raises:
            DemoFileError: none is left.
        """
        demos = tuple(demo for demo in self.demos if demo not in faults)
        if not demos:
            raise DemoFileError(self.none_left(path, faults))
        return replace(self, demos=demos, left_out={**self.left_out, **faults})

    def none_left(self, path: Path, faults: Mapping[str, str]) -> str:
        """The sentence for a file whose last demonstrations can't be used either."""
        return none_left(path, self.header.demos, {**self.left_out, **faults})


def examine(path: Path, terms: Terms) -> Examined:
    """Reads all of a file's demonstrations and tells the good from the bad.

    Raises:
        DemoFileError: the file can't be read, its conventions can't be told, or it holds no
            demonstration that can be used.
    """
    header = read_header(path)
    if header.ours and terms.reinterpret:
        raise DemoFileError(
            f"{path} is of `demos collect`, which says what its numbers mean: leave out --gripper, "
            "--clip and --action-scale, or convert others' files apart"
        )
    episodes: dict[str, Episode] = {}
    left_out: dict[str, str] = {}
    for demo in header.demos:
        try:
            episodes[demo] = read_episode(path, demo)
        except DemoFileError as error:
            left_out[demo] = str(error).removeprefix(f"{path}: ")
            continue
        # Of others' the scene tells: their rewards and dones are what each made of them.
        if header.ours and not (episodes[demo].success or terms.keep_failures):
            left_out[demo] = f"{demo} never reaches its goal; --keep-failures takes it"
            del episodes[demo]
    moving = Conventions(scale=terms.scale, clip=terms.clip)  # whatever the gripper does
    trusted = header.ours or terms.trust_actions
    faults = _faults(path, episodes, moving, trusted=trusted)
    left_out |= {demo: f"{demo} {fault}" for demo, fault in faults.items()}
    episodes = {demo: one for demo, one in episodes.items() if demo not in faults}
    if not episodes:
        raise DemoFileError(none_left(path, header.demos, left_out))
    conventions, told_by, against = _conventions(path, header, episodes, moving, terms.gripper)
    left_out |= {
        demo: f"{demo} has fingers that move against its commands, unlike the others'"
        for demo in against
    }
    demos = tuple(demo for demo in header.demos if demo not in left_out)
    left_out = {demo: left_out[demo] for demo in header.demos if demo in left_out}
    sizes = {demo: episodes[demo].states.shape[1] for demo in demos}
    known = all(
        episodes[demo].placement_seed is not None or episodes[demo].fixtures is not None
        for demo in demos
    )
    return Examined(header, conventions, told_by, demos, left_out, sizes, known)


def none_left(path: Path, demos: tuple[str, ...], left_out: Mapping[str, str]) -> str:
    """The sentence for a file none of whose demonstrations can be used."""
    first = next(left_out[demo] for demo in demos)
    if len(demos) == 1:
        return f"{path}: {first}"
    return f"{path}: none of its {len(demos)} demonstrations can be used: {first}"


def _conventions(
    path: Path,
    header: Header,
    episodes: Mapping[str, Episode],
    moving: Conventions,
    gripper: Gripper | None,
) -> tuple[Conventions, str, Sequence[str]]:
    """What a file's actions mean, what told it, and which few demonstrations contradict it.

    Raises:
        DemoFileError: it can't be told.
    """
    if header.ours:
        return moving, "as ours are", ()
    commands = np.concatenate([episode.actions[:, 6] for episode in episodes.values()])
    signed = bool(commands.min() < 0)
    chosen = moving.model_copy(update={"signed": signed})
    if (wrong := out_of_range(commands)) is not None:
        raise DemoFileError(
            f"{path} has {wrong}, neither -1 to 1 nor 0 to 1: rescale them before converting"
        )
    if gripper is not None:
        return chosen.model_copy(update={"gripper": gripper}), "as --gripper says", ()
    if not signed and between(commands):
        raise DemoFileError(
            f"{path} has gripper commands between 0 and 1, neither open nor closed: "
            f"{GRIPPER_WAY_OUT}, and they are cut at 0.5"
        )
    told = {demo: _told(episode, signed=signed) for demo, episode in episodes.items()}
    if (most := prevailing(list(told.values()))) is not None:
        against = [demo for demo, one in told.items() if one not in (None, most)]
        return chosen.model_copy(update={"gripper": most}), "as its fingers move", against
    if any(told.values()):
        raise DemoFileError(
            f"{path}: its demonstrations don't agree on what opens and what closes the gripper: "
            f"split the file, or {GRIPPER_WAY_OUT}"
        )
    if signed:
        return chosen, "as the simulator takes it", ()
    raise DemoFileError(
        f"{path} has gripper commands of 0 and 1, and its fingers don't tell which opens: "
        f"{GRIPPER_WAY_OUT}"
    )


def _told(episode: Episode, *, signed: bool) -> Gripper | None:
    if not has_arm(episode.states):
        return None
    high = commanded_high(episode.actions[:, 6], signed=signed)
    return fingers_tell(high, finger_opening(episode.states))


def _faults(
    path: Path, episodes: Mapping[str, Episode], conventions: Conventions, *, trusted: bool
) -> dict[str, str]:
    """Why nothing can be learned from some demonstrations.

    Args:
        path: Their file.
        episodes: The recordings, their actions as the file has them.
        conventions: What those mean.
        trusted: Whether motion isn't to be compared with actions.

    Raises:
        DemoFileError: rotations are of other units, so that none can be learned from, those whose
            hand hardly turns among them.
    """
    faults: dict[str, str] = {}
    turns: dict[str, bool] = {}
    for demo, episode in episodes.items():
        if not len(kept_without_no_ops(conventions.apply(episode.expert_actions))):
            faults[demo] = "does nothing: all of its actions are no-ops"
            continue
        found = check_movements(episode, conventions, trusted=trusted)
        if found.fault is not None:
            faults[demo] = found.fault
        if found.turns is not None:
            turns[demo] = found.turns
    wrong = [demo for demo, right in turns.items() if not right]
    if wrong and not prevailing([*turns.values()]) and len(faults) < len(episodes):
        raise DemoFileError(
            f"{path}: {wrong[0]} {faults[wrong[0]]}; {len(wrong)} of the {len(turns)} "
            "demonstrations whose hand clearly turns are like that, and the others can't tell"
        )
    return faults
