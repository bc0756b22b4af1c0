"""Evaluations between iterations, with stand-ins for engine and simulator: they leave no trace in
what is trained on and learned.
"""

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.conftest import Valkey  # noqa: E402
from tests.integration.trainer.checkpointed import newest  # noqa: E402
from tests.integration.trainer.stand_ins import StandInPolicy, serving, working  # noqa: E402
from tests.integration.trainer.test_trainer_loop import (  # noqa: E402
    read_metrics,
    start_trainer,
    train_to_the_end,
    write_config,
)
from vlarl.config import CurriculumConfig, EvaluationConfig, QueueConfig, dump_toml  # noqa: E402
from vlarl.queue.rollout_queue import RolloutQueue  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.slow]
NEVER = EvaluationConfig(episodes_per_task=0)
OFTEN = EvaluationConfig(episodes_per_task=2, every_env_steps=30)


async def train(
    run_dir: Path,
    checkpoint: Path,
    valkey: Valkey,
    evaluation: EvaluationConfig,
    kill_at: str | None = None,
    **trainer: object,
) -> list[str]:
    """Runs a whole training; returns the episodes in the order in which they were run.

    kill_at: part of an episode's id, after which the trainer is killed once.
    """
    policy = StandInPolicy(checkpoint)
    async with (
        RolloutQueue(QueueConfig(url=valkey.url)) as queue,
        serving(policy) as address,
        working(queue, policy) as ran,
    ):
        config = write_config(run_dir, checkpoint, valkey.url, address, **trainer)
        config = config.model_copy(
            update={"evaluation": evaluation, "curriculum": CurriculumConfig(tau=0.2, window=6)}
        )
        (run_dir / "config.toml").write_text(dump_toml(config))
        if kill_at is not None:
            killed = start_trainer(run_dir)
            while not any(kill_at in episode for episode in ran):
                assert killed.returncode is None, (run_dir / "log.txt").read_text()[-3000:]
                await asyncio.sleep(0.02)
            killed.kill()
        await train_to_the_end(run_dir)
        assert not await queue.outstanding(run_dir.name)
        assert all(state.length == 0 for state in await queue.states())
    return [episode.removeprefix(f"{run_dir.name}:") for episode in ran]


def evaluations(run_dir: Path) -> list[dict[str, int]]:
    """Without the times, which no two runs share."""
    lines = (run_dir / "evaluations.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [{name: value for name, value in row.items() if "seconds" not in name} for row in rows]


@pytest.mark.parametrize("staleness", [0, 1])
async def test_a_run_with_evaluations_learns_what_one_without_learns(
    checkpoint: Path, tmp_path: Path, valkey: Valkey, staleness: int
) -> None:
    calm, watched = tmp_path / "calm", tmp_path / "watched"
    ran = {
        run_dir: await train(run_dir, checkpoint, valkey, evaluation, staleness=staleness)
        for run_dir, evaluation in ((calm, NEVER), (watched, OFTEN))
    }
    trained = [episode for episode in ran[watched] if "evaluation" not in episode]
    assert trained == ran[calm], "the same training episodes, in the same order"
    done = evaluations(watched)
    assert len(done) >= 2
    assert [one["env_steps"] // 30 for one in done] == sorted({o["env_steps"] // 30 for o in done})
    if staleness:
        return  # How many versions behind an action is then depends on who is faster.
    assert read_metrics(watched) == read_metrics(calm)
    _, expected = newest(calm)
    _, got = newest(watched)
    assert all(torch.equal(got[key], expected[key]) for key in expected)


async def test_a_trainer_killed_in_an_evaluation_makes_up_for_it(
    checkpoint: Path, tmp_path: Path, valkey: Valkey
) -> None:
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    often = EvaluationConfig(episodes_per_task=2, at_start=True, every_iterations=1)
    ran_calm = await train(calm, checkpoint, valkey, often)
    ran_killed = await train(killed, checkpoint, valkey, often, kill_at="evaluation-00001")
    assert sorted(ran_killed) == sorted(ran_calm), "no episode twice, none left out"
    assert evaluations(killed) == evaluations(calm)
    assert [one["iteration"] for one in evaluations(killed)] == [0, 1, 2, 3]
    starts = [json.loads(line) for line in (killed / "starts.jsonl").read_text().splitlines()]
    assert [start["iteration"] for start in starts] == [0, 1], "the crash left no trace"
    kept = sorted(path.name for path in (killed / "actions").iterdir())
    assert kept == ["iteration-00000.npz", "iteration-00002.npz"]
    for name in kept:
        with np.load(killed / "actions" / name) as mine, np.load(calm / "actions" / name) as other:
            assert np.array_equal(mine["values"], other["values"])


async def test_the_curriculum_shows_in_the_metrics(
    checkpoint: Path, tmp_path: Path, valkey: Valkey
) -> None:
    run_dir = tmp_path / "curriculum"
    await train(run_dir, checkpoint, valkey, NEVER)
    for row in read_metrics(run_dir):
        chances = {task: row[f"task_probability/task_{task}"] for task in (0, 2)}
        rates = {task: row[f"task_success/task_{task}"] for task in (0, 2)}
        assert sum(chances.values()) == pytest.approx(1)
        assert (chances[0] > chances[2]) == (rates[0] < rates[2])
    progress, _ = newest(run_dir)
    recent = progress.success["0"]
    assert sum(recent) / len(recent) == rates[0]
