"""Behaviour cloning: the next action token, given the frame, the instruction and those before."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from services.trainer.lora_policy import LoraPolicy
from services.trainer.observations import ObservationBatch
from services.trainer.sft.full_policy import FullPolicy
from services.trainer.sft.losses import action_loss, label_logprobs, soft_targets
from services.trainer.sft.pixels import Pixels
from services.trainer.sft.reading import Demonstrations
from services.trainer.sft.samples import SampleBatch
from services.trainer.sharding import compute_dtype
from services.trainer.world import World
from vlarl.config import SftConfig
from vlarl.openvla.config import OpenVLAConfig
from vlarl.openvla.tokens import ActionTokenizer

DIMENSIONS = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")


class Policy(Protocol):
    """What imitation needs of a policy, whichever part of it learns."""

    def logits(self, observations: ObservationBatch, token_ids: Tensor) -> Tensor:
        """Logits [B, K, 256] over the action ids, given action tokens (int64 [B, K])."""

    def synchronise_gradients(self, on: bool) -> None:
        """Whether the next backward pass adds gradients up over the ranks, or only locally."""


class Imitation:
    """The objective of fine-tuning."""

    def __init__(
        self, config: SftConfig, checkpoint: Path, demonstrations: Demonstrations, world: World
    ) -> None:
        """Loads the checkpoint."""
        model = OpenVLAConfig.from_directory(checkpoint)
        self.train = demonstrations.train
        self.held_out = demonstrations.held_out
        self._tokenizer = ActionTokenizer(model.action_vocab_size)
        self._targets = soft_targets(config.target_sigma).to(world.device)
        self._pixels = Pixels(checkpoint, config.augmentation, world.device)
        self._policy, self._parameters = _load_policy(config, checkpoint, world)

    def named_parameters(self) -> dict[str, nn.Parameter]:
        return self._parameters

    def synchronise_gradients(self, on: bool) -> None:
        self._policy.synchronise_gradients(on)

    def losses(self, batch: SampleBatch, draws: Tensor) -> Tensor:
        logits = self._logits(batch, self._pixels.augmented(batch.frames, draws))
        return action_loss(logits, self._bins(batch), self._targets)

    def measure(self, batch: SampleBatch) -> Tensor:
        """Rows of loss, log-probs of the labels, bins thought best, and the labels' own."""
        logits = self._logits(batch, self._pixels.plain(batch.frames))
        bins = self._bins(batch)
        return torch.cat(
            [
                action_loss(logits, bins, self._targets)[:, None],
                label_logprobs(logits, bins),
                logits.argmax(dim=-1).float(),
                bins.float(),
            ],
            dim=1,
        )

    def summary(self, rows: Tensor) -> dict[str, float]:
        loss, tokens = rows[:, 0].double(), rows[:, 1:].double()
        logp, best, bins = tokens.reshape(len(rows), 3, -1).unbind(dim=1)
        correct = (best == bins).double().mean(dim=0)
        off = (best - bins).abs().mean(dim=0)
        first = self._tokenizer.first_id
        actions, expert = (
            self._tokenizer.decode(first + one.long().numpy()) for one in (best, bins)
        )
        metrics = {
            "held_out_loss": float(loss.mean()),
            "held_out_nll": float(-logp.mean()),
            "held_out_accuracy": float(correct.mean()),
            "held_out_l1": float(abs(actions - expert).mean()),
        }
        for number, name in enumerate(DIMENSIONS):
            metrics[f"held_out_accuracy/{name}"] = float(correct[number])
            metrics[f"held_out_bins/{name}"] = float(off[number])
        return metrics

    def _logits(self, batch: SampleBatch, pixels: Tensor) -> Tensor:
        observations = ObservationBatch(pixels, batch.prompt_ids, batch.prompt_lengths)
        return self._policy.logits(observations, batch.token_ids)

    def _bins(self, batch: SampleBatch) -> Tensor:
        return batch.token_ids - self._tokenizer.first_id


def _load_policy(
    config: SftConfig, checkpoint: Path, world: World
) -> tuple[Policy, dict[str, nn.Parameter]]:
    dtype = compute_dtype(config.dtype, world.device)
    if config.mode == "full":
        full = FullPolicy(
            checkpoint,
            dtype=dtype,
            world=world,
            activation_checkpointing=config.activation_checkpointing,
        )
        return full, full.named_parameters()
    adapted = LoraPolicy(
        checkpoint,
        config.lora,
        dtype=dtype,
        seed=config.seed,
        world=world,
        activation_checkpointing=config.activation_checkpointing,
    )
    return adapted, adapted.named_factors()
