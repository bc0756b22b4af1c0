"""Whole runs over a real queue and real gRPC, with stand-ins for engine and simulator."""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.roots import PYTHONPATH

torch = pytest.importorskip("torch")

import vlarl_trainer.main as trainer_main  # noqa: E402
from tests.conftest import Valkey  # noqa: E402
from tests.integration.trainer.checkpointed import newest  # noqa: E402
from tests.integration.trainer.stand_ins import StandInPolicy, serving, working  # noqa: E402
from tests.integration.trainer.trainer_samples import trainer_config  # noqa: E402
from vlarl.config import (  # noqa: E402
    EvaluationConfig,
    PolicyConfig,
    QueueConfig,
    RunConfig,
    TasksConfig,
    dump_toml,
)
from vlarl.data.dataset import read_dataset  # noqa: E402
from vlarl.launch.supervisor import free_address  # noqa: E402
from vlarl.launch.torchrun import ranks_command  # noqa: E402
from vlarl.queue.rollout_queue import RolloutQueue  # noqa: E402
from vlarl.rpc.channel import open_channel, wait_until_serving  # noqa: E402
from vlarl.trainer.v1 import trainer_pb2, trainer_pb2_grpc  # noqa: E402
from vlarl.weights.checkpoint import base_digest  # noqa: E402
from vlarl_trainer.record.progress import run_checkpoints  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.slow]
PAUSED = trainer_pb2.RUN_STATE_PAUSED
ROOT = Path(__file__).parents[3]


def write_config(
    run_dir: Path, checkpoint: Path, queue_url: str, policies: str, **trainer: object
) -> RunConfig:
    config = RunConfig(
        name=run_dir.name,
        seed=5,
        tasks=TasksConfig(indices=(0, 2)),
        queue=QueueConfig(url=queue_url),
        policy=PolicyConfig(checkpoint=checkpoint, addresses=policies, center_crop=False),
        evaluation=EvaluationConfig(episodes_per_task=2),
        trainer=trainer_config(
            **{
                "address": free_address(),
                "iterations": 3,
                "episodes_per_iteration": 4,
                "rollout_timeout_seconds": 60.0,
                "threads": 1,
                "critic": {"warmup_iterations": 1, "hidden": (16,), "learning_rate": 1e-2},
                **trainer,
            }
        ),
    )
    run_dir.mkdir()
    (run_dir / "config.toml").write_text(dump_toml(config))
    return config


async def start_trainer(run_dir: Path, ranks: int = 1) -> asyncio.subprocess.Process:
    program = [str(Path(__file__).with_name("trainer_program.py")), str(run_dir)]
    environment = os.environ | {"PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1"}
    log = (run_dir / "log.txt").open("ab")
    return await asyncio.create_subprocess_exec(
        *ranks_command(ranks), *program, env=environment, stdout=log, stderr=log
    )


async def train_to_the_end(run_dir: Path, ranks: int = 1) -> None:
    trainer = await start_trainer(run_dir, ranks)
    try:
        code = await asyncio.wait_for(trainer.wait(), 200)
    finally:
        if trainer.returncode is None:
            trainer.kill()
    assert code == 0, (run_dir / "log.txt").read_text()[-3000:]


