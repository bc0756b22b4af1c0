"""A process reward model's objective: after frame, instruction and action tokens, is it a step on?

    L = - sum_j log p(verdict | o_t, v_in, v_out_<j)        (the paper's; here the mean over j)

The verdict is one of two tokens of the vocabulary, predicted after each prefix of the action. Both
kinds weigh alike however many samples there are of each.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from vlarl.config import RewardModelConfig
from vlarl.data.augmentation import IMAGE_DRAWS
from vlarl.data.samples import SampleBatch
from vlarl.learning.ranks import Ranks
from vlarl.models.network import ObservationBatch
from vlarl.models.registry import policy_family
from vlarl_jobs.reward_model.backbones import load_backbone
from vlarl_jobs.reward_model.measures import auc
from vlarl_jobs.reward_model.perturbing import DRAWS, perturbed, read_commands
from vlarl_jobs.reward_model.reading import Labelled


class RewardObjective:
    """The objective of `vlarl reward train`."""

    def __init__(self, config: RewardModelConfig, labelled: Labelled, ranks: Ranks) -> None:
        """Loads the checkpoint."""
        policy = policy_family(config.scored_policy)
        self.train = labelled.train
        self.held_out = labelled.held_out
        self._first_id = policy.spec.action_ids.start
        statistics = [policy.spec.statistics(suite) for suite in labelled.suites]
        self._commands = read_commands(policy.action_tokenizer, statistics).to(ranks.device)
        self._perturbed = config.data.perturbed
        self._weights = class_weights(self.train.labels, config.data.perturbed)
        self._backbone = load_backbone(config, ranks)

    def named_parameters(self) -> dict[str, nn.Parameter]:
        return self._backbone.named_parameters()

    def synchronise_gradients(self, on: bool) -> None:
        self._backbone.synchronise_gradients(on)

    def losses(self, batch: SampleBatch, draws: Tensor) -> Tensor:
        own = draws[:, IMAGE_DRAWS : IMAGE_DRAWS + DRAWS]
        bins = batch.token_ids - self._first_id
        commands = self._commands.of(batch.tasks)
        shown = perturbed(bins, batch.labels, own, self._perturbed, commands)
        pixels = self._backbone.pixels.augmented(batch.frames, draws)
        odds = self._odds(batch, pixels, shown.bins + self._first_id)
        return self._weighed(verdict_loss(odds, shown.labels, shown.counts), shown.labels)

    def measure(self, batch: SampleBatch) -> Tensor:
        """Rows of the loss, the log-odds after the whole action, and the label."""
        odds = self._odds(batch, self._backbone.pixels.plain(batch.frames), batch.token_ids)
        counts = torch.ones_like(odds, dtype=torch.bool)
        loss = self._weighed(verdict_loss(odds, batch.labels, counts), batch.labels)
        return torch.stack([loss, odds[:, -1], batch.labels], dim=1)

    def summary(self, rows: Tensor) -> dict[str, float]:
        loss, odds, labels = rows.double().numpy().T
        return {
            "held_out_loss": float(loss.mean()),
            "held_out_accuracy": float(((odds > 0) == (labels == 1)).mean()),
            "held_out_auc": auc(odds, labels == 1),
        }

    def _odds(self, batch: SampleBatch, pixels: Tensor, token_ids: Tensor) -> Tensor:
        observations = ObservationBatch(pixels, batch.prompt_ids, batch.prompt_lengths)
        negative, positive = self._backbone.verdicts(observations, token_ids).unbind(-1)
        return positive - negative

    def _weighed(self, losses: Tensor, labels: Tensor) -> Tensor:
        negative, positive = self._weights
        return losses * torch.where(labels == 1, positive, negative)


def verdict_loss(odds: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    """Negative log-likelihood of the verdict, the mean over the prefixes that count: [B], nats.

    Args:
        odds: [B, K + 1], log-odds of the positive token after 0, 1, ... action tokens.
        labels: float32 [B], 0 or 1.
        counts: bool [B, K + 1].
    """
    wanted = labels[:, None].expand_as(odds)
    each = F.binary_cross_entropy_with_logits(odds, wanted, reduction="none")
    return (each * counts).sum(dim=1) / counts.sum(dim=1)


def class_weights(labels: np.ndarray, moved: float) -> tuple[float, float]:
    """Weights of negatives and positives, mean 1, with which both kinds weigh alike.

    Args:
        labels: [N], 0 or 1.
        moved: share of the positives that become negatives.
    """
    positive = float((labels == 1).mean()) * (1 - moved)
    return 0.5 / (1 - positive), 0.5 / positive
