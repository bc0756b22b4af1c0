"""What is wrong with a step before it is carried out: the server's door and the simulator agree."""

from __future__ import annotations

import math

from vlarl.config.libero import ACTION_DIM
from vlarl.env.v1 import env_pb2

COMMAND_STEPS = 200
"""Control steps (10 s) that one command may ask for, and so its most actions and its most repeats:
a simulator that computes them is taken for hung by the same clock as with one.
"""


def wrong_actions(command: env_pb2.StepEpisode) -> str:
    """What is wrong with the command's actions; empty: nothing."""
    action, horizon = command.action, max(1, command.horizon)
    if len(action) == horizon * ACTION_DIM and all(map(math.isfinite, action)):
        return ""
    wanted = f"an action is {ACTION_DIM} finite numbers"
    if horizon > 1:
        wanted = f"{horizon} actions are {ACTION_DIM} finite numbers each"
    # A client may send millions.
    some = ", ".join(map(str, action[:ACTION_DIM]))
    return f"{wanted}, got {len(action)}: {some}"


def too_long(command: env_pb2.StepEpisode, action_repeat: int) -> tuple[str, str] | None:
    """The field that asks for too many control steps, and why; None: there is none.

    Args:
        command: the step.
        action_repeat: the server's own, for a command without one.
    """
    if command.repeat > COMMAND_STEPS:
        return "step.repeat", f"at most {COMMAND_STEPS}, got {command.repeat}"
    if command.horizon > COMMAND_STEPS:
        return "step.horizon", f"at most {COMMAND_STEPS}, got {command.horizon}"
    repeat = command.repeat or action_repeat
    if command.horizon > 1 and command.horizon * repeat > COMMAND_STEPS:
        return "step.horizon", (
            f"{command.horizon} actions of {repeat} control steps each are more than "
            f"{COMMAND_STEPS} control steps; send fewer at once"
        )
    return None
