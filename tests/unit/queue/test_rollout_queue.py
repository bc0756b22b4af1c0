"""The queue on a real Valkey: what is delivered, moved, taken over, buried and forgotten."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from tests.conftest import Valkey
from vlarl.config import QueueConfig
from vlarl.queue import connection as queue_connection
from vlarl.queue.entries import Delivery
from vlarl.queue.gauges import QueueGauges
from vlarl.queue.rollout_queue import TRAJECTORIES, QueueError, RolloutQueue, check_queue
from vlarl.rollout.v1 import rollout_pb2
from vlarl_trainer.rollouts.collector import Collected

RUN = "run-a"


def spec(name: str, run_id: str = RUN) -> rollout_pb2.EpisodeSpec:
    return rollout_pb2.EpisodeSpec(episode_id=name, run_id=run_id)


def trajectory(order: rollout_pb2.EpisodeSpec) -> rollout_pb2.Trajectory:
    return rollout_pb2.Trajectory(spec=order, steps=[rollout_pb2.Step(image=b"\xff\xd8frame")])


async def take(queue: RolloutQueue, worker: str = "w") -> Delivery[rollout_pb2.EpisodeSpec]:
    delivery = await queue.next_episode(worker, block_seconds=2)
    assert delivery is not None
    return delivery


async def roll_out(queue: RolloutQueue) -> None:
    delivery = await take(queue)
    assert await queue.finish_episode(delivery, trajectory(delivery.message))


async def score(queue: RolloutQueue, *, frames: bool = True) -> None:
    for delivery in await queue.next_trajectories("r", 8, block_seconds=2, frames=frames):
        total = rollout_pb2.RewardScores(model="outcome", total=[1.0])
        assert await queue.finish_scoring(delivery, total)


async def blob_keys(queue: RolloutQueue) -> list[bytes]:
    return [key async for key in queue._redis.scan_iter("*:blob:*")]


async def test_an_episode_goes_round_and_leaves_nothing_behind(queue: RolloutQueue) -> None:
    assert await queue.issue([spec("a")]) == 1
    await roll_out(queue)
    await score(queue)
    (scored,) = await queue.next_scored(RUN, 8)
    assert scored.message.spec.episode_id == "a"
    assert scored.message.steps[0].image == b"\xff\xd8frame"
    assert list(scored.message.scores.total) == [1.0]
    assert await queue.outstanding(RUN) == {"a"}
    await queue.acknowledge(RUN, [scored])
    assert await queue.outstanding(RUN) == set()
    assert all(state.length == state.pending == 0 for state in await queue.states())
    assert await blob_keys(queue) == []


async def test_waiting_for_rewards_is_measured_by_the_queues_clock(queue: RolloutQueue) -> None:
    order = spec("b")
    order.unscored = True
    await queue.issue([spec("a"), order])
    await roll_out(queue)
    (ready,) = await queue.next_trajectories("r", 8, block_seconds=2)
    await asyncio.sleep(0.3)
    await queue.finish_scoring(ready, rollout_pb2.RewardScores(model="outcome", total=[1.0]))
    await roll_out(queue)
    scored, counted = await queue.next_scored(RUN, 8)
    assert scored.ended == ready.added
    # The clock is the queue's, of whole milliseconds.
    assert scored.added - scored.ended >= 0.299
    assert counted.ended == counted.added
    # "a" has had its rewards before "b" ended.
    assert Collected([scored, counted], []).reward_seconds == 0
    assert Collected([scored], []).reward_seconds == scored.added - scored.ended
    assert Collected([], []).reward_seconds == 0


async def test_prometheus_sees_what_waits_and_what_is_in_work(queue: RolloutQueue) -> None:
    registry = CollectorRegistry()
    gauges = QueueGauges(registry)
    await queue.issue([spec(name) for name in "abcd"])
    await roll_out(queue)
    held = await take(queue)
    lost = await take(queue)
    await queue.fail_episode(lost, "broken", final=True)
    await gauges.look(queue)
    shown = {
        (name, stream): registry.get_sample_value(f"vlarl_queue_{name}", {"stream": stream})
        for name in ("waiting", "in_work")
        for stream in ("episodes", "trajectories")
    }
    assert shown == {
        ("waiting", "episodes"): 1,
        ("in_work", "episodes"): 1,
        ("waiting", "trajectories"): 1,
        ("in_work", "trajectories"): 0,
    }
    assert registry.get_sample_value("vlarl_queue_dead_letters") == 1
    await queue.release_episode(held)


async def test_an_unscored_episode_skips_the_reward_servers(queue: RolloutQueue) -> None:
    order = spec("a")
    order.unscored = True
    await queue.issue([order])
    await roll_out(queue)
    assert await queue.next_trajectories("r", 8, block_seconds=0.05) == []
    (counted,) = await queue.next_scored(RUN, 8)
    assert counted.message.spec == order
    assert not counted.message.scores.total
    await queue.acknowledge(RUN, [counted])
    assert all(state.length == state.pending == 0 for state in await queue.states())


async def test_an_episode_is_ordered_once(queue: RolloutQueue) -> None:
    assert await queue.issue([spec("a"), spec("b")]) == 2
    assert await queue.issue([spec("b"), spec("c")]) == 1


async def test_runs_do_not_see_each_others_trajectories(queue: RolloutQueue) -> None:
    await queue.issue([spec("a", "one"), spec("b", "two")])
    await roll_out(queue)
    await roll_out(queue)
    await score(queue)
    (scored,) = await queue.next_scored("two", 8)
    assert scored.message.spec.episode_id == "b"
    assert await queue.outstanding("one") == {"a"}


async def test_a_trainer_that_comes_back_is_given_the_unacknowledged_again(valkey: Valkey) -> None:
    config = QueueConfig(url=valkey.url)
    async with RolloutQueue(config) as queue:
        await queue.issue([spec("a"), spec("b")])
        await roll_out(queue)
        await score(queue)
        (first,) = await queue.next_scored(RUN, 8)
    async with RolloutQueue(config) as queue:
        (again,) = await queue.next_scored(RUN, 8)
        assert again.message == first.message
        assert await queue.next_scored(RUN, 8, block_seconds=0.05) == []
        await roll_out(queue)
        await score(queue)
        (fresh,) = await queue.next_scored(RUN, 8)
        assert fresh.message.spec.episode_id == "b"


async def test_a_dead_workers_episode_is_taken_over_and_finished_once(valkey: Valkey) -> None:
    config = QueueConfig(url=valkey.url, claim_after_seconds=0.3)
    async with RolloutQueue(config) as rescuer:
        async with RolloutQueue(config) as dying:
            await dying.issue([spec("a")])
            lost = await take(dying, "dead")
        await asyncio.sleep(0.4)
        taken = await take(rescuer, "alive")
        assert (taken.message, taken.deliveries) == (lost.message, 2)
        assert await rescuer.finish_episode(taken, trajectory(taken.message))
        # The first worker was only slow: its own trajectory must not go on a second time.
        assert not await rescuer.finish_episode(lost, trajectory(lost.message))
        assert len(await rescuer.next_trajectories("r", 8)) == 1


async def test_a_slow_worker_that_lives_keeps_its_episode(valkey: Valkey) -> None:
    config = QueueConfig(url=valkey.url, claim_after_seconds=0.3)
    async with RolloutQueue(config) as slow, RolloutQueue(config) as other:
        await slow.issue([spec("a")])
        held = await take(slow, "slow")
        await asyncio.sleep(0.8)
        assert await other.next_episode("other", block_seconds=0.05) is None
        assert await slow.finish_episode(held, trajectory(held.message))


async def test_failures_are_retried_then_buried_with_their_cause(queue: RolloutQueue) -> None:
    await queue.issue([spec("a")])
    for expected in (1, 2, 3):
        delivery = await take(queue)
        assert delivery.deliveries == expected
        await queue.fail_episode(delivery, f"simulator died ({expected})")
    assert await queue.next_episode("w", block_seconds=0.05) is None
    (letter,) = await queue.dead_letters(RUN)
    assert (letter.spec.episode_id, letter.stage, letter.deliveries) == ("a", "env", 3)
    assert letter.cause == "simulator died (3)"
    await queue.abandon(RUN, ["a"])
    assert await queue.outstanding(RUN) == set()


async def test_hundreds_of_simulators_may_wait_at_once(queue: RolloutQueue) -> None:
    await queue.issue([spec("a")])
    waiting = [queue.next_episode(f"w{number}", block_seconds=0.5) for number in range(256)]
    found = [delivery for delivery in await asyncio.gather(*waiting) if delivery is not None]
    assert [delivery.message.episode_id for delivery in found] == ["a"]


async def test_handing_back_costs_no_try(queue: RolloutQueue) -> None:
    await queue.issue([spec("a")])
    for _ in range(5):
        await queue.release_episode(await take(queue))
    assert (await take(queue)).deliveries == 1


async def fetched(queue: RolloutQueue) -> int:
    """How many blobs have been read from the server since it started."""
    stats = await queue._redis.info("commandstats")
    return stats.get("cmdstat_get", {"calls": 0})["calls"]


async def test_frames_go_past_a_scorer_that_looks_at_none(queue: RolloutQueue) -> None:
    await queue.issue([spec("a")])
    await roll_out(queue)
    (delivery,) = await queue.next_trajectories("r", 8, block_seconds=2, frames=False)
    expected = trajectory(delivery.message.spec)
    expected.steps[0].ClearField("image")
    assert delivery.message == expected
    # Handed back and failed, it goes on as it was.
    await queue.release_trajectory(delivery)
    (delivery,) = await queue.next_trajectories("r", 8, block_seconds=2, frames=False)
    await queue.fail_scoring(delivery, "no reward")
    (delivery,) = await queue.next_trajectories("r", 8, block_seconds=2, frames=False)
    assert (delivery.message, delivery.deliveries) == (expected, 2)
    assert await queue.finish_scoring(delivery, rollout_pb2.RewardScores(total=[1.0]))
    assert await fetched(queue) == 0
    (scored,) = await queue.next_scored(RUN, 8)
    assert await fetched(queue) == 1
    assert scored.message.steps[0].image == b"\xff\xd8frame"
    assert scored.fields.keys().isdisjoint({b"outline"}), "nobody needs it any more"
    await queue.acknowledge(RUN, [scored])
    assert await blob_keys(queue) == []


async def test_an_outline_whose_frames_were_lost_is_ordered_again(queue: RolloutQueue) -> None:
    await queue.issue([spec("a")])
    await roll_out(queue)
    await queue._redis.delete(*await blob_keys(queue))
    (delivery,) = await queue.next_trajectories("r", 8, block_seconds=2, frames=False)
    assert await queue.finish_scoring(delivery, rollout_pb2.RewardScores(total=[1.0]))
    assert await queue.next_scored(RUN, 8, block_seconds=0.05) == []
    assert await queue.outstanding(RUN) == set(), "a collector orders it again"


async def test_an_entry_that_is_no_episode_is_buried(queue: RolloutQueue) -> None:
    await queue.issue([spec("a")])
    await queue._redis.xadd("{vlarl}:episodes", {"spec": b"\xff\xff\xff"})
    await roll_out(queue)
    assert await queue.next_episode("w", block_seconds=0.05) is None
    (letter,) = await queue.dead_letters()
    assert letter.cause.startswith("not an EpisodeSpec")


async def test_a_killed_server_loses_nothing(valkey: Valkey, queue: RolloutQueue) -> None:
    await queue.issue([spec("a"), spec("b")])
    held = await take(queue)
    valkey.kill()
    valkey.start()
    assert await queue.finish_episode(held, trajectory(held.message))
    assert (await take(queue)).message.episode_id == "b"
    assert await queue.outstanding(RUN) == {"a", "b"}


async def test_blobs_may_lie_in_files(valkey: Valkey, tmp_path: Path) -> None:
    config = QueueConfig(url=valkey.url, blobs=f"file://{tmp_path}/blobs")
    async with RolloutQueue(config) as queue:
        await queue.issue([spec("a")])
        await roll_out(queue)
        assert len(list((tmp_path / "blobs").iterdir())) == 1
        await score(queue)
        await queue.acknowledge(RUN, await queue.next_scored(RUN, 8))
        assert list((tmp_path / "blobs").iterdir()) == []


async def test_frames_in_files_do_not_cross_redis(valkey: Valkey, tmp_path: Path) -> None:
    config = QueueConfig(url=valkey.url, blobs=f"file://{tmp_path}/blobs")
    async with RolloutQueue(config) as queue:

        async def traffic() -> int:
            stats = await queue._redis.info("stats")
            return int(stats["total_net_input_bytes"] + stats["total_net_output_bytes"])

        await queue.issue([spec("a")])
        delivery = await take(queue)
        large = trajectory(delivery.message)
        large.steps[0].image = bytes(1 << 20)
        before = await traffic()
        assert await queue.finish_episode(delivery, large)
        await score(queue, frames=False)
        (scored,) = await queue.next_scored(RUN, 8)
        assert len(scored.message.steps[0].image) == 1 << 20
        assert await traffic() - before < 32 << 10


async def test_a_blob_whose_store_was_lost_is_ordered_again(valkey: Valkey, tmp_path: Path) -> None:
    config = QueueConfig(url=valkey.url, blobs=f"file://{tmp_path}/blobs")
    async with RolloutQueue(config) as queue:
        await queue.issue([spec("scored"), spec("ended")])
        await roll_out(queue)
        await score(queue)
        await roll_out(queue)
        shutil.rmtree(tmp_path / "blobs")
        assert await queue.next_scored(RUN, 8, block_seconds=0.05) == []
        assert await queue.next_trajectories("w", 8, block_seconds=0.05) == []
        assert await queue.outstanding(RUN) == set(), "a collector orders them again"
        assert all(state.length == state.pending == 0 for state in await queue.states())


async def test_a_blob_in_another_store_is_named_with_it(valkey: Valkey, tmp_path: Path) -> None:
    there, here = f"file://{tmp_path}/there", f"file://{tmp_path}/here"
    async with RolloutQueue(QueueConfig(url=valkey.url, blobs=there)) as queue:
        await queue.issue([spec("a")])
        await roll_out(queue)
        await score(queue)
    async with RolloutQueue(QueueConfig(url=valkey.url, blobs=here)) as queue:
        with pytest.raises(QueueError, match=f"go on with queue.blobs = {there}"):
            await queue.next_scored(RUN, 8)
    async with RolloutQueue(QueueConfig(url=valkey.url, blobs=there)) as queue:
        assert len(await queue.next_scored(RUN, 8)) == 1, "nothing was lost by it"


async def test_a_blob_that_a_trainer_clears_as_it_is_written_is_written(
    valkey: Valkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A's order was taken over, and ends elsewhere between the two halves of A's writing."""
    config = QueueConfig(url=valkey.url, blobs=f"file://{tmp_path}/blobs")
    async with RolloutQueue(config) as queue:
        await queue.issue([spec("a")])
        held = await take(queue)
        files, cleared = queue._blobs._files, []
        move = files.mv

        def cleared_meanwhile(part: str, name: str) -> None:
            if not cleared:
                cleared.append(part)
                Path(part).unlink()
            move(part, name)

        monkeypatch.setattr(files, "mv", cleared_meanwhile)
        assert await queue.finish_episode(held, trajectory(held.message))
        assert cleared
        assert len(list((tmp_path / "blobs").iterdir())) == 1


