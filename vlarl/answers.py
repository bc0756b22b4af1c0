"""What was done with a policy's answers, which are for one control step each, or for a chunk."""

from __future__ import annotations

from collections.abc import Iterable

from vlarl.rollout.v1 import rollout_pb2


def executed_actions(step: rollout_pb2.Step) -> int:
    """Actions of a step's answer that were executed: 1 where its writer knew no chunks."""
    return max(1, step.executed)


def actions_of(steps: Iterable[rollout_pb2.Step]) -> int:
    """Actions that were executed in these steps."""
    return sum(map(executed_actions, steps))
