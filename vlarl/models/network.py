"""What a policy's network computes on, and what it is to those who train it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


@dataclass(frozen=True)
class ObservationBatch:
    """B observations on the model's device."""

    pixel_values: Tensor
    """float32 [B, 3 * towers * images, S, S]."""
    prompt_ids: Tensor
    """int64 [B, L], padded on the right."""
    prompt_lengths: Tensor
    """int64 [B]."""
    proprio: Tensor | None = None
    """Normalised proprioception, float32 [B, P], of a policy that reads it."""


class ActionForward(NamedTuple):
    """What the policy says about a batch of observations with given action tokens.

    A named tuple, because FSDP looks for the tensors whose gradients it must wait for in tuples,
    not in dataclasses.
    """

    logits: Tensor
    """Over the 256 action ids, ascending, for each action token: float32[B, K, 256]. Where answers
    were asked for: over these, after 0, 1, ... action tokens: float32[B, K + 1, A].
    """
    feature: Tensor
    """Final-norm hidden state at "▁", where the first action token is predicted: [B, d]."""
    image_tokens: Tensor
    """The projector's output for all images [B, patches, d], without gradient."""


class PolicyNetwork(nn.Module):
    """A policy in torch. Its children are the families' networks."""

    @property
    @abstractmethod
    def feature_width(self) -> int:
        """d, the width of hidden states and image tokens."""

    @property
    @abstractmethod
    def patches(self) -> int:
        """Number of all images' tokens."""

    @property
    @abstractmethod
    def unused_prefixes(self) -> tuple[str, ...]:
        """Prefixes of the names of parameters that no pass uses."""

    @abstractmethod
    def answer(
        self,
        observations: ObservationBatch,
        token_ids: Tensor | None = None,
        answer_ids: Sequence[int] = (),
    ) -> ActionForward:
        """One pass over B observations.

        Args:
            observations: what is seen.
            token_ids: int64 [B, K], the action tokens taken; none: what doesn't depend on them is
                enough.
            answer_ids: A ids of the vocabulary that might follow instead of an action token, for
                which logits are wanted; empty: logits are of the action ids.
        """

    def supervised_logits(self, observations: ObservationBatch) -> Tensor:
        """Logits [B, K + 1, V] over the whole vocabulary, of a policy whose tokens depend on no
        other: for each action token, and for what ends the answer.
        """
        raise NotImplementedError(f"{type(self).__name__} predicts tokens after others")

    @abstractmethod
    def greedy(self, observations: ObservationBatch, likeliest: Tensor) -> Tensor:
        """The tokens that the policy takes at temperature 0: int64 [B, K].

        likeliest: int64 [B, K], of each token the likeliest id after any others.
        """

    @abstractmethod
    def sequence_lengths(self, prompt_lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens [B] that the language model reads, of prompts of these lengths [B]."""


def pad_prompts(
    prompts: Sequence[Sequence[int]], pad_id: int, device: str | torch.device = "cpu"
) -> tuple[Tensor, Tensor]:
    """Prompts of different length as int64[B, longest], padded on the right, and their lengths."""
    longest = max(len(prompt) for prompt in prompts)
    rows = [[*prompt, *[pad_id] * (longest - len(prompt))] for prompt in prompts]
    lengths = [len(prompt) for prompt in prompts]
    return torch.tensor(rows, device=device), torch.tensor(lengths, device=device)
