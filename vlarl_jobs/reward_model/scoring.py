"""What a reward model gives whole episodes: does its mean tell a success from a failure?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vlarl.data.dataset import Dataset, DatasetError, TaskSamples
from vlarl.images import ImageError
from vlarl.models.openvla.tokens import ActionTokenizer
from vlarl.models.process_reward.model import ProcessRewardModel
from vlarl.weights.folder import CheckpointError
from vlarl_jobs.reward_model.measures import Floats, auc


@dataclass(frozen=True)
class ScoredTask:
    """A task's episodes, of all parts that a dataset has of it."""

    name: str
    """SUITE INDEX."""
    episodes: tuple[Floats, ...]
    """[E] of [T], the probability of each step of each episode: of its action, or of its state."""
    succeeded: NDArray[np.bool_]
    """[E]."""

    @cached_property
    def scores(self) -> Floats:
        """[E], mean probability of an episode's steps."""
        return np.array([steps.mean() for steps in self.episodes])

    @property
    def auc(self) -> float:
        """How often a success has the higher mean; NaN where all ended alike."""
        return auc(self.scores, self.succeeded)


@dataclass(frozen=True)
class Moment:
    """What the model says at one step of all episodes that come so far, and how those end.

    Each end is one sample of what the policy makes of that state, so the AUC tells how well the
    probability ranks states by the policy's success from there.
    """

    step: int
    """From 1 on."""
    scores: Floats
    """[R], probabilities of that step."""
    succeeded: NDArray[np.bool_]
    """[R], how the episodes end."""

    @property
    def auc(self) -> float:
        """How often one that will succeed has the higher probability; NaN where all end alike."""
        return auc(self.scores, self.succeeded)


@dataclass(frozen=True)
class ReturnFit:
    """The least-squares line of an outcome's discounted returns over what is said of steps."""

    coefficient: float
    """By how much the return rises with the probability: what the potential form needs as
    reward.coefficient for the potential to be an estimate of the policy's value.
    """
    explained: float
    """Share of the returns' variance that the line explains, as the trainer's explained_variance is
    of its critic.
    """


def fit_returns(scored: ScoredTask, gamma: float) -> ReturnFit | None:
    """Fits gamma^(steps to the end) of successes, 0 of failures.

    Args:
        scored: at least one episode.
        gamma: discount of a step.

    Returns:
        None where all returns or all probabilities are alike.
    """
    scores = np.concatenate(scored.episodes)
    returns = np.concatenate(
        [
            float(reached) * gamma ** np.arange(len(steps) - 1, -1, -1.0)
            for steps, reached in zip(scored.episodes, scored.succeeded, strict=True)
        ]
    )
    (spread, common), (_, spread_of_returns) = np.cov(scores, returns, ddof=0)
    if spread == 0 or spread_of_returns == 0:
        return None
    return ReturnFit(float(common / spread), float(common**2 / spread / spread_of_returns))


def moments(scored: ScoredTask, count: int = 8) -> list[Moment]:
    """Up to count moments, evenly spread over the longest episode, first and last step included.

    Args:
        scored: at least one episode.
        count: how many.
    """
    lengths = np.array([len(steps) for steps in scored.episodes])
    found = []
    for step in np.unique(np.linspace(1, lengths.max(), count).round().astype(int)).tolist():
        running = np.flatnonzero(lengths >= step)
        scores = np.array([scored.episodes[one][step - 1] for one in running])
        found.append(Moment(step, scores, scored.succeeded[running]))
    return found


def together(tasks: Sequence[ScoredTask]) -> ScoredTask:
    """All of their episodes as if they were one task's."""
    return ScoredTask(
        "all",
        tuple(steps for task in tasks for steps in task.episodes),
        np.concatenate([task.succeeded for task in tasks]),
    )


def score_rollouts(
    model: ProcessRewardModel, datasets: Iterable[tuple[Path, Dataset]], of_states: bool = False
) -> list[ScoredTask]:
    """Scores every episode of recorded rollouts.

    Args:
        model: which.
        datasets: folders and their content.
        of_states: score the state of each step, before any token of its action, as the potential
            form of the reward does; otherwise the whole action, as the additive form does.

    Raises:
        DatasetError: a dataset holds demonstrations, whose failures nobody kept, or a frame that
            is no image.
        CheckpointError: the model gives no finite numbers.
    """
    found: dict[str, list[ScoredTask]] = {}
    tokenizer = ActionTokenizer(model.config.action_ids.stop)
    for folder, dataset in datasets:
        for task in dataset.tasks:
            if task.succeeded is None:
                raise DatasetError(
                    f"{folder} holds demonstrations, not rollouts: `vlarl eval --record` and "
                    "trainer.record_rollouts keep those"
                )
            try:
                frames = np.stack([model.frame(frame) for frame in task.frames])
            except ImageError as error:
                raise DatasetError(f"{folder}: a frame is no image: {error}") from error
            prompts = [model.prompt(task.instruction)] * len(frames)
            token_ids = tokenizer.tokens(task.actions, model.config.statistics(task.suite))
            if of_states:
                token_ids = token_ids[:, :0]
            steps = model.probabilities(frames, prompts, token_ids)
            if not np.isfinite(steps).all():
                raise CheckpointError("the reward model's probabilities aren't finite numbers")
            name = f"{task.suite} {task.index}"
            found.setdefault(name, []).append(ScoredTask(name, *_episodes(task, steps)))
    return [replace(together(parts), name=name) for name, parts in found.items()]


def _episodes(task: TaskSamples, steps: Floats) -> tuple[tuple[Floats, ...], NDArray[np.bool_]]:
    """Steps of each episode, and how it ended."""
    assert task.succeeded is not None  # noqa: S101 - asked before
    numbers, first = np.unique(task.episodes, return_index=True)
    return tuple(steps[task.episodes == one] for one in numbers), task.succeeded[first]
