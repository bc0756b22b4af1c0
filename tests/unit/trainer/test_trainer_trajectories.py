"""What must not be learned from is refused, and says why."""

from collections.abc import Callable

import numpy as np
import pytest

from vlarl.policy.v1 import policy_pb2
from vlarl.queue.entries import Delivery
from vlarl.rollout.v1 import rollout_pb2
from vlarl_trainer.batch import Experience, build_batch
from vlarl_trainer.rollouts.frames import FrameFile, SharedFrames
from vlarl_trainer.rollouts.trajectory_check import TrajectoryCheck, TrajectoryError

EXPECTED = TrajectoryCheck(
    version=3, staleness=0, temperature=1.5, action_ids=range(512, 768), action_dim=7
)


def trajectory(version: int = 3, steps: int = 2) -> rollout_pb2.Trajectory:
    action = policy_pb2.Action(
        token_ids=range(600, 607), logprobs=[-5.5] * 7, policy_version=version
    )
    return rollout_pb2.Trajectory(
        spec=rollout_pb2.EpisodeSpec(episode_id="run:00001:0002", temperature=1.5),
        instruction="open the drawer",
        steps=[rollout_pb2.Step(image=b"frame", action=action) for _ in range(steps)],
        final_image=b"final",
        outcome=rollout_pb2.OUTCOME_TIME_LIMIT,
        scores=rollout_pb2.RewardScores(total=[0.0] * steps),
    )


def test_a_good_trajectory_passes() -> None:
    EXPECTED.check([trajectory()])


def without(change: Callable[[rollout_pb2.Trajectory], object]) -> rollout_pb2.Trajectory:
    changed = trajectory()
    change(changed)
    return changed


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (trajectory(version=2), "policy version 2 acted, the trainer holds 3"),
        (trajectory(version=4), "policy version 4 acted"),
        (trajectory(version=0), "policy version 0 acted"),
        (without(lambda t: t.ClearField("steps")), "no steps"),
        (without(lambda t: t.ClearField("scores")), "0 rewards for 2 steps"),
        (without(lambda t: t.ClearField("outcome")), "how it ended"),
        (without(lambda t: t.ClearField("final_image")), "lacks the frame of its final state"),
        (without(lambda t: t.steps[1].ClearField("image")), "step 1: it has no frame"),
        (without(lambda t: t.steps[0].action.token_ids.pop()), "6 tokens and 7 log-probs"),
        (without(lambda t: t.steps[0].action.logprobs.pop()), "7 tokens and 6 log-probs"),
        # A missing token decoded as 0 would be the largest action on every dimension.
        (without(lambda t: t.steps[0].action.token_ids.__setitem__(3, 0)), "not all action tokens"),
        (without(lambda t: t.steps[0].action.logprobs.__setitem__(3, np.nan)), "log-probs"),
        (without(lambda t: t.scores.total.__setitem__(0, np.inf)), "reward is not finite"),
        (without(lambda t: setattr(t.spec, "temperature", 1.0)), "temperature 1, .* learns at 1.5"),
    ],
)
def test_a_wrong_trajectory_is_refused(wrong: rollout_pb2.Trajectory, why: str) -> None:
    with pytest.raises(TrajectoryError, match=why):
        EXPECTED.check([trajectory(), wrong])


def test_staleness_is_bounded() -> None:
    lenient = TrajectoryCheck(3, 1, 1.5, range(512, 768), 7)
    lenient.check([trajectory(version=2), trajectory(version=3)])
    with pytest.raises(TrajectoryError, match="policy version 1 acted"):
        lenient.check([trajectory(version=1)])


def test_experience_comes_back_equal_from_its_bytes() -> None:
    sent = Experience(4, 3, [trajectory(), trajectory(steps=5)], rate=0.1)
    got = Experience.from_bytes(sent.to_bytes())
    assert (got.iteration, got.version, got.rate) == (4, 3, 0.1)
    assert list(got.trajectories) == list(sent.trajectories)


def apart(
    trajectories: list[rollout_pb2.Trajectory],
) -> tuple[list[rollout_pb2.Trajectory], SharedFrames]:
    """Trajectories without their frames, and the frames."""
    file = FrameFile()
    moved = [
        file.move(Delivery(f"{number}-0", "scored", "trainer", "trainer", copy(one), 1, {}))
        for number, one in enumerate(trajectories)
    ]
    return [delivery.message for delivery in moved], file.frames(moved)


def copy(one: rollout_pb2.Trajectory) -> rollout_pb2.Trajectory:
    return rollout_pb2.Trajectory.FromString(one.SerializeToString())


def numbered(steps: int, outcome: rollout_pb2.Outcome) -> rollout_pb2.Trajectory:
    """Every frame another."""
    one = trajectory(steps=steps)
    one.outcome = outcome
    for number, step in enumerate(one.steps):
        step.image = f"{steps} {number}".encode()
    one.final_image = f"{steps} final".encode()
    return one


def test_frames_that_lie_apart_make_the_same_batch() -> None:
    whole = [
        numbered(2, rollout_pb2.OUTCOME_TIME_LIMIT),
        numbered(3, rollout_pb2.OUTCOME_SUCCESS),
        numbered(4, rollout_pb2.OUTCOME_TIME_LIMIT),
    ]
    whole[1].ClearField("final_image")  # which a terminal state needn't have
    rest, frames = apart(whole)
    assert sum(one.ByteSize() for one in rest) < sum(one.ByteSize() for one in whole)
    expected = build_batch(Experience(0, 3, whole))
    sent = Experience(0, 3, rest, frames, rate=0.3)
    assert Experience.from_bytes(sent.to_bytes(), frames.shared).rate == 0.3
    for got in (sent, Experience.from_bytes(sent.to_bytes(), frames.shared)):
        batch = build_batch(got)
        assert list(batch.frames) == list(expected.frames)
        assert batch.instructions == expected.instructions
        assert batch.episodes == expected.episodes


def test_a_frame_that_is_missing_is_noticed_where_they_lie_apart() -> None:
    good, wrong, cut = trajectory(), trajectory(), trajectory()
    wrong.steps[1].ClearField("image")
    cut.ClearField("final_image")
    EXPECTED.check(*apart([good, good]))
    with pytest.raises(TrajectoryError, match="step 1: it has no frame"):
        EXPECTED.check(*apart([good, wrong]))
    with pytest.raises(TrajectoryError, match="lacks the frame of its final state"):
        EXPECTED.check(*apart([good, cut, wrong]))


def test_a_batch_keeps_states_samples_and_episodes_apart() -> None:
    success = trajectory(steps=3)
    success.outcome = rollout_pb2.OUTCOME_SUCCESS
    success.scores.total[2] = 1.0
    batch = build_batch(Experience(0, 3, [trajectory(), success, trajectory(version=2)]))
    assert batch.token_ids.shape == (7, 7)
    assert len(batch.frames) == len(batch.instructions) == 7 + 2
    assert batch.frames[7:] == [b"final", b"final"]
    assert [episode.final_state for episode in batch.episodes] == [7, None, 8]
    assert batch.rewards.tolist() == [0, 0, 0, 0, 1, 0, 0]
    assert batch.fresh.tolist() == [True] * 5 + [False] * 2
