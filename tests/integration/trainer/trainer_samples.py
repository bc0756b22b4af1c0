"""Trajectories as a policy server would have produced them, made with the trainer's own model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from vlarl.config import CriticConfig, LoraConfig, PpoConfig, TrainerConfig
from vlarl.images import encode_jpeg
from vlarl.learning.trainable import LoraPolicy
from vlarl.models.openvla.network import generate_actions
from vlarl.models.openvla.processor import Processor
from vlarl.policy.v1 import policy_pb2
from vlarl.rollout.v1 import rollout_pb2

INSTRUCTIONS = [
    "put the bowl on the plate",
    "pick up the alphabet soup and place it in the basket",
    "open the drawer",
]


def trainer_config(**changes: object) -> TrainerConfig:
    """Small, quick, and far enough from the defaults to notice when one is used instead."""
    values: dict[str, object] = {
        "temperature": 1.3,
        "dtype": "float32",
        "ppo": PpoConfig(
            learning_rate=2e-3, epochs=2, mini_batch=8, micro_batch=3, kl_stop=0.0, clip_high=0.28
        ),
        "lora": LoraConfig(rank=4, alpha=8.0),
        "critic": CriticConfig(
            hidden=(16,), patch_channels=2, learning_rate=1e-2, warmup_iterations=0
        ),
    }
    return TrainerConfig.model_validate(values | changes)


class ActingPolicy:
    """Draws actions at the trainer's temperature and reports their log-probs."""

    def __init__(self, checkpoint: Path, policy: LoraPolicy, temperature: float) -> None:
        self._policy = policy
        self._processor = Processor(checkpoint, policy.config, center_crop=False)
        self._temperature = temperature

    @torch.no_grad()
    def act(
        self, frames: list[bytes], instruction: str, seed: int, version: int
    ) -> list[policy_pb2.Action]:
        """One action for each frame."""
        observations = self._processor.batch(
            np.stack([self._processor.frame(frame) for frame in frames]),
            [self._processor.prompt(instruction)] * len(frames),
            torch.device("cpu"),
        )
        drawn = generate_actions(
            self._policy._model,
            observations.pixel_values,
            observations.prompt_ids,
            self._temperature,
            torch.Generator().manual_seed(seed),
        )
        return [
            policy_pb2.Action(
                token_ids=tokens, logprobs=logprobs, values=[0.0] * 7, policy_version=version
            )
            for tokens, logprobs in zip(
                drawn.token_ids.tolist(), drawn.logprobs.tolist(), strict=True
            )
        ]

    def trajectory(
        self, spec: rollout_pb2.EpisodeSpec, steps: int, success: bool
    ) -> rollout_pb2.Trajectory:
        generator = np.random.default_rng(spec.sampling_seed)
        size = self._policy.config.spec.image_size
        frames = [
            encode_jpeg(generator.integers(256, size=(size, size, 3), dtype=np.uint8))
            for _ in range(steps + 1)
        ]
        instruction = INSTRUCTIONS[spec.task.index % len(INSTRUCTIONS)]
        actions = self.act(frames[:-1], instruction, spec.sampling_seed, spec.iteration + 1)
        outcome = rollout_pb2.OUTCOME_SUCCESS if success else rollout_pb2.OUTCOME_TIME_LIMIT
        total = [0.0] * (steps - 1) + [float(success)]
        return rollout_pb2.Trajectory(
            spec=spec,
            instruction=instruction,
            steps=[
                rollout_pb2.Step(image=frame, action=action)
                for frame, action in zip(frames[:-1], actions, strict=True)
            ],
            final_image=frames[-1],
            outcome=outcome,
            scores=rollout_pb2.RewardScores(model="outcome", sparse=total, total=total),
        )


def made_up_trajectories(
    acting: ActingPolicy, count: int, *, iteration: int = 0, temperature: float = 1.3
) -> list[rollout_pb2.Trajectory]:
    """Episodes of 3, 5, 7, ... steps, every other a success."""
    found = []
    for index in range(count):
        spec = rollout_pb2.EpisodeSpec(
            episode_id=f"run:{iteration}:{index}",
            run_id="run",
            purpose=rollout_pb2.PURPOSE_TRAINING,
            iteration=iteration,
            task=rollout_pb2.Task(suite="libero_spatial", index=index % 3),
            temperature=temperature,
            sampling_seed=1000 * iteration + index,
        )
        found.append(acting.trajectory(spec, steps=3 + 2 * index, success=index % 2 == 0))
    return found


def steep_config() -> TrainerConfig:
    """One step an update, of factors that count so much that `overflowing` is infinite to them."""
    base = trainer_config()
    once = {"epochs": 1, "mini_batch": 10**6, "learning_rate": 1e-12}
    return base.model_copy(
        update={
            "ppo": base.ppo.model_copy(update=once),
            "lora": LoraConfig(rank=4, alpha=1e6),
        }
    )


def overflowing(
    trajectories: Sequence[rollout_pb2.Trajectory],
) -> list[rollout_pb2.Trajectory]:
    """The same, one action of a failed episode taken with a probability e^87 times too small: its
    ratio is 6e37, a float32, and the loss with it; the gradient overflows on the way back.
    """
    found = copy.deepcopy(list(trajectories))
    failed = next(one for one in found if one.outcome == rollout_pb2.OUTCOME_TIME_LIMIT)
    action = failed.steps[0].action
    action.logprobs[:] = [logprob - 87 / len(action.logprobs) for logprob in action.logprobs]
    return found
