"""Pulls episodes from the rollout queue, drives them with the policy, pushes trajectories.

One driver a simulator, none waiting for another. What can go wrong belongs to one boundary each:
a lost simulator is replaced and its episode run again; a policy that doesn't answer is waited for,
then the episode is handed back unharmed; an order that makes no sense goes to the dead letters; a
queue that is away is tried until it is back.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from vlarl.clients.policy import AsyncPolicyClient, PolicyError
from vlarl.config import ConfigError, EnvConfig
from vlarl.queue.entries import Delivery
from vlarl.queue.rollout_queue import RolloutQueue
from vlarl.rollout.v1 import rollout_pb2
from vlarl_env.errors import BrokenTaskError, CommandRefusedError, SimulatorError, UnknownTaskError
from vlarl_env.metrics import EnvMetrics
from vlarl_env.pool import SimulatorPool
from vlarl_env.process import SimulatorProcess
from vlarl_env.rollout import EpisodeRunner, PolicyAwayError, retry_pause
from vlarl_env.simulators.registry import TaskCatalog

logger = logging.getLogger(__name__)

T = TypeVar("T")

TAKE_SECONDS = 1.0
"""Longest wait for an order with a simulator in hand, which somebody else may want meanwhile."""


@dataclass
class _Order:
    """An episode in work."""

    delivery: Delivery[rollout_pb2.EpisodeSpec]
    restarts: int = 0

    @property
    def spec(self) -> rollout_pb2.EpisodeSpec:
        return self.delivery.message


class EnvWorker:
    """Works for the queue until drained.

    Args:
        queue: Where orders come from and trajectories go to.
        pool: The simulators; one driver is started for each.
        policy: What is asked for actions.
        catalog: The tasks that can be run.
        config: Action repeat, cameras, patience.
        metrics: Where episodes and waits are counted.
        name: This worker's name, unique within the queue.
    """

    def __init__(
        self,
        queue: RolloutQueue,
        pool: SimulatorPool,
        policy: AsyncPolicyClient,
        catalog: TaskCatalog,
        config: EnvConfig,
        metrics: EnvMetrics,
        name: str,
    ) -> None:
        self._queue = queue
        self._pool = pool
        self._episodes = EpisodeRunner(policy, config, metrics, name)
        self._catalog = catalog
        self._config = config
        self._metrics = metrics
        self._name = name
        self._broken: dict[tuple[str, int], str] = {}
        self._stopping = False
        self._drivers: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        """Runs episodes until `drain`. Cancelled, it hands back what is in work."""
        self._drivers = [
            asyncio.create_task(self._drive(), name=f"driver-{number}")
            for number in range(self._config.processes)
        ]
        try:
            done, _ = await asyncio.wait(self._drivers, return_when=asyncio.FIRST_EXCEPTION)
            for driver in done:
                if not driver.cancelled():
                    driver.result()
        finally:
            await self._cancel_drivers()

    async def drain(self, seconds: float) -> None:
        """Takes no more orders. Finishes what ends within `seconds` and hands back the rest.

        What waits for a policy that is away is handed back at once: the policy may have died.
        """
        self._stopping = True
        self._episodes.hurry()
        if self._drivers:
            await asyncio.wait(self._drivers, timeout=seconds)
            await self._cancel_drivers()

    async def _cancel_drivers(self) -> None:
        # redis-py may swallow a cancellation (Python 3.11's `wait_for` does): the flag ends it too.
        self._stopping = True
        for driver in self._drivers:
            driver.cancel()
        await asyncio.gather(*self._drivers, return_exceptions=True)

    async def _drive(self) -> None:
        order: _Order | None = None
        try:
            while order is not None or not self._stopping:
                try:
                    async with self._pool.slot() as slot:
                        order = order or await self._take()
                        if order is not None:
                            await self._finish(order, slot.simulator(order.spec.task))
                    order = None
                except SimulatorError as error:
                    order = await self._run_again(order, error)
        except asyncio.CancelledError:
            if order is not None:
                await self._queue.release_episode(order.delivery)
                logger.info("episode %s is handed back", order.spec.episode_id)
            raise

    async def _take(self) -> _Order | None:
        if self._stopping:
            return None
        delivery = await self._insist(lambda: self._queue.next_episode(self._name, TAKE_SECONDS))
        if delivery is None:
            return None
        order = _Order(delivery)
        try:
            self._check(order.spec)
        except BrokenTaskError as error:
            await self._give_up_task(order, error)
            return None
        except (UnknownTaskError, ValueError) as error:
            await self._give_up(order, str(error))
            return None
        return order

    def _check(self, spec: rollout_pb2.EpisodeSpec) -> None:
        """Refuses an order that can't be carried out, before a simulator is bothered."""
        if cause := self._broken.get((spec.task.suite, spec.task.index)):
            raise BrokenTaskError(cause)
        task = self._catalog.find(spec.task.suite, spec.task.index)
        placement = spec.WhichOneof("placement")
        if placement is None:
            raise ValueError("the order has neither init_state nor placement_seed")
        if placement == "init_state":
            task.init_state(spec.init_state)
        if not spec.temperature >= 0:
            raise ValueError(f"sampling temperature {spec.temperature} is below 0")

    async def _finish(self, order: _Order, simulator: SimulatorProcess) -> None:
        """Runs the episode and tells the queue how it ended. Raises SimulatorError only."""
        try:
            trajectory = await self._episodes.run(order.spec, simulator, order.restarts)
        except PolicyAwayError as error:
            logger.warning("episode %s is handed back: %s", order.spec.episode_id, error)
            self._metrics.episodes.labels("worker", "released").inc()
            await self._insist(lambda: self._queue.release_episode(order.delivery))
        except BrokenTaskError as error:
            await self._give_up_task(order, error)
        except CommandRefusedError as error:
            await self._give_up(order, f"the simulator refused: {error}")
        except ConfigError as error:
            await self._give_up(order, str(error))
        except PolicyError as error:
            await self._give_up(order, f"the policy refused: {error}")
        else:
            await self._insist(lambda: self._queue.finish_episode(order.delivery, trajectory))
            outcome = rollout_pb2.Outcome.Name(trajectory.outcome).removeprefix("OUTCOME_")
            self._metrics.episodes.labels("worker", outcome.lower()).inc()

    async def _run_again(self, order: _Order | None, error: SimulatorError) -> _Order | None:
        """The order with one more restart, or None where it has had enough of them."""
        if order is None:
            return None
        order.restarts += 1
        if order.restarts <= self._config.simulator_restarts:
            logger.info("episode %s is run again", order.spec.episode_id)
            return order
        cause = f"the simulator {error.cause} {order.restarts} times, at last: {error}"
        logger.warning("episode %s failed: %s", order.spec.episode_id, cause)
        self._metrics.episodes.labels("worker", "failed").inc()
        await self._insist(lambda: self._queue.fail_episode(order.delivery, cause))
        return None

    async def _give_up_task(self, order: _Order, error: BrokenTaskError) -> None:
        """Gives up the order, and later ones of its task unasked; it is said once."""
        task = (order.spec.task.suite, order.spec.task.index)
        level = logging.INFO if task in self._broken else logging.WARNING
        self._broken[task] = str(error)
        await self._give_up(order, str(error), level)

    async def _give_up(self, order: _Order, cause: str, level: int = logging.WARNING) -> None:
        """Straight to the dead letters: no worker could do better."""
        logger.log(level, "episode %s is given up: %s", order.spec.episode_id, cause)
        self._metrics.episodes.labels("worker", "refused").inc()
        await self._insist(lambda: self._queue.fail_episode(order.delivery, cause, final=True))

    async def _insist(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Tries a queue operation until the queue is there; repeats are harmless."""
        for attempt in itertools.count():
            try:
                return await operation()
            except (RedisConnectionError, RedisTimeoutError) as error:
                if attempt == 0:
                    logger.warning("the queue is away, trying on: %s", error)
                await asyncio.sleep(retry_pause(attempt))
        raise AssertionError("unreachable")
