"""VLA-RL, one iteration after another.

    publish ──▶ issue episodes ──▶ collect scored trajectories ──▶ advantages, update of the policy
       ▲                                                                        │
       └───── acknowledge ◀── checkpoint (durable) ◀────────────────────────────┘

A trajectory is acknowledged when the checkpoint that learned from it is durable, and weights are
published after that: a trainer killed at any moment goes on from its last checkpoint, finds the
trajectories that it had not learned from in the queue, and orders only what is missing.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from vlarl.answers import actions_of, executed_actions
from vlarl.config import RunConfig
from vlarl.data.recording import RolloutRecorder
from vlarl.errors import FatalError
from vlarl.learning.optimizer import scheduled
from vlarl.rollout.v1 import rollout_pb2
from vlarl.trainer.v1 import trainer_pb2
from vlarl_trainer.batch import Experience
from vlarl_trainer.leader import LeadingRank
from vlarl_trainer.learner import Snapshot
from vlarl_trainer.parity import ParityError
from vlarl_trainer.publisher import Publisher, published_adapter
from vlarl_trainer.record.actions import ActionLog
from vlarl_trainer.record.best import Scored, fallen, kept_best, reached, rollback_to
from vlarl_trainer.record.console import Display
from vlarl_trainer.record.evaluation import EvaluationLog, count, score_episode
from vlarl_trainer.record.metrics import MetricsLog
from vlarl_trainer.record.progress import Progress, run_checkpoints
from vlarl_trainer.rollouts.collector import Collected, Collector
from vlarl_trainer.rollouts.curriculum import Curriculum
from vlarl_trainer.rollouts.episodes import EpisodePlan
from vlarl_trainer.rollouts.groups import GroupPlan
from vlarl_trainer.rollouts.orders import Ended
from vlarl_trainer.rollouts.plan import RolloutPlan, evaluation_episodes
from vlarl_trainer.rollouts.reward_hacking import RewardWatch
from vlarl_trainer.rollouts.trajectory_check import TrajectoryCheck
from vlarl_trainer.status import RunStatus


class TrainingLoop:
    """One run, from wherever its last checkpoint stands to its end."""

    def __init__(
        self,
        config: RunConfig,
        run_dir: Path,
        expectation: TrajectoryCheck,
        unnorm_key: str,
        scaling: float,
        learner: LeadingRank,
        collector: Collector,
        publisher: Publisher,
        status: RunStatus,
        log: MetricsLog,
        evaluations: EvaluationLog,
        display: Display,
    ) -> None:
        self._config = config
        self._run_dir = run_dir
        self._expectation = expectation
        self._unnorm_key = unnorm_key
        self._scaling = scaling
        self._learner = learner
        self._collector = collector
        self._publisher = publisher
        self._status = status
        self._log = log
        self._display = display
        self._evaluations = evaluations
        self._checkpoints = run_checkpoints(run_dir)
        self._actions = ActionLog(run_dir)
        self._recorder = None
        if config.trainer.record_rollouts:
            self._recorder = RolloutRecorder(run_dir / "rollouts", config.env)
        self._curriculum = Curriculum(config.tasks.indices, config.curriculum)
        plan = GroupPlan if config.trainer.groups else EpisodePlan
        self._plan: RolloutPlan = plan(config, self._curriculum, unnorm_key)
        self._watch = RewardWatch(config.reward)
        self._seconds: dict[str, float] = defaultdict(float)

    async def run(self, progress: Progress, snapshot: Snapshot) -> None:
        """Goes on from there until all iterations are done and evaluated, or an evaluation is good
        enough.
        """
        self._curriculum.restore(progress.success)
        self._plan.restore(progress.tasks_ahead)
        await self._publish(progress, snapshot, takeover=True)
        while progress.iteration < self._config.trainer.iterations:
            # Before an iteration, not after the last: a crash may have come in between.
            if self._evaluations.due(progress, self._config.evaluation):
                if not progress.iteration:
                    await self._save(progress, snapshot)  # it may remain the best
                await self._evaluate(progress)
            if self._good_enough(progress):
                break
            progress, snapshot = await self._back_from_a_fall(progress, snapshot)
            await self._status.until_running()
            progress, snapshot = await self._iterate(progress)
        last = self._config.evaluation.at_end
        if last or self._evaluations.due(progress, self._config.evaluation):
            await self._evaluate(progress)
        await self._status.enter(trainer_pb2.RUN_STATE_DONE)
        self._display.finish(self._run_dir)

    async def _iterate(self, progress: Progress) -> tuple[Progress, Snapshot]:
        started = time.monotonic()
        self._seconds.clear()

        with self._phase("rollout"):
            await self._status.enter(trainer_pb2.RUN_STATE_ROLLOUT)
            specs = await self._issue(progress.iteration)
            collected = await self._collect(progress, specs)
            review = self._plan.review(progress.iteration, collected.ended)
            chosen = collected.only(review.kept)
            watched = self._watch.record(collected.trajectories)

        with self._phase("learning"):
            await self._status.enter(trainer_pb2.RUN_STATE_LEARNING)
            experience = Experience(
                progress.iteration,
                progress.version,
                chosen.trajectories,
                chosen.frames(),
                self._rate(progress),
            )
            learned, snapshot = await self._learn(experience)
            learned |= watched | review.metrics

        with self._phase("checkpoint"):
            self._actions.write(progress.iteration, collected.trajectories)
            if self._recorder is not None:
                part = f"{progress.iteration:05d}"
                for members in collected.by_task():
                    await asyncio.to_thread(self._recorder.write, part, members)
            progress = self._advance(progress, collected, chosen, learned)
            await self._save(progress, snapshot)

        await self._collector.settle(collected)
        self._status.outstanding -= len(collected.deliveries) + len(collected.missing)

        with self._phase("publish"):
            await self._status.enter(trainer_pb2.RUN_STATE_PUBLISHING)
            pause = await self._publish(progress, snapshot, takeover=False)

        times = {f"seconds_{phase}": seconds for phase, seconds in self._seconds.items()} | {
            "publish_pause_seconds": pause,
            "seconds_iteration": time.monotonic() - started,
            "completed_timestamp_seconds": time.time(),
        }
        await self._report(progress, times)
        return progress, snapshot

    async def _learn(self, experience: Experience) -> tuple[dict[str, float], Snapshot]:
        try:
            return await self._learner.learn(experience)
        except ParityError as error:
            now = time.strftime("%Y%m%dT%H%M%S")
            path = self._run_dir / f"disagreement-{experience.iteration:05d}-{now}.npz"
            try:
                error.disagreement.save(path)
            except OSError as failed:
                raise FatalError(f"{error}. The numbers can't be written: {failed}") from error
            raise FatalError(f"{error}. The numbers: {path}") from error

    async def _issue(self, iteration: int) -> Sequence[rollout_pb2.EpisodeSpec]:
        """Orders this iteration's episodes, and those that may be collected meanwhile."""
        last = min(iteration + self._config.trainer.staleness, self._config.trainer.iterations - 1)
        batches = [self._plan.first(number) for number in range(iteration, last + 1)]
        for batch in batches:
            await self._collector.issue(batch)
        self._status.outstanding = sum(map(len, batches))
        return batches[0]

    async def _collect(
        self, progress: Progress, specs: Sequence[rollout_pb2.EpisodeSpec]
    ) -> Collected:
        """All episodes of the iteration, checked: those that it began with, and the further ones
        that its plan orders as they end.
        """
        ordered = self._status.outstanding

        def further(ended: Ended) -> Sequence[rollout_pb2.EpisodeSpec]:
            more = self._plan.further(progress.iteration, ended)
            self._status.outstanding = ordered + len(more)
            return more

        oldest = max(progress.version - self._config.trainer.staleness, progress.first_version)
        collected = await self._collector.collect(
            specs, learned=progress.iteration, oldest=oldest, further=further
        )
        check = replace(self._expectation, version=progress.version)
        check.check(collected.trajectories, collected.frames())
        return collected

    def _advance(
        self,
        progress: Progress,
        collected: Collected,
        chosen: Collected,
        learned: dict[str, float],
    ) -> Progress:
        """The run's place after an iteration.

        Args:
            progress: the place before.
            collected: all its episodes, which the curriculum and the metrics count.
            chosen: those of them that were learned from.
            learned: the metrics of learning.
        """
        trajectories = collected.trajectories
        for trajectory in trajectories:
            success = trajectory.outcome == rollout_pb2.OUTCOME_SUCCESS
            self._curriculum.record(trajectory.spec.task.index, success)
        metrics = rollout_metrics(collected, chosen) | learned | self._curriculum.metrics()
        metrics |= rollback_metrics(progress)
        steps = executed_steps(trajectories, self._config.env.action_repeat)
        return replace(
            progress,
            iteration=progress.iteration + 1,
            version=progress.version + bool(learned.get("policy_steps")),
            acted=progress.version,
            env_steps=progress.env_steps + steps,
            learned=[trajectory.spec.episode_id for trajectory in chosen.trajectories],
            success=self._curriculum.state(),
            tasks_ahead=self._plan.tasks_ahead(progress.iteration + 1),
            metrics=metrics,
        )

    def _rate(self, progress: Progress) -> float:
        """Share of the policy's learning rate that the iteration to come takes."""
        trainer = self._config.trainer
        done = progress.iteration / trainer.iterations
        return scheduled(done, trainer.chosen.schedule) * progress.rate_scale

    def _good_enough(self, progress: Progress) -> bool:
        """Whether the policy as it is ends the run, which is said."""
        share = self._config.trainer.stop_at_success
        enough = reached(self._evaluations.rows, progress, share)
        if share is not None and enough is not None:
            self._display.stopped(enough, share)
        return enough is not None

    def _best(self, progress: Progress) -> Scored | None:
        return kept_best(
            self._evaluations.rows, progress, there=lambda one: self._checkpoints.path(one).exists()
        )

    async def _back_from_a_fall(
        self, progress: Progress, snapshot: Snapshot
    ) -> tuple[Progress, Snapshot]:
        """Goes back to the best checkpoint where success has fallen for too long. It is a new
        version of the policy; a crash before the checkpoint that says so has it decided again.
        """
        trainer, rows = self._config.trainer, self._evaluations.rows
        best = self._best(progress) if trainer.rollback else None
        if best is None or not fallen(rows, progress, best, trainer.rollback):
            return progress, snapshot
        rollback = rollback_to(best, progress, trainer.rollback_rate)
        with self._phase("rollback"):
            path = self._checkpoints.path(best.iteration)
            _, tensors = await asyncio.to_thread(self._checkpoints.load, path)
            snapshot = await self._learner.go_back(tensors)
            progress = progress.rolled_back(rollback)
            await self._save(progress, snapshot)
            await self._status.enter(trainer_pb2.RUN_STATE_PUBLISHING)
            await self._publish(progress, snapshot, takeover=False)
        self._display.rolled_back(rollback, best, trainer.rollback)
        return progress, snapshot

    async def _save(self, progress: Progress, snapshot: Snapshot) -> None:
        keep = self._config.trainer.keep_checkpoints
        best = self._best(progress)
        self._status.checkpoint = await asyncio.to_thread(
            self._checkpoints.save,
            progress.iteration,
            progress,
            snapshot.tensors,
            keep=keep,
            best=None if best is None else best.iteration,
        )

    async def _publish(self, progress: Progress, snapshot: Snapshot, *, takeover: bool) -> float:
        """Has every replica serve the policy; returns the longest pause in seconds."""
        published = self._status.adapter
        if published is not None and published.version == progress.version:
            return 0.0
        checksums = snapshot.checksums
        adapter = published_adapter(progress, snapshot.factors, self._scaling, checksums.layers)
        # First, so that a replica that starts meanwhile fetches this version and not the last one.
        self._status.adapter = adapter
        report = await self._publisher.publish(adapter, takeover=takeover, expected=checksums)
        return report.pause_seconds

    async def _report(self, progress: Progress, further: dict[str, float]) -> None:
        iteration = iteration_message(replace(progress, metrics=progress.metrics | further))
        await asyncio.to_thread(self._log.write, iteration)
        self._display.iteration(iteration)
        await self._status.complete(iteration)

    async def _evaluate(self, progress: Progress) -> None:
        """Greedy episodes, unless this policy has had them. Nobody orders training episodes and no
        weights move until they are counted.
        """
        specs = evaluation_episodes(self._config, progress.iteration, self._unnorm_key)
        if not specs or self._evaluations.has(progress.iteration):
            return
        started = time.monotonic()
        await self._status.enter(trainer_pb2.RUN_STATE_EVALUATING)
        self._display.evaluation_begins(len(specs))
        with self._phase("evaluation"):
            await self._collector.issue(specs)
            collected = await self._collector.collect(
                specs, learned=progress.iteration, oldest=progress.version
            )
        results = [
            score_episode(trajectory, progress.version) for trajectory in collected.trajectories
        ]
        evaluation = count(results, progress, collected.ended.given_up)
        # Shown before it is written down: killed in between, it is only shown twice.
        self._log.evaluation(evaluation.metrics(), progress.env_steps)
        self._evaluations.write(evaluation, time.monotonic() - started)
        await self._collector.settle(collected)
        self._display.evaluation(evaluation)

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        self._display.phase(name)
        started = time.monotonic()
        yield
        self._seconds[name] += time.monotonic() - started


