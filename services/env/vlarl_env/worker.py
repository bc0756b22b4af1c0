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
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import grpc
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from vlarl.clients.policy import Action, AsyncPolicyClient, PolicyError
from vlarl.config import EnvConfig
from vlarl.env.v1 import env_pb2
from vlarl.policy.v1 import policy_pb2
from vlarl.queue.entries import Delivery
from vlarl.queue.rollout_queue import RolloutQueue
from vlarl.rollout.v1 import rollout_pb2
from vlarl_env.errors import BrokenTaskError, CommandRefusedError, SimulatorError
from vlarl_env.metrics import EnvMetrics
from vlarl_env.pool import SimulatorPool
from vlarl_env.process import SimulatorProcess
from vlarl_env.simulators.libero.suites import TaskCatalog, UnknownTaskError

logger = logging.getLogger(__name__)

T = TypeVar("T")

TAKE_SECONDS = 1.0
"""Longest wait for an order with a simulator in hand, which somebody else may want meanwhile."""

_RETRY_SECONDS = (0.1, 0.3, 1.0, 2.0, 5.0)
"""Pauses between tries of a policy or queue that is away; the last one repeats."""

_EPISODE_AT_FAULT = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.OUT_OF_RANGE,
}
"""Refusals that say that the request is wrong, so that repeating it is pointless."""


class PolicyAwayError(RuntimeError):
    """The policy didn't answer within the episode's patience."""


@dataclass
class _Order:
    """An episode in work."""

    delivery: Delivery[rollout_pb2.EpisodeSpec]
    restarts: int = 0

    @property
    def spec(self) -> rollout_pb2.EpisodeSpec:
        return self.delivery.message


def action_seed(sampling_seed: int, step: int) -> int:
    """The sampling seed of one action, in [0, 2**63): SplitMix64's output number `step`.

    A function of the episode's seed and the step alone, so that an episode that is run again with
    the same weights takes the same actions.
    """
    mask = 2**64 - 1
    z = (sampling_seed + (step + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return (z ^ (z >> 31)) >> 1


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
        self._policy = policy
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
        """Takes no more orders; finishes what ends within `seconds`, hands back the rest."""
        self._stopping = True
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
            trajectory = await self._run(order, simulator)
        except PolicyAwayError as error:
            logger.warning("episode %s is handed back: %s", order.spec.episode_id, error)
            self._metrics.episodes.labels("worker", "released").inc()
            await self._insist(lambda: self._queue.release_episode(order.delivery))
        except BrokenTaskError as error:
            await self._give_up_task(order, error)
        except CommandRefusedError as error:
            await self._give_up(order, f"the simulator refused: {error}")
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

    async def _run(self, order: _Order, simulator: SimulatorProcess) -> rollout_pb2.Trajectory:
        """One episode, from reset to its end."""
        spec = order.spec
        began = time.monotonic()
        policy_seconds = 0.0
        steps: list[rollout_pb2.Step] = []
        seen = await simulator.reset(self._reset_command(spec))
        while not (seen.terminated or seen.truncated):
            asked = time.monotonic()
            action = await self._act(seen, spec, action_seed(spec.sampling_seed, len(steps)))
            waited = time.monotonic() - asked
            policy_seconds += waited
            self._metrics.policy_wait_seconds.inc(waited)
            after = await simulator.step(env_pb2.StepEpisode(action=action.values))
            steps.append(_step(seen, action, after, with_frame=spec.record_frames))
            seen = after
        return rollout_pb2.Trajectory(
            spec=spec,
            instruction=seen.instruction,
            steps=steps,
            final_image=seen.frames[0].image if spec.record_frames else b"",
            outcome=(
                rollout_pb2.OUTCOME_SUCCESS if seen.terminated else rollout_pb2.OUTCOME_TIME_LIMIT
            ),
            worker=self._name,
            simulator_restarts=order.restarts,
            seconds=time.monotonic() - began,
            policy_seconds=policy_seconds,
        )

    def _reset_command(self, spec: rollout_pb2.EpisodeSpec) -> env_pb2.ResetEpisode:
        command = env_pb2.ResetEpisode(
            task=spec.task,
            max_control_steps=spec.max_actions * self._config.action_repeat,
            # The policy sees one camera; nobody would look at the others.
            cameras=self._config.cameras[:1],
        )
        if spec.WhichOneof("placement") == "init_state":
            command.init_state = spec.init_state
        else:
            command.placement_seed = spec.placement_seed
        return command

    async def _act(
        self, seen: env_pb2.InteractResponse, spec: rollout_pb2.EpisodeSpec, seed: int
    ) -> Action:
        """The policy's answer, waited for as long as patience lasts.

        Raises:
            PolicyAwayError: there was none.
            PolicyError: the policy says that the request is wrong.
        """
        patience = time.monotonic() + self._config.policy_patience_seconds
        for attempt in itertools.count():
            try:
                return await self._policy.predict(
                    seen.frames[0].image,
                    seen.instruction,
                    temperature=spec.temperature,
                    seed=seed,
                    unnorm_key=spec.unnorm_key or None,
                )
            except PolicyError as error:
                if error.code in _EPISODE_AT_FAULT:
                    raise
                pause = _pause(attempt)
                if time.monotonic() + pause > patience:
                    seconds = self._config.policy_patience_seconds
                    raise PolicyAwayError(f"no policy for {seconds:g} s: {error}") from error
                await asyncio.sleep(pause)
        raise AssertionError("unreachable")

    async def _insist(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Tries a queue operation until the queue is there; repeats are harmless."""
        for attempt in itertools.count():
            try:
                return await operation()
            except (RedisConnectionError, RedisTimeoutError) as error:
                if attempt == 0:
                    logger.warning("the queue is away, trying on: %s", error)
                await asyncio.sleep(_pause(attempt))
        raise AssertionError("unreachable")


def _pause(attempt: int) -> float:
    return _RETRY_SECONDS[min(attempt, len(_RETRY_SECONDS) - 1)]


def _step(
    seen: env_pb2.InteractResponse,
    action: Action,
    after: env_pb2.InteractResponse,
    *,
    with_frame: bool,
) -> rollout_pb2.Step:
    """What was seen, the action, and what came of it."""
    return rollout_pb2.Step(
        image=seen.frames[0].image if with_frame else b"",
        action=policy_pb2.Action(
            token_ids=action.token_ids,
            logprobs=action.logprobs,
            values=action.values,
            policy_version=action.policy_version,
        ),
        env_reward=after.reward,
        robot_state=seen.robot_state,
        control_steps=after.control_steps - seen.control_steps,
    )