@pytest.mark.parametrize("store", ["redis", "files"])
async def test_a_late_worker_does_not_change_what_was_scored(
    valkey: Valkey, tmp_path: Path, store: str
) -> None:
    """A is slow, B takes its order over and finishes, B's steps are scored, and then comes A."""
    blobs = tmp_path / "blobs"
    config = QueueConfig(
        url=valkey.url,
        claim_after_seconds=0.3,
        blobs="redis" if store == "redis" else f"file://{blobs}",
    )
    async with RolloutQueue(config) as rescuer:
        async with RolloutQueue(config) as slow:
            await slow.issue([spec("a")])
            late = await take(slow, "slow")
        await asyncio.sleep(0.4)
        taken = await take(rescuer, "rescuer")
        finished = trajectory(taken.message)
        assert await rescuer.finish_episode(taken, finished)
        await score(rescuer)
        other = trajectory(late.message)
        other.steps.add()
        assert not await rescuer.finish_episode(late, other)
        (scored,) = await rescuer.next_scored(RUN, 8)
        assert list(scored.message.steps) == list(finished.steps)
        await rescuer.acknowledge(RUN, [scored])
        # Now nobody wants it at all.
        assert not await rescuer.finish_episode(late, other)
        assert await blob_keys(rescuer) == []
        assert not blobs.exists() or list(blobs.iterdir()) == []