def read_metrics(run_dir: Path) -> list[dict[str, float]]:
    """Without the times, which no two runs share."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if "seconds" not in name} for row in rows]


async def test_a_run_from_start_to_end(
    checkpoint: Path, valkey: Valkey, queue: RolloutQueue, tmp_path: Path
) -> None:
    run_dir = tmp_path / "whole"
    policy = StandInPolicy(checkpoint)
    async with serving(policy) as address:
        recording = {"record_rollouts": True}
        config = write_config(run_dir, checkpoint, valkey.url, address, **recording)
        training = asyncio.create_task(train_to_the_end(run_dir))
        async with open_channel(config.trainer.address) as channel:
            await wait_until_serving(channel, "", 60)
            stub = trainer_pb2_grpc.TrainerServiceStub(channel)
            async with working(queue, policy) as ran:
                request = trainer_pb2.WatchIterationsRequest(from_iteration=1)
                watching = stub.WatchIterations(request)
                seen = [answer.iteration.iteration async for answer in watching]
                await training
    rows = read_metrics(run_dir)
    assert [row["iteration"] for row in rows] == [0, 1, 2]
    assert seen == [1, 2], "watchers get the iterations they asked for, until the run ends"
    # The first iteration warms the critic up; the other two each make a version.
    assert policy.updates == [1, 2, 3]
    assert [row["policy_version"] for row in rows] == [1, 1, 2]
    assert max(row["logprob_gap"] for row in rows) < 1e-4
    assert len(ran) == 3 * 4 + 2 * 2
    (evaluation,) = (run_dir / "evaluations.jsonl").read_text().splitlines()
    assert json.loads(evaluation)["policy_version"] == 3
    assert not await queue.outstanding("whole")
    assert all(state.length == 0 for state in await queue.states())
    assert list((run_dir / "tensorboard").iterdir())
    recorded = read_dataset(run_dir / "rollouts").tasks
    assert sum(len(task.frames) for task in recorded) == sum(row["samples"] for row in rows)
    successes = [
        bool(task.succeeded[task.episodes == number][0])
        for task in recorded
        for number in set(task.episodes)
    ]
    assert len(successes) == 3 * 4
    assert sum(successes) == sum(4 * row["success_rate"] for row in rows)


async def test_a_killed_trainer_goes_on_as_if_nothing_had_happened(
    checkpoint: Path, tmp_path: Path, valkey: Valkey
) -> None:
    """Killed again and again, at whatever it is doing; the curve must be the uninterrupted one."""
    rows = {}
    for name, kills in (("calm", []), ("killed", [2, 5, 9, 11])):
        policy = StandInPolicy(checkpoint)
        run_dir = tmp_path / name
        async with (
            RolloutQueue(QueueConfig(url=valkey.url)) as queue,
            serving(policy) as address,
            working(queue, policy) as ran,
        ):
            config = write_config(run_dir, checkpoint, valkey.url, address)
            for episodes in kills:
                trainer = await start_trainer(run_dir)
                while len(ran) < episodes:
                    assert trainer.returncode is None, (run_dir / "log.txt").read_text()[-3000:]
                    await asyncio.sleep(0.02)
                trainer.kill()
                await trainer.wait()
            await train_to_the_end(run_dir)
            assert not await queue.outstanding(name)
        rows[name] = read_metrics(run_dir)
        assert len(set(ran)) == len(ran), "an episode that was in the queue was ordered again"
        progress, _ = newest(run_dir)
        assert progress.learned == [f"{config.name}:00002:{index:04d}" for index in range(4)]
    assert rows["killed"] == rows["calm"]
    _, calm = newest(tmp_path / "calm")
    _, killed = newest(tmp_path / "killed")
    assert all(torch.equal(calm[key], killed[key]) for key in calm)


async def test_a_trainer_whose_disk_fills_up_goes_on_as_if_nothing_had_happened(
    checkpoint: Path, tmp_path: Path, valkey: Valkey, small_disk: Callable[[Path, int], None]
) -> None:
    """One sentence, the last checkpoint and the queue: that is all it takes."""
    rows, learned = {}, {}
    for name in ("calm", "full"):
        policy = StandInPolicy(checkpoint)
        run_dir = tmp_path / name
        async with (
            RolloutQueue(QueueConfig(url=valkey.url)) as queue,
            serving(policy) as address,
            working(queue, policy) as ran,
        ):
            write_config(run_dir, checkpoint, valkey.url, address)
            checkpoints = run_dir / "checkpoints"
            if name == "full":
                small_disk(checkpoints, 32)
                trainer = await start_trainer(run_dir)
                while run_checkpoints(run_dir).latest() is None:
                    assert trainer.returncode is None, (run_dir / "log.txt").read_text()[-3000:]
                    await asyncio.sleep(0.02)
                (filling := checkpoints / "filling").touch()
                with pytest.raises(OSError, match="No space left"):
                    filling.write_bytes(bytes(32 * 2**20))
                assert await asyncio.wait_for(trainer.wait(), 100) == 1
                said = (run_dir / "log.txt").read_text()
                assert f"error: {checkpoints}: its disk has no room for the checkpoint iter" in said
                assert "Traceback" not in said
                assert not list(checkpoints.glob(".*")), "what was begun takes no room"
                filling.unlink()
            await train_to_the_end(run_dir)
            assert not await queue.outstanding(name)
        assert len(set(ran)) == len(ran), "an episode that was in the queue was ordered again"
        rows[name] = read_metrics(run_dir)
        _, learned[name] = newest(run_dir)
    assert rows["full"] == rows["calm"]
    assert all(torch.equal(learned["calm"][key], learned["full"][key]) for key in learned["calm"])


async def test_a_run_whose_queue_is_emptied_learns_as_if_nothing_had_happened(
    checkpoint: Path, tmp_path: Path, valkey: Valkey
) -> None:
    """FLUSHALL, in the midst of rollouts and perhaps of learning: no other curve, no end."""
    rows = {}
    for name, emptied in (("calm", []), ("emptied", [2, 5, 10])):
        policy = StandInPolicy(checkpoint)
        run_dir = tmp_path / name
        async with (
            RolloutQueue(QueueConfig(url=valkey.url)) as queue,
            serving(policy) as address,
            working(queue, policy) as ran,
        ):
            write_config(run_dir, checkpoint, valkey.url, address)
            training = asyncio.create_task(train_to_the_end(run_dir))
            for episodes in emptied:
                while len(ran) < episodes and not training.done():
                    await asyncio.sleep(0.01)
                await queue._redis.flushall()
            await training
            assert not await queue.outstanding(name)
            assert all(state.length == state.pending == 0 for state in await queue.states())
        rows[name] = read_metrics(run_dir)
    assert rows["emptied"] == rows["calm"]
    assert "ordered again: the queue has lost them" in (tmp_path / "emptied/log.txt").read_text()


async def test_a_given_up_episode_is_missing_and_the_batch_goes_on(
    checkpoint: Path, valkey: Valkey, queue: RolloutQueue, tmp_path: Path
) -> None:
    run_dir = tmp_path / "missing"
    policy = StandInPolicy(checkpoint)
    give_up = frozenset({"missing:00001:0002"})
    async with serving(policy) as address, working(queue, policy, give_up):
        write_config(run_dir, checkpoint, valkey.url, address, iterations=2, staleness=1)
        await train_to_the_end(run_dir)
    rows = read_metrics(run_dir)
    assert [row["missing_episodes"] for row in rows] == [0, 1]
    assert [row["episodes"] for row in rows] == [4, 3]
    assert "the simulator broke" in (run_dir / "log.txt").read_text()
    assert not await queue.outstanding("missing")


async def test_two_ranks_go_on_where_one_stopped(
    checkpoint: Path, valkey: Valkey, tmp_path: Path
) -> None:
    rows = {}
    for name, legs in (("alone", [(4, 1)]), ("together", [(2, 1), (4, 2)])):
        policy = StandInPolicy(checkpoint)
        run_dir = tmp_path / name
        async with (
            RolloutQueue(QueueConfig(url=valkey.url)) as queue,
            serving(policy) as address,
            working(queue, policy),
        ):
            config = write_config(run_dir, checkpoint, valkey.url, address)
            for iterations, ranks in legs:
                trainer = config.trainer.model_copy(update={"iterations": iterations})
                leg = config.model_copy(update={"trainer": trainer})
                (run_dir / "config.toml").write_text(dump_toml(leg))
                await train_to_the_end(run_dir, ranks)
            rows[name] = read_metrics(run_dir)
            assert not await queue.outstanding(name)
    assert len(rows["alone"]) == 4
    for alone, together in zip(rows["alone"], rows["together"], strict=True):
        assert together == pytest.approx(alone, abs=1e-4)


async def test_pause_status_weights_and_an_orderly_end(
    checkpoint: Path, valkey: Valkey, queue: RolloutQueue, tmp_path: Path
) -> None:
    run_dir = tmp_path / "steered"
    policy = StandInPolicy(checkpoint)
    async with serving(policy) as address:
        config = write_config(run_dir, checkpoint, valkey.url, address, iterations=50)
        trainer = await start_trainer(run_dir)
        try:
            async with open_channel(config.trainer.address) as channel:
                await wait_until_serving(channel, "", 60)
                stub = trainer_pb2_grpc.TrainerServiceStub(channel)
                # Paused before its first iteration has begun, it would begin none.
                while (await get_status(stub)).state != trainer_pb2.RUN_STATE_ROLLOUT:
                    await asyncio.sleep(0.02)
                await stub.Pause(trainer_pb2.PauseRequest())
                async with working(queue, policy) as ran:
                    answer = await stub.Checkpoint(trainer_pb2.CheckpointRequest(), timeout=60)
                    assert Path(answer.path).joinpath("tensors.safetensors").exists()
                    while (status := await get_status(stub)).state != PAUSED:
                        await asyncio.sleep(0.02)
                    assert (status.run_id, status.iterations) == ("steered", 50)
                    done = status.latest.iteration + 1
                    assert len(ran) == 4 * done
                    weights = [
                        part
                        async for part in stub.GetWeights(
                            trainer_pb2.GetWeightsRequest(base_digest=base_digest(checkpoint))
                        )
                    ]
                    assert weights[0].header.version == policy.version == status.policy_version
                    known = trainer_pb2.GetWeightsRequest(
                        run_id="steered", policy_version=policy.version
                    )
                    assert [part async for part in stub.GetWeights(known)] == []
                    with pytest.raises(grpc.aio.AioRpcError, match="trains base checkpoint"):
                        await anext(
                            aiter(
                                stub.GetWeights(trainer_pb2.GetWeightsRequest(base_digest="other"))
                            )
                        )
                    await stub.Resume(trainer_pb2.ResumeRequest())
                    while len(ran) < 4 * done + 2:
                        await asyncio.sleep(0.02)
                    trainer.terminate()
                    assert await asyncio.wait_for(trainer.wait(), 30) == 130
        finally:
            if trainer.returncode is None:
                trainer.kill()


async def test_a_run_that_has_no_time_to_end_has_not_ended_well(
    checkpoint: Path, valkey: Valkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = asyncio.Event()

    async def deaf(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        while not end.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await end.wait()

    monkeypatch.setattr(trainer_main, "_train", deaf)
    monkeypatch.setattr(trainer_main, "_DRAIN_SECONDS", 0.1)
    config = write_config(tmp_path / "deaf", checkpoint, valkey.url, "127.0.0.1:1", iterations=1)
    unused: Any = None
    with pytest.raises(KeyboardInterrupt):
        await trainer_main._lead(config, tmp_path, unused, unused, unused, None)
    end.set()


async def test_a_policy_with_other_weights_stops_the_run_with_one_sentence(
    checkpoint: Path, valkey: Valkey, tmp_path: Path
) -> None:
    run_dir = tmp_path / "refused"
    policy = StandInPolicy(checkpoint)
    policy.wrong_digest = True
    async with serving(policy) as address:
        write_config(run_dir, checkpoint, valkey.url, address)
        trainer = await start_trainer(run_dir)
        assert await asyncio.wait_for(trainer.wait(), 60) == 1
    log = (run_dir / "log.txt").read_text()
    assert "merged version 1 into other weights than the trainer" in log
    assert "Traceback" not in log


async def get_status(
    stub: "trainer_pb2_grpc.TrainerServiceAsyncStub",
) -> trainer_pb2.GetStatusResponse:
    return await stub.GetStatus(trainer_pb2.GetStatusRequest())
