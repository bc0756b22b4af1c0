"""Which algorithm `trainer.algorithm` names."""

from __future__ import annotations

from collections.abc import Callable

from vlarl_trainer.algorithms.base import Algorithm, Setup
from vlarl_trainer.algorithms.grpo import Grpo
from vlarl_trainer.algorithms.ppo import Ppo
from vlarl_trainer.algorithms.rloo import Rloo

ALGORITHMS: dict[str, Callable[[Setup], Algorithm]] = {"ppo": Ppo, "grpo": Grpo, "rloo": Rloo}
"""By the name of each one's section in [trainer]."""


def build_algorithm(setup: Setup) -> Algorithm:
    """The one that the configuration names."""
    return ALGORITHMS[setup.config.algorithm](setup)