async def test_who_has_lost_an_order_can_neither_fail_it_nor_hand_it_back(valkey: Valkey) -> None:
    config = QueueConfig(url=valkey.url, claim_after_seconds=0.3)
    async with RolloutQueue(config) as rescuer:
        async with RolloutQueue(config) as slow:
            await slow.issue([spec("a")])
            late = await take(slow, "slow")
        await asyncio.sleep(0.4)
        taken = await take(rescuer, "rescuer")
        await rescuer.fail_episode(late, "too slow", final=True)
        await rescuer.release_episode(late)
        assert await rescuer.dead_letters(RUN) == []
        assert await rescuer.finish_episode(taken, trajectory(taken.message))


async def test_an_episode_that_was_abandoned_in_work_ends_there(queue: RolloutQueue) -> None:
    await queue.issue([spec("running"), spec("waiting"), spec("scored")])
    running = await take(queue)
    assert running.message.episode_id == "running"
    await queue.abandon(RUN, ["running", "waiting"])
    assert not await queue.finish_episode(running, trajectory(running.message))
    assert await queue.next_episode("w", block_seconds=0.05) is None
    await roll_out(queue)
    await score(queue)
    await queue.abandon(RUN, ["scored"])
    assert await queue.next_scored(RUN, 8, block_seconds=0.05) == []
    assert all(state.length == state.pending == 0 for state in await queue.states())
    assert await blob_keys(queue) == []


