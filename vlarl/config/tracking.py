"""Where people look at a run's curves while it goes on."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from vlarl.config.base import Section

_LONGEST_TAG = 64
"""wandb refuses longer ones."""


class LoggingConfig(Section):
    """Where a run's curves are shown, beside RUN/metrics.jsonl."""

    tensorboard: bool = True
    """Write TensorBoard's files to RUN/tensorboard."""
    wandb: Literal["off", "offline", "online"] = "off"
    """Weights & Biases (`pip install 'vlarl[wandb]'`). offline: files in RUN/wandb, which
    `wandb sync` sends. online: sent as they come, with the key in the environment's WANDB_API_KEY.
    WANDB_MODE may make it send less, never more."""
    wandb_project: str = Field(default="vlarl", pattern=r"^[^/\\#?%:]{1,128}$")
    """Project there."""
    wandb_entity: str | None = None
    """User or team that the project belongs to; none: the account's own."""
    wandb_group: str | None = None
    """What the run belongs together with, other seeds of it, say; none: no group."""
    wandb_tags: tuple[str, ...] = ()
    """Tags of the run, of 1 to 64 characters each."""

    @model_validator(mode="after")
    def _tags_are_short(self) -> Self:
        for tag in self.wandb_tags:
            if not 0 < len(tag) <= _LONGEST_TAG:
                raise ValueError(
                    f"wandb_tags has {tag!r}, of {len(tag)} characters; wandb takes 1 to "
                    f"{_LONGEST_TAG}"
                )
        return self
