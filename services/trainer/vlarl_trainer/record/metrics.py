"""The metrics of iterations and evaluations: their names, and the three places they go to."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge

from vlarl.config import RunConfig
from vlarl.learning.boards import Curves, boards_of
from vlarl.learning.run_log import RunLog
from vlarl.trainer.v1 import trainer_pb2

METRICS = {
    "success_rate": "share of the batch's episodes that solved their task",
    "episode_return": "mean sum of rewards of an episode",
    "episode_actions": "mean number of executed actions of an episode; each step of a chunk is one",
    "episodes": "episodes that came back, those of dropped groups too",
    "missing_episodes": "episodes that were given up (dead letters)",
    "simulator_restarts": "simulators that were replaced during these episodes",
    "groups_kept": "groups whose mean success lay within keep_between; with groups",
    "groups_dropped_success": "groups with more success, dropped and ordered anew",
    "groups_dropped_failure": "groups with less success, dropped and ordered anew",
    "groups_void": "groups of which fewer than two episodes came back",
    "group_attempts": "groups ordered for one of the batch, by the mean",
    "episodes_per_learned": "episodes that came back for one that was learned from; with groups",
    "group_deviation": "mean, over groups learned from, of the deviation of episodes' returns",
    "samples": "the policy's answers learned from: single actions, or chunks",
    "stale_actions": "share of these that an earlier policy version than the newest took",
    "logprob_gap": "largest difference of a token's log-prob between policy server and trainer",
    "logprob_gap_p999": "the difference that one token in a thousand exceeds, which is bounded",
    "logprob_gap_mean": "the mean of these differences",
    "logprob_gap_k3": "mean of exp(d) - 1 - d of these differences d: a KL divergence of nothing",
    "start_outside_clip": "share of ratios outside the clip band before the first step",
    "start_k3": "k3 between the server's and the trainer's log-probs of whole answers before the "
    "first step, over all samples",
    "entropy": "mean entropy of an executed token in nats, under the weights that acted",
    "advantage_deviation": "deviation of the advantages before they are scaled",
    "policy_loss": "clipped surrogate, mean over the mini-batches",
    "approximate_kl": "KL(update's start || new) of whole answers, mean over the mini-batches",
    "largest_kl": "the same, the largest of a mini-batch: what the algorithm's kl_stop bounds",
    "reference_kl": "KL to the policy that training began with",
    "clip_fraction": "share of ratios at which clipping bound",
    "grad_norm": "policy's gradient norm before clipping, mean over the steps",
    "learning_rate": "the policy's, at the iteration's last step; 0 where none was taken",
    "rate_scale": "what returns to the best checkpoint have multiplied it by",
    "rolled_back_to": "only where the run went back before the iteration: to the policy after so "
    "many iterations",
    "policy_steps": "optimizer steps of the policy",
    "overflowed_steps": "steps left out because a gradient overflowed, in float16",
    "kl_stopped": "1 where the KL bound ended the update early",
    "value_loss": "critic's loss in its last epoch",
    "explained_variance": "share of the returns' variance that the critic explained before its fit",
    "dense_return": "mean sum of an episode's dense rewards, before their coefficient",
    "dense_return_success": "the same, of the episodes that solved their task",
    "dense_return_failure": "the same, of the others",
    "dense_share": "share of all rewards, taken absolutely, that is dense",
    "dense_success_correlation": "of an episode's dense return with its success, latest episodes; "
    "of the additive form",
    "dense_length_correlation": "of an episode's dense return with its length, latest episodes; "
    "of the additive form",
    "evaluation_success_rate": "share of greedy episodes on official initial states that succeeded",
    "evaluation_missing_episodes": "of these, episodes that were given up and count as failed",
    "publish_pause_seconds": "longest time for which a policy replica could start no action",
    "gpu_memory_bytes": "most memory that rank 0's tensors took on its GPU so far; only on a GPU",
    "seconds_rollout": "wall-clock seconds of collecting the batch",
    "seconds_in_episodes": "sum over episodes of the wall-clock seconds they took",
    "seconds_waiting_for_policy": "of these, seconds in which episodes waited for an action",
    "seconds_waiting_for_reward": "seconds from the end of the last episode to the last reward",
    "seconds_learning": "wall-clock seconds of the update, inference included",
    "seconds_inference": "of these, seconds for features and old log-probs",
    "seconds_checkpoint": "wall-clock seconds of writing the checkpoint",
    "seconds_publish": "wall-clock seconds until all replicas served the new weights",
    "seconds_iteration": "wall-clock seconds of the whole iteration",
    "completed_timestamp_seconds": "Unix time at which the iteration was complete",
}
"""Every scalar of an iteration, and what it means."""

TASK_METRICS = {
    "success_rate": "share of the batch's episodes of a task that solved it",
    "task_success": "share of a task's latest episodes that solved it, for the curriculum",
    "task_probability": "probability with which the curriculum draws a task",
    "evaluation_success_rate": "share of a task's greedy evaluation episodes that succeeded",
}
"""Scalars that each task has, NAME/task_INDEX."""

_ITERATIONS = Curves("iteration")
_EVALUATIONS = Curves("env_steps", folder="evaluation")


def gauge_name(name: str) -> str:
    """A scalar's name in Prometheus, where the unit comes last."""
    seconds = name.removeprefix("seconds_")
    return f"vlarl_trainer_{name if seconds == name else f'{seconds}_seconds'}"


