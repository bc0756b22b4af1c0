"""A whole run of a policy that answers in chunks, over a real queue and real gRPC."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from tests.conftest import Valkey
from tests.integration.trainer.chunk_samples import (
    KEY,
    ChunkStandIn,
    make_chunk_checkpoint,
)
from tests.integration.trainer.stand_ins import serving, working
from tests.integration.trainer.test_trainer_loop import (
    read_metrics,
    train_to_the_end,
    write_config,
)
from vlarl.config import CriticConfig, EvaluationConfig, PpoConfig, QueueConfig
from vlarl.queue.rollout_queue import RolloutQueue

pytestmark = [pytest.mark.torch, pytest.mark.slow]
GROUPS = {
    "algorithm": "grpo",
    "ppo": PpoConfig(),
    "critic": CriticConfig(),
    "grpo": {
        "group_size": 2,
        "keep_between": (0.0, 1.0),
        "learning_rate": 1e-3,
        "mini_batch": 8,
        "micro_batch": 4,
        "kl_stop": 0.0,
    },
}


@pytest.mark.parametrize("keys", [{}, GROUPS], ids=["ppo", "grpo"])
async def test_chunks_are_learned_from_published_and_counted(
    tmp_path: Path, valkey: Valkey, keys: dict[str, object]
) -> None:
    """Outlines pass the reward server without frames; each publication is of merged weights that
    trainer and server agree about; every log-prob is the trainer's own.
    """
    checkpoint = make_chunk_checkpoint(tmp_path / "chunks")
    policy, run_dir = ChunkStandIn(checkpoint), tmp_path / "run"
    async with (
        RolloutQueue(QueueConfig(url=valkey.url)) as queue,
        serving(policy) as address,
        working(queue, policy),
    ):
        evaluation = EvaluationConfig(episodes_per_task=1)
        config = write_config(run_dir, checkpoint, valkey.url, address, evaluation, **keys)
        assert config.tasks.suite == KEY
        await train_to_the_end(run_dir)
    rows = read_metrics(run_dir)
    # Neither warming a critic up nor groups that went alike make a version.
    learned = sum("policy_steps" in row for row in rows)
    assert policy.updates == list(range(1, learned + 2))
    assert learned >= 2
    assert max(row["logprob_gap"] for row in rows) < 1e-4
    assert [row["start_outside_clip"] for row in rows] == [0.0] * 3
    for row in rows:
        # One to three whole chunks, and a last one that the end cut short or didn't.
        assert 8 * (row["samples"] - row["episodes"]) < 4 * row["episode_actions"]
        assert 4 * row["episode_actions"] <= 8 * row["samples"]
    counted = np.cumsum([row["episodes"] * row["episode_actions"] for row in rows])
    assert [row["env_steps"] for row in rows] == counted.tolist()
    (line,) = (run_dir / "evaluations.jsonl").read_text().splitlines()
    assert json.loads(line)["total"]["actions"] > 2 * 8
    last = np.load(run_dir / "actions/iteration-00002.npz")
    assert last["values"].shape == (4 * rows[-1]["episode_actions"], 7)
