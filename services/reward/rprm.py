"""The robotic process reward model: what a learned judge says of each step, and the outcome."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from services.reward.outcome import OutcomeScorer
from services.reward.scorer import Unscorable
from vlarl.config import RewardConfig
from vlarl.errors import FatalError
from vlarl.judge import Judge
from vlarl.openvla.folder import REWARD_CARD, reward_model_version
from vlarl.openvla.images import Frame, ImageError
from vlarl.rollout.v1 import rollout_pb2

_LOG = logging.getLogger(__name__)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Prepared:
    """T steps of a trajectory."""

    frames: Frame
    """uint8 [T, S, S, 3]."""
    prompt: list[int]
    token_ids: NDArray[np.int64]
    """[T, K]."""


class RprmScorer:
    """r_t = r_sparse_t + c * r_rprm_t (VLA-RL, arXiv 2505.18719).

    The steps of all trajectories that wait are judged together, batch by batch.
    """

    name = "rprm"
    needs_frames = True

    def __init__(self, config: RewardConfig, gamma: float) -> None:
        """Loads the model; gamma: the trainer's discount.

        Raises:
            ConfigError, CheckpointError: the checkpoint can't be used, or is no reward model.
        """
        assert config.checkpoint is not None  # noqa: S101 - RewardConfig has made sure
        self._config = config
        self._gamma = gamma
        self._checkpoint: Path = config.checkpoint
        self._outcome = OutcomeScorer(config.success_reward)
        # Decoding and resizing release the interpreter's lock for most of their time.
        self._threads = ThreadPoolExecutor(thread_name_prefix="decode")
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.version, self._judge, self._seen = self._load()

    def score(
        self, trajectories: Sequence[rollout_pb2.Trajectory]
    ) -> list[rollout_pb2.RewardScores | Unscorable]:
        """Scores of each trajectory, in order, all by one version of the model."""
        self._take_up_another()
        prepared = [self._prepared(trajectory) for trajectory in trajectories]
        whole = [one for one in prepared if not isinstance(one, Unscorable)]
        judged = iter(self._judged(whole))
        outcomes = self._outcome.score(trajectories)
        return [
            one if isinstance(one, Unscorable) else self._scores(outcome, next(judged))
            for one, outcome in zip(prepared, outcomes, strict=True)
        ]

    def _prepared(self, trajectory: rollout_pb2.Trajectory) -> _Prepared | Unscorable:
        """A trajectory as the model's inputs, each frame decoded once."""
        judge = self._judge
        ids, width = judge.action_ids, judge.config.action_dim
        problems = []
        if not trajectory.instruction.strip():
            problems.append(("trajectory.instruction", "must say what is to be done"))
        for number, step in enumerate(trajectory.steps):
            tokens = step.action.token_ids
            if len(tokens) != width or any(token not in ids for token in tokens):
                field = f"trajectory.steps[{number}].action.token_ids"
                wanted = f"must be {width} ids from {ids[0]} to {ids[-1]}, the reward model's own"
                problems.append((field, wanted))
        frames = list(self._threads.map(self._frame, [step.image for step in trajectory.steps]))
        for number, frame in enumerate(frames):
            if isinstance(frame, ImageError):
                problems.append((f"trajectory.steps[{number}].image", str(frame)))
        if problems:
            return Unscorable(problems)
        return _Prepared(
            frames=np.stack([frame for frame in frames if not isinstance(frame, ImageError)]),
            prompt=judge.prompt(trajectory.instruction),
            token_ids=np.array([step.action.token_ids for step in trajectory.steps], np.int64),
        )

    def _frame(self, encoded: bytes) -> Frame | ImageError:
        try:
            return self._judge.frame(encoded)
        except ImageError as error:
            return error

    def _judged(self, prepared: Sequence[_Prepared]) -> list[Floats]:
        """P(the action leads somewhere) of each trajectory's steps."""
        if not prepared:
            return []
        frames = np.concatenate([one.frames for one in prepared])
        token_ids = np.concatenate([one.token_ids for one in prepared])
        prompts = [one.prompt for one in prepared for _ in one.frames]
        stops = np.cumsum([len(one.frames) for one in prepared])
        return np.split(self._judge.probabilities(frames, prompts, token_ids), stops[:-1])

    def _scores(
        self, outcome: rollout_pb2.RewardScores, probabilities: Floats
    ) -> rollout_pb2.RewardScores:
        dense = dense_rewards(probabilities, self._config.form, self._gamma)
        total = np.array(outcome.sparse) + self._config.coefficient * dense
        return rollout_pb2.RewardScores(
            model=self.name,
            version=self.version,
            sparse=outcome.sparse,
            dense=dense.tolist(),
            total=total.tolist(),
        )

    def _load(self) -> tuple[str, Judge, tuple[int, int]]:
        seen = self._state()
        version = reward_model_version(self._checkpoint)
        judge = Judge(self._checkpoint, self._config.dtype, self._config.batch_steps)
        return version, judge, seen

    def _state(self) -> tuple[int, int]:
        """What changes when another model is put in place; (0, 0) where there is none."""
        try:
            found = (self._checkpoint / REWARD_CARD).stat()
        except OSError:
            return (0, 0)
        return (found.st_ino, found.st_mtime_ns)

    def _take_up_another(self) -> None:
        """Loads the model anew where another one lies in its place. While that can't be loaded,
        perhaps because it is still being copied, the old one goes on.
        """
        if self._state() in (self._seen, (0, 0)):
            return
        try:
            version, judge, seen = self._load()
        except FatalError as error:
            _LOG.warning("reward model %s stays: %s", self.version, error)
            return
        _LOG.info("reward model %s takes over from %s", version, self.version)
        self.version, self._judge, self._seen = version, judge, seen


def dense_rewards(
    probabilities: Floats, form: Literal["additive", "potential"], gamma: float
) -> Floats:
    """r_rprm [T] from P(the action leads somewhere) [T]; after the last step P is 0."""
    if form == "additive":
        return probabilities
    following = np.append(probabilities[1:], 0.0)
    shaped: Floats = gamma * following - probabilities
    return shaped
