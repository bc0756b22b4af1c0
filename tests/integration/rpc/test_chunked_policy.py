"""A policy's chunks, played control step by control step."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
import pytest

from tests.integration.rpc.servicers import Serve
from vlarl import ChunkedPolicy, PolicyClient, PolicyError

WISH = "lift the bowl"
WRIST = "robot0_eye_in_hand"


async def play(address: str, episode: Callable[[PolicyClient], list[float]]) -> list[float]:
    """What an episode, in a thread of its own, is moved by."""

    def run() -> list[float]:
        with PolicyClient(address) as client:
            return episode(client)

    return await asyncio.to_thread(run)


@pytest.mark.parametrize(
    ("horizon", "replan_after", "played", "calls"),
    [
        (4, None, [0, 1, 2, 3, 0, 1, 2, 3, 0], 3),
        (4, 3, [0, 1, 2, 0, 1, 2, 0, 1, 2], 3),
        (4, 1, [0] * 9, 9),
        (4, 4, [0, 1, 2, 3, 0, 1, 2, 3, 0], 3),
        (1, None, [0] * 9, 9),
        (0, 1, [0] * 9, 9),  # as servers before had it
    ],
)
async def test_an_answer_is_played_and_then_the_policy_asked_again(
    serve: Serve, horizon: int, replan_after: int | None, played: list[float], calls: int
) -> None:
    served = await serve()
    served.policy.horizon = horizon

    def episode(client: PolicyClient) -> list[float]:
        policy, asked = ChunkedPolicy(client, replan_after=replan_after), 0
        values = []
        for _ in range(9):
            asked += policy.asks
            step = policy.act(b"frame", WISH, seed=0)
            assert step.dtype == np.float32
            assert step.shape == (7,)
            assert policy.action is not None
            values.append(float(step[0]))
        assert asked == calls
        return values

    assert await play(served.address, episode) == played
    assert served.policy.calls == calls


async def test_a_new_episode_or_instruction_asks_at_once(serve: Serve) -> None:
    served = await serve()
    served.policy.horizon = 4

    def episode(client: PolicyClient) -> list[float]:
        policy = ChunkedPolicy(client)
        values = [policy.act(b"1", WISH, seed=0), policy.act(b"not looked at", WISH, seed=0)]
        values += [policy.act(b"2", "close the drawer", seed=0)]
        policy.reset()
        assert policy.action is None
        values += [policy.act(b"3", "close the drawer", seed=0)]
        return [float(step[0]) for step in values]

    assert await play(served.address, episode) == [0, 1, 0, 0]
    assert served.policy.images == [b"1", b"2", b"3"]


async def test_a_failed_call_leaves_nothing_to_play(serve: Serve) -> None:
    served = await serve()
    served.policy.horizon = 4

    def episode(client: PolicyClient) -> list[float]:
        policy = ChunkedPolicy(client)
        values = [policy.act(b"frame", WISH, seed=0)]
        for _ in range(2):
            with pytest.raises(PolicyError, match="not a picture"):
                policy.act(b"frame", "be strict")
        values += [policy.act(b"frame", WISH, seed=0)]
        return [float(step[0]) for step in values]

    assert await play(served.address, episode) == [0, 0]
    assert served.policy.calls == 4


@pytest.mark.parametrize(("horizon", "has"), [(4, "4 control steps"), (1, "1 control step")])
async def test_more_steps_than_an_answer_has_are_refused(
    serve: Serve, horizon: int, has: str
) -> None:
    served = await serve()
    served.policy.horizon = horizon

    def episode(client: PolicyClient) -> list[float]:
        policy = ChunkedPolicy(client, replan_after=5)
        for _ in range(2):
            with pytest.raises(ValueError, match=f"replan_after is 5, .* has {has}: set it to"):
                policy.act(b"frame", WISH, seed=0)
            assert policy.action is None
            assert policy.asks
        return []

    await play(served.address, episode)
    assert served.policy.calls == 2


async def test_all_that_a_policy_reads_is_sent(serve: Serve) -> None:
    served = await serve()

    def episode(client: PolicyClient) -> list[float]:
        policy = ChunkedPolicy(client)
        return list(
            policy.act(b"main", WISH, images={WRIST: b"wrist"}, proprio=np.arange(8) / 2, seed=5)
        )

    assert await play(served.address, episode) == [5.0] * 7
    (seen,) = served.policy.observations
    assert (seen.image, seen.instruction) == (b"main", WISH)
    assert [(one.camera, one.image) for one in seen.images] == [(WRIST, b"wrist")]
    assert list(seen.proprio) == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5]


@pytest.mark.parametrize("steps", [0, -1, 1.5, True, "2", 2**32])
def test_what_can_not_be_played_is_refused(steps: object) -> None:
    with PolicyClient("127.0.0.1:1") as client, pytest.raises(ValueError, match="replan_after"):
        ChunkedPolicy(client, replan_after=steps)  # type: ignore[arg-type]
