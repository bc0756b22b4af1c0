"""Whole runs of groups over a real queue, killed and robbed of their queue."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.conftest import Valkey, running_valkey  # noqa: E402
from tests.integration.trainer.checkpointed import newest  # noqa: E402
from tests.integration.trainer.stand_ins import StandInPolicy, serving, working  # noqa: E402
from tests.integration.trainer.test_trainer_loop import (  # noqa: E402
    around,
    read_metrics,
    start_trainer,
    train_to_the_end,
    write_config,
)
from vlarl.config import CurriculumConfig, dump_toml  # noqa: E402
from vlarl.queue.rollout_queue import RolloutQueue  # noqa: E402
from vlarl_trainer.record.progress import Progress, run_checkpoints  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.slow]

SIZE, SLOTS, ATTEMPTS, ITERATIONS = 2, 3, 3, 3
GRPO = {
    "algorithm": "grpo",
    "episodes_per_iteration": SIZE * SLOTS,
    "iterations": ITERATIONS,
    "keep_checkpoints": ITERATIONS,
    "ppo": {},
    "critic": {},
    "grpo": {
        "group_size": SIZE,
        "max_attempts": ATTEMPTS,
        "learning_rate": 2e-3,
        "mini_batch": 8,
        "micro_batch": 3,
        "kl_stop": 0.0,
    },
}


def states(run_dir: Path) -> list[Progress]:
    """Where the run stood after each iteration."""
    checkpoints = run_checkpoints(run_dir)
    return [checkpoints.load(checkpoints.path(number + 1))[0] for number in range(ITERATIONS)]


def learned(run_dir: Path) -> list[list[str]]:
    """The episodes that each iteration learned from."""
    return [state.learned for state in states(run_dir)]


def group_of(episode: str) -> str:
    return episode.rpartition(":")[0]


@dataclass(frozen=True)
class Whole:
    """What was seen of a run that nothing disturbs."""

    rows: list[dict[str, float]]
    learned: list[list[str]]
    tensors: dict[str, torch.Tensor]
    ran: list[str]


@pytest.fixture(scope="module")
def whole(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """What others are compared with. Its name is theirs, as episodes' ids have it."""
    run_dir = tmp_path_factory.mktemp("whole") / "groups"

    async def train(valkey: Valkey) -> list[str]:
        async with around(checkpoint, valkey) as (queue, address, ran):
            write_config(run_dir, checkpoint, valkey.url, address, **GRPO)
            await train_to_the_end(run_dir)
            assert not await queue.outstanding("groups")
            assert not any(state.length for state in await queue.states())
        return ran

    with running_valkey() as valkey:
        ran = asyncio.run(train(valkey))
    return Whole(read_metrics(run_dir), learned(run_dir), newest(run_dir)[1], ran)


def trained(ran: list[str]) -> list[str]:
    return [episode for episode in ran if "evaluation" not in episode]


def test_groups_are_learned_from_as_far_as_they_differ(whole: Whole) -> None:
    """Metrics against a count of what ran and what was learned from."""
    spent = Counter(int(episode.split(":")[1]) for episode in trained(whole.ran))
    attempts = {group_of(episode) for episode in trained(whole.ran)}
    for number, (row, kept) in enumerate(zip(whole.rows, whole.learned, strict=True)):
        mine = [group for group in attempts if int(group.split(":")[1]) == number]
        assert row["groups_kept"] == len(kept) / SIZE == len({group_of(one) for one in kept})
        dropped = row["groups_dropped_success"] + row["groups_dropped_failure"]
        assert dropped == len(mine) - row["groups_kept"]
        assert row["group_attempts"] == len(mine) / SLOTS
        assert row["episodes"] == spent[number] == SIZE * len(mine)
        assert row["episodes_per_learned"] == spent[number] / len(kept)
        # Of two, one that succeeded: half of a reward of 1 from the mean.
        assert row["group_deviation"] == 0.5
        assert row["groups_void"] == row["missing_episodes"] == 0
        solved = row["groups_kept"] + SIZE * row["groups_dropped_success"]
        assert row["success_rate"] == pytest.approx(solved / spent[number])
    assert sum(row["groups_dropped_success"] for row in whole.rows), "the test shows nothing"
    assert sum(row["groups_dropped_failure"] for row in whole.rows), "the test shows nothing"


