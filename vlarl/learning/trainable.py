"""The policy that is trained, on all ranks: all of its weights, or the LoRA factors of its layers
(vlarl/learning/factors.py).

Only layers that the forward pass uses are adapted. With W0 in the layers the same model is the
policy before training, which a critic may look at.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from vlarl.config import LoraConfig
from vlarl.learning.factors import MergedLayers
from vlarl.learning.ranks import Indices, Ranks
from vlarl.learning.sharding import compute_dtype, distribute, synchronise_gradients
from vlarl.models.network import ActionForward, ObservationBatch, PolicyNetwork
from vlarl.models.registry import policy_family

_WRAPPER = "_checkpoint_wrapped_module."


class TrainablePolicy(ABC):
    """A policy, sharded where there are several ranks, of which something learns."""

    def __init__(
        self,
        model: PolicyNetwork,
        *,
        dtype: torch.dtype,
        ranks: Ranks,
        activation_checkpointing: bool,
        sharded: bool = True,
    ) -> None:
        """As `distribute` takes them; dtype: of the passes, where the model is sharded."""
        self._model = model
        distribute(
            model,
            ranks,
            dtype,
            activation_checkpointing=activation_checkpointing,
            sharded=sharded,
        )

    @property
    def feature_width(self) -> int:
        """d, of a hidden state and of an image's token."""
        return self._model.feature_width

    @property
    def patches(self) -> int:
        """All images' tokens."""
        return self._model.patches

    @abstractmethod
    def named_parameters(self) -> dict[str, nn.Parameter]:
        """The trained parameters, float32, sharded where the model is, by the names under which
        checkpoints hold them.
        """

    def logits(
        self, observations: ObservationBatch, token_ids: Tensor, answer_ids: Sequence[int] = ()
    ) -> Tensor:
        """Logits [B, K, 256] over the action ids, given action tokens (int64 [B, K]); or, with
        `answer_ids`, over these A answers after each of 0 to K of them [B, K + 1, A].
        """
        self._hold_weights()
        return self._passed(observations, token_ids, answer_ids).logits

    def supervised_logits(self, observations: ObservationBatch) -> Tensor:
        """Logits [B, K + 1, V]; see `PolicyNetwork.supervised_logits`."""
        self._hold_weights()
        return self._model.supervised_logits(observations)

    def greedy(self, observations: ObservationBatch, likeliest: Tensor) -> Tensor:
        """The tokens that the policy takes at temperature 0 (int64 [B, K]); see
        `PolicyNetwork.greedy`.
        """
        self._hold_weights()
        return self._model.greedy(observations, likeliest)

    def synchronise_gradients(self, on: bool) -> None:
        """Whether the next backward pass adds gradients up over the ranks, or only locally."""
        synchronise_gradients(self._model, on)

    def _passed(
        self,
        observations: ObservationBatch,
        token_ids: Tensor | None = None,
        answer_ids: Sequence[int] = (),
    ) -> ActionForward:
        """A pass with the weights that the layers hold; see `PolicyNetwork.answer`."""
        return self._model.answer(observations, token_ids, answer_ids)

    @abstractmethod
    def _hold_weights(self) -> None:
        """Makes the weights of the next pass those that the trained parameters stand for."""


class States(NamedTuple):
    """What a policy makes of B observations: what a critic may look at."""

    hidden: Tensor
    """float32 [B, d], where the first action token is predicted; it sees no action token."""
    image_tokens: Tensor
    """[B, patches, d], in the model's type."""