async def test_acknowledging_twice_does_not_take_a_new_order_away(queue: RolloutQueue) -> None:
    await queue.issue([spec("a")])
    await roll_out(queue)
    await score(queue)
    scored = await queue.next_scored(RUN, 8)
    await queue.acknowledge(RUN, scored)
    await queue.issue([spec("a")])
    await queue.acknowledge(RUN, scored)
    assert await queue.outstanding(RUN) == {"a"}


async def test_two_queues_may_share_a_folder(tmp_path: Path) -> None:
    """Evaluations share even their run's name."""
    blobs = f"file://{tmp_path}/blobs"
    servers = [Valkey(Path(tempfile.mkdtemp(prefix="vlarl-"))) for _ in range(2)]
    async with contextlib.AsyncExitStack() as stack:
        queues = []
        for server in servers:
            server.start()
            stack.callback(shutil.rmtree, server.directory)
            stack.callback(server.kill)
            config = QueueConfig(url=server.url, blobs=blobs)
            queues.append(await stack.enter_async_context(RolloutQueue(config)))
        one, other = queues
        for queue in queues:
            await queue.issue([spec("a")])
            await roll_out(queue)
            await score(queue)
        await one.acknowledge(RUN, await one.next_scored(RUN, 8))
        (scored,) = await other.next_scored(RUN, 8)
        assert scored.message.spec == spec("a")


