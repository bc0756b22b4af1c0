"""Episodes of policies that answer chunks, see several cameras and read the arm.

The policy is a server of its own behind a socket, which says what it reads and refuses what lacks
it. The simulator counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry

from vlarl.clients.policy import AsyncPolicyClient, PolicyError
from vlarl.config import EnvConfig
from vlarl.env.v1 import env_pb2
from vlarl.errors import ConfigError
from vlarl.policy.v1 import policy_pb2, policy_pb2_grpc
from vlarl.rollout.v1 import rollout_pb2
from vlarl_env.metrics import EnvMetrics
from vlarl_env.rollout import EpisodeRunner, PolicyAwayError

Context = grpc.aio.ServicerContext[Any, Any]

TWO = ("agentview", "robot0_eye_in_hand")
OFT = policy_pb2.GetPolicyResponse(family="openvla_oft", chunk=8, cameras=TWO, proprio=8)
OLD = policy_pb2.GetPolicyResponse(model="as servers before described it")


class ChunkPolicy(policy_pb2_grpc.PolicyServiceServicer):
    """Answers chunks, each action numbered, to whoever shows all that it reads."""

    def __init__(self, described: policy_pb2.GetPolicyResponse | None) -> None:
        self.described = described
        self.away = 0
        """Next answers that it fails to give."""
        self.next: policy_pb2.GetPolicyResponse | None = None
        """What takes its place after the answer."""
        self.described_times = 0
        self.seen: list[policy_pb2.Observation] = []

    async def GetPolicy(
        self, request: policy_pb2.GetPolicyRequest, context: Context
    ) -> policy_pb2.GetPolicyResponse:
        self.described_times += 1
        if self.described is None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "")
        return self.described

    async def PredictActions(
        self, request: policy_pb2.PredictActionsRequest, context: Context
    ) -> policy_pb2.PredictActionsResponse:
        if self.away:
            self.away -= 1
            await context.abort(grpc.StatusCode.INTERNAL, "out of memory")
        (observation,) = request.observations
        needs = self.described or OLD
        shown = [image.camera for image in observation.images]
        whole = shown == list(needs.cameras[1:]) and len(observation.proprio) == needs.proprio
        if not whole:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "something isn't shown")
        self.seen.append(observation)
        if self.next is not None:
            self.described, self.next = self.next, None
        count = 7 * max(1, needs.chunk)
        action = policy_pb2.Action(
            token_ids=range(1000, 1000 + count),
            logprobs=[-0.5] * count,
            values=range(count),
            policy_version=len(self.seen),
            horizon=needs.chunk,
        )
        return policy_pb2.PredictActionsResponse(actions=[action])


class CountingSimulator:
    """Holds each action for two control steps; the task is done after `goal` of them."""

    def __init__(self, goal: int = 10**6) -> None:
        self.goal = goal
        self.commands: list[env_pb2.StepEpisode] = []
        self.resets: list[env_pb2.ResetEpisode] = []
        self._steps = self._limit = 0

    async def reset(self, command: env_pb2.ResetEpisode) -> env_pb2.InteractResponse:
        self.resets.append(command)
        self._steps, self._limit = 0, command.max_control_steps
        return self._state(0)

    async def step(self, command: env_pb2.StepEpisode) -> env_pb2.InteractResponse:
        assert len(command.action) == 7 * command.horizon
        self.commands.append(command)
        end, executed = min(self._limit, self.goal), 0
        while executed < command.horizon and self._steps < end:
            self._steps = min(self._steps + 2, end)
            executed += 1
        return self._state(executed)

    def _state(self, executed: int) -> env_pb2.InteractResponse:
        cameras = self.resets[-1].cameras
        done = self._steps >= self.goal
        return env_pb2.InteractResponse(
            frames=[
                env_pb2.Frame(camera=camera, image=f"{camera} {self._steps}".encode())
                for camera in cameras
            ],
            instruction="reach",
            robot_state=rollout_pb2.RobotState(proprio=[self._steps] * 8),
            reward=float(done),
            terminated=done,
            truncated=not done and self._steps >= self._limit,
            control_steps=self._steps,
            executed=executed,
        )


@asynccontextmanager
async def runner(policy: ChunkPolicy, **env: Any) -> AsyncIterator[EpisodeRunner]:  # noqa: ANN401
    server = grpc.aio.server()
    policy_pb2_grpc.add_PolicyServiceServicer_to_server(policy, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    config = EnvConfig(action_repeat=2, policy_patience_seconds=5.0, **env)
    async with AsyncPolicyClient(f"127.0.0.1:{port}", timeout_seconds=5) as client:
        yield EpisodeRunner(client, config, EnvMetrics(CollectorRegistry()), "worker")
    await server.stop(0)


async def play(
    episodes: EpisodeRunner,
    simulator: CountingSimulator,
    **changed: Any,  # noqa: ANN401
) -> rollout_pb2.Trajectory:
    fields = {"episode_id": "e", "placement_seed": 3, "max_actions": 20, "record_frames": True}
    spec = rollout_pb2.EpisodeSpec(**{**fields, **changed})
    return await episodes.run(spec, simulator, 0)  # type: ignore[arg-type]


async def test_a_chunk_is_one_command_and_one_step() -> None:
    policy, simulator = ChunkPolicy(OFT), CountingSimulator(goal=37)
    async with runner(policy) as episodes:
        trajectory = await play(episodes, simulator)
    assert list(simulator.resets[0].cameras) == list(TWO)
    assert simulator.resets[0].max_control_steps == 40
    assert [command.horizon for command in simulator.commands] == [8, 8, 8]
    assert [list(command.action) for command in simulator.commands] == [list(range(56))] * 3
    # 37 control steps at two an action: the last chunk's third action ends in its midst.
    assert [step.executed for step in trajectory.steps] == [8, 8, 3]
    assert [step.control_steps for step in trajectory.steps] == [16, 16, 5]
    assert trajectory.outcome == rollout_pb2.OUTCOME_SUCCESS
    for step, observation in zip(trajectory.steps, policy.seen, strict=True):
        assert step.action.horizon == 8
        assert list(step.action.values) == list(range(56))
        assert (len(step.action.token_ids), len(step.action.logprobs)) == (56, 56)
        assert step.image == observation.image
        assert list(step.images) == [image.image for image in observation.images]
        assert list(step.robot_state.proprio) == list(observation.proprio)
    shown = [step.image.decode() for step in trajectory.steps]
    assert shown == ["agentview 0", "agentview 16", "agentview 32"]
    assert list(trajectory.cameras) == list(TWO)
    assert trajectory.final_image == b"agentview 37"
    assert list(trajectory.final_images) == [b"robot0_eye_in_hand 37"]
    assert list(trajectory.final_robot_state.proprio) == [37] * 8


async def test_the_first_actions_of_a_chunk_are_executed_and_then_it_is_asked_again() -> None:
    policy, simulator = ChunkPolicy(OFT), CountingSimulator()
    async with runner(policy, replan_after=3) as episodes:
        trajectory = await play(episodes, simulator, max_actions=8, record_frames=False)
    assert [list(command.action) for command in simulator.commands] == [list(range(21))] * 3
    # The limit is in actions, whatever is asked at once.
    assert [step.executed for step in trajectory.steps] == [3, 3, 2]
    assert sum(step.control_steps for step in trajectory.steps) == 16
    assert all(len(step.action.token_ids) == 56 for step in trajectory.steps)
    assert trajectory.outcome == rollout_pb2.OUTCOME_TIME_LIMIT
    assert all(not step.image and not step.images for step in trajectory.steps)
    assert not trajectory.final_image
    assert not trajectory.final_images


@pytest.mark.parametrize("described", [OLD, None])
async def test_a_policy_that_does_not_say_sees_one_camera(
    described: policy_pb2.GetPolicyResponse | None,
) -> None:
    policy, simulator = ChunkPolicy(described), CountingSimulator()
    async with runner(policy) as episodes:
        trajectory = await play(episodes, simulator, max_actions=2)
    assert list(simulator.resets[0].cameras) == ["agentview"]
    assert [step.executed for step in trajectory.steps] == [1, 1]
    assert [list(step.action.values) for step in trajectory.steps] == [list(range(7))] * 2
    assert all(not step.images for step in trajectory.steps)


async def test_other_cameras_are_shown_under_the_policys_names() -> None:
    policy, simulator = ChunkPolicy(OFT), CountingSimulator(goal=2)
    async with runner(policy, cameras=("frontview", "sideview")) as episodes:
        trajectory = await play(episodes, simulator)
    assert list(trajectory.cameras) == ["frontview", "sideview"]
    (seen,) = policy.seen
    assert (seen.image, seen.images[0].image) == (b"frontview 0", b"sideview 0")
    assert seen.images[0].camera == "robot0_eye_in_hand"


async def test_the_policy_is_asked_once_what_it_reads() -> None:
    policy = ChunkPolicy(OFT)
    async with runner(policy) as episodes:
        for _ in range(3):
            await play(episodes, CountingSimulator(goal=20))
        assert policy.described_times == 1
        policy.away = 1
        assert len((await play(episodes, CountingSimulator(goal=20))).steps) == 2
        policy.described = OLD
        assert len((await play(episodes, CountingSimulator(goal=20))).steps) == 10
    assert policy.described_times == 2


@pytest.mark.parametrize(("before", "after"), [(OFT, OLD), (OLD, OFT)])
async def test_an_episode_is_handed_back_where_another_policy_takes_the_place(
    before: policy_pb2.GetPolicyResponse, after: policy_pb2.GetPolicyResponse
) -> None:
    policy = ChunkPolicy(before)
    async with runner(policy) as episodes:
        policy.next = after
        with pytest.raises(PolicyAwayError, match="took the place of this one"):
            await play(episodes, CountingSimulator())
        trajectory = await play(episodes, CountingSimulator())
    assert trajectory.steps[0].action.horizon == max(1, after.chunk)


async def test_a_policy_that_contradicts_itself_is_an_error() -> None:
    policy = ChunkPolicy(OFT)
    described = policy_pb2.GetPolicyResponse(chunk=4, cameras=TWO, proprio=8)

    async def lie(*_: object) -> policy_pb2.GetPolicyResponse:
        return described

    policy.GetPolicy = lie  # type: ignore[method-assign]
    async with runner(policy) as episodes:
        with pytest.raises(PolicyError, match="for 8 control steps by a policy of 4"):
            await asyncio.wait_for(play(episodes, CountingSimulator()), 10)


MISFITS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "cameras": ({"cameras": ("agentview",)}, {}, "env.cameras names 1"),
    "replan": ({"replan_after": 9}, {}, "env.replan_after is 9"),
    "limit": ({}, {"max_actions": 7}, "an episode has at most 7"),
}


@pytest.mark.parametrize("case", MISFITS)
async def test_what_does_not_fit_is_one_sentence(case: str) -> None:
    env, order, said = MISFITS[case]
    simulator = CountingSimulator()
    async with runner(ChunkPolicy(OFT), **env) as episodes:
        with pytest.raises(ConfigError, match=said):
            await play(episodes, simulator, **order)
    assert not simulator.resets
