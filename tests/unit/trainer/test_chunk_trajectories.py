"""Trajectories of several cameras, of proprioception and of chunks: laid out, checked, counted."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vlarl.policy.v1 import policy_pb2
from vlarl.queue.entries import Delivery
from vlarl.rollout.v1 import rollout_pb2
from vlarl_trainer.algorithms.base import discounted_sums
from vlarl_trainer.algorithms.ppo import batch_advantages
from vlarl_trainer.batch import Experience, build_batch
from vlarl_trainer.loop import executed_steps
from vlarl_trainer.record.actions import ActionLog
from vlarl_trainer.record.evaluation import score_episode
from vlarl_trainer.rollouts.frames import FrameFile
from vlarl_trainer.rollouts.trajectory_check import TrajectoryCheck, TrajectoryError

CAMERAS = ("agentview", "wrist")
CHUNK, WIDTH, PROPRIO = 3, 2, 4
EXPECTED = TrajectoryCheck(
    version=3,
    staleness=0,
    temperature=1.5,
    action_ids=range(512, 768),
    action_dim=WIDTH,
    chunk=CHUNK,
    images=2,
    proprio_dim=PROPRIO,
)


def arm(number: float) -> rollout_pb2.RobotState:
    return rollout_pb2.RobotState(proprio=[number] * PROPRIO)


def episode(*executed: int, success: bool = False) -> rollout_pb2.Trajectory:
    """Every frame another one; chunks count up."""
    steps = []
    for number, count in enumerate(executed):
        action = policy_pb2.Action(
            token_ids=range(600, 600 + CHUNK * WIDTH),
            logprobs=[-5.5] * CHUNK * WIDTH,
            values=np.arange(CHUNK * WIDTH) + 10 * number,
            horizon=CHUNK,
            policy_version=3,
        )
        frames = [f"{len(executed)} {number} {camera}".encode() for camera in CAMERAS]
        steps.append(
            rollout_pb2.Step(
                image=frames[0],
                images=frames[1:],
                action=action,
                robot_state=arm(number),
                executed=count,
            )
        )
    return rollout_pb2.Trajectory(
        spec=rollout_pb2.EpisodeSpec(episode_id="run:1:2", temperature=1.5, unnorm_key="suite"),
        instruction="open the drawer",
        steps=steps,
        cameras=CAMERAS,
        final_image=f"{len(executed)} final agentview".encode(),
        final_images=[f"{len(executed)} final wrist".encode()],
        final_robot_state=arm(100),
        outcome=rollout_pb2.OUTCOME_SUCCESS if success else rollout_pb2.OUTCOME_TIME_LIMIT,
        scores=rollout_pb2.RewardScores(total=[float(success)] * len(executed)),
    )


EPISODES = (episode(3, 2), episode(3, 3, 1, success=True), episode(1))


def delivery(number: int, one: rollout_pb2.Trajectory) -> Delivery[rollout_pb2.Trajectory]:
    copy = rollout_pb2.Trajectory.FromString(one.SerializeToString())
    return Delivery(f"{number}-0", "scored", "trainer", "trainer", copy, 1, {})


def test_a_states_frames_stay_together() -> None:
    """Carried or apart, states come in order, each with the frames of all cameras."""
    file = FrameFile()
    moved = [file.move(delivery(number, one)) for number, one in enumerate(EPISODES)]
    rest = [one.message for one in moved]
    assert not any(b"agentview" in step.SerializeToString() for one in rest for step in one.steps)
    assert not any(b"wrist" in step.SerializeToString() for one in rest for step in one.steps)
    frames = file.frames(moved)
    sent = Experience(0, 3, rest, frames)
    EXPECTED.check(rest, frames)
    for experience in (
        Experience(0, 3, EPISODES),
        sent,
        Experience.from_bytes(sent.to_bytes(), frames.shared),
    ):
        batch = build_batch(experience)
        steps = ["2 0", "2 1", "3 0", "3 1", "3 2", "1 0", "2 final", "1 final"]
        expected = [f"{step} {camera}".encode() for step in steps for camera in CAMERAS]
        assert list(batch.frames) == expected
        assert len(batch.instructions) == len(steps)
        assert [one.values[0] for one in batch.proprio] == [0, 1, 0, 1, 2, 0, 100, 100]
        assert {one.unnorm_key for one in batch.proprio} == {"suite"}
        assert [one.final_state for one in batch.episodes] == [6, None, 7]
        assert batch.executed.tolist() == [3, 2, 3, 3, 1, 1]
        assert batch.token_ids.shape == (6, CHUNK * WIDTH)
    for number, one in enumerate(EPISODES):
        assert file.whole(moved[number]) == one


def changed(change: Callable[[rollout_pb2.Trajectory], object]) -> rollout_pb2.Trajectory:
    one = episode(3, 2)
    change(one)
    return one


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (changed(lambda t: t.steps[1].ClearField("images")), "step 1: .*no frame of a camera"),
        (changed(lambda t: t.ClearField("final_images")), "lacks a camera's frame of its final"),
        (changed(lambda t: t.ClearField("cameras")), "frames a state: 1, and the policy sees 2"),
        (changed(lambda t: t.cameras.append("side")), r"state: 3 \(agentview, wrist, side\)"),
        (changed(lambda t: t.steps[0].action.token_ids.pop()), "5 tokens and 6 .* instead of 6"),
        (changed(lambda t: setattr(t.steps[1], "executed", 4)), "4 of its actions were executed"),
        (changed(lambda t: t.steps[1].ClearField("robot_state")), "step 1: it has 0 numbers of"),
        (changed(lambda t: t.final_robot_state.proprio.pop()), "final state: it has 3 numbers"),
        (
            changed(lambda t: t.steps[0].robot_state.proprio.__setitem__(1, np.nan)),
            "proprioception is not finite",
        ),
    ],
)
def test_what_a_state_lacks_is_said(wrong: rollout_pb2.Trajectory, why: str) -> None:
    EXPECTED.check(EPISODES)
    with pytest.raises(TrajectoryError, match=why):
        EXPECTED.check([EPISODES[0], wrong])


def test_an_answer_is_discounted_by_what_was_executed_of_it() -> None:
    """A_t = sum_k prod_{t <= j < k} (gamma^e_j lambda) delta_k, written out; e = 3, 2."""
    gamma, lam = 0.9, 0.5
    batch = build_batch(Experience(0, 3, EPISODES))
    values = np.array([0.3, -0.2, 0.5, 0.1, 0.9, 0.4, 0.7, -0.6])
    advantages, returns = batch_advantages(batch, values, gamma, lam)
    second = 0 + gamma**2 * 0.7 - -0.2
    first = 0 + gamma**3 * -0.2 - 0.3
    assert advantages[:2] == pytest.approx([first + gamma**3 * lam * second, second])
    assert returns[:2] == pytest.approx(advantages[:2] + values[:2])
    # A success: nothing follows its last answer, of which one action was executed.
    last, middle = 1 - 0.9, 1 + gamma**3 * 0.9 - 0.1
    assert advantages[3:5] == pytest.approx([middle + gamma**3 * lam * last, last])
    sums = discounted_sums(batch.rewards[2:5], batch.discounts(gamma)[2:5])
    assert sums == pytest.approx([1 + gamma**3 * (1 + gamma**3), 1 + gamma**3, 1])


def test_actions_are_counted_and_kept_as_they_were_executed(tmp_path: Path) -> None:
    ActionLog(tmp_path).write(0, EPISODES)
    kept = np.load(tmp_path / "actions/iteration-00000.npz")
    expected = [[0, 1], [2, 3], [4, 5], [10, 11], [12, 13]]
    assert kept["values"][:5].tolist() == expected
    assert kept["episodes"].tolist() == [0] * 5 + [1] * 7 + [2]
    greedy = episode(3, 3, 1, success=True)
    greedy.spec.temperature = 0
    assert score_episode(greedy, 3).actions == 7
    # The worker of the last one counted no control steps; each action was held for two.
    counted = [episode(3, 1), episode(3, 1)]
    for step in counted[0].steps:
        step.control_steps = 5
    assert executed_steps(counted, action_repeat=2) == 5 + 5 + 3 * 2 + 1 * 2
    older = episode(0, 0)
    older.spec.temperature = 0
    assert score_episode(older, 3).actions == 2