class MetricsLog:
    """RUN/metrics.jsonl, one line an iteration; the run's boards; Prometheus gauges."""

    def __init__(
        self, run_dir: Path, registry: CollectorRegistry, config: RunConfig | None = None
    ) -> None:
        """config: the run, whose `[logging]` says which boards; None: the defaults'."""
        self._run_dir = run_dir
        self._config = config or RunConfig()
        self._log: RunLog | None = None
        self._iteration = Gauge(
            "vlarl_trainer_iteration", "Iterations completed.", registry=registry
        )
        self._version = Gauge(
            "vlarl_trainer_policy_version", "Policy version that acted last.", registry=registry
        )
        self._env_steps = Gauge(
            "vlarl_trainer_env_steps", "Control steps since the run began.", registry=registry
        )
        self._bound = Gauge(
            "vlarl_trainer_logprob_gap_bound",
            "Log-prob gap above which the run stops.",
            registry=registry,
        )
        Gauge(
            "vlarl_trainer_disk_free_bytes",
            "Bytes that are free where the run's folder lies.",
            registry=registry,
        ).set_function(lambda: shutil.disk_usage(run_dir).free)
        self._gauges = {
            name: Gauge(gauge_name(name), f"{_upper(meaning)}.", registry=registry)
            for name, meaning in METRICS.items()
        }
        self._task_gauges = {
            name: Gauge(
                f"vlarl_trainer_task_{name.removeprefix('task_')}",
                f"{_upper(meaning)}.",
                ["task"],
                registry=registry,
            )
            for name, meaning in TASK_METRICS.items()
        }

        # What hasn't been measured is no number, least of all 0: alerts and curves leave it out.
        for unknown in (*self._gauges.values(), self._bound):
            unknown.set(math.nan)

    def show_bound(self, logprob_gap: float) -> None:
        """Sets the bound that stands beside the gap."""
        self._bound.set(logprob_gap)

    def resume(self, latest: trainer_pb2.Iteration | None) -> list[trainer_pb2.Iteration]:
        """Brings the file in step with the checkpoint: lines of iterations that have to be done
        again go, and a line that a crash kept from being written comes. One that was written stays:
        it knows how long the iteration took, which its checkpoint came too early for.

        Args:
            latest: the last iteration of the checkpoint; None: there is none.

        Returns:
            The iterations done so far.
        """
        last = -1 if latest is None else latest.iteration
        self._log = RunLog(
            self._run_dir / "metrics.jsonl",
            boards_of(self._run_dir, self._config),
            _ITERATIONS,
            keep=lambda line: line["iteration"] <= last,
            scalars=_scalars,
            following=last + 1,
        )
        done = [_parse(line) for line in self._log.rows]
        if latest is not None and (not done or done[-1].iteration < last):
            self._log.write(_line(latest))
            done.append(latest)
        return done

    def write(self, iteration: trainer_pb2.Iteration) -> None:
        """Records an iteration; `resume` came first."""
        assert self._log is not None  # noqa: S101
        self._log.write(_line(iteration))
        self._iteration.set(iteration.iteration + 1)
        self._version.set(iteration.policy_version)
        self._env_steps.set(iteration.env_steps)
        self._gauges["rolled_back_to"].set(math.nan)  # unless this iteration says otherwise
        self._set_gauges(iteration.metrics)

    def evaluation(self, metrics: Mapping[str, float], env_steps: int) -> None:
        """Shows an evaluation over control steps; `resume` came first."""
        assert self._log is not None  # noqa: S101
        # Apart, because resuming cuts TensorBoard's other curves off at an iteration.
        self._log.show(_EVALUATIONS, env_steps, metrics)
        self._set_gauges(metrics)

    def _set_gauges(self, metrics: Mapping[str, float]) -> None:
        """Those of `METRICS` in Prometheus."""
        for name, value in metrics.items():
            of_all, _, task = name.partition("/task_")
            if name in self._gauges:
                self._gauges[name].set(value)
            elif task and of_all in self._task_gauges:
                self._task_gauges[of_all].labels(task).set(value)

    def close(self) -> None:
        """Closes the boards."""
        if self._log is not None:
            self._log.close()


def _upper(meaning: str) -> str:
    return meaning[0].upper() + meaning[1:]


def _line(iteration: trainer_pb2.Iteration) -> dict[str, float]:
    fields = {
        "iteration": iteration.iteration,
        "policy_version": iteration.policy_version,
        "env_steps": iteration.env_steps,
    }
    return fields | dict(sorted(iteration.metrics.items()))


def _scalars(line: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in line.items() if name != "iteration"}


def _parse(line: Mapping[str, float]) -> trainer_pb2.Iteration:
    fields = dict(line)
    return trainer_pb2.Iteration(
        iteration=int(fields.pop("iteration")),
        policy_version=int(fields.pop("policy_version")),
        env_steps=int(fields.pop("env_steps")),
        metrics=fields,
    )
