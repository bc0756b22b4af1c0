"""The seam between the reward server and a reward model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from vlarl.config import ConfigError, PpoConfig, RewardConfig
from vlarl.rollout.v1 import rollout_pb2
from vlarl_reward.models.outcome import OutcomeScorer

MAX_STEPS = 10_000
"""Steps of a trajectory that is scored."""


@dataclass(frozen=True)
class Unscorable:
    """What keeps a trajectory from being scored."""

    problems: list[tuple[str, str]]
    """(field, description) pairs, at least one."""


@dataclass(frozen=True)
class Misjudged:
    """A score that must not leave: it holds a number that isn't finite."""

    cause: str
    """In one sentence; the model's fault, not the trajectory's."""


Result = rollout_pb2.RewardScores | Unscorable | Misjudged


class Scorer(Protocol):
    """A reward model.

    Implementations are called from one thread at a time, off the event loop, with as many
    trajectories as wait (at most `reward.batch_trajectories`), so that a learned model can score
    the steps of all of them in one forward pass.
    """

    name: str
    """Name stamped on every score."""
    version: str
    """Version stamped on every score."""
    needs_frames: bool
    """Whether trajectories must carry their frames."""

    def score(
        self, trajectories: Sequence[rollout_pb2.Trajectory]
    ) -> Sequence[rollout_pb2.RewardScores | Unscorable]:
        """Scores of each trajectory; every list in a score has one entry for each step."""


def build_scorer(config: RewardConfig, ppo: PpoConfig) -> Scorer:
    """The scorer that `reward.model` names; ppo: how the trainer learns from its scores.

    Raises:
        FatalError: its checkpoint can't be used.
    """
    if config.model == "rprm":
        try:
            from vlarl_reward.models.process import RprmScorer
        except ImportError as error:
            raise ConfigError(
                f'reward.model = "rprm" needs a package that isn\'t installed ({error}): '
                "pip install 'vlarl[reward]'"
            ) from error
        return RprmScorer(config, ppo)
    return OutcomeScorer(config.success_reward)


def score_all(scorer: Scorer, trajectories: Sequence[rollout_pb2.Trajectory]) -> list[Result]:
    """Scores of those trajectories that are whole, and what is wrong with the others, in order."""
    found = [trajectory_problems(one, scorer.needs_frames) for one in trajectories]
    pairs = zip(trajectories, found, strict=True)
    scores = iter(scorer.score([trajectory for trajectory, problems in pairs if not problems]))
    return [Unscorable(problems) if problems else _finite(next(scores)) for problems in found]


def _finite(result: rollout_pb2.RewardScores | Unscorable) -> Result:
    if isinstance(result, Unscorable):
        return result
    numbers = (*result.sparse, *result.dense, *result.total)
    if all(map(math.isfinite, numbers)):
        return result
    return Misjudged(
        f"reward model {result.model} {result.version} gives rewards that aren't finite numbers; "
        "another one has to be put in its place"
    )


def trajectory_problems(
    trajectory: rollout_pb2.Trajectory, needs_frames: bool
) -> list[tuple[str, str]]:
    """What keeps a trajectory from being scored, as (field, description) pairs."""
    problems = []
    # More are no episode, and a client can put millions into one request.
    if len(trajectory.steps) > MAX_STEPS:
        return [("trajectory.steps", f"at most {MAX_STEPS}, not {len(trajectory.steps)}")]
    if not trajectory.steps:
        problems.append(("trajectory.steps", "must have at least one step"))
    if trajectory.outcome == rollout_pb2.OUTCOME_UNSPECIFIED:
        problems.append(("trajectory.outcome", "must be OUTCOME_SUCCESS or OUTCOME_TIME_LIMIT"))
    for index, step in enumerate(trajectory.steps):
        if not step.action.token_ids:
            problems.append((f"trajectory.steps[{index}].action.token_ids", "must not be empty"))
        if needs_frames and not step.image:
            problems.append((f"trajectory.steps[{index}].image", "this reward model needs frames"))
    return problems
