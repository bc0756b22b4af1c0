"""Trajectories of a tiny OpenVLA-OFT: chunks of eight steps, two cameras, proprioception."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tests.integration.trainer.stand_ins import StandInPolicy
from tests.integration.trainer.trainer_samples import INSTRUCTIONS
from tests.tiny_oft import CAMERAS, PROPRIO, make_tiny_oft
from vlarl.images import encode_jpeg
from vlarl.learning.trainable import LoraPolicy
from vlarl.models.network import ObservationBatch
from vlarl.models.registry import policy_family
from vlarl.policy.v1 import policy_pb2
from vlarl.rollout.v1 import rollout_pb2

SIZE = 40
"""Of recorded frames, in pixels."""
KEY = "libero_spatial"
SMALL = {"image_size": 28, "tower_dim": 32, "text_dim": 64, "tower_depth": 2}


def make_chunk_checkpoint(directory: Path, **sizes: int) -> Path:
    """As small as the tiny OpenVLA whose towers and language model it has.

    sizes: of `make_tiny_checkpoint`; none: `SMALL`.
    """
    return make_tiny_oft(directory, **(sizes or SMALL))


class ActingInChunks:
    """Draws chunks and reports their log-probs, an answer at a time, by the path from an
    observation that the policy server takes.
    """

    def __init__(
        self, checkpoint: Path, logits: Callable[[ObservationBatch], Tensor], version: int | None
    ) -> None:
        """logits: of observations [B, 56, 256]; version: that acts; None: an iteration's own."""
        family = policy_family(checkpoint)
        self.spec = family.spec
        self.version = version
        self._processor = family.processor(center_crop=False)
        self._logits = logits

    @classmethod
    def of_learner(cls, checkpoint: Path, policy: LoraPolicy) -> ActingInChunks:
        """With the weights that a learner has by then."""
        unread = torch.zeros(1, 0, dtype=torch.int64)
        return cls(checkpoint, lambda seen: policy.logits(seen, unread), None)

    @torch.no_grad()
    def act(
        self,
        frames: Sequence[bytes],
        proprio: Sequence[float],
        instruction: str,
        temperature: float,
        seed: int,
    ) -> tuple[list[int], list[float]]:
        """Tokens [56] and their log-probs."""
        pixels = np.stack([self._processor.frame(one) for one in frames])
        state = self._processor.proprioception(proprio, KEY)[None]
        seen = self._processor.batch(
            pixels[None], [self._processor.prompt(instruction)], torch.device("cpu"), state
        )
        (logits,) = self._logits(seen)
        distribution = (logits / (temperature or 1.0)).log_softmax(dim=-1)
        generator = torch.Generator().manual_seed(seed)
        (drawn,) = torch.multinomial(distribution.exp(), 1, generator=generator).T
        drawn = drawn if temperature else distribution.argmax(dim=-1)
        chosen = distribution[torch.arange(len(drawn)), drawn]
        return (drawn + self.spec.action_ids.start).tolist(), chosen.tolist()

    def trajectory(
        self, spec: rollout_pb2.EpisodeSpec, executed: Sequence[int], success: bool
    ) -> rollout_pb2.Trajectory:
        """An episode of so many answers, each executed so far."""
        generator = np.random.default_rng([spec.placement_seed, spec.init_state])
        cameras, width = self.spec.cameras, self.spec.proprio_dim
        states = [
            (
                [
                    encode_jpeg(generator.integers(256, size=(SIZE, SIZE, 3), dtype=np.uint8))
                    for _ in cameras
                ],
                generator.normal(scale=0.3, size=width).astype(np.float32).tolist(),
            )
            for _ in range(len(executed) + 1)
        ]
        instruction = INSTRUCTIONS[spec.task.index % len(INSTRUCTIONS)]
        steps = []
        for number, ((frames, proprio), count) in enumerate(zip(states, executed, strict=False)):
            seed = (100 * spec.sampling_seed + number) % 2**63
            tokens, logprobs = self.act(frames, proprio, instruction, spec.temperature, seed)
            action = policy_pb2.Action(
                token_ids=tokens,
                logprobs=logprobs,
                values=[0.0] * self.spec.tokens,
                horizon=self.spec.chunk,
                policy_version=spec.iteration + 1 if self.version is None else self.version,
            )
            steps.append(
                rollout_pb2.Step(
                    image=frames[0],
                    images=frames[1:],
                    action=action,
                    robot_state=rollout_pb2.RobotState(proprio=proprio),
                    control_steps=count,
                    executed=count,
                )
            )
        frames, proprio = states[-1]
        total = [0.0] * (len(steps) - 1) + [float(success)]
        return rollout_pb2.Trajectory(
            spec=spec,
            instruction=instruction,
            steps=steps,
            final_image=frames[0],
            final_images=frames[1:],
            final_robot_state=rollout_pb2.RobotState(proprio=proprio),
            cameras=cameras,
            outcome=rollout_pb2.OUTCOME_SUCCESS if success else rollout_pb2.OUTCOME_TIME_LIMIT,
            scores=rollout_pb2.RewardScores(model="outcome", sparse=total, total=total),
        )


LENGTHS = ((8, 8, 3), (8, 5), (8, 8, 8, 1), (8, 8))
"""Of each episode, the actions executed of each answer: ends cut some of the last ones short."""


def chunk_trajectories(
    acting: ActingInChunks, count: int = 4, *, iteration: int = 0
) -> list[rollout_pb2.Trajectory]:
    """Episodes of two to four answers in groups of two, every other a success."""
    found = []
    for index in range(count):
        spec = rollout_pb2.EpisodeSpec(
            episode_id=f"run:{iteration}:{index}",
            run_id="run",
            purpose=rollout_pb2.PURPOSE_TRAINING,
            iteration=iteration,
            task=rollout_pb2.Task(suite="libero_spatial", index=index % 3),
            temperature=1.3,
            placement_seed=1000 * iteration + index,
            sampling_seed=1000 * iteration + index,
            unnorm_key=KEY,
            group_id=f"run:00000:0:{index // 2:04d}",
        )
        found.append(acting.trajectory(spec, LENGTHS[index], success=index % 2 == 0))
    return found


class ChunkStandIn(StandInPolicy):
    """The same for a policy that answers in chunks."""

    def __init__(self, checkpoint: Path) -> None:
        family = policy_family(checkpoint)
        self.config = family.sizes
        self.version = 0
        self.updates = []
        self.wrong_digest = self.wrong_weights = False
        self._checkpoint = checkpoint
        self._digest = ""
        model = family.network(torch.float32, torch.device("cpu"))
        self._model = model
        self._acting = ActingInChunks(checkpoint, lambda seen: model.answer(seen).logits, 0)

    async def GetPolicy(self, request, context) -> policy_pb2.GetPolicyResponse:  # noqa: ANN001
        described = await super().GetPolicy(request, context)
        described.chunk, described.proprio = self._acting.spec.chunk, PROPRIO
        described.cameras.extend(CAMERAS)
        return described

    def episode(self, spec: rollout_pb2.EpisodeSpec) -> rollout_pb2.Trajectory:
        """Ends by its sampling, cut short within its last answer."""
        self._acting.version = self.version
        drawn = np.random.default_rng([spec.sampling_seed, spec.init_state])
        executed = [8] * int(drawn.integers(1, 4)) + [int(drawn.integers(1, 9))]
        found = self._acting.trajectory(spec, executed, success=bool(drawn.integers(2)))
        found.ClearField("scores")
        return found