@pytest.mark.parametrize("frames", [True, False])
async def test_entries_of_version_0_1_0_are_read(queue: RolloutQueue, frames: bool) -> None:
    """They name no blob: it lay under the episode's id. Nor have they an outline."""
    await queue.issue([spec("a")])
    order = await take(queue)
    await queue._redis.set("{vlarl}:blob:a", trajectory(order.message).SerializeToString())
    await queue._entries.move(order, order.message, TRAJECTORIES, {"id": "a", "failures": 0})
    await score(queue, frames=frames)
    (scored,) = await queue.next_scored(RUN, 8)
    assert scored.message.steps[0].image == b"\xff\xd8frame"
    await queue.acknowledge(RUN, [scored])
    assert await blob_keys(queue) == []


async def test_an_emptied_queue_goes_on_with_new_orders(queue: RolloutQueue) -> None:
    await queue.issue([spec("lost")])
    held = await take(queue)
    reading = asyncio.create_task(queue.next_trajectories("r", 8, block_seconds=1.0))
    await asyncio.sleep(0.1)
    await queue._redis.flushall()
    assert await reading == []
    assert not await queue.finish_episode(held, trajectory(held.message))
    assert await queue.next_scored(RUN, 8, block_seconds=0.05) == []
    await queue.issue([spec("new")])
    await roll_out(queue)
    await score(queue)
    (scored,) = await queue.next_scored(RUN, 8)
    assert scored.message.spec.episode_id == "new"
    assert await queue.outstanding(RUN) == {"new"}


