"""The configuration of a run: TOML in, typed sections out, the resolved whole saved with the run.

    config = load_config(Path("configs/embedded.toml"), ["trainer.iterations=20"])

Every field's meaning stands under it; docs/configuration.md is generated from the same text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from vlarl.config.ablation import AblationConfig, PaperNumber
from vlarl.config.base import NAME_PATTERN, Section
from vlarl.config.files import as_section, dump_toml, load_saved, load_section, save_config
from vlarl.config.labels import LabelConfig
from vlarl.config.learning import (
    AlgorithmConfig,
    CriticConfig,
    CurriculumConfig,
    EvaluationConfig,
    GroupsConfig,
    GrpoConfig,
    LoraConfig,
    PpoConfig,
    RlooConfig,
    TasksConfig,
    TrainerConfig,
)
from vlarl.config.libero import LIBERO_SUITES
from vlarl.config.network import ChannelConfig, QueueConfig, SecurityConfig, ServerConfig
from vlarl.config.reward import (
    OutcomeRewardConfig,
    ProcessRewardConfig,
    RewardConfig,
    RewardSection,
)
from vlarl.config.reward_model import RewardDataConfig, RewardModelConfig
from vlarl.config.services import EnvConfig, PolicyConfig
from vlarl.config.sft import (
    AugmentationConfig,
    DataConfig,
    FamilyConfig,
    FitConfig,
    SftConfig,
    SimulationConfig,
    TinyModelConfig,
)
from vlarl.config.tracking import LoggingConfig
from vlarl.errors import ConfigError

__all__ = [
    "AblationConfig",
    "AlgorithmConfig",
    "AugmentationConfig",
    "ChannelConfig",
    "ConfigError",
    "CriticConfig",
    "CurriculumConfig",
    "DataConfig",
    "EnvConfig",
    "EvaluationConfig",
    "FamilyConfig",
    "FitConfig",
    "GroupsConfig",
    "GrpoConfig",
    "LabelConfig",
    "LoggingConfig",
    "LoraConfig",
    "OutcomeRewardConfig",
    "PaperNumber",
    "PolicyConfig",
    "PpoConfig",
    "ProcessRewardConfig",
    "QueueConfig",
    "RewardConfig",
    "RewardDataConfig",
    "RewardModelConfig",
    "RewardSection",
    "RlooConfig",
    "RunConfig",
    "Section",
    "SecurityConfig",
    "ServerConfig",
    "SftConfig",
    "SimulationConfig",
    "TasksConfig",
    "TinyModelConfig",
    "TrainerConfig",
    "as_section",
    "dump_toml",
    "load_config",
    "load_saved",
    "load_section",
    "save_config",
]

LIBERO_INIT_STATES = 50
"""Official initial states of each task of LIBERO."""


class RunConfig(Section):
    """A whole run."""

    example = "`vlarl up` takes a run's configuration, as configs/reach.toml"
    name: str = Field(default="run", pattern=NAME_PATTERN)
    """The run's id: names its queue, its weights and, with the time behind it, its folder. Where
    --run-dir names the folder, the id follows from that."""
    seed: int = Field(default=7, ge=0)
    """Seed from which placements, sampling, initial factors and batch order are derived."""
    unnorm_key: str = ""
    """Dataset statistics that un-normalise actions; empty: the suite's, or the only ones."""
    tasks: TasksConfig = TasksConfig()
    """What is trained on."""
    curriculum: CurriculumConfig = CurriculumConfig()
    """How often each task is trained on."""
    queue: QueueConfig = QueueConfig()
    """The rollout queue."""
    security: SecurityConfig = SecurityConfig()
    """Credentials."""
    policy: PolicyConfig = PolicyConfig()
    """The policy servers."""
    env: EnvConfig = EnvConfig()
    """The simulators."""
    reward: RewardConfig = OutcomeRewardConfig()
    """The reward servers."""
    trainer: TrainerConfig = TrainerConfig()
    """The trainer."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Evaluation."""
    logging: LoggingConfig = LoggingConfig()
    """Where its curves are shown."""

    @property
    def actions_of_an_episode(self) -> int | None:
        """The most that it may have; None: the suite's own limit, which its simulators know."""
        if self.tasks.max_actions:
            return self.tasks.max_actions
        steps = LIBERO_SUITES.get(self.tasks.suite)
        return math.ceil(steps / self.env.action_repeat) if steps else None

    @model_validator(mode="after")
    def _states_exist(self) -> Self:
        wanted = self.evaluation.episodes_per_task
        if self.tasks.suite in LIBERO_SUITES and wanted > LIBERO_INIT_STATES:
            raise ValueError(
                f"evaluation.episodes_per_task is {wanted}, but {self.tasks.suite} has "
                f"{LIBERO_INIT_STATES} official initial states of each task"
            )
        return self

    @model_validator(mode="after")
    def _evaluations_come(self) -> Self:
        """What a run does by its evaluations needs some."""
        for key in ("stop_at_success", "rollback"):
            if getattr(self.trainer, key) and not self.evaluation.periodic:
                raise ValueError(
                    f"trainer.{key} goes by evaluations between iterations, and this run has none: "
                    "set evaluation.every_iterations or evaluation.every_env_steps, and "
                    "evaluation.episodes_per_task above 0"
                )
        return self

    @model_validator(mode="after")
    def _groups_fill_a_mini_batch(self) -> Self:
        """As far as it can be told without the policy: an answer of it is one action or more."""
        trainer, limit = self.trainer, self.actions_of_an_episode
        groups = trainer.groups
        most = trainer.episodes_per_iteration * (limit or 0)
        if groups and limit and most < groups.mini_batch:
            raise ValueError(
                f"trainer.{trainer.algorithm}.mini_batch is {groups.mini_batch} answers of "
                f"the policy, but {trainer.episodes_per_iteration} episodes "
                f"(trainer.episodes_per_iteration) of at most {limit} actions have at most {most}: "
                "lower it, or order more episodes"
            )
        return self


def load_config(path: Path | None, overrides: Iterable[str] = ()) -> RunConfig:
    """Reads a run's configuration: `load_section` of a RunConfig."""
    return load_section(RunConfig, path, overrides)
