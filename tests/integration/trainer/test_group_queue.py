"""Groups over a real queue: whatever happens, what is learned from is the same, once, and whole."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import pytest

import vlarl_trainer.rollouts.collector as collector_module
from tests.conftest import Valkey
from vlarl.config import CurriculumConfig, QueueConfig, RunConfig, TasksConfig, TrainerConfig
from vlarl.queue.rollout_queue import RolloutQueue
from vlarl.rollout.v1 import rollout_pb2
from vlarl_trainer.rollouts.collector import Collected, Collector
from vlarl_trainer.rollouts.curriculum import Curriculum
from vlarl_trainer.rollouts.groups import GroupPlan

SIZE, SLOTS, ATTEMPTS = 3, 2, 3

Play = Callable[[rollout_pb2.EpisodeSpec], bool | None]
"""Whether an episode succeeds; None: it is given up."""


def plan(seed: int = 3, **changes: object) -> GroupPlan:
    grpo = {"group_size": SIZE, "max_attempts": ATTEMPTS, "keep_between": (0.3, 0.7)}
    config = RunConfig(
        name="run",
        seed=seed,
        tasks=TasksConfig(indices=(1, 4)),
        trainer=TrainerConfig(
            algorithm="grpo", episodes_per_iteration=SIZE * SLOTS, grpo=grpo | changes
        ),
    )
    return GroupPlan(config, Curriculum((1, 4), CurriculumConfig()), "key")


def place(spec: rollout_pb2.EpisodeSpec) -> tuple[int, int, int]:
    """Slot, attempt and member."""
    _, _, attempt, slot, member = spec.episode_id.split(":")
    return int(slot), int(attempt), int(member)


def mixed(spec: rollout_pb2.EpisodeSpec) -> bool:
    """The first slot is kept at the third attempt, the second at once."""
    slot, attempt, member = place(spec)
    return member == 0 if attempt == 2 or slot else attempt == 1


EXPECTED = [f"run:00000:{at}:0{n}" for at in ("02:0000", "00:0001") for n in range(SIZE)]
"""What is learned from then."""
FIRST = [f"run:00000:00:{slot:04d}:0{n}" for slot in range(SLOTS) for n in range(SIZE)]
FURTHER = [f"run:00000:0{attempt}:0000:0{n}" for attempt in (1, 2) for n in range(SIZE)]


async def work(queue: RolloutQueue, play: Play, count: int, version: int = 0) -> list[str]:
    """Runs episodes and scores them; returns their ids."""
    ran = []
    for _ in range(count):
        delivery = await queue.next_episode("worker", block_seconds=10)
        assert delivery is not None, "nothing was ordered"
        ran.append(delivery.message.episode_id)
        if (success := play(delivery.message)) is None:
            await queue.fail_episode(delivery, "the simulator broke", final=True)
            continue
        outcome = rollout_pb2.OUTCOME_SUCCESS if success else rollout_pb2.OUTCOME_TIME_LIMIT
        trajectory = rollout_pb2.Trajectory(spec=delivery.message, outcome=outcome)
        trajectory.steps.add().action.policy_version = version
        await queue.finish_episode(delivery, trajectory)
        for scored in await queue.next_trajectories("worker", 4, block_seconds=5):
            await queue.finish_scoring(scored, rollout_pb2.RewardScores(total=[float(success)]))
    return ran


async def collect(collector: Collector, groups: GroupPlan, oldest: int = 0) -> Collected:
    """As the training loop does."""
    await collector.issue(groups.first(0))
    return await collector.collect(
        groups.first(0), learned=0, oldest=oldest, further=lambda ended: groups.further(0, ended)
    )


def ids(trajectories: Iterable[rollout_pb2.Trajectory]) -> list[str]:
    return [trajectory.spec.episode_id for trajectory in trajectories]


async def is_empty(queue: RolloutQueue) -> bool:
    assert not await queue.outstanding("run")
    assert await queue.next_episode("worker", block_seconds=0.05) is None
    return all(state.length == state.pending == 0 for state in await queue.states())


async def test_dropped_groups_are_ordered_anew_and_stay_until_all_is_durable(
    queue: RolloutQueue,
) -> None:
    collector, groups = Collector(queue, "run", 10.0), plan()
    collected, ran = await asyncio.gather(collect(collector, groups), work(queue, mixed, 12))
    assert ran == FIRST + FURTHER
    assert ids(collected.trajectories) == ran
    review = groups.review(0, collected.ended)
    assert ids(collected.only(review.kept).trajectories) == EXPECTED
    assert await queue.outstanding("run") == set(ran), "a dropped group was forgotten too early"
    await collector.settle(collected)
    assert await is_empty(queue)


@pytest.mark.parametrize("done", range(13))
async def test_a_trainer_killed_in_the_middle_of_groups_comes_to_the_same_end(
    valkey: Valkey, done: int
) -> None:
    """After each number of episodes; no episode is run twice, and none of a group is missing."""
    config = QueueConfig(url=valkey.url)
    async with RolloutQueue(config) as queue:
        killed = asyncio.create_task(collect(Collector(queue, "run", 10.0), plan()))
        ran = await work(queue, mixed, done)
        killed.cancel()
        await asyncio.wait([killed])
    async with RolloutQueue(config) as queue:
        collector, groups = Collector(queue, "run", 10.0), plan()
        collecting = asyncio.create_task(collect(collector, groups))
        ran += await work(queue, mixed, 12 - done)
        collected = await collecting
        assert sorted(ran) == sorted(FIRST + FURTHER)
        assert ids(collected.trajectories) == FIRST + FURTHER
        assert groups.review(0, collected.ended).kept == EXPECTED
        await collector.settle(collected)
        assert await is_empty(queue)


async def test_an_emptied_queue_changes_no_review(queue: RolloutQueue) -> None:
    """In the middle of a further attempt, one of whose members is in work."""
    collector, groups = Collector(queue, "run", 30.0), plan()
    collecting = asyncio.create_task(collect(collector, groups))
    await work(queue, mixed, 7)
    held = await queue.next_episode("slow", block_seconds=5)
    while len(collector._arrived) < 7:
        await asyncio.sleep(0.01)
    await queue._redis.flushall()
    ran = await work(queue, mixed, 5)
    collected = await collecting
    assert sorted(ran) == sorted(FURTHER[1:])
    assert not await queue.finish_episode(held, rollout_pb2.Trajectory(spec=held.message))
    assert groups.review(0, collected.ended).kept == EXPECTED
    await collector.settle(collected)
    assert await is_empty(queue)


async def test_a_stale_member_has_its_whole_group_ordered_anew(queue: RolloutQueue) -> None:
    """Once the last member is there; the other group isn't touched."""
    collector, groups = Collector(queue, "run", 10.0), plan(keep_between=(0.0, 1.0))
    await collector.issue(groups.first(0))
    await work(queue, mixed, 1, version=1)
    collecting = asyncio.create_task(collect(collector, groups, oldest=2))
    await work(queue, mixed, 1, version=2)
    assert await work(queue, mixed, 1, version=3) == FIRST[2:3], "ordered before all had ended"
    ran = await work(queue, mixed, 6, version=3)
    assert ran == FIRST[3:] + FIRST[:3]
    collected = await collecting
    assert ids(collected.trajectories) == FIRST
    acted = [one.steps[0].action.policy_version for one in collected.trajectories]
    assert acted == [3] * 6
    await collector.settle(collected)
    assert await is_empty(queue)