@pytest.mark.parametrize("seed", [0, 1])
async def test_a_trainer_killed_at_random_moments_learns_the_same_groups_once_and_whole(
    whole: Whole, checkpoint: Path, tmp_path: Path, valkey: Valkey, seed: int
) -> None:
    run_dir, moments = tmp_path / "groups", np.random.default_rng(seed)
    total = len(trained(whole.ran))
    async with around(checkpoint, valkey) as (queue, address, ran):
        write_config(run_dir, checkpoint, valkey.url, address, **GRPO)
        for episodes in sorted(moments.choice(total - 1, 5, replace=False) + 1):
            trainer = start_trainer(run_dir)
            while len(ran) < episodes:
                assert trainer.returncode is None, (run_dir / "log.txt").read_text()[-3000:]
                await asyncio.sleep(0.005)
            # In the midst of rollouts, or of learning, saving and publishing.
            await asyncio.sleep(moments.uniform(0, 0.5))
            trainer.kill()
        await train_to_the_end(run_dir)
        assert not await queue.outstanding("groups")
        assert not any(state.length for state in await queue.states())
    assert len(set(ran)) == len(ran), "an episode that was in the queue was ordered again"
    assert sorted(ran) == sorted(whole.ran)
    assert learned(run_dir) == whole.learned
    assert read_metrics(run_dir) == whole.rows
    _, tensors = newest(run_dir)
    assert all(torch.equal(tensor, tensors[key]) for key, tensor in whole.tensors.items())


async def test_a_run_of_groups_whose_queue_is_emptied_learns_the_same(
    whole: Whole, checkpoint: Path, tmp_path: Path, valkey: Valkey
) -> None:
    run_dir = tmp_path / "groups"
    total = len(trained(whole.ran))
    async with around(checkpoint, valkey) as (queue, address, ran):
        write_config(run_dir, checkpoint, valkey.url, address, **GRPO)
        training = asyncio.create_task(train_to_the_end(run_dir))
        for episodes in (2, total // 3, total // 2):
            while len(ran) < episodes and not training.done():
                await asyncio.sleep(0.01)
            await queue._redis.flushall()
        await training
        assert not await queue.outstanding("groups")
        assert all(state.length == state.pending == 0 for state in await queue.states())
    assert learned(run_dir) == whole.learned
    assert read_metrics(run_dir) == whole.rows
    assert "ordered again: the queue has lost them" in (run_dir / "log.txt").read_text()


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
async def test_batches_ordered_ahead_are_learned_from_once_and_whole(
    checkpoint: Path, tmp_path: Path, valkey: Valkey, algorithm: str
) -> None:
    """Two of them, by a trainer that is killed now and then."""
    run_dir = tmp_path / "ahead"
    same = {"iterations": ITERATIONS, "keep_checkpoints": ITERATIONS, "staleness": 2}
    settings = same if algorithm == "ppo" else GRPO | same
    async with around(checkpoint, valkey) as (queue, address, ran):
        config = write_config(run_dir, checkpoint, valkey.url, address, **settings)
        # One that soon prefers one task by far to the other, so that a later draw is another one.
        sharp = CurriculumConfig(tau=0.02, floor=0.0)
        written = dump_toml(config.model_copy(update={"curriculum": sharp}))
        (run_dir / "config.toml").write_text(written)
        for iteration in range(ITERATIONS):
            trainer = start_trainer(run_dir)
            while not run_checkpoints(run_dir).path(iteration + 1).exists():
                assert trainer.returncode is None, (run_dir / "log.txt").read_text()[-3000:]
                await asyncio.sleep(0.005)
            trainer.kill()
        await train_to_the_end(run_dir)
        assert not await queue.outstanding("ahead")
        assert not any(state.length for state in await queue.states())
    assert len(set(ran)) == len(ran), "an episode that was in the queue was ordered again"
    ahead = [list(state.tasks_ahead) for state in states(run_dir)]
    assert ahead == [["1", "2"], ["2"], []]
    episodes = [one for kept in learned(run_dir) for one in kept]
    assert len(set(episodes)) == len(episodes), "an episode was learned from twice"
    if algorithm == "ppo":
        assert sorted(episodes) == sorted(trained(ran))
        return
    for iteration, kept in enumerate(learned(run_dir)):
        assert {int(one.split(":")[1]) for one in kept} == {iteration}
        assert set(Counter(map(group_of, kept)).values()) == {SIZE}, "a group in two halves"


async def test_a_given_up_member_shrinks_its_group_of_three(
    checkpoint: Path, tmp_path: Path, valkey: Valkey, queue: RolloutQueue
) -> None:
    run_dir = tmp_path / "shrunk"
    policy = StandInPolicy(checkpoint)
    give_up = frozenset({"shrunk:00000:00:0001:02"})
    grpo = {**GRPO["grpo"], "group_size": 3, "keep_between": (0.0, 1.0)}
    settings = GRPO | {"iterations": 1, "episodes_per_iteration": 6, "grpo": grpo}
    async with serving(policy) as address, working(queue, policy, give_up):
        write_config(run_dir, checkpoint, valkey.url, address, **settings)
        await train_to_the_end(run_dir)
    (row,) = read_metrics(run_dir)
    assert (row["missing_episodes"], row["episodes"], row["groups_kept"]) == (1, 5, 2)
    progress, _ = newest(run_dir)
    assert Counter(map(group_of, progress.learned)) == {
        "shrunk:00000:00:0000": 3,
        "shrunk:00000:00:0001": 2,
    }
    assert not await queue.outstanding("shrunk")
