"""Wrong actions made of right ones: negatives that only the action tells apart.

Whether an action is wrong is told by what the simulator executes, never by its tokens: two tokens
far apart may be one command (all gripper values below a half close it), and the token opposite in
the vocabulary is the opposite motion only where a dataset's range is symmetric.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlarl.models.openvla.tokens import ActionTokenizer
from vlarl.models.statistics import ActionStats, to_simulator

DRAWS = 5
"""Random numbers that one sample takes."""

_LEAST = 0.125
"""Share of an axis' range by which the hand must move otherwise on some axis to move wrongly."""
_AXES = 3
_GRIPPER = -1
_CLOSED, _OPEN = 0.0, 1.0
"""Gripper values of demonstrations, in data units."""


class Perturbed(NamedTuple):
    """B actions, some of them wrong."""

    bins: Tensor
    """int64 [B, K]."""
    labels: Tensor
    """float32 [B], 0 where the action was made wrong."""
    counts: Tensor
    """bool [B, K + 1]: whether the answer after 0, 1, ... tokens is told by what was read so far.
    Where an action was made wrong it isn't before the first token that differs."""


class Commands(NamedTuple):
    """What the simulator executes of each action id, the lowest first: of B samples, or B tasks."""

    executed: Tensor
    """float32 [B, K, ids]: motions as far as the arm executes them, in [-1, 1]; the gripper's
    command, -1 (open), 1 (close) or 0 (stay)."""
    opposed: Tensor
    """int64 [B, ids]: of each gripper bin the one that demonstrations have for the opposite
    command, 0 (closed) or 1 (open) in data units; itself where no bin gives that."""

    def of(self, tasks: Tensor) -> Commands:
        """Those of samples, by the number [B] of each one's task."""
        return Commands(self.executed[tasks], self.opposed[tasks])

    def to(self, device: torch.device) -> Commands:
        """The same on a device."""
        return Commands(self.executed.to(device), self.opposed.to(device))


def read_commands(tokenizer: ActionTokenizer, statistics: Sequence[ActionStats]) -> Commands:
    """The commands of T tasks, from the statistics that un-normalise each one's actions."""
    tables = [_commands(tokenizer, stats) for stats in statistics]
    executed, opposed = (np.stack(found) for found in zip(*tables, strict=True))
    return Commands(torch.from_numpy(executed), torch.from_numpy(opposed))


def _commands(
    tokenizer: ActionTokenizer, stats: ActionStats
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    ids = np.array(tokenizer.action_ids)
    actions = tokenizer.actions(np.repeat(ids[:, None], stats.action_dim, axis=1), stats)
    executed = np.clip(to_simulator(actions), -1.0, 1.0)
    gripper, command = actions[:, _GRIPPER], executed[:, _GRIPPER]
    demonstrated = np.zeros((2, stats.action_dim))
    demonstrated[:, _GRIPPER] = _CLOSED, _OPEN
    closed, opened = tokenizer.tokens(demonstrated, stats)[:, _GRIPPER] - ids[0]
    opposed = np.arange(len(ids))
    for sign, wanted, token in ((-1.0, _CLOSED, closed), (1.0, _OPEN, opened)):
        others = np.flatnonzero(command == -sign)
        if token in others:
            opposed[command == sign] = token
        elif len(others):  # No demonstration moved the gripper.
            opposed[command == sign] = others[np.abs(gripper[others] - wanted).argmin()]
    return executed.T.astype(np.float32), opposed


def perturbed(
    bins: Tensor, labels: Tensor, draws: Tensor, share: float, commands: Commands
) -> Perturbed:
    """Makes a share of the positive actions wrong, in one of four ways alike:

    1. the hand moves the other way;
    2. the hand moves anywhere;
    3. the gripper does the opposite;
    4. x, y and z are shuffled.

    Where 1, 3 or 4 would be executed nearly as the right action is, it is 2.; where that would be,
    too, the action stays right. What becomes of a sample doesn't depend on those beside it, so not
    on micro-batches or ranks.

    Args:
        bins: int64 [B, K], action ids counted from the lowest: x, y, z first, the gripper last.
        labels: float32 [B].
        draws: float32 [B, DRAWS], uniform in [0, 1).
        share: of the positive ones.
        commands: each sample's.
    """
    chosen = (labels == 1) & (draws[:, 0] < share)
    kind = (4 * draws[:, 1]).long()
    anywhere = bins.clone()
    anywhere[:, :_AXES] = (commands.opposed.shape[1] * draws[:, 2:5]).long()
    shuffled = torch.cat([bins[:, [1, 2, 0]], bins[:, _AXES:]], dim=1)
    opposed = bins.clone()
    opposed[:, _GRIPPER] = commands.opposed.gather(1, bins[:, [_GRIPPER]])[:, 0]
    turned = _turned(bins, commands.executed)
    ways = torch.stack([turned, anywhere, opposed, shuffled], dim=1)
    rows = torch.arange(len(bins), device=bins.device)
    made = ways[rows, kind]
    made = torch.where(_differ(made, bins, commands.executed)[:, None], made, anywhere)
    wrong = chosen & _differ(made, bins, commands.executed)
    made = torch.where(wrong[:, None], made, bins)
    differs = (made != bins).cumsum(dim=1) > 0
    told = torch.cat([torch.zeros_like(differs[:, :1]), differs], dim=1)
    return Perturbed(
        bins=made,
        labels=torch.where(wrong, 0.0, labels),
        counts=told | ~wrong[:, None],
    )


def _executed(bins: Tensor, executed: Tensor) -> Tensor:
    """Commands [B, K] of bins [B, K]."""
    return executed.gather(2, bins[:, :, None])[:, :, 0]


def _differ(made: Tensor, bins: Tensor, executed: Tensor) -> Tensor:
    """Whether the simulator executes another action [B]: the hand moves otherwise by `_LEAST` on
    some axis, or the gripper gets another command.
    """
    away = (_executed(made, executed) - _executed(bins, executed)).abs()
    span = executed.amax(dim=2) - executed.amin(dim=2)
    moved = (away > 0) & (away >= _LEAST * span)
    return moved[:, :_AXES].any(dim=1) | (away[:, _GRIPPER] > 0)


def _turned(bins: Tensor, executed: Tensor) -> Tensor:
    """The same with x, y and z turned round, as far as the dataset's range goes."""
    wanted = -_executed(bins, executed)[:, :_AXES]
    turned = bins.clone()
    turned[:, :_AXES] = (executed[:, :_AXES] - wanted[:, :, None]).abs().argmin(dim=2)
    return turned
