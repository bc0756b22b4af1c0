"""The reward service: a section for each reward model, of which `reward.model` names one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from vlarl.config.base import OneOf, Section
from vlarl.config.learning import AlgorithmConfig


class RewardSection(Section):
    """What the reward server and the trainer ask of any reward model's section."""

    model: str
    """The reward model."""
    success_reward: float = 1.0
    """Reward of success."""
    batch_trajectories: int = Field(default=8, ge=1)
    """Most trajectories scored at once."""

    def terms(self, algorithm: AlgorithmConfig) -> dict[str, object]:  # noqa: ARG002 - some models' need it
        """All that a score depends on, beside its trajectory and the model's weights.

        A trainer that goes on refuses scores of other terms. So the terms of a model must not
        change between versions.

        Args:
            algorithm: how the trainer learns from the scores.

        Returns:
            Values that JSON can hold, by name.
        """
        return {"model": self.model, "success_reward": self.success_reward}


class OutcomeRewardConfig(RewardSection):
    """The reward server, scoring outcomes alone."""

    model: Literal["outcome"] = "outcome"
    """1 at the step that solved the task, 0 elsewhere."""


class ProcessRewardConfig(RewardSection):
    """The reward server, scoring outcomes and, by a process reward model, each step."""

    model: Literal["rprm"]
    """What outcome gives, and the process reward model's probability that a step leads somewhere
    (docs/reward.md)."""
    checkpoint: Path
    """The process reward model, a folder that `vlarl reward train` wrote, or its name on the hub.
    Another one put in a folder's place is taken up between two batches."""
    coefficient: float = Field(default=0.1, ge=0)
    """c of r = sparse + c * dense."""
    form: Literal["additive", "potential"] = "additive"
    """What dense is. additive: P(the action leads somewhere), the paper's; potential: gamma * P of
    the next state - P of this one, P being the probability before any action and gamma the
    trainer's discount, which no loitering can farm (Ng et al., 1999). See docs/decisions/0014."""
    watch_episodes: int = Field(default=200, ge=30)
    """Latest training episodes over which the trainer correlates sums of additive rewards with
    success: where they part, the policy farms the model."""
    warn_below: float = Field(default=0.1, ge=-1, le=1)
    """Correlation below which the run's log warns."""
    stop_below: float | None = Field(default=None, ge=-1, le=1)
    """Correlation below which the run stops, of the additive form; none: it goes on."""
    batch_steps: int = Field(default=64, ge=1)
    """Steps, of any trajectories, in one forward pass."""
    dtype: Literal["auto", "float32"] = "auto"
    """Data type of the passes; auto: bfloat16 on a GPU, float32 otherwise."""
    threads: int | None = Field(default=None, ge=1)
    """Threads of torch on a CPU; none: all cores."""

    @model_validator(mode="before")
    @classmethod
    def _checkpoint_is_named(cls, values: object) -> object:
        if isinstance(values, Mapping) and values.get("checkpoint") is None:
            raise ValueError(
                'reward.model = "rprm" needs reward.checkpoint, a folder that `vlarl reward train` '
                "wrote"
            )
        return values

    @model_validator(mode="after")
    def _only_what_can_be_farmed_is_watched(self) -> Self:
        if self.form == "potential" and self.stop_below is not None:
            raise ValueError(
                "reward.stop_below is a correlation of additive rewards; with reward.form = "
                '"potential" there is nothing to farm, so leave it out'
            )
        return self

    def terms(self, algorithm: AlgorithmConfig) -> dict[str, object]:
        """The weights aren't among them: others may take their folder in the midst of a run."""
        terms = super().terms(algorithm) | {"coefficient": self.coefficient, "form": self.form}
        if self.form == "potential":
            # Its last state's potential depends on what the limit means (docs/decisions/0014).
            limit = "terminal" if algorithm.limit_is_terminal else "bootstrap"
            terms |= {"gamma": algorithm.gamma, "time_limit": limit}
        return terms


RewardConfig = Annotated[OutcomeRewardConfig | ProcessRewardConfig, OneOf("model")]
"""The reward server's section. Saved runs may hold keys of a model that isn't chosen; they are
ignored."""
