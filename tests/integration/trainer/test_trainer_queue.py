"""The collector over a real queue: nothing is lost, nothing is learned twice."""

import asyncio

import pytest

from tests.conftest import Valkey
from vlarl.config import OutcomeRewardConfig, PpoConfig, QueueConfig
from vlarl.config.reward_terms import reward_terms
from vlarl.queue.rollout_queue import RolloutQueue
from vlarl.rollout.v1 import rollout_pb2
from vlarl_trainer.rollouts.collector import Collector, RolloutError


def order(iteration: int, count: int = 2) -> list[rollout_pb2.EpisodeSpec]:
    return [
        rollout_pb2.EpisodeSpec(
            episode_id=f"run:{iteration}:{index}",
            run_id="run",
            purpose=rollout_pb2.PURPOSE_TRAINING,
            iteration=iteration,
        )
        for index in range(count)
    ]


async def run_episodes(
    queue: RolloutQueue,
    count: int,
    versions: tuple[int, ...] = (),
    terms: str = "",
    frames: tuple[str, ...] = (),
) -> None:
    """`versions`: policy version of each action; `terms`: of the rewards; `frames`: of each step,
    and the final one; the episode's id is written on each.
    """
    for _ in range(count):
        delivery = await queue.next_episode("worker", block_seconds=5)
        trajectory = rollout_pb2.Trajectory(spec=delivery.message)
        for version in versions:
            trajectory.steps.add().action.policy_version = version
        for step, frame in zip(trajectory.steps, frames[:-1], strict=bool(frames)):
            step.image = f"{delivery.message.episode_id} {frame}".encode()
        if frames:
            trajectory.final_image = f"{delivery.message.episode_id} {frames[-1]}".encode()
        await queue.finish_episode(delivery, trajectory)
        (trajectory,) = await queue.next_trajectories("worker", 1, block_seconds=5)
        scores = rollout_pb2.RewardScores(model="outcome", terms=terms)
        await queue.finish_scoring(trajectory, scores)


def ids(collected: object) -> list[str]:
    return [trajectory.spec.episode_id for trajectory in collected.trajectories]


async def test_an_interrupted_trainer_gets_everything_again(valkey: Valkey) -> None:
    config = QueueConfig(url=valkey.url)
    async with RolloutQueue(config) as queue:
        killed = Collector(queue, "run", 5.0)
        await killed.issue(order(0))
        await run_episodes(queue, 2)
        first = await killed.collect(order(0), learned=0, oldest=0)
    async with RolloutQueue(config) as queue:
        again = Collector(queue, "run", 5.0)
        await again.issue(order(0))
        assert await queue.next_episode("worker", block_seconds=0.05) is None, "ordered twice"
        assert ids(await again.collect(order(0), learned=0, oldest=0)) == ids(first)


async def test_frames_lie_apart_from_their_trajectories(valkey: Valkey) -> None:
    """Those of an iteration that has come early, too; and again for a trainer that comes back."""
    config = QueueConfig(url=valkey.url)
    shown = ("first", "second", "final")
    for comes in ("first", "again"):
        async with RolloutQueue(config) as queue:
            collector = Collector(queue, "run", 5.0)
            await collector.issue(order(1))
            await collector.issue(order(0))
            if comes == "first":
                await run_episodes(queue, 4, (0, 0), frames=shown)
            for iteration in (0, 1):
                collected = await collector.collect(order(iteration), learned=0, oldest=0)
                assert not any(t.final_image for t in collected.trajectories)
                assert not any(step.image for t in collected.trajectories for step in t.steps)
                expected = [f"{one} {name}".encode() for one in ids(collected) for name in shown]
                assert list(collected.frames()) == expected
                (whole,) = collected.by_task()
                assert [t.final_image for t in whole] == expected[2::3]
                assert [step.image for t in whole for step in t.steps] == [
                    frame for place, frame in enumerate(expected) if place % 3 != 2
                ]
    await collector_settles(config)


async def collector_settles(config: QueueConfig) -> None:
    """What was mapped stays when the queue and the file are forgotten."""
    async with RolloutQueue(config) as queue:
        collector = Collector(queue, "run", 5.0)
        collected = await collector.collect(order(0), learned=0, oldest=0)
        frames = collected.frames()
        assert frames is not None
        await collector.settle(collected)
        assert frames[0] == b"run:0:0 first"
        assert await queue.outstanding("run") == {"run:1:0", "run:1:1"}


