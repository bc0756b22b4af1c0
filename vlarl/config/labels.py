"""What the pseudo labels of the process reward model are made by."""

from __future__ import annotations

from pydantic import Field

from vlarl.config.base import Section


class LabelConfig(Section):
    """Which actions of a successful demonstration lead somewhere. The paper names the criteria and
    gives no numbers; these are ours.
    """

    gripper_change: float = Field(default=0.01, gt=0, le=0.08)
    """Metres by which the opening must turn back from its extreme to make a milestone."""
    gripper_settle_seconds: float = Field(default=0.15, ge=0)
    """Time for which it must stay so."""
    slow_share: float = Field(default=0.15, ge=0, lt=1)
    """The hand rests below this share of the episode's highest speed, ..."""
    slow_floor: float = Field(default=0.02, ge=0)
    """... and below this speed, in metres a second, in any case."""
    lead_seconds: float = Field(default=1.0, gt=0)
    """Actions that begin at most so long before a key frame lead to it."""
    milestones_count: bool = True
    """Whether actions that lead to a milestone are positive, too: fingers that close round a thing
    do so after the hand came to rest, and nothing matters more."""
