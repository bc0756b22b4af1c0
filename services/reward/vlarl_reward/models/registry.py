"""Which reward model a configuration names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vlarl.config import (
    AlgorithmConfig,
    ConfigError,
    OutcomeRewardConfig,
    ProcessRewardConfig,
    RewardConfig,
    RewardSection,
)
from vlarl_reward.models.base import RewardModel
from vlarl_reward.models.outcome import OutcomeReward


def _outcome(config: OutcomeRewardConfig, _: AlgorithmConfig) -> RewardModel:
    return OutcomeReward(config.success_reward)


def _process(config: ProcessRewardConfig, algorithm: AlgorithmConfig) -> RewardModel:
    from vlarl_reward.models.process import ProcessReward  # with torch, which others run without

    return ProcessReward(config, algorithm)


LOADERS: dict[type[RewardSection], Callable[[Any, AlgorithmConfig], RewardModel]] = {
    OutcomeRewardConfig: _outcome,
    ProcessRewardConfig: _process,
}
"""What loads the reward model of each section that `RewardConfig` may be."""


def load_reward_model(config: RewardConfig, algorithm: AlgorithmConfig) -> RewardModel:
    """The reward model that `reward.model` names.

    Args:
        config: its section.
        algorithm: how the trainer learns from its scores.

    Raises:
        FatalError: a package or its checkpoint is missing, or can't be used.
    """
    try:
        return LOADERS[type(config)](config, algorithm)
    except ImportError as error:
        raise ConfigError(
            f'reward.model = "{config.model}" needs a package that isn\'t installed ({error}): '
            "pip install 'vlarl[reward]'"
        ) from error