async def test_killed_between_checkpoint_and_acknowledgement(valkey: Valkey) -> None:
    """The checkpoint learned from iteration 0; its trajectories must not be learned from again."""
    config = QueueConfig(url=valkey.url)
    async with RolloutQueue(config) as queue:
        killed = Collector(queue, "run", 5.0)
        await killed.issue(order(0))
        await run_episodes(queue, 2)
        await killed.collect(order(0), learned=0, oldest=0)
    async with RolloutQueue(config) as queue:
        resumed = Collector(queue, "run", 5.0)
        await resumed.issue(order(1))
        await run_episodes(queue, 2)
        collected = await resumed.collect(order(1), learned=1, oldest=0)
        assert ids(collected) == ["run:1:0", "run:1:1"]
        assert await queue.outstanding("run") == {"run:1:0", "run:1:1"}
        await resumed.settle(collected)
        assert not await queue.outstanding("run")


async def test_episodes_that_come_early_are_kept_for_their_iteration(queue: RolloutQueue) -> None:
    collector = Collector(queue, "run", 5.0)
    await collector.issue(order(1))
    await run_episodes(queue, 2)
    await collector.issue(order(0))
    await run_episodes(queue, 2)
    assert ids(await collector.collect(order(0), learned=0, oldest=0)) == ["run:0:0", "run:0:1"]
    assert ids(await collector.collect(order(1), learned=1, oldest=0)) == ["run:1:0", "run:1:1"]


async def test_rewards_of_before_a_change_are_not_mixed_with_those_after(
    queue: RolloutQueue,
) -> None:
    """One episode waits with its rewards as the run goes on with others."""
    before, after = (
        reward_terms(OutcomeRewardConfig(success_reward=worth), PpoConfig()) for worth in (1.0, 2.0)
    )
    await Collector(queue, "run", 5.0).issue(order(0))
    await run_episodes(queue, 1, terms=before)
    resumed = Collector(queue, "run", 5.0, after)
    await resumed.issue(order(0))
    collecting = asyncio.create_task(resumed.collect(order(0), learned=0, oldest=0))
    await run_episodes(queue, 2, terms=after)
    collected = await collecting
    assert ids(collected) == ["run:0:0", "run:0:1"]
    assert {one.scores.terms for one in collected.trajectories} == {after}


async def test_reward_servers_of_another_configuration_are_told(queue: RolloutQueue) -> None:
    collector = Collector(queue, "run", 5.0, "these")
    await collector.issue(order(0))
    collecting = asyncio.create_task(collector.collect(order(0), learned=0, oldest=0))
    with pytest.raises(RolloutError, match=r"give the reward servers the same \[reward\]"):
        await asyncio.gather(collecting, run_episodes(queue, 4, terms="others"))


async def test_what_an_emptied_queue_has_lost_is_ordered_again(queue: RolloutQueue) -> None:
    """One episode has arrived, one is in work, one waits for its rewards, one for a worker."""
    collector = Collector(queue, "run", 30.0)
    await collector.issue(order(0, 4))
    collecting = asyncio.create_task(collector.collect(order(0, 4), learned=0, oldest=0))
    await run_episodes(queue, 1)
    while not collector._arrived:
        await asyncio.sleep(0.01)
    held = await queue.next_episode("slow", block_seconds=5)
    unscored = await queue.next_episode("worker", block_seconds=5)
    await queue.finish_episode(unscored, rollout_pb2.Trajectory(spec=unscored.message))
    await queue._redis.flushall()
    await run_episodes(queue, 3)
    collected = await collecting
    assert ids(collected) == [f"run:0:{index}" for index in range(4)]
    assert not await queue.finish_episode(held, rollout_pb2.Trajectory(spec=held.message))
    await collector.settle(collected)
    assert not await queue.outstanding("run")
    assert all(state.length == state.pending == 0 for state in await queue.states())


async def test_what_came_early_is_not_run_again_where_the_queue_was_emptied(
    queue: RolloutQueue,
) -> None:
    collector = Collector(queue, "run", 30.0)
    await collector.issue(order(1))
    await run_episodes(queue, 2)
    await collector.issue(order(0))
    await run_episodes(queue, 2)
    first = await collector.collect(order(0), learned=0, oldest=0)
    await queue._redis.flushall()
    await collector.settle(first)
    await collector.issue(order(1))
    assert await queue.next_episode("worker", block_seconds=0.05) is None
    assert ids(await collector.collect(order(1), learned=1, oldest=0)) == ["run:1:0", "run:1:1"]


