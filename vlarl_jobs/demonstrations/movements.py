"""Whether a recording's movements are those that the arm made, and what would make them so.

Translation and rotation are checked apart. Their units differ (metres, radians), and where a hand
is says nothing of how it turned.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vlarl.data.dataset import LARGEST_ACTION
from vlarl_jobs.demonstrations.arm import hand_positions, hand_rotations, has_arm
from vlarl_jobs.demonstrations.conventions import Conventions
from vlarl_jobs.demonstrations.episodes import Episode
from vlarl_jobs.demonstrations.motion import (
    LEAST_TURNED,
    MOST_TURNED,
    Fit,
    Turn,
    is_absolute,
    motion_fit,
    turn_fit,
)

_CLEARLY_BETTER = 0.02
"""Correlation by which uncut actions must explain the motion better than cut ones, or worse."""

_ABSOLUTE = "the hand's absolute positions, not movements; convert them to what OSC_POSE takes"

_METRE = 20.0
"""Units of translation in a metre of what OSC_POSE puts out."""

_RADIAN = 0.1
"""Units of rotation in a radian for each of translation in a metre, whether of OSC_POSE's output or
of what the hand moved."""

_SURELY_METRES = 10.0
"""Factor of translation from which it is one of units, not of somebody's own range."""


@dataclass(frozen=True)
class _Movements:
    """A recording's movements, and what its hand tells of them."""

    scale: tuple[float, float]
    """What translation and rotation have been multiplied by."""
    clip: bool
    """Whether they are learned as they are when cut off at 1."""
    far: float
    """The largest translation, uncut."""
    turned: float
    """The largest rotation, uncut."""
    absolute: bool = False
    """Whether they are positions."""
    fit: Fit | None = None
    """Of uncut translations; none of these: the hand doesn't tell."""
    cut_fit: Fit | None = None
    turn: Turn | None = None
    """Of uncut rotations."""
    cut_turn: Turn | None = None


@dataclass(frozen=True)
class MovementCheck:
    """What was found of a recording's movements."""

    fault: str | None
    """Why they can't be learned; None: they can."""
    turns: bool | None
    """Whether rotations are the arm's; None: the hand doesn't tell."""


def check_movements(episode: Episode, conventions: Conventions, *, trusted: bool) -> MovementCheck:
    """Compares a recording's actions with what the arm can execute and with how it moved.

    Args:
        episode: The recording, its actions as the file has them.
        conventions: What they mean.
        trusted: Whether its motion isn't to be compared with its actions.
    """
    seen = _movements(episode, conventions)
    if not seen.clip and seen.far > LARGEST_ACTION:
        return MovementCheck(_too_far(seen), None)
    if not seen.clip and seen.turned > LARGEST_ACTION:
        return MovementCheck(_turned_too_far(seen), None if seen.turn is None else seen.turn.fits)
    if trusted:
        return MovementCheck(None, None)
    if (fault := _translated_otherwise(seen)) is not None:
        return MovementCheck(fault, None)
    if (fault := _turned_otherwise(seen)) is not None:
        return MovementCheck(fault, False)
    return MovementCheck(None, None if seen.turn is None else True)


def _movements(episode: Episode, conventions: Conventions) -> _Movements:
    as_they_are = conventions.model_copy(update={"clip": False})
    learned = np.abs(as_they_are.apply(episode.expert_actions))
    far, turned = float(learned[:, :3].max()), float(learned[:, 3:6].max())
    if not has_arm(episode.states):
        return _Movements(conventions.scale, conventions.clip, far, turned)
    whole = as_they_are.apply(episode.actions)
    cut = np.clip(whole, -1.0, 1.0)
    hand, rotations = hand_positions(episode.states), hand_rotations(episode.states)
    return _Movements(
        scale=conventions.scale,
        clip=conventions.clip,
        far=far,
        turned=turned,
        absolute=is_absolute(whole, hand),
        fit=motion_fit(whole, hand),
        cut_fit=motion_fit(cut, hand),
        turn=turn_fit(whole, rotations),
        cut_turn=turn_fit(cut, rotations),
    )


def _too_far(seen: _Movements) -> str:
    """Says what translations beyond 1 are."""
    told = f"has actions of up to {seen.far:.3g}, though the arm executes 1 at most"
    fit, cut = seen.fit, seen.cut_fit
    if seen.absolute:
        return f"{told}: they are {_ABSOLUTE}"
    if fit is None or cut is None or max(fit.correlation, cut.correlation) < 0.5:
        return f"{told}: rescale them with --action-scale, or cut them off with --clip"
    # One factor for both makes the path right, and rotations larger than any that it could check.
    beyond = seen.turned > LARGEST_ACTION and seen.scale != (1.0, 1.0)
    if beyond and not _cut_by_simulator(seen):
        return f"{told}: rescale them with {_scales(seen, _translation(seen, fit))}"
    if fit.correlation > cut.correlation + _CLEARLY_BETTER or not cut.follows:
        factor = _translation(seen, fit)
        return (
            f"{told}: its hand moved {fit.share:.3g} times as far, so try {_scales(seen, factor)}"
        )
    return f"{told}: --clip cuts them off, as the simulator did by the hand's motion"


