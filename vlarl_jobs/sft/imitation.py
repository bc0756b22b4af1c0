"""Behaviour cloning: the next action token, given the frame, the instruction and those before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vlarl.config import SftConfig
from vlarl.config.libero import ACTION_DIMENSIONS
from vlarl.data.augmentation import IMAGE_DRAWS
from vlarl.data.pixels import Pixels
from vlarl.data.samples import SampleBatch
from vlarl.learning.ranks import Ranks
from vlarl.learning.trainable import load_learner
from vlarl.models.network import ObservationBatch
from vlarl.models.registry import policy_family
from vlarl_jobs.sft.losses import action_loss, jittered, label_logprobs, soft_targets
from vlarl_jobs.sft.reading import Demonstrations


class Imitation:
    """The objective of fine-tuning."""

    def __init__(
        self, config: SftConfig, checkpoint: Path, demonstrations: Demonstrations, ranks: Ranks
    ) -> None:
        """Loads the checkpoint."""
        family = policy_family(checkpoint)
        self.train = demonstrations.train
        self.held_out = demonstrations.held_out
        self._tokenizer = family.action_tokenizer
        self._action_ids = family.spec.action_ids
        self._first_id = self._action_ids.start
        self._input_sigma = config.input_sigma
        # Where all demonstrations agree, a softened target would only teach noise.
        varies = np.ptp(self.train.token_ids, axis=0) > 0
        sigmas = [config.target_sigma if one else 0.0 for one in varies]
        self._targets = soft_targets(sigmas, len(self._action_ids)).to(ranks.device)
        self._pixels = Pixels(family.tower_pixels(), config.augmentation, ranks.device)
        self._policy = load_learner(config, checkpoint, ranks)

    def named_parameters(self) -> dict[str, nn.Parameter]:
        return self._policy.named_parameters()

    def synchronise_gradients(self, on: bool) -> None:
        self._policy.synchronise_gradients(on)

    def losses(self, batch: SampleBatch, draws: Tensor) -> Tensor:
        bins = batch.token_ids - self._first_id
        own = draws[:, IMAGE_DRAWS : IMAGE_DRAWS + bins.shape[1]]
        read = jittered(bins, own, self._input_sigma, len(self._action_ids))
        observations = self._observations(batch, self._pixels.augmented(batch.frames, draws))
        logits = self._policy.logits(observations, read + self._first_id)
        return action_loss(logits, bins, self._targets)

    def measure(self, batch: SampleBatch) -> Tensor:
        """Rows of the loss and, for each token, the label's log-prob, the likeliest bin after the
        expert's tokens, the bin that the policy chooses after its own, and the label.
        """
        observations = self._observations(batch, self._pixels.plain(batch.frames))
        bins = batch.token_ids - self._first_id
        logits = self._policy.logits(observations, batch.token_ids)
        likeliest = logits.argmax(dim=-1)
        chosen = self._policy.greedy(observations, likeliest + self._first_id) - self._first_id
        loss = action_loss(logits, bins, self._targets)
        tokens = [label_logprobs(logits, bins), likeliest, chosen, bins]
        return torch.cat([loss[:, None], *(one.float() for one in tokens)], dim=1)

    def summary(self, rows: Tensor) -> dict[str, float]:
        loss, tokens = rows[:, 0].double(), rows[:, 1:].double()
        logp, likeliest, chosen, bins = tokens.reshape(len(rows), 4, -1).unbind(dim=1)
        correct = (likeliest == bins).double().mean(dim=0)
        off = (chosen - bins).abs().mean(dim=0)
        actions, expert = (
            self._tokenizer.decode(self._first_id + one.long().numpy()) for one in (chosen, bins)
        )
        metrics = {
            "held_out_loss": float(loss.mean()),
            "held_out_nll": float(-logp.mean()),
            "held_out_accuracy": float(correct.mean()),
            "held_out_l1": float(abs(actions - expert).mean()),
        }
        for number, name in enumerate(ACTION_DIMENSIONS):
            metrics[f"held_out_accuracy/{name}"] = float(correct[number])
            metrics[f"held_out_bins/{name}"] = float(off[number])
        return metrics

    def _observations(self, batch: SampleBatch, pixels: Tensor) -> ObservationBatch:
        return ObservationBatch(pixels, batch.prompt_ids, batch.prompt_lengths)