class LoraPolicy(TrainablePolicy):
    """A policy with LoRA factors, which alone are trained, but for weights that are new."""

    def __init__(
        self,
        checkpoint: Path,
        lora: LoraConfig,
        *,
        dtype: torch.dtype,
        seed: int,
        ranks: Ranks,
        activation_checkpointing: bool = False,
        sharded: bool = True,
        with_new: bool = False,
    ) -> None:
        """Loads the checkpoint and adds factors drawn with the seed, the same on every rank.

        Args:
            checkpoint: the policy.
            lora: the factors' size and scale.
            dtype: of the frozen weights, and so of the passes.
            seed: of the factors.
            ranks: which learn together.
            activation_checkpointing: whether blocks' activations are computed again.
            sharded: whether each rank holds a part of the weights, where there are several or a
                GPU, or all of them.
            with_new: whether the weights that a family calls new are trained, too, in float32.
        """
        family = policy_family(checkpoint)
        self.config = family.sizes
        self.scaling = lora.alpha / lora.rank
        self._first_action_id = family.spec.action_ids.start
        model = family.network(dtype, ranks.device).requires_grad_(False)
        self._layers = MergedLayers(model, lora, seed, list(family.lora_layers()))
        self._new_prefixes = family.new_prefixes if with_new else ()
        for name, parameter in model.named_parameters():
            if name.startswith(self._new_prefixes):
                # Memory of its own, as that of `trainable_model`.
                parameter.data = parameter.data.float().clone()
                parameter.requires_grad_()
        super().__init__(
            model,
            dtype=dtype,
            ranks=ranks,
            activation_checkpointing=activation_checkpointing,
            sharded=sharded,
        )
        self._layers.keep_base()

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """The factors, "LAYER.A" and "LAYER.B"; and new weights that are trained, by their keys."""
        new = {
            name: parameter
            for name, parameter in self._model.named_parameters()
            if name.startswith(self._new_prefixes)
        }
        return self._layers.named_factors() | new

    def logprobs(
        self, observations: ObservationBatch, token_ids: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities [B, K] and entropies [B, K] of action tokens (int64 [B, K])."""
        logits = self.logits(observations, token_ids)
        return token_logprobs(logits, token_ids - self._first_action_id, temperature)

    def sequence_lengths(self, prompt_lengths: Indices) -> Indices:
        """Tokens [B] that the language model reads of samples; see `PolicyNetwork`."""
        return self._model.sequence_lengths(prompt_lengths)

    @torch.no_grad()
    def look(
        self,
        observations: ObservationBatch,
        token_ids: Tensor,
        temperature: float,
        *,
        factors: bool = True,
    ) -> tuple[States, Tensor, Tensor]:
        """What the policy, or the base policy with W0 in its layers, makes of B observations, and
        its `logprobs`, in one pass without gradient.
        """
        if factors:
            self._hold_weights()
        else:
            self._layers.hold_base(self._model)
        output = self._passed(observations, token_ids)
        logprobs, entropy = token_logprobs(
            output.logits, token_ids - self._first_action_id, temperature
        )
        return States(output.feature.float(), output.image_tokens), logprobs, entropy

    @property
    def layers(self) -> list[str]:
        """The adapted layers, by their keys without ``.weight``."""
        return self._layers.names

    def checksums(self, layers: Iterable[str]) -> dict[str, int]:
        """Of the weights that passes compute with, see `vlarl.weights.merge.checksum`; the same on
        every rank.
        """
        self._hold_weights()
        return self._layers.checksums(layers)

    def _hold_weights(self) -> None:
        self._layers.hold_merged(self._model)


def token_logprobs(logits: Tensor, choices: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the chosen bins and entropies, over the action bins alone.

    Args:
        logits: [B, K, bins], of the action ids only.
        choices: int64 [B, K], bins taken, counted from the first action id.
        temperature: the sampling temperature, that of the rollout.

    Returns:
        Log-probabilities [B, K] and entropies [B, K] in nats, float32.
    """
    logp = (logits.float() / temperature).log_softmax(dim=-1)
    chosen = logp.gather(-1, choices.unsqueeze(-1)).squeeze(-1)
    return chosen, -(logp.exp() * logp).sum(dim=-1)


class FullPolicy(TrainablePolicy):
    """A policy with all of its weights trained, except those that the forward pass never uses; the
    optimizer's copy is float32.
    """

    def __init__(
        self,
        checkpoint: Path,
        *,
        dtype: torch.dtype,
        ranks: Ranks,
        activation_checkpointing: bool = False,
    ) -> None:
        """dtype: of the passes, where the model is sharded."""
        super().__init__(
            trainable_model(checkpoint, ranks.device),
            dtype=dtype,
            ranks=ranks,
            activation_checkpointing=activation_checkpointing,
        )

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """The trained parameters by their keys in the checkpoint."""
        return trained_parameters(self._model)

    def _hold_weights(self) -> None:
        pass  # they are the parameters


def trainable_model(checkpoint: Path, device: torch.device) -> PolicyNetwork:
    """A checkpoint's model in float32; what the passes never use is frozen."""
    model = policy_family(checkpoint).network(torch.float32, device)
    unused = model.unused_prefixes
    for name, parameter in model.named_parameters():
        # Memory of its own, aligned alike in every process: the file's may lie anywhere, and the
        # order of a product's sums, so its last bit, may depend on where.
        parameter.data = parameter.data.clone()
        parameter.requires_grad_(not name.startswith(unused))
    return model


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that learn, by name; the names don't tell which blocks are wrapped."""
    return {
        name.replace(_WRAPPER, ""): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


class LearnerConfig(Protocol):
    """What a run's configuration says about it."""

    @property
    def mode(self) -> Literal["full", "lora"]: ...
    @property
    def dtype(self) -> Literal["auto", "float32"]: ...
    @property
    def seed(self) -> int: ...
    @property
    def lora(self) -> LoraConfig: ...
    @property
    def activation_checkpointing(self) -> bool: ...


def load_learner(config: LearnerConfig, checkpoint: Path, ranks: Ranks) -> TrainablePolicy:
    """A checkpoint's model, as a run's configuration trains it."""
    dtype = compute_dtype(config.dtype, ranks.device)
    if config.mode == "full":
        return FullPolicy(
            checkpoint,
            dtype=dtype,
            ranks=ranks,
            activation_checkpointing=config.activation_checkpointing,
        )
    return LoraPolicy(
        checkpoint,
        config.lora,
        dtype=dtype,
        seed=config.seed,
        ranks=ranks,
        activation_checkpointing=config.activation_checkpointing,
        with_new=True,
    )