async def test_a_trainer_killed_as_it_orders_a_stale_group_anew_learns_no_half_of_it(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old members are acknowledged at once, and the new ones not yet ordered."""
    config, groups = QueueConfig(url=valkey.url), plan(keep_between=(0.0, 1.0))
    async with RolloutQueue(config) as queue:
        killed = Collector(queue, "run", 10.0)
        await killed.issue(groups.first(0))
        await work(queue, mixed, 1, version=1)
        await work(queue, mixed, 5, version=2)

        async def die(specs: Iterable[rollout_pb2.EpisodeSpec]) -> int:
            raise KeyboardInterrupt if list(specs) else AssertionError

        monkeypatch.setattr(queue, "issue", die)
        with pytest.raises(KeyboardInterrupt):
            await killed.collect(groups.first(0), learned=0, oldest=2)
    async with RolloutQueue(config) as queue:
        assert await queue.outstanding("run") == set(FIRST[3:])
        collector = Collector(queue, "run", 10.0)
        collecting = asyncio.create_task(collect(collector, plan(keep_between=(0.0, 1.0)), 2))
        assert await work(queue, mixed, 3, version=2) == FIRST[:3]
        assert ids((await collecting).trajectories) == FIRST


async def test_groups_of_another_task_or_placement_are_ordered_anew(queue: RolloutQueue) -> None:
    """As where a run goes on with another seed while episodes are out."""
    before, groups = plan(seed=4), plan(keep_between=(0.0, 1.0))
    await Collector(queue, "run", 10.0).issue(before.first(0))
    await work(queue, mixed, 6)
    collector = Collector(queue, "run", 10.0)
    collecting = asyncio.create_task(collect(collector, groups))
    await work(queue, mixed, 6)
    collected = await collecting
    assert [one.spec for one in collected.trajectories] == groups.first(0)


async def test_a_group_that_shrank_is_reviewed_while_others_still_come(
    queue: RolloutQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its dead letter isn't left until nothing has come for a while."""
    monkeypatch.setattr(collector_module, "_BLOCK_SECONDS", 60.0)
    collector, groups = Collector(queue, "run", 10.0), plan()
    collecting = asyncio.create_task(collect(collector, groups))
    held = [await queue.next_episode("worker", block_seconds=5) for _ in range(6)]

    async def finish(number: int) -> None:
        delivery = held[number]
        trajectory = rollout_pb2.Trajectory(spec=delivery.message)
        trajectory.outcome = rollout_pb2.OUTCOME_TIME_LIMIT
        await queue.finish_episode(delivery, trajectory)
        (scored,) = await queue.next_trajectories("worker", 1, block_seconds=5)
        await queue.finish_scoring(scored, rollout_pb2.RewardScores(total=[0.0]))

    await finish(0)
    for number in (1, 2):
        await queue.fail_episode(held[number], "the simulator broke", final=True)
    await finish(3)
    new = await queue.next_episode("worker", block_seconds=10)
    assert new is not None, "looked at when idle only"
    assert new.message.group_id == "run:00000:01:0000"
    collecting.cancel()
    await asyncio.wait([collecting])


async def test_dead_letters_shrink_groups_and_are_settled_with_them(queue: RolloutQueue) -> None:
    """The first slot has two left, unalike; the second has one: void, and ordered anew."""

    def play(spec: rollout_pb2.EpisodeSpec) -> bool | None:
        slot, attempt, member = place(spec)
        if attempt:
            return member == 0
        return member == 0 if member < 2 - slot else None

    collector, groups = Collector(queue, "run", 10.0), plan(keep_between=(0.3, 0.7))
    collected, ran = await asyncio.gather(collect(collector, groups), work(queue, play, 9))
    assert [letter.spec.episode_id for letter in collected.missing] == [
        "run:00000:00:0000:02",
        "run:00000:00:0001:01",
        "run:00000:00:0001:02",
    ]
    second = [f"run:00000:01:0001:0{n}" for n in range(SIZE)]
    assert ran == FIRST + second
    assert groups.review(0, collected.ended).kept == [*FIRST[:2], *second]
    await collector.settle(collected)
    assert await is_empty(queue)


async def test_attempts_that_another_filter_would_not_have_ordered_are_settled(
    valkey: Valkey,
) -> None:
    """A run may go on with other bounds while a further attempt is out."""
    config = QueueConfig(url=valkey.url)
    async with RolloutQueue(config) as queue:
        killed = asyncio.create_task(collect(Collector(queue, "run", 10.0), plan()))
        await work(queue, mixed, 8)
        killed.cancel()
        await asyncio.wait([killed])
    async with RolloutQueue(config) as queue:
        collector, wider = Collector(queue, "run", 10.0), plan(keep_between=(0.0, 1.0))
        collected = await collect(collector, wider)
        assert ids(collected.trajectories) == FIRST
        await work(queue, mixed, 1)
        await collector.settle(collected)
        # What ended too late is dropped as the next iteration comes upon it.
        assert await queue.outstanding("run") <= set(FURTHER[:3])
        later = plan().first(1)
        await collector.issue(later)
        collecting = asyncio.create_task(collector.collect(later, learned=1, oldest=0))
        await work(queue, mixed, 6)
        await collector.settle(await collecting)
        assert not collector._arrived
        assert await is_empty(queue)


async def test_a_group_that_was_given_up_while_no_trainer_was_there_is_ordered_anew(
    valkey: Valkey,
) -> None:
    """A further attempt, all of whose members are dead letters."""
    config = QueueConfig(url=valkey.url)

    def play(spec: rollout_pb2.EpisodeSpec) -> bool | None:
        _, attempt, _ = place(spec)
        return None if attempt == 1 else mixed(spec)

    async with RolloutQueue(config) as queue:
        killed = asyncio.create_task(collect(Collector(queue, "run", 10.0), plan()))
        ran = await work(queue, play, 6)
        first = await queue.next_episode("worker", block_seconds=10)
        killed.cancel()
        await asyncio.wait([killed])
        await queue.release_episode(first)
        ran += await work(queue, play, 3)
    async with RolloutQueue(config) as queue:
        collector, groups = Collector(queue, "run", 10.0), plan()
        collected, more = await asyncio.gather(collect(collector, groups), work(queue, play, 3))
        assert sorted(ran + more) == sorted(FIRST + FURTHER)
        assert len(collected.missing) == SIZE
        assert groups.review(0, collected.ended).kept == EXPECTED
        await collector.settle(collected)
        assert await is_empty(queue)
