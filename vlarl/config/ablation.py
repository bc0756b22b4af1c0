"""A table of ablations: `vlarl ablate`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from vlarl.config.base import NAME_PATTERN, Section


class PaperNumber(Section):
    """What the paper reports of a variant."""

    success: float = Field(ge=0, le=100)
    """Its success in percent."""
    against: float | None = Field(default=None, ge=0, le=100)
    """The paper's success of what our first variant stands for in this comparison; none: the
    paper's number of the first variant."""

    @model_validator(mode="before")
    @classmethod
    def _a_bare_number_is_the_success(cls, value: object) -> object:
        return {"success": value} if isinstance(value, int | float) else value


class AblationConfig(Section):
    """Variants of a run, each with several seeds, beside one another."""

    example = "`vlarl ablate` takes a table of variants, as configs/ablations-reach.toml"
    name: str = Field(pattern=NAME_PATTERN)
    """Names the folder of all runs, runs/NAME."""
    base: Path
    """A run's configuration, relative to this file."""
    seeds: tuple[int, ...] = Field(min_length=1)
    """Seeds that every variant is run with; all variants of the first one come first."""
    last_iterations: int = Field(default=5, ge=1)
    """Training success is that of so many last iterations."""
    common: dict[str, Any] = Field(default_factory=dict)
    """Keys of a run's configuration that all runs change against the base."""
    variants: dict[str, dict[str, Any]] = Field(min_length=1)
    """By name, the keys of a run's configuration that a variant changes. The first variant is what
    the others are compared with."""
    paper: dict[str, PaperNumber] = Field(default_factory=dict)
    """By variant, the paper's success in percent: a number, or a table of `success` and `against`,
    where the paper compares it with something else than its number of our first variant."""

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        if twice := [seed for seed in self.seeds if self.seeds.count(seed) > 1]:
            raise ValueError(f"seeds names {twice[0]} twice")
        if bad := [name for name in self.variants if not re.match(NAME_PATTERN, name)]:
            raise ValueError(
                f"variants.{bad[0]}: names a folder, so write letters, digits, '.', '_' and '-'"
            )
        if unknown := [name for name in self.paper if name not in self.variants]:
            known = ", ".join(self.variants)
            raise ValueError(f"paper.{unknown[0]}: there is no such variant; known: {known}")
        return self
