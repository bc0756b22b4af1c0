"""Behaviour cloning: the expert's action tokens, given the frames, the instruction and what else
the policy reads. A policy that predicts token after token reads those before.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vlarl.config import SftConfig
from vlarl.config.libero import ACTION_DIMENSIONS
from vlarl.data.augmentation import IMAGE_DRAWS
from vlarl.data.pixels import Pixels, camera_draws
from vlarl.data.samples import SampleBatch
from vlarl.learning.ranks import Ranks
from vlarl.learning.trainable import load_learner
from vlarl.models.base import PolicyFamily
from vlarl.models.network import ObservationBatch
from vlarl.models.registry import policy_family
from vlarl_jobs.sft.losses import jittered, label_logprobs, soft_targets
from vlarl_jobs.sft.reading import Demonstrations


def imitation(
    config: SftConfig, checkpoint: Path, demonstrations: Demonstrations, ranks: Ranks
) -> Imitation:
    """The objective of fine-tuning a checkpoint, which is loaded."""
    family = policy_family(checkpoint)
    kind = Imitation if family.reads_action_tokens else ParallelImitation
    return kind(config, family, demonstrations, ranks)


class Imitation:
    """The objective of fine-tuning a policy that reads action tokens: each after the expert's
    before it.
    """

    def __init__(
        self, config: SftConfig, family: PolicyFamily, demonstrations: Demonstrations, ranks: Ranks
    ) -> None:
        """Loads the checkpoint."""
        self.train = demonstrations.train
        self.held_out = demonstrations.held_out
        self._family = family
        self._tokenizer = family.action_tokenizer
        self._action_ids = family.spec.action_ids
        self._first_id = self._action_ids.start
        self._input_sigma = config.input_sigma
        # Where all demonstrations agree, a softened target would only teach noise.
        varies = np.ptp(self.train.token_ids, axis=0) > 0
        sigmas = [config.target_sigma if one else 0.0 for one in varies]
        self._targets = soft_targets(sigmas, len(self._action_ids)).to(ranks.device)
        self._pixels = Pixels(family.tower_pixels(), config.augmentation, ranks.device)
        self._policy = load_learner(config, family.checkpoint, ranks)

    def named_parameters(self) -> dict[str, nn.Parameter]:
        return self._policy.named_parameters()

    def synchronise_gradients(self, on: bool) -> None:
        self._policy.synchronise_gradients(on)

    def losses(self, batch: SampleBatch, draws: Tensor) -> Tensor:
        bins = batch.token_ids - self._first_id
        own = draws[:, IMAGE_DRAWS : IMAGE_DRAWS + bins.shape[1]]
        read = jittered(bins, own, self._input_sigma, len(self._action_ids))
        observations = self._observations(batch, draws)
        return self._loss(self._policy.logits(observations, read + self._first_id), batch)

    def measure(self, batch: SampleBatch) -> Tensor:
        """Rows of the loss and, for each token, the label's log-prob, the likeliest bin after the
        expert's tokens, the bin that the policy chooses after its own, the label, and whether it
        counts.
        """
        observations = self._observations(batch)
        bins = batch.token_ids - self._first_id
        loss, logits = self._measured(observations, batch)
        likeliest = logits.argmax(dim=-1)
        chosen = self._policy.greedy(observations, likeliest + self._first_id) - self._first_id
        tokens = [label_logprobs(logits, bins), likeliest, chosen, bins, batch.counted]
        return torch.cat([loss[:, None], *(one.float() for one in tokens)], dim=1)

    def _measured(
        self, observations: ObservationBatch, batch: SampleBatch
    ) -> tuple[Tensor, Tensor]:
        """Loss [B], and logits [B, K, bins] over the action ids."""
        logits = self._policy.logits(observations, batch.token_ids)
        return self._loss(logits, batch), logits

    def _loss(self, logits: Tensor, batch: SampleBatch) -> Tensor:
        bins = batch.token_ids - self._first_id
        return self._family.imitation_losses(logits, bins, batch.counted, self._targets)

    def summary(self, rows: Tensor) -> dict[str, float]:
        """Metrics; those of a dimension are over all steps of the chunks that count."""
        loss, tokens = rows[:, 0].double(), rows[:, 1:].double()
        # Each as one row a control step, whose numbers count or don't together.
        steps = [
            one.reshape(-1, len(ACTION_DIMENSIONS))
            for one in tokens.reshape(len(rows), 5, -1).unbind(dim=1)
        ]
        counted = steps[-1][:, 0] > 0
        logp, likeliest, chosen, bins = (one[counted] for one in steps[:-1])
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

    def _observations(self, batch: SampleBatch, draws: Tensor | None = None) -> ObservationBatch:
        """What the policy reads; with draws, each camera's frames are augmented on their own."""
        pixels = [self._camera(batch.frames, 0, draws)]
        if batch.further_frames is not None:
            further = batch.further_frames.unbind(dim=1)
            pixels += [self._camera(one, number, draws) for number, one in enumerate(further, 1)]
        return ObservationBatch(
            torch.cat(pixels, dim=1) if len(pixels) > 1 else pixels[0],
            batch.prompt_ids,
            batch.prompt_lengths,
            batch.proprio,
        )

    def _camera(self, frames: Tensor, number: int, draws: Tensor | None) -> Tensor:
        if draws is None:
            return self._pixels.plain(frames)
        return self._pixels.augmented(frames, camera_draws(draws, number))


class ParallelImitation(Imitation):
    """The objective of fine-tuning a policy that reads no action tokens: all of them at once."""

    def losses(self, batch: SampleBatch, draws: Tensor) -> Tensor:
        return self._loss(self._policy.supervised_logits(self._observations(batch, draws)), batch)

    def _measured(
        self, observations: ObservationBatch, batch: SampleBatch
    ) -> tuple[Tensor, Tensor]:
        logits = self._policy.supervised_logits(observations)
        return self._loss(logits, batch), logits[:, :-1, self._first_id : self._action_ids.stop]
