"""The trainer's understudy: orders greedy episodes, counts them as they end, learns nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from vlarl.config import RunConfig
from vlarl.data.recording import RolloutRecorder
from vlarl.models.needs import PolicyNeeds
from vlarl.queue.rollout_queue import RolloutQueue
from vlarl.rollout.v1 import rollout_pb2
from vlarl_jobs.evaluation.console import EvaluationDisplay
from vlarl_jobs.evaluation.evaluated_policy import EvaluatedPolicy
from vlarl_jobs.evaluation.film import FilmMaker
from vlarl_jobs.evaluation.folder import EvaluationFolder
from vlarl_trainer.publisher import Publisher, check_policy
from vlarl_trainer.record.evaluation import Evaluation, count, score_episode
from vlarl_trainer.rollouts.collector import Collected, Collector
from vlarl_trainer.rollouts.plan import evaluation_episodes


class Evaluator:
    """One evaluation, over a queue and policy servers that nobody else uses."""

    def __init__(
        self,
        config: RunConfig,
        subject: EvaluatedPolicy,
        folder: EvaluationFolder,
        film: FilmMaker | None,
        display: EvaluationDisplay,
        recorder: RolloutRecorder | None = None,
    ) -> None:
        """film: where episodes are filmed, which takes their frames and a reward server.
        recorder: where they are kept, which takes their frames.
        """
        self._config = config
        self._subject = subject
        self._folder = folder
        self._film = film
        self._display = display
        self._recorder = recorder

    async def run(self, queue: RolloutQueue) -> Evaluation:
        """Runs the episodes that the folder doesn't have.

        Raises:
            PublishError: the policy servers don't serve the subject.
            RolloutError: nothing comes back for too long.
            TrajectoryError: an episode was run by another policy, or not greedily.
        """
        await self._serve_subject()
        specs = missing_episodes(self._config, self._subject, self._folder)
        for spec in specs:
            spec.record_frames = self._recorder is not None
            if self._film is not None and self._film.wants(spec.task.index):
                spec.record_frames, spec.unscored = True, False
        self._display.start(len(self._folder.results), len(self._folder.results) + len(specs))
        self._folder.write_score(self._score([]), ended=not specs)
        timeout = self._config.trainer.rollout_timeout_seconds
        collector = Collector(queue, self._config.name, timeout)
        await collector.issue(specs)
        given_up: list[rollout_pb2.EpisodeSpec] = []
        async for collected in collector.as_they_end(specs):
            given_up += [letter.spec for letter in collected.missing]
            await self._record(collected)
            await collector.settle(collected)
            self._folder.write_score(self._score(given_up), ended=False)
        evaluation = self._score(given_up)
        self._folder.write_score(evaluation, ended=True)
        return evaluation

    async def _serve_subject(self) -> None:
        config = self._config
        publisher = Publisher.of_run(config)
        digest = self._subject.progress.base_digest
        for policy in await publisher.describe():
            check_policy(policy, self._subject.model, digest, config.policy.center_crop)
        if (adapter := self._subject.adapter(config)) is not None:
            await publisher.publish(adapter, takeover=True)

    async def _record(self, collected: Collected) -> None:
        for trajectory in collected.trajectories:
            result = score_episode(trajectory, self._subject.progress.version)
            if self._film is not None:
                await asyncio.to_thread(self._film.take, trajectory)
            if self._recorder is not None:
                # Before the episode counts as done: one that a crash cuts short is run again.
                part = f"init-{result.init_state:03d}"
                await asyncio.to_thread(self._recorder.write, part, [trajectory])
            self._folder.add(result)
            self._display.episode(result)

    def _score(self, given_up: Sequence[rollout_pb2.EpisodeSpec]) -> Evaluation:
        return count(self._folder.results, self._subject.progress, given_up)


def missing_episodes(
    config: RunConfig, subject: EvaluatedPolicy, folder: EvaluationFolder
) -> list[rollout_pb2.EpisodeSpec]:
    """The episodes that are asked for and that the folder doesn't have."""
    specs = evaluation_episodes(config, subject.progress.iteration, subject.unnorm_key)
    return [spec for spec in specs if not folder.has(spec.task.index, spec.init_state)]


def protocol_of(
    config: RunConfig, subject: EvaluatedPolicy, simulator: Mapping[str, str]
) -> dict[str, Any]:
    """Everything that an episode's outcome depends on, besides its task and initial state.

    Args:
        config: the evaluation's.
        subject: the policy.
        simulator: what `vlarl.launch.tasks.simulator_identity` says of the suite.
    """
    env, progress = config.env, subject.progress
    main, *further = PolicyNeeds.of_checkpoint(subject.model).shown(env)
    # What an evaluation of before doesn't name is none here: it can be gone on with.
    return {
        "checkpoint": subject.model.name,
        "base_digest": progress.base_digest,
        "run": progress.run_id,
        "iteration": progress.iteration,
        "policy_version": progress.version,
        "dtype": config.policy.dtype,
        "suite": config.tasks.suite,
        "temperature": 0.0,
        "max_actions": config.tasks.max_actions,
        "unnorm_key": subject.unnorm_key,
        "center_crop": subject.center_crop,
        "profile": env.profile,
        "settle_steps": env.settle_steps,
        "camera": main,
        "further_cameras": further or None,
        "render_size": env.render_size,
        "crop": env.crop,
        "action_repeat": env.action_repeat,
        "replan_after": env.replan_after,
        "simulator": dict(simulator),
    }