def executed_steps(trajectories: Sequence[rollout_pb2.Trajectory], action_repeat: int) -> int:
    """Control steps that episodes really took: their end cuts the last action short.

    action_repeat: what an action counts whose worker, one of 0.1.0, didn't tell.
    """
    return sum(
        step.control_steps or action_repeat * executed_actions(step)
        for one in trajectories
        for step in one.steps
    )


def rollout_metrics(collected: Collected, chosen: Collected) -> dict[str, float]:
    """How the episodes went.

    Args:
        collected: all of the iteration.
        chosen: those of them that were learned from.
    """
    trajectories = collected.trajectories
    lengths = [actions_of(trajectory.steps) for trajectory in trajectories]
    successes = defaultdict(list)
    for trajectory in trajectories:
        successes[trajectory.spec.task.index].append(
            trajectory.outcome == rollout_pb2.OUTCOME_SUCCESS
        )
    everything = [success for one in successes.values() for success in one]
    return {
        "success_rate": float(np.mean(everything)),
        "episode_return": float(np.mean([sum(t.scores.total) for t in trajectories])),
        "episode_actions": float(np.mean(lengths)),
        "episodes": float(len(trajectories)),
        "missing_episodes": float(len(collected.missing)),
        "simulator_restarts": float(sum(t.simulator_restarts for t in trajectories)),
        "samples": float(sum(len(trajectory.steps) for trajectory in chosen.trajectories)),
        "seconds_in_episodes": sum(t.seconds for t in trajectories),
        "seconds_waiting_for_policy": sum(t.policy_seconds for t in trajectories),
        "seconds_waiting_for_reward": collected.reward_seconds,
    } | {f"success_rate/task_{task}": float(np.mean(one)) for task, one in successes.items()}


def rollback_metrics(progress: Progress) -> dict[str, float]:
    """What an iteration that begins at `progress` has to do with returns to earlier policies."""
    last = progress.rollbacks[-1] if progress.rollbacks else None
    metrics = {"rate_scale": progress.rate_scale}
    if last is not None and last["iteration"] == progress.iteration:
        metrics["rolled_back_to"] = float(last["to_iteration"])
    return metrics


def iteration_message(progress: Progress) -> trainer_pb2.Iteration:
    """The iteration that a checkpoint completed."""
    return trainer_pb2.Iteration(
        iteration=progress.iteration - 1,
        policy_version=progress.acted,
        env_steps=progress.env_steps,
        metrics={name: one for name, one in progress.metrics.items() if math.isfinite(one)},
    )
