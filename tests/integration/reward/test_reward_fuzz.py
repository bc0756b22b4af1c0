"""Damaged, senseless and enormous trajectories: each is answered, with the right code."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest

from tests.conftest import HAS_TORCH, Valkey
from tests.fuzzing import bombard, bombard_without_leak, damaged, fuzz_requests, large, said, wild
from vlarl.images import encode_jpeg
from vlarl.policy.v1 import policy_pb2
from vlarl.reward.v1 import reward_pb2, reward_pb2_grpc
from vlarl.rollout.v1 import rollout_pb2
from vlarl.rpc.channel import open_channel, wait_until_serving

pytestmark = pytest.mark.slow

SERVICE = "/vlarl.reward.v1.RewardService"
REQUESTS = fuzz_requests(400)
CODE = grpc.StatusCode
FIRST_ACTION = 512


@dataclass(frozen=True)
class Server:
    """A reward server in a process of its own."""

    pid: int
    address: str


@pytest.fixture(params=["outcome", pytest.param("rprm", marks=pytest.mark.torch)])
async def server(
    valkey: Valkey, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Server]:
    settings = [f"queue.url={valkey.url}", f"reward.model={request.param}", "reward.threads=1"]
    if request.param == "rprm":
        if not HAS_TORCH:
            pytest.skip("runs in the torch environment (.venv)")
        from vlarl.models.openvla.tiny import make_tiny_checkpoint

        checkpoint = tmp_path / "model"
        make_tiny_checkpoint(checkpoint, 1, image_size=28, tower_dim=32, text_dim=64, tower_depth=2)
        (checkpoint / "reward_model.json").write_text(json.dumps({"version": "one"}))
        settings.append(f"reward.checkpoint={checkpoint}")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "vlarl", "serve", "reward", "--listen", "127.0.0.1:0"),
        *("--address-file", tmp_path / "address"),
        *(part for setting in settings for part in ("--set", setting)),
    )
    while not (tmp_path / "address").exists():
        assert process.returncode is None
        await asyncio.sleep(0.02)
    address = (tmp_path / "address").read_text().strip()
    async with open_channel(address) as channel:
        await wait_until_serving(channel, "vlarl.reward.v1.RewardService", 60)
    yield Server(process.pid, address)
    assert process.returncode is None, "the server didn't survive"
    process.terminate()
    assert await asyncio.wait_for(process.wait(), 20) == 0


def trajectory() -> rollout_pb2.Trajectory:
    drawn = np.random.default_rng(3)
    steps = [
        rollout_pb2.Step(
            image=encode_jpeg(drawn.integers(256, size=(40, 40, 3), dtype=np.uint8)),
            action=policy_pb2.Action(
                token_ids=FIRST_ACTION + drawn.integers(256, size=7, dtype=np.int64)
            ),
        )
        for _ in range(2)
    ]
    return rollout_pb2.Trajectory(
        instruction="open the drawer", steps=steps, outcome=rollout_pb2.OUTCOME_SUCCESS
    )


async def test_scoring(server: Server) -> None:
    rng = np.random.default_rng(31)
    kind = reward_pb2.ScoreTrajectoryRequest
    good = kind(trajectory=trajectory())
    # Without images, what is damaged is the message and not a pixel.
    slight = kind(trajectory=trajectory())
    for one in slight.trajectory.steps:
        one.ClearField("image")
    sources = [one.SerializeToString() for one in (good, slight, slight)]
    endless = kind(trajectory=trajectory())
    endless.trajectory.instruction = "open the drawer " * 2**20
    empty = rollout_pb2.Step()
    huge = [endless.SerializeToString(), large(kind, "trajectory.steps", empty)]
    payloads = [
        wild(rng, kind, ["open the drawer"]).SerializeToString()
        if number % 4 == 0
        else damaged(rng, sources)
        for number in range(REQUESTS)
    ]
    async with open_channel(server.address) as channel:
        stub = reward_pb2_grpc.RewardServiceStub(channel)
        expected = await stub.ScoreTrajectory(good)
        await bombard(channel, f"{SERVICE}/ScoreTrajectory", huge)
        codes = await bombard_without_leak(
            server.pid,
            lambda: bombard(channel, f"{SERVICE}/ScoreTrajectory", [*payloads, *huge]),
        )
        assert await stub.ScoreTrajectory(good) == expected
    said("ScoreTrajectory", codes.items())
    # A damaged pixel is a picture still; of a damaged number the outcome's reward knows nothing.
    assert set(codes) <= {CODE.INVALID_ARGUMENT, CODE.OK}, codes
    assert min(codes[CODE.INVALID_ARGUMENT], codes[CODE.OK]) > REQUESTS / 50, codes


async def test_describing(server: Server) -> None:
    rng = np.random.default_rng(32)
    payloads = [damaged(rng, [b"", b"\x0a\x03abc"]) for _ in range(REQUESTS)]
    async with open_channel(server.address) as channel:
        codes = await bombard(channel, f"{SERVICE}/GetRewardModel", payloads)
    said("GetRewardModel", codes.items())
    assert set(codes) == {CODE.INVALID_ARGUMENT, CODE.OK}, codes