def _turned_too_far(seen: _Movements) -> str:
    """Says what rotations beyond 1 are, where translations aren't."""
    if seen.absolute:
        return f"has actions that are {_ABSOLUTE}"
    told = f"has rotations of up to {seen.turned:.3g}, though the arm executes 1 at most"
    if _cut_by_simulator(seen):
        return f"{told}: --clip cuts them off, as the simulator did by how the hand turned"
    return f"{told}: rescale them with {_scales(seen, seen.scale[0])}"


def _cut_by_simulator(seen: _Movements) -> bool:
    """Whether the hand turned as cut rotations say, and not as whole ones do."""
    whole, cut = seen.turn, seen.cut_turn
    if whole is None or cut is None or not (cut.told and cut.fits):
        return False
    better = cut.correlation > whole.correlation + _CLEARLY_BETTER
    return better or (not whole.fits and cut.correlation > whole.correlation - _CLEARLY_BETTER)


def _translated_otherwise(seen: _Movements) -> str | None:
    """Says how the hand moved otherwise than its translations; None: it didn't."""
    fit = seen.cut_fit if seen.clip else seen.fit
    if fit is None or seen.fit is None:
        return None
    if seen.fit.correlation > max(fit.correlation + _CLEARLY_BETTER, 0.5):
        return (
            "moves as its whole actions say, not as those that --clip cuts off: try "
            f"{_scales(seen, _translation(seen, seen.fit))} instead"
        )
    if fit.follows:
        return None
    if seen.absolute:
        return f"has actions that are {_ABSOLUTE}"
    if fit.correlation < 0.5:
        return (
            "has a hand that doesn't move as its actions say: they are of another recording or "
            "another controller; --trust-actions takes them all the same"
        )
    return (
        f"has a hand that moves {fit.share:.2g} times as far as its actions say: rescale them with "
        f"{_scales(seen, _translation(seen, seen.fit))}, or take them as they are with "
        "--trust-actions"
    )


def _turned_otherwise(seen: _Movements) -> str | None:
    """Says how the hand turned otherwise than its rotations; None: it didn't, or doesn't tell."""
    cut = seen.clip and seen.turned > LARGEST_ACTION
    turn = seen.cut_turn if cut and _cut_by_simulator(seen) else seen.turn
    way_out = f"{_scales(seen, seen.scale[0])}, or take them as they are with --trust-actions"
    if turn is not None and not turn.fits:
        return (
            f"has a hand that turns {turn.measure:.2g} times as far as its actions say: rescale "
            f"its rotations with {way_out}"
        )
    if cut and seen.scale[1] > 1 and not (turn is not None and turn.told):
        return (
            f"has rotations of up to {seen.turned:.3g} by --action-scale, which --clip would cut "
            f"off: rescale them with {way_out}"
        )
    return None


def _translation(seen: _Movements, fit: Fit) -> float:
    """The factor of the file's translations by which the hand moved as they say."""
    largest = seen.far / seen.scale[0]
    share = fit.share * seen.scale[0]
    if 0.85 < share / _METRE < 1.15 and largest * _METRE <= LARGEST_ACTION:
        return _METRE
    # The measured share is good to a tenth; that the largest becomes 1 is a better guess.
    return 1 / largest if 0.8 < share * largest < 1.25 else share


def _scales(seen: _Movements, translation: float) -> str:
    """The option that multiplies the file's translations so, and its rotations as far as can be
    told.
    """
    first = f"--action-scale {translation:.4g}"
    largest = seen.turned / seen.scale[1]
    if not largest:
        return f"{first},1"
    turn = None if seen.turn is None else seen.turn.of(1 / seen.scale[1])
    possible = {
        factor: unit
        for factor, unit in _rotations(seen, translation).items()
        if factor * largest <= LARGEST_ACTION and (turn is None or turn.of(factor).fits)
    }
    told = turn is not None and turn.told
    if len(possible) > 1:
        (one, unit), (other, otherwise) = possible.items()
        return (
            f"{first},{one:.4g} if its rotations are {unit}, {translation:.4g},{other:.4g} if they "
            f"are {otherwise}"
        )
    if possible:
        (factor,) = possible
        doubt = "" if told else " (whether that is right for its rotations can't be told)"
        return f"{first},{factor:.4g}{doubt}"
    if turn is not None and told:
        low, high = turn.share / MOST_TURNED, min(turn.share / LEAST_TURNED, 1 / largest)
        return f"{first},R (by how the hand turned, R lies between {low:.1g} and {high:.1g})"
    return f"{first},R (what R its rotations need can't be told from how the hand turned)"


def _rotations(seen: _Movements, translation: float) -> dict[float, str]:
    """By what rotations may have to be multiplied where translations are so, and why."""
    if seen.scale[1] not in (1.0, seen.scale[0]):
        return {seen.scale[1]: "as they are now"}
    as_is = {1.0: "as the arm takes them"}
    if translation >= _SURELY_METRES:
        return {translation * _RADIAN: "in radians", **as_is}
    return {translation: "scaled alike", **as_is}
