"""Where a configuration names checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from vlarl.config.base import Section

S = TypeVar("S", bound=Section)

CHECKPOINTS = ("policy.checkpoint", "reward.checkpoint", "checkpoint", "policy")
"""Keys of all kinds of configuration: each a folder, or a name on the Hugging Face hub."""


def with_checkpoints(
    config: S, change: Callable[[Path], Path], keys: Iterable[str] = CHECKPOINTS
) -> S:
    """The configuration with its checkpoints changed.

    Args:
        config: of a run, a fine-tuning, or a reward model's training.
        change: what becomes of each.
        keys: which are changed; those that the configuration lacks are passed over.
    """
    for key in keys:
        section, _, name = key.rpartition(".")
        holder = getattr(config, section, None) if section else config
        value = getattr(holder, name, None)
        if isinstance(holder, Section) and isinstance(value, Path):
            changed = holder.model_copy(update={name: change(value)})
            config = config.model_copy(update={section: changed}) if section else changed  # type: ignore[assignment]
    return config
