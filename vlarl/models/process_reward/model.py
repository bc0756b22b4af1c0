"""A process reward model: a network whose vocabulary says whether an action leads somewhere.

CHECKPOINT/reward_model.json, beside the files of an OpenVLA checkpoint or of a Hugging Face
image-text-to-text model, makes one of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlarl.images import Frame
from vlarl.models.process_reward.image_text import ImageTextReward
from vlarl.models.registry import is_openvla, policy_family
from vlarl.models.spec import PolicySpec


class _Network(Protocol):
    """What `ProcessRewardModel` asks of a network of any kind."""

    policy: PolicySpec
    """The policy whose frames and action tokens it knows."""

    def frame(self, encoded: bytes) -> Frame:
        """Decodes and prepares a frame: uint8 [S, S, 3].

        Raises:
            ImageError: the bytes are no image.
        """

    def prompt(self, instruction: str) -> list[int]:
        """Ids of the prompt."""

    def verdicts(
        self, frames: Frame, prompts: Sequence[Sequence[int]], token_ids: NDArray[np.int64]
    ) -> Tensor:
        """Logits [B, K + 1, 2] that 0 to K tokens of an action lead nowhere, and somewhere.

        Args:
            frames: prepared, uint8 [B, S, S, 3].
            prompts: B of them, of any lengths.
            token_ids: [B, K], the policy's.
        """


class ProcessRewardModel:
    """The model, and the way from encoded frames, instructions and action tokens to it."""

    def __init__(
        self,
        checkpoint: Path,
        dtype: Literal["auto", "float32"] = "float32",
        batch: int = 64,
    ) -> None:
        """Loads a checkpoint, with or without a card, onto a GPU where there is one.

        Args:
            checkpoint: the model.
            dtype: of the passes; auto: bfloat16 on a GPU, float32 otherwise.
            batch: actions in one forward pass.

        Raises:
            ConfigError, CheckpointError: it can't be used.
        """
        on_gpu = torch.cuda.is_available()
        device = torch.device("cuda" if on_gpu else "cpu")
        precision = torch.bfloat16 if on_gpu and dtype == "auto" else torch.float32
        load = _OpenVLAReward if is_openvla(checkpoint) else ImageTextReward.load
        self._network: _Network = load(checkpoint, precision, device)
        self._batch = batch
        self.config = self._network.policy

    @property
    def action_ids(self) -> range:
        """The ids of the policy's vocabulary that are actions."""
        return self.config.action_ids

    def frame(self, encoded: bytes) -> Frame:
        """Decodes and prepares a frame: uint8 [S, S, 3].

        Raises:
            ImageError: the bytes are no image.
        """
        return self._network.frame(encoded)

    def prompt(self, instruction: str) -> list[int]:
        """Ids of the prompt."""
        return self._network.prompt(instruction)

    @torch.inference_mode()
    def probabilities(
        self, frames: Frame, prompts: Sequence[Sequence[int]], token_ids: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """P(the action leads somewhere), [N].

        Args:
            frames: prepared, uint8 [N, S, S, 3].
            prompts: N of them, of any lengths.
            token_ids: [N, K], whole actions, or their first K tokens, as many of each. K = 0:
                P of the states, before anything is done in them.
        """
        found = [np.zeros(0)]
        for start in range(0, len(frames), self._batch):
            some = slice(start, start + self._batch)
            verdicts = self._network.verdicts(frames[some], prompts[some], token_ids[some])
            found.append(verdicts[:, -1].float().softmax(dim=-1)[:, 1].double().cpu().numpy())
        return np.concatenate(found)


class _OpenVLAReward:
    """An OpenVLA with a card: the policy's own architecture, vocabulary and way to see."""

    def __init__(self, checkpoint: Path, dtype: torch.dtype, device: torch.device) -> None:
        family = policy_family(checkpoint)
        self.policy = family.spec
        self._answers = family.verdict_ids()
        self._processor = family.processor(self.policy.center_crop)
        self._model = family.network(dtype, device)
        self._device = device

    def frame(self, encoded: bytes) -> Frame:
        return self._processor.frame(encoded)

    def prompt(self, instruction: str) -> list[int]:
        return self._processor.prompt(instruction)

    def verdicts(
        self, frames: Frame, prompts: Sequence[Sequence[int]], token_ids: NDArray[np.int64]
    ) -> Tensor:
        seen = self._processor.batch(frames[:, None], prompts, self._device)
        taken = torch.from_numpy(token_ids).to(self._device)
        return self._model.answer(seen, taken, self._answers).logits
