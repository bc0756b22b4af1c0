"""The critic: an MLP on the frozen base policy's hidden state where the first action token is
predicted.

Features are computed once a state, with the adapter off, and kept for all epochs; the MLP is so
small that rank 0 trains it alone and nothing needs to be synchronised.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from services.trainer.losses import explained_variance, value_loss
from services.trainer.minibatches import mini_batches
from vlarl.config import CriticConfig


def value_head(width: int, hidden: tuple[int, ...]) -> nn.Sequential:
    """LayerNorm, then an MLP to one value; it starts at V = 0 everywhere."""
    layers: list[nn.Module] = [nn.LayerNorm(width, elementwise_affine=False)]
    for units in hidden:
        layers += [nn.Linear(width, units), nn.GELU()]
        width = units
    last = nn.Linear(width, 1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, last)


@dataclass(frozen=True)
class CriticReport:
    """What a fit did."""

    value_loss: float
    """Mean over the last epoch's mini-batches, each before its step."""
    explained_variance: float
    """Of the returns, by the values before the fit."""


class Critic:
    """The value head and its optimizer."""

    def __init__(self, width: int, config: CriticConfig, seed: int, device: torch.device) -> None:
        """width: of the features. seed: of the initial weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = value_head(width, config.hidden).to(device)
        self.optimizer = torch.optim.AdamW(
            self.head.parameters(), lr=config.learning_rate, eps=1e-5, weight_decay=0.0
        )
        self._config = config
        self._device = device

    @torch.no_grad()
    def values(self, features: Tensor) -> Tensor:
        """V of features [S, d]; float32 [S] on the CPU."""
        values: Tensor = self.head(features.to(self._device)).squeeze(-1)
        return values.cpu()

    def fit(
        self,
        features: Tensor,
        returns: Tensor,
        *,
        epochs: int,
        mini_batch: int,
        max_grad_norm: float,
        generator: np.random.Generator,
    ) -> CriticReport:
        """Regresses the returns.

        Args:
            features: [N, d].
            returns: [N], GAE's A + V under the values before the fit.
            epochs: passes over the samples.
            mini_batch: samples behind one step.
            max_grad_norm: bound on the gradient's norm.
            generator: of the samples' order.
        """
        features, returns = features.to(self._device), returns.to(self._device).float()
        with torch.no_grad():
            old_values = self.head(features).squeeze(-1)
        losses: list[float] = []
        for _ in range(epochs):
            losses = []
            for samples in mini_batches(len(features), mini_batch, generator):
                values = self.head(features[samples]).squeeze(-1)
                loss = value_loss(
                    values, old_values[samples], returns[samples], self._config.clip
                ).mean()
                self.optimizer.zero_grad()
                torch.autograd.backward(loss)
                nn.utils.clip_grad_norm_(self.head.parameters(), max_grad_norm)
                self.optimizer.step()
                losses.append(loss.item())
        return CriticReport(float(np.mean(losses)), explained_variance(old_values, returns))
