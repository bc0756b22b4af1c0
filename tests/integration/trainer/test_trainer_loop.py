"""Whole runs over a real queue and real gRPC, with stand-ins for engine and simulator."""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import vlarl_trainer.main as trainer_main  # noqa: E402
from tests.conftest import Valkey, running_valkey  # noqa: E402
from tests.integration.trainer import trainer_program  # noqa: E402
from tests.integration.trainer.checkpointed import newest  # noqa: E402
from tests.integration.trainer.forked import Program  # noqa: E402
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
from vlarl.queue.rollout_queue import RolloutQueue  # noqa: E402
from vlarl.rpc.channel import open_channel, wait_until_serving  # noqa: E402
from vlarl.trainer.v1 import trainer_pb2, trainer_pb2_grpc  # noqa: E402
from vlarl.weights.checkpoint import base_digest  # noqa: E402
from vlarl_trainer.record.progress import run_checkpoints  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.slow]
PAUSED = trainer_pb2.RUN_STATE_PAUSED
ROOT = Path(__file__).parents[3]


def write_config(
    run_dir: Path,
    checkpoint: Path,
    queue_url: str,
    policies: str,
    evaluation: EvaluationConfig | None = None,
    **trainer: object,
) -> RunConfig:
    config = RunConfig(
        name=run_dir.name,
        seed=5,
        tasks=TasksConfig(indices=(0, 2)),
        queue=QueueConfig(url=queue_url),
        policy=PolicyConfig(checkpoint=checkpoint, addresses=policies, center_crop=False),
        evaluation=evaluation or EvaluationConfig(episodes_per_task=2),
        trainer=trainer_config(
            **{
                "address": free_address(),
                "iterations": 3,
                "episodes_per_iteration": 4,
                "rollout_timeout_seconds": 240.0,
                "threads": 1,
                "critic": {"warmup_iterations": 1, "hidden": (16,), "learning_rate": 1e-2},
                **trainer,
            }
        ),
    )
    run_dir.mkdir(exist_ok=True)
    (run_dir / "config.toml").write_text(dump_toml(config))
    return config


def start_trainer(run_dir: Path, ranks: int = 1) -> Program:
    return Program(trainer_program.main, run_dir, log=run_dir / "log.txt", ranks=ranks)


async def train_to_the_end(run_dir: Path, ranks: int = 1) -> None:
    trainer = start_trainer(run_dir, ranks)
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


@asynccontextmanager
async def around(
    checkpoint: Path, valkey: Valkey
) -> AsyncIterator[tuple[RolloutQueue, str, list[str]]]:
    """What a trainer needs: the queue, the policy's address, and the episodes that ran so far."""
    policy = StandInPolicy(checkpoint)
    async with (
        RolloutQueue(QueueConfig(url=valkey.url)) as queue,
        serving(policy) as address,
        working(queue, policy) as ran,
    ):
        yield queue, address, ran


@dataclass(frozen=True)
class Whole:
    """What was seen of a run that nothing disturbs."""

    run_dir: Path
    seen: list[int]
    updates: list[int]
    ran: list[str]
    outstanding: object
    lengths: list[int]

    @property
    def rows(self) -> list[dict[str, float]]:
        return read_metrics(self.run_dir)

    @property
    def learned(self) -> dict[str, torch.Tensor]:
        """Its last checkpoint's tensors."""
        return newest(self.run_dir)[1]


