"""An answer inside vLLM: tokens drawn from the hidden states of one pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from vllm.model_executor.layers.pooler.abstract import Pooler
from vllm.pooling_params import PoolingParams
from vllm.v1.pool.metadata import PoolingMetadata

from vlarl.models.openvla_oft.sampling import draw, uniforms

TASK = "token_classify"
"""What vLLM calls it: the one task for which its runner lets a pooler return what it likes."""


class ChunkPooler(Pooler):  # type: ignore[misc]
    """Draws each request's chunk, and says which weights it comes from.

    An answer is one row, float64 [1 + 2 * tokens]: the version, the bins, the log-probs.
    """

    tasks: ClassVar = frozenset({TASK})

    def __init__(self, action_logits: Callable[[Tensor], Tensor], tokens: int, behind: int) -> None:
        """Args:
        action_logits: of hidden states [..., d], float32 [..., bins].
        tokens: n, of an answer.
        behind: tokens after the placeholders.
        """
        super().__init__()
        self.version = 0
        """Of the weights that compute; set while no request is in progress."""
        self._action_logits = action_logits
        self._tokens = tokens
        self._behind = behind

    def get_supported_tasks(self) -> frozenset[str]:
        """What requests must name."""
        return self.tasks

    def forward(self, hidden_states: Tensor, pooling_metadata: PoolingMetadata) -> Tensor:
        """Answers float64 [B, 1 + 2 * tokens].

        Args:
            hidden_states: [T, d], of all requests one after the other.
            pooling_metadata: where each ends, and how it is sampled.
        """
        cursor, device = pooling_metadata.get_pooling_cursor(), hidden_states.device
        # Attention is full: a part of a sequence would be computed without seeing the rest.
        assert not cursor.is_partial_prefill(), "a pass has a part of a request"  # noqa: S101
        place = torch.arange(-self._tokens, 0, device=device) - self._behind
        # vLLM's own requests, by which it measures memory, are shorter than an answer.
        places = (cursor.last_token_indices_gpu[:, None] + place).clamp(min=0)
        logits = self._action_logits(hidden_states[places])
        temperatures, drawn_by = self._sampling(pooling_metadata.pooling_params)
        bins, logprobs = draw(
            logits,
            temperatures.to(device, non_blocking=True),
            drawn_by.to(device, non_blocking=True),
        )
        versions = torch.full((len(bins), 1), self.version, dtype=torch.float64, device=device)
        return torch.cat([versions, bins.double(), logprobs.double()], dim=1)

    def _sampling(self, requests: list[PoolingParams]) -> tuple[Tensor, Tensor]:
        """Each request's temperature float32 [B], and numbers to draw by, float64 [B, tokens]."""
        # vLLM's own requests have neither.
        asked = [one.extra_kwargs or {"temperature": 0.0, "seed": 0} for one in requests]
        temperatures = torch.tensor([one["temperature"] for one in asked], dtype=torch.float32)
        rows = [uniforms(one["seed"], self._tokens) for one in asked]
        return temperatures, torch.from_numpy(np.stack(rows))
