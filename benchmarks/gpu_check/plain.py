"""The policy in plain torch, and how far a server's actions are from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vlarl.clients.policy import Action
from vlarl.images import decode_image, prepare_image
from vlarl.models.network import pad_prompts
from vlarl.models.openvla.network import load_model
from vlarl.models.openvla.pixels import PixelNormalizer
from vlarl.models.openvla.prompt import PromptBuilder
from vlarl.weights.adapter import Adapter
from vlarl.weights.merge import merge

Pairs = Sequence[tuple[bytes, str]]
"""Images and instructions."""


class PlainPolicy:
    """A checkpoint in plain torch."""

    def __init__(self, checkpoint: Path, dtype: torch.dtype, device: torch.device) -> None:
        """Loads it."""
        self._model = load_model(checkpoint, dtype, device)
        self._device = device
        self._normalizer = PixelNormalizer.from_directory(checkpoint)
        self._prompts = PromptBuilder(checkpoint)

    @torch.no_grad()
    def merge(self, adapter: Adapter) -> None:
        """Merges an adapter into the weights, as trainer and policy server do."""
        parameters = dict(self._model.named_parameters())
        for layer, factors in adapter.factors.items():
            weight = parameters[f"{layer}.weight"]
            weight.copy_(merge(weight, factors, adapter.scaling, weight.dtype))

    @torch.inference_mode()
    def action_logits(self, pairs: Pairs, tokens: npt.NDArray[np.int64]) -> Tensor:
        """float32 [B, 7, 256] on the CPU, teacher-forced with `tokens` [B, 7]."""
        config = self._model.config
        images = [
            prepare_image(decode_image(image), config.spec.image_size, config.spec.center_crop)
            for image, _ in pairs
        ]
        ids = [self._prompts.token_ids(instruction) for _, instruction in pairs]
        prompts, lengths = pad_prompts(ids, config.pad_token_id, self._device)
        pixels = torch.from_numpy(self._normalizer(np.stack(images))).to(self._device)
        given = torch.from_numpy(tokens).to(self._device)
        logits: Tensor = self._model(pixels, prompts, lengths, given).logits
        return logits.float().cpu()

    def compare(self, pairs: Pairs, actions: Sequence[Action], temperature: float) -> Difference:
        """How far the served actions are from this policy's."""
        config = self._model.config
        tokens = np.array([action.token_ids for action in actions])
        logits = self.action_logits(pairs, tokens)
        index = torch.from_numpy(tokens - config.spec.action_ids.start)[..., None]
        short = logits.max(-1).values - logits.gather(-1, index)[..., 0]
        expected = torch.log_softmax(logits / (temperature or 1.0), -1).gather(-1, index)[..., 0]
        reported = torch.tensor(np.array([action.logprobs for action in actions]))
        gaps = (expected - reported).abs()
        return Difference(
            worst=float(gaps.max()),
            mean=float(gaps.mean()),
            most_probable=float((short < 1e-4).float().mean()),
            shortest=float(short.max()),
        )


@dataclass(frozen=True)
class Difference:
    """What served actions and a reference differ by.

    Attributes:
        worst: largest difference of a token's log-prob, in nats.
        mean: that of all tokens.
        most_probable: share of tokens that are the reference's most probable ones.
        shortest: by how much, in logits, a token is less probable than that, at most.
    """

    worst: float
    mean: float
    most_probable: float
    shortest: float


def dataset_key(checkpoint: Path) -> str:
    """Any of a checkpoint's datasets."""
    known = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))["norm_stats"]
    return "libero_goal" if "libero_goal" in known else min(known)