@pytest.fixture(scope="module")
def whole(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """What others are compared with; it records its rollouts, and somebody watches."""
    run_dir = tmp_path_factory.mktemp("runs") / "whole"

    async def train(valkey: Valkey) -> Whole:
        policy = StandInPolicy(checkpoint)
        async with RolloutQueue(QueueConfig(url=valkey.url)) as queue, serving(policy) as address:
            config = write_config(run_dir, checkpoint, valkey.url, address, record_rollouts=True)
            training = asyncio.create_task(train_to_the_end(run_dir))
            async with open_channel(config.trainer.address) as channel:
                await wait_until_serving(channel, "", 60)
                stub = trainer_pb2_grpc.TrainerServiceStub(channel)
                async with working(queue, policy) as ran:
                    request = trainer_pb2.WatchIterationsRequest(from_iteration=1)
                    watching = stub.WatchIterations(request)
                    seen = [answer.iteration.iteration async for answer in watching]
                    await training
            outstanding = await queue.outstanding("whole")
            lengths = [state.length for state in await queue.states()]
        return Whole(run_dir, seen, policy.updates, ran, outstanding, lengths)

    with running_valkey() as valkey:
        return asyncio.run(train(valkey))


def test_a_run_from_start_to_end(whole: Whole) -> None:
    rows = whole.rows
    assert [row["iteration"] for row in rows] == [0, 1, 2]
    assert whole.seen == [1, 2], "watchers get the iterations they asked for, until the run ends"
    # The first iteration warms the critic up; the other two each make a version.
    assert whole.updates == [1, 2, 3]
    assert [row["policy_version"] for row in rows] == [1, 1, 2]
    assert max(row["logprob_gap"] for row in rows) < 1e-4
    assert len(whole.ran) == 3 * 4 + 2 * 2
    (evaluation,) = (whole.run_dir / "evaluations.jsonl").read_text().splitlines()
    assert json.loads(evaluation)["policy_version"] == 3
    assert not whole.outstanding
    assert not any(whole.lengths)
    assert list((whole.run_dir / "tensorboard").iterdir())


def test_what_was_rolled_out_is_recorded(whole: Whole) -> None:
    recorded = read_dataset(whole.run_dir / "rollouts").tasks
    assert sum(len(task.frames) for task in recorded) == sum(row["samples"] for row in whole.rows)
    successes = [
        bool(task.succeeded[task.episodes == number][0])
        for task in recorded
        for number in set(task.episodes)
    ]
    assert len(successes) == 3 * 4
    assert sum(successes) == sum(4 * row["success_rate"] for row in whole.rows)


async def test_a_killed_trainer_goes_on_as_if_nothing_had_happened(
    whole: Whole, checkpoint: Path, tmp_path: Path, valkey: Valkey
) -> None:
    """Killed again and again, at whatever it is doing; the curve must be the uninterrupted one."""
    run_dir = tmp_path / "killed"
    async with around(checkpoint, valkey) as (queue, address, ran):
        config = write_config(run_dir, checkpoint, valkey.url, address)
        for episodes in (2, 5, 9, 11):
            trainer = start_trainer(run_dir)
            while len(ran) < episodes:
                assert trainer.returncode is None, (run_dir / "log.txt").read_text()[-3000:]
                await asyncio.sleep(0.02)
            trainer.kill()
        await train_to_the_end(run_dir)
        assert not await queue.outstanding("killed")
    assert len(set(ran)) == len(ran), "an episode that was in the queue was ordered again"
    progress, learned = newest(run_dir)
    assert progress.learned == [f"{config.name}:00002:{index:04d}" for index in range(4)]
    assert read_metrics(run_dir) == whole.rows
    assert all(torch.equal(tensor, learned[key]) for key, tensor in whole.learned.items())


async def test_a_trainer_whose_disk_fills_up_goes_on_as_if_nothing_had_happened(
    whole: Whole,
    checkpoint: Path,
    tmp_path: Path,
    valkey: Valkey,
    small_disk: Callable[[Path, int], None],
) -> None:
    """One sentence, the last checkpoint and the queue: that is all it takes."""
    run_dir = tmp_path / "full"
    async with around(checkpoint, valkey) as (queue, address, ran):
        write_config(run_dir, checkpoint, valkey.url, address)
        checkpoints = run_dir / "checkpoints"
        small_disk(checkpoints, 32)
        trainer = start_trainer(run_dir)
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
        assert not await queue.outstanding("full")
    assert len(set(ran)) == len(ran), "an episode that was in the queue was ordered again"
    _, learned = newest(run_dir)
    assert read_metrics(run_dir) == whole.rows
    assert all(torch.equal(tensor, learned[key]) for key, tensor in whole.learned.items())


async def test_a_run_whose_queue_is_emptied_learns_as_if_nothing_had_happened(
    whole: Whole, checkpoint: Path, tmp_path: Path, valkey: Valkey
) -> None:
    """FLUSHALL, in the midst of rollouts and perhaps of learning: no other curve, no end."""
    run_dir = tmp_path / "emptied"
    async with around(checkpoint, valkey) as (queue, address, ran):
        write_config(run_dir, checkpoint, valkey.url, address)
        training = asyncio.create_task(train_to_the_end(run_dir))
        for episodes in (2, 5, 10):
            while len(ran) < episodes and not training.done():
                await asyncio.sleep(0.01)
            await queue._redis.flushall()
        await training
        assert not await queue.outstanding("emptied")
        assert all(state.length == state.pending == 0 for state in await queue.states())
    assert read_metrics(run_dir) == whole.rows
    assert "ordered again: the queue has lost them" in (run_dir / "log.txt").read_text()


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
    whole: Whole, checkpoint: Path, valkey: Valkey, tmp_path: Path
) -> None:
    run_dir = tmp_path / "together"
    async with around(checkpoint, valkey) as (queue, address, _):
        config = write_config(run_dir, checkpoint, valkey.url, address)
        for iterations, ranks in ((1, 1), (3, 2)):
            trainer = config.trainer.model_copy(update={"iterations": iterations})
            leg = config.model_copy(update={"trainer": trainer})
            (run_dir / "config.toml").write_text(dump_toml(leg))
            await train_to_the_end(run_dir, ranks)
        assert not await queue.outstanding("together")
    for alone, together in zip(whole.rows, read_metrics(run_dir), strict=True):
        assert together == pytest.approx(alone, abs=1e-4)


