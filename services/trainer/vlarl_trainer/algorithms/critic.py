"""The critic: an MLP on what the policy makes of a state: the frozen base policy, its adapter off,
or the policy as it is (`trainer.critic.features`).

That is its hidden state where the first action token is predicted and, if asked for, random
projections of the image's tokens: a small policy's hidden state says which token comes next, and
little of where things are. Features are computed once a state, and kept for all epochs; no gradient
goes through them. The MLP is so small that rank 0 trains it alone and nothing needs to be
synchronised.

    L_V     = 0.5 max((V - R)^2, (clip(V, V_old - eps, V_old + eps) - R)^2)      value_loss
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from vlarl.config import CriticConfig
from vlarl.learning.optimizer import StepOptimizer, mini_batches
from vlarl.learning.ranks import Ranks


class Standardise(nn.Module):
    """Shifts and scales features [N, d] by the moments of the first batch that it was shown.

    Frozen features keep their distribution. What differs between states is small beside what all
    have in common, so a normalisation of each state by itself would leave it small.
    """

    mean: Tensor
    scale: Tensor
    known: Tensor

    def __init__(self, width: int) -> None:
        """Passes features through until `learn`."""
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.register_buffer("known", torch.tensor(0))

    def learn(self, features: Tensor) -> None:
        """Takes the moments; later calls change nothing."""
        if self.known:
            return
        deviation = features.std(dim=0, correction=0)
        # What hardly moves isn't blown up to the size of what does.
        floor = 0.1 * deviation.mean() + 1e-6
        self.mean.copy_(features.mean(dim=0))
        self.scale.copy_(deviation + floor)
        self.known.fill_(1)

    def forward(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.scale


def value_head(standardise: Standardise, hidden: tuple[int, ...]) -> nn.Sequential:
    """Standardisation, then an MLP to one value; it starts at V = 0 everywhere."""
    layers: list[nn.Module] = [standardise]
    width = len(standardise.mean)
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
    """The value head and its optimizer, of one rank."""

    def __init__(
        self,
        config: CriticConfig,
        *,
        feature_width: int,
        patches: int,
        max_grad_norm: float,
        seed: int,
        device: torch.device,
    ) -> None:
        """Draws the initial weights and the projection.

        Args:
            config: the head's layers, and how it learns.
            feature_width: d, of a hidden state and of an image's token.
            patches: an image's tokens.
            max_grad_norm: bound on the gradient's norm.
            seed: of what is drawn.
            device: where it learns.
        """
        width, channels = feature_width, config.patch_channels
        self._standardise = Standardise(width + patches * channels)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = value_head(self._standardise, config.hidden).to(device)
            self._projection = (torch.randn(width, channels) / width**0.5).to(device)
        self._alone = Ranks.alone(device)
        self.optimizer = StepOptimizer(
            dict(self.head.named_parameters()),
            self._alone,
            rate=lambda _: config.learning_rate,
            max_grad_norm=max_grad_norm,
            epsilon=1e-5,
            name="the critic",
            rate_key="trainer.critic.learning_rate",
        )
        self._config = config
        self._device = device

    def features(self, hidden: Tensor, image_tokens: Tensor) -> Tensor:
        """What the head sees of B states: float32 [B, F], F = d + patches * channels.

        Args:
            hidden: float32 [B, d], where the first action token is predicted.
            image_tokens: [B, patches, d], of any type.
        """
        patches = image_tokens @ self._projection.to(image_tokens.dtype)
        return torch.cat([hidden, patches.float().flatten(1)], dim=1)

    @torch.no_grad()
    def values(self, features: Tensor) -> Tensor:
        """V of features [S, F]; float32 [S] on the CPU."""
        values: Tensor = self.head(features.to(self._device)).squeeze(-1)
        return values.cpu()

    def fit(
        self,
        features: Tensor,
        returns: Tensor,
        *,
        epochs: int,
        mini_batch: int,
        generator: np.random.Generator,
    ) -> CriticReport:
        """Regresses the returns.

        Args:
            features: [N, F], `features`.
            returns: [N], GAE's A + V under the values before the fit.
            epochs: passes over the samples.
            mini_batch: samples behind one step.
            generator: of the samples' order.

        Raises:
            DivergedError: loss or gradient isn't finite.
        """
        features, returns = features.to(self._device), returns.to(self._device).float()
        self._standardise.learn(features)
        with torch.no_grad():
            old_values = self.head(features).squeeze(-1)
        losses: list[float] = []
        for _ in range(epochs):
            losses = []
            for chosen in mini_batches(len(features), mini_batch, generator):
                (undivided,) = self._alone.share(chosen, len(chosen))
                values = self.head(features[chosen]).squeeze(-1)
                loss = value_loss(values, old_values[chosen], returns[chosen], self._config.clip)
                self.optimizer.accumulate(loss, undivided)
                losses.append(float(self.optimizer.means()))
                self.optimizer.step()
        return CriticReport(float(np.mean(losses)), explained_variance(old_values, returns))


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> Tensor:
    """0.5 * max((V - R)^2, (clip(V, V_old - eps, V_old + eps) - R)^2); all [B]; clip 0: no clip."""
    loss = (values - returns).square()
    if clip > 0:
        near = old_values + (values - old_values).clamp(-clip, clip)
        loss = torch.maximum(loss, (near - returns).square())
    return 0.5 * loss


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 - Var(R - V) / Var(R): 1 is perfect, 0 no better than a constant; 0 where R is constant."""
    variance = returns.var(correction=0)
    if variance == 0:
        return 0.0
    return float(1.0 - (returns - values).var(correction=0) / variance)
