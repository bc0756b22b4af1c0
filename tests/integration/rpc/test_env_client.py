"""The client of the simulators, against a server that counts steps; the real one: tests/.../env."""

from __future__ import annotations

import asyncio

import grpc
import numpy as np
import pytest

from tests.integration.rpc.servicers import Serve
from vlarl import EnvClient, EnvError

ACTION = [0.0] * 7


async def test_an_episode_is_reset_stepped_and_given_back(serve: Serve) -> None:
    served = await serve()

    def play() -> list[int]:
        with EnvClient(served.address) as env:
            assert [task.name for task in env.tasks("reach")] == ["reach"]
            with env.episode("reach", placement_seed=3) as episode:
                counts = [episode.state.control_steps]
                counts += [episode.step(ACTION).control_steps for _ in range(3)]
                assert served.env.open_episodes == 1
                assert not episode.ended
            # Closing waits for the server: at once somebody else can have the simulator.
            assert served.env.open_episodes == 0
            with pytest.raises(EnvError, match=r"the episode is closed \(FAILED_PRECONDITION\)"):
                episode.step(ACTION)
        return counts

    assert await asyncio.to_thread(play) == [0, 1, 2, 3]


async def test_a_chunk_is_one_step(serve: Serve) -> None:
    served = await serve()

    def play() -> None:
        with EnvClient(served.address) as env, env.episode("reach", init_state=0) as episode:
            assert episode.step([ACTION] * 8).executed == 8
            assert episode.state.control_steps == 8
            assert list(episode.images) == ["agentview", "robot0_eye_in_hand"]
            assert episode.image == episode.images["agentview"] == b"agentview 8"
            np.testing.assert_array_equal(episode.proprio, np.arange(8, dtype=np.float32))
            assert episode.proprio.dtype == np.float32

    await asyncio.to_thread(play)


async def test_a_refused_step_is_told_and_ends_its_episode(serve: Serve) -> None:
    served = await serve()

    def play() -> EnvError:
        with EnvClient(served.address) as env, env.episode("reach", init_state=0) as episode:
            with pytest.raises(EnvError) as caught:
                episode.step([0.0] * 6 + [0.5])
            with pytest.raises(EnvError, match="must be 0 or 1"):
                episode.step(ACTION)
        return caught.value

    error = await asyncio.to_thread(play)
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.violations == [("step.action", "the gripper's must be 0 or 1")]
    assert str(error).startswith(f"{served.address}: step.action: ")
    assert served.env.open_episodes == 0


def test_nobody_there() -> None:
    with EnvClient("127.0.0.1:1") as env:
        with pytest.raises(EnvError, match=r"^127\.0\.0\.1:1: .*refused") as caught:
            env.episode("reach", init_state=0)
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE
        assert caught.value.reason == ""


@pytest.mark.parametrize("placement", [{}, {"init_state": 0, "placement_seed": 0}])
def test_an_episode_starts_from_one_place(placement: dict[str, int]) -> None:
    with EnvClient("127.0.0.1:1") as env, pytest.raises(ValueError, match="or from placement_seed"):
        env.episode("reach", **placement)
