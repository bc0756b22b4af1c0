"""The sparse reward against its definition."""

from __future__ import annotations

from vlarl.policy.v1 import policy_pb2
from vlarl.rollout.v1 import rollout_pb2
from vlarl_reward.models.outcome import OutcomeReward
from vlarl_reward.worker import trajectory_problems


def trajectory(outcome: rollout_pb2.Outcome, rewards: list[float]) -> rollout_pb2.Trajectory:
    action = policy_pb2.Action(token_ids=[1, 2, 3, 4, 5, 6, 7])
    steps = [rollout_pb2.Step(action=action, env_reward=reward) for reward in rewards]
    return rollout_pb2.Trajectory(steps=steps, outcome=outcome)


def test_success_pays_once_at_the_last_step() -> None:
    solved = trajectory(rollout_pb2.OUTCOME_SUCCESS, [0.0, 0.0, 3.0])
    timed_out = trajectory(rollout_pb2.OUTCOME_TIME_LIMIT, [0.0, 0.0])
    first, second = OutcomeReward(success_reward=2.0).score([solved, timed_out])
    assert list(first.total) == list(first.sparse) == [0.0, 0.0, 2.0]
    assert list(second.total) == [0.0, 0.0]
    assert (first.model, first.version, list(first.dense)) == ("outcome", "1", [])


def test_unscorable_trajectories_are_named_by_field() -> None:
    empty = rollout_pb2.Trajectory()
    assert [field for field, _ in trajectory_problems(empty, needs_frames=False)] == [
        "trajectory.steps",
        "trajectory.outcome",
    ]
    bare = trajectory(rollout_pb2.OUTCOME_SUCCESS, [1.0])
    bare.steps.add()
    assert [field for field, _ in trajectory_problems(bare, needs_frames=True)] == [
        "trajectory.steps[0].image",
        "trajectory.steps[1].action.token_ids",
        "trajectory.steps[1].image",
    ]
