"""One episode: the simulator shows, the policy acts, until it ends."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time

import grpc

from vlarl.clients.policy import Action, AsyncPolicyClient, PolicyError
from vlarl.config import EnvConfig
from vlarl.env.v1 import env_pb2
from vlarl.policy.v1 import policy_pb2
from vlarl.rollout.v1 import rollout_pb2
from vlarl_env.metrics import EnvMetrics
from vlarl_env.process import SimulatorProcess

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
            PolicyAwayError, PolicyError: the policy gave no answer, or refused the request.
        """
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
            simulator_restarts=restarts,
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
        """The policy's answer, waited for as long as patience lasts and nobody is in a hurry.

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
