"""The process reward model: a learned probability for each step, added to the outcome."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from vlarl.allocator import keep_freed_memory
from vlarl.answers import executed_actions
from vlarl.config import AlgorithmConfig, ProcessRewardConfig
from vlarl.errors import FatalError
from vlarl.images import Frame, ImageError
from vlarl.models.instructions import MAX_INSTRUCTION_CHARACTERS, words_of
from vlarl.models.process_reward.model import ProcessRewardModel
from vlarl.models.registry import check_reward_model
from vlarl.rollout.v1 import rollout_pb2
from vlarl.weights.folder import REWARD_CARD
from vlarl_reward.models.base import Unscorable
from vlarl_reward.models.outcome import OutcomeReward

_LOG = logging.getLogger(__name__)

Floats = NDArray[np.float64]


class ProcessReward:
    """r_t = r_sparse_t + c * r_rprm_t (VLA-RL, arXiv 2505.18719).

    The additive form's r_rprm is the probability that an action leads somewhere. The potential form
    asks for that of a state, before any token of an action. All trajectories' steps are scored
    together, batch by batch.
    """

    name = "rprm"
    needs_frames = True

    def __init__(self, config: ProcessRewardConfig, algorithm: AlgorithmConfig) -> None:
        """Loads the model; algorithm: the trainer's, for its discount and what a time limit means.

        Raises:
            ConfigError, CheckpointError: the checkpoint can't be used, or is no reward model.
        """
        self._config = config
        self._gamma = algorithm.gamma
        self._of_states = config.form == "potential"
        self._cut_goes_on = self._of_states and not algorithm.limit_is_terminal
        self._checkpoint = config.checkpoint
        self._outcome = OutcomeReward(config.success_reward)
        # Decoding and resizing release the interpreter's lock for most of their time. Without a GPU
        # the forward pass uses all cores, and decoding at the same time would only slow both.
        self._threads = (
            ThreadPoolExecutor(thread_name_prefix="decode") if torch.cuda.is_available() else None
        )
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        keep_freed_memory()
        self.version, self._model, self._loaded = self._load()

    def score(
        self, trajectories: Sequence[rollout_pb2.Trajectory]
    ) -> list[rollout_pb2.RewardScores | Unscorable]:
        """Scores of each trajectory, in order, all by one version of the model."""
        self._take_up_another()
        problems = [self._problems(trajectory) for trajectory in trajectories]
        pairs = zip(trajectories, problems, strict=True)
        sound = [trajectory for trajectory, found in pairs if not found]
        probabilities = iter(self._probabilities(sound))
        outcomes = self._outcome.score(trajectories)
        scores: list[rollout_pb2.RewardScores | Unscorable] = []
        for trajectory, outcome, found in zip(trajectories, outcomes, problems, strict=True):
            one = Unscorable(found) if found else next(probabilities)
            if isinstance(one, Unscorable):
                scores.append(one)
            else:
                scores.append(self._scores(trajectory.steps, outcome, one))
        return scores

    def _problems(self, trajectory: rollout_pb2.Trajectory) -> list[tuple[str, str]]:
        """What can be told without its frames."""
        ids, width = self._model.action_ids, self._model.config.action_dim
        problems = []
        length = len(trajectory.instruction)
        if not words_of(trajectory.instruction):
            problems.append(("trajectory.instruction", "must say what is to be done"))
        elif length > MAX_INSTRUCTION_CHARACTERS:
            text = f"at most {MAX_INSTRUCTION_CHARACTERS} characters, not {length}"
            problems.append(("trajectory.instruction", text))
        for number, step in enumerate(trajectory.steps):
            tokens = step.action.token_ids
            chunks, beside = divmod(len(tokens), width)
            # A state's potential sees no action, so a chunk of several may follow it.
            fits = not beside and (chunks == 1 or self._of_states)
            if not fits or any(token not in ids for token in tokens):
                field = f"trajectory.steps[{number}].action.token_ids"
                wanted = f"must be {width} ids from {ids[0]} to {ids[-1]}, the reward model's own"
                if chunks > 1 and not beside and not self._of_states:
                    wanted += '; chunks need reward.form = "potential", which scores states'
                problems.append((field, wanted))
        if self._goes_on(trajectory) and not trajectory.final_image:
            wanted = "must not be empty: the potential form scores the state that a limit cut"
            problems.append(("trajectory.final_image", wanted))
        return problems

    def _goes_on(self, trajectory: rollout_pb2.Trajectory) -> bool:
        """Whether the trainer sees something follow the last action, which has a potential then."""
        return self._cut_goes_on and trajectory.outcome == rollout_pb2.OUTCOME_TIME_LIMIT

    def _images(self, trajectory: rollout_pb2.Trajectory) -> list[bytes]:
        """Encoded frames of what is scored: of each step, and the last state's if that counts."""
        final = [trajectory.final_image] if self._goes_on(trajectory) else []
        return [*(step.image for step in trajectory.steps), *final]

    def _probabilities(
        self, trajectories: Sequence[rollout_pb2.Trajectory]
    ) -> list[Floats | Unscorable]:
        """Of each trajectory one for each of its `_images`, in [0, 1]; or which of them are broken.

        The images of all trajectories pass through the model batch by batch, each decoded once.
        """
        if not trajectories:
            return []
        model, batch = self._model, self._config.batch_steps
        images = [self._images(one) for one in trajectories]
        encoded = list(itertools.chain.from_iterable(images))
        token_ids = np.zeros((len(encoded), 0), np.int64)
        if not self._of_states:
            steps = [step for one in trajectories for step in one.steps]
            token_ids = np.array([step.action.token_ids for step in steps], np.int64)
        prompts = [
            ids
            for one, seen in zip(trajectories, images, strict=True)
            for ids in [model.prompt(one.instruction)] * len(seen)
        ]
        frames: list[Frame | ImageError] = []
        parts = []
        blank = np.zeros((model.config.image_size, model.config.image_size, 3), np.uint8)
        for decoded in self._decoded(encoded, batch):
            some = slice(len(frames), len(frames) + batch)
            frames += decoded
            pixels = [blank if isinstance(frame, ImageError) else frame for frame in decoded]
            parts.append(model.probabilities(np.stack(pixels), prompts[some], token_ids[some]))
        stops = np.cumsum([len(seen) for seen in images])
        found = np.split(np.concatenate(parts), stops[:-1])
        broken = [
            _broken(frames[stop - len(seen) : stop], len(one.steps))
            for one, seen, stop in zip(trajectories, images, stops, strict=True)
        ]
        return [
            Unscorable(problems) if problems else each
            for problems, each in zip(broken, found, strict=True)
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
            return self._model.frame(encoded)
        except ImageError as error:
            return error

    def _scores(
        self,
        steps: Sequence[rollout_pb2.Step],
        outcome: rollout_pb2.RewardScores,
        probabilities: Floats,
    ) -> rollout_pb2.RewardScores:
        if self._of_states and len(probabilities) == len(outcome.sparse):
            probabilities = np.append(probabilities, 0.0)  # nothing follows
        discounts = self._gamma ** np.array([executed_actions(step) for step in steps])
        dense = dense_rewards(probabilities, self._config.form, discounts)
        total = np.array(outcome.sparse) + self._config.coefficient * dense
        return rollout_pb2.RewardScores(
            model=self.name,
            version=self.version,
            sparse=outcome.sparse,
            dense=dense.tolist(),
            total=total.tolist(),
        )

    def _load(self) -> tuple[str, ProcessRewardModel, tuple[int, int]]:
        """The version, the model, and what lay in its place when that was read."""
        there = self._in_place()
        version = check_reward_model(self._checkpoint)
        model = ProcessRewardModel(self._checkpoint, self._config.dtype, self._config.batch_steps)
        return version, model, there

    def _in_place(self) -> tuple[int, int]:
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
        if self._in_place() in (self._loaded, (0, 0)):
            return
        try:
            version, model, loaded = self._load()
        except FatalError as error:
            _LOG.warning("reward model %s stays: %s", self.version, error)
            return
        _LOG.info("reward model %s takes over from %s", version, self.version)
        self.version, self._model, self._loaded = version, model, loaded


def _broken(frames: Sequence[Frame | ImageError], steps: int) -> list[tuple[str, str]]:
    """Which of a trajectory's frames, those of its steps and perhaps the last, are no images."""
    return [
        (
            f"trajectory.steps[{number}].image" if number < steps else "trajectory.final_image",
            str(frame),
        )
        for number, frame in enumerate(frames)
        if isinstance(frame, ImageError)
    ]


def dense_rewards(
    probabilities: Floats, form: Literal["additive", "potential"], gamma: float | Floats
) -> Floats:
    """r_rprm [T] from the model's probabilities.

        additive:   r_t = P(s_t, a_t)
        potential:  r_t = gamma * Phi(s_{t+1}) - Phi(s_t)      (Ng, Harada and Russell, 1999)

    The potential form doesn't change which policy is best, because it depends on states alone. It
    holds for an episode that was cut off, too: the last state's potential then counts
    (docs/decisions/0014).

    Args:
        probabilities: additive: [T], P of each action; potential: [T + 1], Phi of each state, and
            last of the one after the last action: 0 where nothing follows.
        form: which.
        gamma: the trainer's discount, of each step [T] or of all: of a chunk to the power of its
            actions that were executed.
    """
    if form == "additive":
        return probabilities
    shaped: Floats = gamma * probabilities[1:] - probabilities[:-1]
    return shaped
