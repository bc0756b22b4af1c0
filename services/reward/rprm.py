"""The robotic process reward model: what a learned judge says of each step, and the outcome."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from services.reward.outcome import OutcomeScorer
from services.reward.scorer import Unscorable
from vlarl.allocator import keep_freed_memory
from vlarl.config import RewardConfig
from vlarl.errors import FatalError
from vlarl.judge import Judge
from vlarl.openvla.folder import REWARD_CARD, reward_model_version
from vlarl.openvla.images import Frame, ImageError
from vlarl.openvla.prompt import MAX_INSTRUCTION_CHARACTERS, words_of
from vlarl.rollout.v1 import rollout_pb2

_LOG = logging.getLogger(__name__)

Floats = NDArray[np.float64]


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
        # Decoding and resizing release the interpreter's lock for most of their time. Where no GPU
        # does, all cores pass, and decoding beside them only makes them wait for each other.
        self._threads = (
            ThreadPoolExecutor(thread_name_prefix="decode") if torch.cuda.is_available() else None
        )
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        keep_freed_memory()
        self.version, self._judge, self._seen = self._load()

    def score(
        self, trajectories: Sequence[rollout_pb2.Trajectory]
    ) -> list[rollout_pb2.RewardScores | Unscorable]:
        """Scores of each trajectory, in order, all by one version of the model."""
        self._take_up_another()
        problems = [self._problems(trajectory) for trajectory in trajectories]
        pairs = zip(trajectories, problems, strict=True)
        sound = [trajectory for trajectory, found in pairs if not found]
        judged = iter(self._judged(sound))
        outcomes = self._outcome.score(trajectories)
        scores: list[rollout_pb2.RewardScores | Unscorable] = []
        for outcome, found in zip(outcomes, problems, strict=True):
            one = Unscorable(found) if found else next(judged)
            scores.append(one if isinstance(one, Unscorable) else self._scores(outcome, one))
        return scores

    def _problems(self, trajectory: rollout_pb2.Trajectory) -> list[tuple[str, str]]:
        """What can be told without its frames."""
        ids, width = self._judge.action_ids, self._judge.config.action_dim
        problems = []
        length = len(trajectory.instruction)
        if not words_of(trajectory.instruction):
            problems.append(("trajectory.instruction", "must say what is to be done"))
        elif length > MAX_INSTRUCTION_CHARACTERS:
            text = f"at most {MAX_INSTRUCTION_CHARACTERS} characters, not {length}"
            problems.append(("trajectory.instruction", text))
        for number, step in enumerate(trajectory.steps):
            tokens = step.action.token_ids
            if len(tokens) != width or any(token not in ids for token in tokens):
                field = f"trajectory.steps[{number}].action.token_ids"
                wanted = f"must be {width} ids from {ids[0]} to {ids[-1]}, the reward model's own"
                problems.append((field, wanted))
        return problems

    def _judged(self, trajectories: Sequence[rollout_pb2.Trajectory]) -> list[Floats | Unscorable]:
        """P(the action leads somewhere) of each trajectory's steps, batch by batch of all of them;
        each frame is decoded once.
        """
        if not trajectories:
            return []
        judge, batch = self._judge, self._config.batch_steps
        steps = [step for one in trajectories for step in one.steps]
        token_ids = np.array([step.action.token_ids for step in steps], np.int64)
        prompts = [
            ids for one in trajectories for ids in [judge.prompt(one.instruction)] * len(one.steps)
        ]
        frames: list[Frame | ImageError] = []
        parts = []
        blank = np.zeros((judge.config.image_size, judge.config.image_size, 3), np.uint8)
        for decoded in self._decoded([step.image for step in steps], batch):
            some = slice(len(frames), len(frames) + batch)
            frames += decoded
            pixels = [blank if isinstance(frame, ImageError) else frame for frame in decoded]
            parts.append(judge.probabilities(np.stack(pixels), prompts[some], token_ids[some]))
        stops = np.cumsum([len(one.steps) for one in trajectories])
        said = np.split(np.concatenate(parts), stops[:-1])
        broken = [
            _broken(frames[stop - len(one.steps) : stop])
            for one, stop in zip(trajectories, stops, strict=True)
        ]
        return [
            Unscorable(found) if found else each for found, each in zip(broken, said, strict=True)
        ]

    def _decoded(self, encoded: Sequence[bytes], batch: int) -> Iterator[list[Frame | ImageError]]:
        """Frames batch by batch; with threads, those to come are decoded while a batch passes."""
        if self._threads is None:
            frames = (self._frame(one) for one in encoded)
        else:
            coming = [self._threads.submit(self._frame, one) for one in encoded]
            frames = (one.result() for one in coming)
        while decoded := list(itertools.islice(frames, batch)):
            yield decoded

    def _frame(self, encoded: bytes) -> Frame | ImageError:
        try:
            return self._judge.frame(encoded)
        except ImageError as error:
            return error

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


def _broken(frames: Sequence[Frame | ImageError]) -> list[tuple[str, str]]:
    """Which of a trajectory's frames are no images."""
    return [
        (f"trajectory.steps[{number}].image", str(frame))
        for number, frame in enumerate(frames)
        if isinstance(frame, ImageError)
    ]


def dense_rewards(
    probabilities: Floats, form: Literal["additive", "potential"], gamma: float
) -> Floats:
    """r_rprm [T] from P(the action leads somewhere) [T]; after the last step P is 0."""
    if form == "additive":
        return probabilities
    following = np.append(probabilities[1:], 0.0)
    shaped: Floats = gamma * following - probabilities
    return shaped