async def test_an_emptied_queue_shows_zeros(queue: RolloutQueue) -> None:
    registry = CollectorRegistry()
    gauges = QueueGauges(registry)
    await queue.issue([spec("a")])
    await gauges.look(queue)
    await queue._redis.flushall()
    await gauges.look(queue)
    for stream in ("episodes", "trajectories", "scored"):
        assert registry.get_sample_value("vlarl_queue_waiting", {"stream": stream}) == 0
        assert registry.get_sample_value("vlarl_queue_in_work", {"stream": stream}) == 0


async def test_a_server_that_refuses_midway_is_one_clear_error(valkey: Valkey) -> None:
    """Full memory, a full disk, a replica: whatever a command says."""

    async def order() -> None:
        async with RolloutQueue(QueueConfig(url=valkey.url)) as queue:
            await queue._redis.config_set("maxmemory", 1)
            await queue.issue([spec("a")])

    with pytest.raises(QueueError, match=r"the queue at unix:.* failed: .*maxmemory"):
        await order()


async def test_a_cancellation_is_heard_whenever_it_comes(queue: RolloutQueue) -> None:
    await queue.next_scored(RUN, 1, 0.01)
    for steps in range(40):
        reading = asyncio.create_task(queue.next_scored(RUN, 1, block_seconds=1.0))
        for _ in range(steps):
            await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            assert await reading is None, f"it read on, cancelled after {steps} steps of the loop"


async def test_a_server_that_evicts_is_refused(valkey: Valkey, queue: RolloutQueue) -> None:
    await queue._redis.config_set("maxmemory-policy", "allkeys-lru")
    with pytest.raises(QueueError, match="noeviction"):
        async with RolloutQueue(QueueConfig(url=valkey.url)):
            pass


async def test_no_server_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(QueueError, match="no queue at unix:"):
        async with RolloutQueue(QueueConfig(url=f"unix://{tmp_path}/nothing")):
            pass


async def test_a_server_that_never_answers_is_one_clear_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(queue_connection, "_TRY_SECONDS", 0.2)
    async with await asyncio.start_server(lambda *_: None, "127.0.0.1", 0) as silent:
        port = silent.sockets[0].getsockname()[1]
        with pytest.raises(QueueError, match=rf"no queue at .*:{port}: no answer for 0\.2 s"):
            await check_queue(QueueConfig(url=f"redis://127.0.0.1:{port}"))


async def test_who_only_looks_for_a_queue_tries_once() -> None:
    tries = []

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tries.append(writer)
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(QueueError, match=r"no queue at .* up CONFIG` starts one"):
            await check_queue(QueueConfig(url=f"redis://127.0.0.1:{port}/0"))
    assert len(tries) == 1