async def test_an_emptied_queue_loses_no_episode_of_an_evaluation(queue: RolloutQueue) -> None:
    collector = Collector(queue, "run", 30.0)
    await collector.issue(order(0))
    ending = collector.as_they_end(order(0))
    await run_episodes(queue, 1)
    ended = [*ids(await anext(ending))]
    await queue._redis.flushall()
    working = asyncio.create_task(run_episodes(queue, 1))
    async for collected in ending:
        ended += ids(collected)
    await working
    assert sorted(ended) == ["run:0:0", "run:0:1"]


async def test_an_episode_of_an_older_policy_is_ordered_again(queue: RolloutQueue) -> None:
    """As after a restart of all services: simulators went on before the weights were back."""
    collector = Collector(queue, "run", 5.0)
    await collector.issue(order(3))
    await run_episodes(queue, 1, versions=(0, 3))
    await run_episodes(queue, 1, versions=(2, 3))
    collecting = asyncio.create_task(collector.collect(order(3), learned=3, oldest=2))
    await run_episodes(queue, 1, versions=(3, 3))
    collected = await collecting
    assert ids(collected) == ["run:3:0", "run:3:1"]
    acted = [[s.action.policy_version for s in t.steps] for t in collected.trajectories]
    assert acted == [[3, 3], [2, 3]]
    assert await queue.outstanding("run") == {"run:3:0", "run:3:1"}
    await collector.settle(collected)
    assert not await queue.outstanding("run")
    assert await queue.next_episode("worker", block_seconds=0.05) is None


@pytest.mark.parametrize("change", [{"temperature": 0.5}, {"max_actions": 9}])
async def test_episodes_that_were_out_when_the_run_changed_are_ordered_again(
    queue: RolloutQueue, change: dict[str, float]
) -> None:
    """A run may go on with another temperature; what was sampled at the old one isn't learned."""
    before = Collector(queue, "run", 5.0)
    await before.issue(order(0))
    await run_episodes(queue, 1)
    changed = order(0)
    for spec in changed:
        for name, value in change.items():
            setattr(spec, name, value)
        spec.task.index = 3  # as the curriculum would have it by now
    collector = Collector(queue, "run", 5.0)
    await collector.issue(changed)
    collecting = asyncio.create_task(collector.collect(changed, learned=0, oldest=0))
    await run_episodes(queue, 3)
    collected = await collecting
    assert [trajectory.spec for trajectory in collected.trajectories] == changed
    await collector.settle(collected)
    assert not await queue.outstanding("run")
    assert await queue.next_episode("worker", block_seconds=0.05) is None


async def test_a_given_up_episode_is_not_ordered_again(queue: RolloutQueue) -> None:
    collector = Collector(queue, "run", 5.0)
    await collector.issue(order(0))
    delivery = await queue.next_episode("worker", block_seconds=5)
    await queue.fail_episode(delivery, "no such task", final=True)
    await run_episodes(queue, 1)
    collected = await collector.collect(order(0), learned=0, oldest=0)
    assert [letter.cause for letter in collected.missing] == ["no such task"]
    await collector.settle(collected)
    await collector.issue(order(0, count=1))
    assert await queue.next_episode("worker", block_seconds=0.05) is None


async def test_an_iteration_without_any_episode_stops_the_run(queue: RolloutQueue) -> None:
    collector = Collector(queue, "run", 5.0)
    await collector.issue(order(0, count=1))
    delivery = await queue.next_episode("worker", block_seconds=5)
    await queue.fail_episode(delivery, "no such task", final=True)
    with pytest.raises(RolloutError, match=r"all 1 episodes .* env stage: no such task"):
        await collector.collect(order(0, count=1), learned=0, oldest=0)


async def test_nobody_at_work_is_noticed(queue: RolloutQueue) -> None:
    collector = Collector(queue, "run", timeout_seconds=0.1)
    await collector.issue(order(0))
    with pytest.raises(RolloutError, match="are env workers and a reward server running"):
        await collector.collect(order(0), learned=0, oldest=0)
