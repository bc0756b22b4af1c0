"""Which reward model a configuration names."""

from __future__ import annotations

from vlarl.config import ConfigError, PpoConfig, RewardConfig
from vlarl_reward.models.base import RewardModel
from vlarl_reward.models.outcome import OutcomeScorer


def build_scorer(config: RewardConfig, ppo: PpoConfig) -> RewardModel:
    """The scorer that `reward.model` names; ppo: how the trainer learns from its scores.

    Raises:
        FatalError: its checkpoint can't be used.
    """
    if config.model == "rprm":
        try:
            from vlarl_reward.models.process import RprmScorer
        except ImportError as error:
            raise ConfigError(
                f'reward.model = "rprm" needs a package that isn\'t installed ({error}): '
                "pip install 'vlarl[reward]'"
            ) from error
        return RprmScorer(config, ppo)
    return OutcomeScorer(config.success_reward)
