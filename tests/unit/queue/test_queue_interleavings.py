"""The queue under random interleavings of everything that workers, trainers and servers suffer.

Each episode reaches the trainer once, with the rewards of the steps that it carries, and when all
are settled nothing is left over. Nothing here waits for time to pass: an entry whose worker is
silent is told to Redis to have been idle for long.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.conftest import Valkey
from vlarl.config import QueueConfig
from vlarl.policy.v1 import policy_pb2
from vlarl.queue.entries import Delivery
from vlarl.queue.rollout_queue import DEAD, EPISODES, TRAJECTORIES, RolloutQueue, scored_stream
from vlarl.rollout.v1 import rollout_pb2

RUN = "run"
WORKERS = ("a", "b", "c")
LONG_IDLE = 10_000_000
"""Milliseconds; far more than `claim_after_seconds`."""

T = TypeVar("T")
Order = Delivery[rollout_pb2.EpisodeSpec]
Ready = Delivery[rollout_pb2.Trajectory]

workers = st.sampled_from(WORKERS)
mishaps = st.sampled_from(["", "", "", "before", "after", "twice"])
"""What befalls the script that ends an operation: its process dies before or after it, or its
answer is lost and it is sent again.
"""


class DiedError(Exception):
    """The process is gone, whatever it had done."""


class Actor:
    """A process with a connection of its own, which may die within an operation."""

    def __init__(self, config: QueueConfig) -> None:
        self.queue = RolloutQueue(config)
        self._eval = self.queue._redis.eval
        self.queue._redis.eval = self._script
        self.mishap = ""

    async def _script(self, *arguments: str | bytes | int | float) -> object:
        mishap, self.mishap = self.mishap, ""
        if mishap == "before":
            raise DiedError
        answer = await self._eval(*arguments)
        if mishap == "after":
            raise DiedError
        return await self._eval(*arguments) if mishap == "twice" else answer

    async def do(self, operation: Coroutine[Any, Any, object], mishap: str) -> None:
        """Carries it out, as far as the process lives."""
        self.mishap = mishap
        with contextlib.suppress(DiedError):
            await operation
        self.mishap = ""


class QueueMachine(RuleBasedStateMachine):
    """Env workers, reward servers and a trainer over one queue; and what they may expect of it."""

    orders = Bundle("orders")
    """Orders that some worker has in hand, whether it still holds them or not."""
    trajectories = Bundle("trajectories")
    """The same of reward servers."""

    def __init__(self, valkey: Valkey, blobs: Path | None) -> None:
        super().__init__()
        self.valkey, self.blobs = valkey, blobs
        self.loop = asyncio.new_event_loop()
        self.config = QueueConfig(
            url=valkey.url,
            claim_after_seconds=3600.0,
            max_deliveries=4,
            blobs="redis" if blobs is None else f"file://{blobs}",
        )
        self.issued: dict[str, rollout_pb2.EpisodeSpec] = {}
        self.received: dict[str, Ready] = {}
        self.learned: list[str] = []
        self.gone: set[str] = set()
        """Given up or abandoned."""
        self.tries = 0
        self.rare: Counter[str] = Counter()
        """How often something has happened that leaves little for the rest of an example."""

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    @initialize()
    def begin(self) -> None:
        self.run(self._empty())
        self.actors = {name: Actor(self.config) for name in (*WORKERS, "trainer")}
        for actor in self.actors.values():
            self.run(actor.queue.__aenter__())
        self.run(self._be_quick())

    async def _empty(self) -> None:
        """What a failed example may have left."""
        if self.blobs is not None:
            shutil.rmtree(self.blobs, ignore_errors=True)
        async with RolloutQueue(self.config) as queue:
            await queue._redis.flushall()

    # ---- trainer -----------------------------------------------------------------------------

    @rule(unscored=st.booleans(), mishap=mishaps)
    def order(self, unscored: bool, mishap: str) -> None:
        spec = rollout_pb2.EpisodeSpec(
            episode_id=f"{RUN}:{len(self.issued)}", run_id=RUN, unscored=unscored
        )
        self.issued[spec.episode_id] = spec
        trainer = self.actors["trainer"]
        self.run(trainer.do(trainer.queue.issue([spec]), mishap))

    @rule()
    def order_what_is_missing(self) -> None:
        """As a trainer does that comes back, or that finds its queue emptied."""
        missing = self.issued.keys() - self.learned - self.gone - self.received.keys()
        specs = [self.issued[one] for one in sorted(missing)]
        self.run(self.actors["trainer"].queue.issue(specs))

    @rule()
    def receive(self) -> None:
        found = self.run(self.actors["trainer"].queue.next_scored(RUN, 8, 0.001))
        for delivery in found:
            trajectory = delivery.message
            episode = trajectory.spec.episode_id
            assert episode not in self.learned, "learned, and delivered again"
            assert episode not in self.gone, "given up, and delivered"
            assert episode not in self.received, "two of one episode"
            acted = [float(step.action.token_ids[0]) for step in trajectory.steps]
            assert list(trajectory.scores.total) == ([] if trajectory.spec.unscored else acted)
            self.received[episode] = delivery

    @rule(mishap=mishaps, again=st.booleans())
    def settle(self, mishap: str, again: bool) -> None:
        """What is acknowledged has been learned from, even if the trainer dies of it."""
        trainer, found = self.actors["trainer"], list(self.received.values())
        self.run(trainer.do(trainer.queue.acknowledge(RUN, found), mishap))
        if mishap == "before":
            return
        self.learned += self.received
        self.received.clear()
        if again:
            self.run(trainer.queue.acknowledge(RUN, found))

    @rule(mishap=mishaps)
    def abandon_the_dead(self, mishap: str) -> None:
        trainer = self.actors["trainer"]
        dead = {letter.spec.episode_id for letter in self.run(trainer.queue.dead_letters(RUN))}
        assert not dead & {*self.learned, *self.received}, "given up, and delivered"
        self.gone |= dead
        self.run(trainer.do(trainer.queue.abandon(RUN, sorted(dead)), mishap))

    @precondition(lambda self: self.rare["abandoned"] < 2)
    @rule(data=st.data())
    def abandon_one_in_work(self, data: st.DataObject) -> None:
        self.rare["abandoned"] += 1
        out = sorted(self.issued.keys() - self.learned - self.gone - self.received.keys())
        if out:
            one = data.draw(st.sampled_from(out))
            self.gone.add(one)
            self.run(self.actors["trainer"].queue.abandon(RUN, [one]))

    # ---- env workers -------------------------------------------------------------------------

    @rule(target=orders, worker=workers, others_silent=st.booleans())
    def take_an_order(self, worker: str, others_silent: bool) -> MultipleResults[Order]:
        if others_silent:
            self.fall_silent()
        delivery = self.run(self.actors[worker].queue.next_episode(worker, 0.001))
        return multiple() if delivery is None else multiple(delivery)

    @rule(order=orders, steps=st.integers(1, 3), mishap=mishaps)
    def finish(self, order: Order, steps: int, mishap: str) -> None:
        """Perhaps late, perhaps a second time; no two tries take the same actions."""
        self.tries += 1
        worker = self.actors[order.consumer]
        trajectory = rollout_pb2.Trajectory(
            spec=order.message,
            steps=[
                rollout_pb2.Step(action=policy_pb2.Action(token_ids=[10 * self.tries + step]))
                for step in range(steps)
            ],
        )
        self.run(worker.do(worker.queue.finish_episode(order, trajectory), mishap))

    @rule(order=consumes(orders), final=st.booleans(), mishap=mishaps)
    def fail(self, order: Order, final: bool, mishap: str) -> None:
        queue = self.actors[order.consumer].queue
        failing = queue.fail_episode(order, "it broke", final=final)
        self.run(self.actors[order.consumer].do(failing, mishap))

    @rule(order=consumes(orders))
    def hand_back(self, order: Order) -> None:
        self.run(self.actors[order.consumer].queue.release_episode(order))

    # ---- reward servers ----------------------------------------------------------------------

    @rule(
        target=trajectories,
        worker=workers,
        count=st.integers(1, 3),
        others_silent=st.booleans(),
        frames=st.booleans(),
    )
    def take_trajectories(
        self, worker: str, count: int, others_silent: bool, frames: bool
    ) -> MultipleResults[Ready]:
        """With their frames, or as a scorer takes them that looks at none."""
        if others_silent:
            self.fall_silent()
        queue = self.actors[worker].queue
        return multiple(*self.run(queue.next_trajectories(worker, count, 0.001, frames=frames)))

    @rule(trajectory=trajectories, mishap=mishaps)
    def score(self, trajectory: Ready, mishap: str) -> None:
        total = [float(step.action.token_ids[0]) for step in trajectory.message.steps]
        scores = rollout_pb2.RewardScores(model="tokens", total=total)
        worker = self.actors[trajectory.consumer]
        self.run(worker.do(worker.queue.finish_scoring(trajectory, scores), mishap))

    @rule(trajectory=consumes(trajectories))
    def fail_to_score(self, trajectory: Ready) -> None:
        queue = self.actors[trajectory.consumer].queue
        self.run(queue.fail_scoring(trajectory, "no steps"))

    # ---- mishaps -----------------------------------------------------------------------------

    def fall_silent(self) -> None:
        """Whatever workers hold may be taken over now."""
        self.run(self._age())

    async def _age(self) -> None:
        redis = self.actors["trainer"].queue._redis
        for stream, group in ((EPISODES, "env"), (TRAJECTORIES, "reward")):
            await self.actors["trainer"].queue._entries.ensure_group(stream, group)
            for entry in await redis.xpending_range(stream, group, "-", "+", 1000):
                await redis.xclaim(
                    stream,
                    group,
                    entry["consumer"],
                    0,
                    [entry["message_id"]],
                    idle=LONG_IDLE,
                    justid=True,
                )

    @rule(name=st.sampled_from([*WORKERS, "trainer"]))
    def start_again(self, name: str) -> None:
        """Killed and started; a killed worker's deliveries stay, as those of a slow one would."""
        self.run(self.actors[name].queue.__aexit__(None, None, None))
        self.actors[name] = Actor(self.config)
        self.run(self.actors[name].queue.__aenter__())
        if name == "trainer":
            self.received.clear()

    @precondition(lambda self: self.rare["restarted"] < 1)
    @rule()
    def restart_the_server(self) -> None:
        self.rare["restarted"] += 1
        self.valkey.kill()
        self.valkey.start()
        self.run(self._be_quick())

    async def _be_quick(self) -> None:
        """Waiting reads end in time, not ten times a second. And what a server that is killed has
        written is kept by the system: only the machine's own death would need the disk.
        """
        redis = self.actors["trainer"].queue._redis
        await redis.config_set("hz", 500)
        await redis.config_set("appendfsync", "no")

    @precondition(lambda self: self.rare["emptied"] < 1)
    @rule()
    def empty_the_server(self) -> None:
        """What the trainer has in hand it learns from; the rest, it orders again."""
        self.rare["emptied"] += 1
        self.run(self.actors["trainer"].queue._redis.flushall())
        # An entry's id is its millisecond: none of those that are lost is given again.
        self.run(asyncio.sleep(0.002))
        self.order_what_is_missing()

    # ---- the end -----------------------------------------------------------------------------

    def teardown(self) -> None:
        actors = getattr(self, "actors", {})
        try:
            if actors:
                self._finish_everything()
                self.run(self._check_that_nothing_is_left())
        finally:
            for actor in actors.values():
                self.run(actor.queue.__aexit__(None, None, None))
            self.run(self.loop.shutdown_default_executor())
            self.loop.close()

    def _finish_everything(self) -> None:
        """Everybody does what is to be done, undisturbed."""
        while self.issued.keys() - self.learned - self.gone or self.run(self._waiting()):
            self.order_what_is_missing()
            self.fall_silent()
            queue = self.actors["a"].queue
            while order := self.run(queue.next_episode("a", 0.001)):
                self.finish(order, 2, "")
            while found := self.run(queue.next_trajectories("a", 3, 0.001)):
                for trajectory in found:
                    self.score(trajectory, "")
            self.receive()
            self.settle("", again=False)
            self.abandon_the_dead("")

    async def _waiting(self) -> int:
        return sum(state.length for state in await self.actors["trainer"].queue.states())

    async def _check_that_nothing_is_left(self) -> None:
        assert sorted([*self.learned, *self.gone]) == sorted(self.issued)
        # A worker that died after its episode was settled may have left a file: the trainer, when
        # it comes next, finds that.
        async with RolloutQueue(self.config) as queue:
            assert await queue.next_scored(RUN, 1, 0.001) == []
            states = await queue.states()
            assert not any(state.length or state.pending for state in states)
            keys = {key.decode() for key in await queue._redis.keys("*")}
            assert keys <= {EPISODES, TRAJECTORIES, DEAD, scored_stream(RUN), "{vlarl}:blobs-of"}
        if self.blobs is not None and self.blobs.exists():
            assert list(self.blobs.iterdir()) == []


@pytest.mark.parametrize("store", ["redis", "files"])
def test_each_episode_reaches_the_trainer_once_and_leaves_nothing(
    valkey: Valkey, tmp_path: Path, store: str
) -> None:
    blobs = None if store == "redis" else tmp_path / "blobs"
    run_state_machine_as_test(
        lambda: QueueMachine(valkey, blobs),
        settings=settings(max_examples=40, stateful_step_count=80),
    )
