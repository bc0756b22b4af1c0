"""One answer of the policy: as a command to the simulator, and as a step of the trajectory."""

from __future__ import annotations

from vlarl.clients.policy import Action
from vlarl.env.v1 import env_pb2
from vlarl.policy.v1 import policy_pb2
from vlarl.rollout.v1 import rollout_pb2


def frames(seen: env_pb2.InteractResponse) -> list[bytes]:
    """One picture a camera, in the policy's order."""
    return [frame.image for frame in seen.frames]


def step_command(action: Action, executed: int) -> env_pb2.StepEpisode:
    """The first actions of an answer, as one command."""
    actions = action.values.reshape(action.horizon, -1)[:executed]
    return env_pb2.StepEpisode(action=actions.ravel(), horizon=len(actions))


def recorded_step(
    seen: env_pb2.InteractResponse,
    action: Action,
    after: env_pb2.InteractResponse,
    *,
    with_frames: bool,
) -> rollout_pb2.Step:
    """What was seen, the action, and what came of it."""
    image, *further = frames(seen) if with_frames else [b""]
    return rollout_pb2.Step(
        image=image,
        action=policy_pb2.Action(
            token_ids=action.token_ids,
            logprobs=action.logprobs,
            values=action.values.ravel(),
            policy_version=action.policy_version,
            horizon=action.horizon,
        ),
        env_reward=after.reward,
        robot_state=seen.robot_state,
        control_steps=after.control_steps - seen.control_steps,
        images=further,
        executed=after.executed,
    )
