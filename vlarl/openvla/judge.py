"""A process reward model: an OpenVLA whose vocabulary says whether an action leads somewhere.

CHECKPOINT/reward_model.json, beside the files of any OpenVLA checkpoint, makes one of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from vlarl.openvla.config import OpenVLAConfig
from vlarl.openvla.images import Frame, PixelNormalizer, decode_image, prepare_image
from vlarl.openvla.modeling import load_model, pad_prompts
from vlarl.openvla.prompt import PromptBuilder
from vlarl.openvla.tokens import ACTION_BINS


class Judge:
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
        self.config = OpenVLAConfig.from_directory(checkpoint)
        on_gpu = torch.cuda.is_available()
        self._device = torch.device("cuda" if on_gpu else "cpu")
        self._batch = batch
        self._prompts = PromptBuilder(checkpoint)
        self._verdicts = self._prompts.verdict_ids
        self._normalize = PixelNormalizer.from_directory(checkpoint)
        precision = torch.bfloat16 if on_gpu and dtype == "auto" else torch.float32
        self._model = load_model(checkpoint, precision, self._device)

    @property
    def action_ids(self) -> range:
        """The ids of the vocabulary that are actions."""
        return range(self.config.action_vocab_size - ACTION_BINS, self.config.action_vocab_size)

    def frame(self, encoded: bytes) -> Frame:
        """Decodes and prepares a frame: uint8 [S, S, 3].

        Raises:
            ImageError: the bytes are no image.
        """
        return prepare_image(decode_image(encoded), self.config.image_size, self.config.center_crop)

    def prompt(self, instruction: str) -> list[int]:
        """Prompt ids, "▁" last."""
        return self._prompts.token_ids(instruction)

    @torch.inference_mode()
    def probabilities(
        self, frames: Frame, prompts: Sequence[Sequence[int]], token_ids: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """P(the action leads somewhere), [N].

        Args:
            frames: prepared, uint8 [N, S, S, 3].
            prompts: N of them, of any lengths.
            token_ids: [N, K], whole actions.
        """
        found = [np.zeros(0)]
        for start in range(0, len(frames), self._batch):
            some = slice(start, start + self._batch)
            found.append(self._pass(frames[some], prompts[some], token_ids[some]))
        return np.concatenate(found)

    def _pass(
        self, frames: Frame, prompts: Sequence[Sequence[int]], token_ids: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        ids, lengths = pad_prompts(prompts, self.config.pad_token_id, self._device)
        logits = self._model(
            torch.from_numpy(self._normalize(frames)).to(self._device),
            ids,
            lengths,
            torch.from_numpy(token_ids).to(self._device),
            self._verdicts,
        ).logits
        probabilities: NDArray[np.float64] = (
            logits[:, -1].softmax(dim=-1)[:, 1].double().cpu().numpy()
        )
        return probabilities
