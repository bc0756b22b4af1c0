"""What the critic sees, and what it can learn from it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from vlarl.config import CriticConfig
from vlarl.models.openvla.config import OpenVLAConfig
from vlarl_trainer.algorithms.critic import Critic, Standardise

GOLDEN = Path(__file__).parents[2] / "golden/openvla-tiny"


@pytest.mark.parametrize(("channels", "explained"), [(0, False), (4, True)])
def test_where_things_are_is_seen_in_the_patches_alone(channels: int, explained: bool) -> None:
    """A small signal in one patch, on a large pattern that all states share."""
    model = OpenVLAConfig.from_directory(GOLDEN)
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    states, width = 512, model.text.hidden_size
    tokens = (20.0 * draw(model.num_patches, width)).repeat(states, 1, 1)
    place = draw(states)
    tokens[:, 2] += place[:, None] * draw(width)
    config = CriticConfig(
        hidden=(32,), patch_channels=channels, learning_rate=3e-3, clip=0.0, epochs=20
    )
    critic = Critic(
        config,
        feature_width=model.text.hidden_size,
        patches=model.num_patches,
        max_grad_norm=1.0,
        seed=3,
        device=torch.device("cpu"),
    )
    features = critic.features(draw(states, width), tokens)
    learned, held_out = features[:384], features[384:]
    assert not critic.values(features).any(), "V starts at 0 everywhere"
    critic.fit(
        learned,
        (place > 0).float()[:384],
        epochs=20,
        mini_batch=64,
        generator=np.random.default_rng(0),
    )
    values = critic.values(held_out)
    correct = ((values > 0.5) == (place[384:] > 0)).float().mean()
    assert (correct > 0.75) == explained


def test_standardisation_is_of_the_first_batch() -> None:
    layer = Standardise(3)
    one = torch.tensor([[1.0, 10.0, 5.0], [3.0, 30.0, 5.0]])
    assert torch.equal(layer(one), one)
    layer.learn(one)
    first = layer(one)
    # Deviations 1, 10, 0, and a tenth of their mean beside each.
    floor = 0.1 * 11 / 3
    expected = torch.tensor([1 / (1 + floor), 10 / (10 + floor), 0.0])
    torch.testing.assert_close(first, torch.stack([-expected, expected]))
    layer.learn(100 * one)
    assert torch.equal(layer(one), first)
