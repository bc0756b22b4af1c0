"""The configuration of a run: TOML in, typed sections out, the resolved whole saved with the run.

    config = load_config(Path("configs/embedded.toml"), ["trainer.iterations=20"])

Every field's meaning stands under it; docs/configuration.md is generated from the same text.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable
from pathlib import Path

from pydantic import Field, ValidationError

from vlarl.config.base import ConfigError, Section, explain, merge
from vlarl.config.learning import (
    CriticConfig,
    CurriculumConfig,
    EvaluationConfig,
    LoraConfig,
    PpoConfig,
    TasksConfig,
    TrainerConfig,
)
from vlarl.config.network import ChannelConfig, QueueConfig, SecurityConfig, ServerConfig
from vlarl.config.services import EnvConfig, PolicyConfig, RewardConfig

__all__ = [
    "ChannelConfig",
    "ConfigError",
    "CriticConfig",
    "CurriculumConfig",
    "EnvConfig",
    "EvaluationConfig",
    "LoraConfig",
    "PolicyConfig",
    "PpoConfig",
    "QueueConfig",
    "RewardConfig",
    "RunConfig",
    "Section",
    "SecurityConfig",
    "ServerConfig",
    "TasksConfig",
    "TrainerConfig",
    "dump_toml",
    "load_config",
]


class RunConfig(Section):
    """A whole run."""

    name: str = Field(default="run", pattern=r"^[a-zA-Z0-9][a-zA-Z0-9._-]*$")
    """The run's id: names its folder, its queue and its weights."""
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
    reward: RewardConfig = RewardConfig()
    """The reward servers."""
    trainer: TrainerConfig = TrainerConfig()
    """The trainer."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Evaluation."""


def load_config(path: Path | None, overrides: Iterable[str] = ()) -> RunConfig:
    """Reads a run's configuration.

    Args:
        path: TOML file; none: the defaults.
        overrides: `section.key=value` pairs laid over the file, values written as in TOML
            (a bare word is a string).

    Raises:
        ConfigError: unreadable file, unknown key (the nearest known one is named), bad value.
    """
    source = str(path) if path else "configuration"
    values: dict[str, object] = {}
    if path is not None:
        try:
            values = tomllib.loads(path.read_text())
        except OSError as error:
            raise ConfigError(f"{path}: can't be read ({error.strerror})") from error
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path}: not TOML: {error}") from error
    for override in overrides:
        values = merge(values, _parse_override(override))
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise explain(RunConfig, error, source) from error


def _parse_override(text: str) -> dict[str, object]:
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"{text!r}: an override is written section.key=value")
    try:
        parsed: object = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    for part in reversed(key.strip().split(".")):
        parsed = {part: parsed}
    assert isinstance(parsed, dict)  # noqa: S101 - at least one key was wrapped
    return parsed


def dump_toml(config: Section) -> str:
    """The section as TOML that `load_config` reads back equal; unset keys are left out."""
    return "\n".join(_toml_lines(config.model_dump(mode="json", exclude_none=True), ())) + "\n"


def _toml_lines(table: dict[str, object], path: tuple[str, ...]) -> list[str]:
    # JSON's strings, numbers, booleans and arrays are TOML's too.
    lines = [f"{k} = {json.dumps(v)}" for k, v in table.items() if not isinstance(v, dict)]
    for key, value in table.items():
        if isinstance(value, dict) and value:
            here = (*path, key)
            lines += ["", f"[{'.'.join(here)}]", *_toml_lines(value, here)]
    return lines
