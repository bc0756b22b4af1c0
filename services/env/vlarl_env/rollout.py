"""One episode: the simulator shows, the policy acts, until it ends."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import grpc

from vlarl.clients.policy import Action, AsyncPolicyClient, PolicyError
from vlarl.config import EnvConfig
from vlarl.env.v1 import env_pb2
from vlarl.models.needs import PolicyNeeds
from vlarl.rollout.v1 import rollout_pb2
from vlarl_env.metrics import EnvMetrics
from vlarl_env.process import SimulatorProcess
from vlarl_env.steps import frames, recorded_step, step_command

T = TypeVar("T")

_RETRY_SECONDS = (0.1, 0.3, 1.0, 2.0, 5.0)
"""Pauses between tries of a policy or queue that is away; the last one repeats."""

_EPISODE_AT_FAULT = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.OUT_OF_RANGE,
}
"""Refusals that say that the request is wrong, so that repeating it is pointless."""


class PolicyAwayError(RuntimeError):
    """The policy didn't answer within the episode's patience, or another one took its place."""


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


def retry_pause(attempt: int) -> float:
    """Seconds between a try, counted from 0, and the next one."""
    return _RETRY_SECONDS[min(attempt, len(_RETRY_SECONDS) - 1)]


@dataclass(frozen=True)
class _Plan:
    """How an episode is played."""

    needs: PolicyNeeds
    cameras: tuple[str, ...]
    """The scene's, in the policy's order."""
    executed: int
    """Actions of each answer that are executed."""


class EpisodeRunner:
    """Plays episodes, any number at a time.

    Args:
        policy: What is asked for actions.
        config: Action repeat, cameras, patience.
        metrics: Where waits for the policy are counted.
        name: Of the worker, as its trajectories say it.
    """

    def __init__(
        self, policy: AsyncPolicyClient, config: EnvConfig, metrics: EnvMetrics, name: str
    ) -> None:
        self._policy = policy
        self._config = config
        self._metrics = metrics
        self._name = name
        self._hurried = asyncio.Event()
        self._needs: PolicyNeeds | None = None

    def hurry(self) -> None:
        """From now on no episode waits for a policy that is away: it may be gone for good."""
        self._hurried.set()

    async def run(
        self, spec: rollout_pb2.EpisodeSpec, simulator: SimulatorProcess, restarts: int
    ) -> rollout_pb2.Trajectory:
        """One episode, from reset to its end.

        Args:
            spec: the episode.
            simulator: of its task.
            restarts: how often it was begun before, and its simulator lost.

        Raises:
            SimulatorError: the simulator is lost.
            CommandRefusedError: it refused; BrokenTaskError: the task's scene can't be built.
            ConfigError: the policy reads what the configuration doesn't show it.
            PolicyAwayError, PolicyError: the policy gave no answer, or refused the request.
        """
        began = time.monotonic()
        plan = self._plan(await self._policy_needs(), spec)
        policy_seconds = time.monotonic() - began
        steps: list[rollout_pb2.Step] = []
        seen = await simulator.reset(self._reset_command(spec, plan))
        while not (seen.terminated or seen.truncated):
            asked = time.monotonic()
            action = await self._act(seen, spec, plan, action_seed(spec.sampling_seed, len(steps)))
            waited = time.monotonic() - asked
            policy_seconds += waited
            self._metrics.policy_wait_seconds.inc(waited)
            after = await simulator.step(step_command(action, plan.executed))
            steps.append(recorded_step(seen, action, after, with_frames=spec.record_frames))
            seen = after
        final, *further = frames(seen) if spec.record_frames else [b""]
        return rollout_pb2.Trajectory(
            spec=spec,
            instruction=seen.instruction,
            steps=steps,
            final_image=final,
            outcome=(
                rollout_pb2.OUTCOME_SUCCESS if seen.terminated else rollout_pb2.OUTCOME_TIME_LIMIT
            ),
            worker=self._name,
            simulator_restarts=restarts,
            seconds=time.monotonic() - began,
            policy_seconds=policy_seconds,
            cameras=plan.cameras,
            final_images=further,
            final_robot_state=seen.robot_state,
        )

    def _plan(self, needs: PolicyNeeds, spec: rollout_pb2.EpisodeSpec) -> _Plan:
        """Raises ConfigError where the policy can't be shown what it reads."""
        needs.check_proprio()
        return _Plan(
            needs,
            cameras=needs.shown(self._config),
            executed=needs.executed(self._config, spec.max_actions or None),
        )

    def _reset_command(self, spec: rollout_pb2.EpisodeSpec, plan: _Plan) -> env_pb2.ResetEpisode:
        command = env_pb2.ResetEpisode(
            task=spec.task,
            max_control_steps=spec.max_actions * self._config.action_repeat,
            cameras=plan.cameras,
        )
        if spec.WhichOneof("placement") == "init_state":
            command.init_state = spec.init_state
        else:
            command.placement_seed = spec.placement_seed
        return command

    async def _policy_needs(self) -> PolicyNeeds:
        """What the policy reads: asked once, and again after it was away."""
        if self._needs is None:
            self._needs = await self._insist(self._ask_for_needs)
        return self._needs

    async def _ask_for_needs(self) -> PolicyNeeds:
        try:
            return PolicyNeeds.of_server(await self._policy.get_policy())
        except PolicyError as error:
            if error.code is grpc.StatusCode.UNIMPLEMENTED:  # it can do no more than answer
                return PolicyNeeds()
            raise

    async def _act(
        self, seen: env_pb2.InteractResponse, spec: rollout_pb2.EpisodeSpec, plan: _Plan, seed: int
    ) -> Action:
        """The policy's answer.

        Raises:
            PolicyAwayError: there was none, or another policy serves now.
            PolicyError: the policy says that the request is wrong, or contradicts itself.
        """
        needs = plan.needs
        image, *further = frames(seen)

        async def predict() -> Action:
            return await self._policy.predict(
                image,
                seen.instruction,
                images=dict(zip(needs.cameras[1:], further, strict=True)),
                proprio=list(seen.robot_state.proprio) if needs.proprio else None,
                temperature=spec.temperature,
                seed=seed,
                unnorm_key=spec.unnorm_key or None,
            )

        try:
            action = await self._insist(predict)
        except PolicyError:
            await self._check_not_replaced(needs)
            raise
        if action.horizon != needs.chunk:
            await self._check_not_replaced(needs)
            text = f"an answer for {action.horizon} control steps by a policy of {needs.chunk}"
            raise PolicyError(grpc.StatusCode.INTERNAL, text)
        return action

    async def _check_not_replaced(self, needs: PolicyNeeds) -> None:
        """Raises PolicyAwayError where a policy serves that reads something else than these."""
        self._needs = None
        if await self._policy_needs() != needs:
            raise PolicyAwayError("a policy that reads something else took the place of this one")

    async def _insist(self, call: Callable[[], Awaitable[T]]) -> T:
        """What the policy answers, waited for as long as patience lasts and nobody is in a hurry.

        Raises:
            PolicyAwayError: there was no answer.
            PolicyError: the policy says that the request is wrong.
        """
        patience = time.monotonic() + self._config.policy_patience_seconds
        for attempt in itertools.count():
            try:
                return await call()
            except PolicyError as error:
                if error.code in _EPISODE_AT_FAULT:
                    raise
                self._needs = None  # it may come back as another one
                if self._hurried.is_set():
                    raise PolicyAwayError(f"no policy, and no time to wait: {error}") from error
                pause = retry_pause(attempt)
                if time.monotonic() + pause > patience:
                    seconds = self._config.policy_patience_seconds
                    raise PolicyAwayError(f"no policy for {seconds:g} s: {error}") from error
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._hurried.wait()
        raise AssertionError("unreachable")