async def test_pause_status_weights_and_an_orderly_end(
    checkpoint: Path, valkey: Valkey, queue: RolloutQueue, tmp_path: Path
) -> None:
    run_dir = tmp_path / "steered"
    policy = StandInPolicy(checkpoint)
    async with serving(policy) as address:
        config = write_config(run_dir, checkpoint, valkey.url, address, iterations=50)
        trainer = start_trainer(run_dir)
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
    policy.wrong_weights = True
    async with serving(policy) as address:
        write_config(run_dir, checkpoint, valkey.url, address)
        trainer = start_trainer(run_dir)
        assert await asyncio.wait_for(trainer.wait(), 60) == 1
    log = (run_dir / "log.txt").read_text()
    assert "merged version 1 into other weights than the trainer" in log
    assert "Traceback" not in log


async def test_log_probs_that_disagree_stop_the_run_and_are_kept_beside_it(
    checkpoint: Path, valkey: Valkey, tmp_path: Path
) -> None:
    run_dir = tmp_path / "apart"
    policy = StandInPolicy(checkpoint)
    policy.wrong_logprobs = True
    queue = RolloutQueue(QueueConfig(url=valkey.url))
    async with queue, serving(policy) as address, working(queue, policy):
        write_config(run_dir, checkpoint, valkey.url, address)
        trainer = start_trainer(run_dir)
        assert await asyncio.wait_for(trainer.wait(), 60) == 1
    log = (run_dir / "log.txt").read_text()
    (kept,) = run_dir.glob("disagreement-00000-*.npz")
    assert "in 4 of " in log
    assert f"The numbers: {kept}" in log
    assert "Traceback" not in log
    with np.load(kept, allow_pickle=False) as numbers:
        apart = np.abs(numbers["server"] - numbers["trainer"]) > 0.4
        assert set(numbers["episodes"][apart.any(axis=1)]) == set(numbers["episodes"])
        assert apart.sum() == 4
        assert apart[:, 2].sum() == 4
        assert numbers["token_ids"].shape == apart.shape


async def get_status(
    stub: "trainer_pb2_grpc.TrainerServiceAsyncStub",
) -> trainer_pb2.GetStatusResponse:
    return await stub.GetStatus(trainer_pb2.GetStatusRequest())
