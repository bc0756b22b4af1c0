"""Where the time went."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from vlarl_jobs.report.figures.panel import WIDE, Panel, draw, legend_below
from vlarl_jobs.report.figures.stacked import paint_stacked
from vlarl_jobs.report.groups import Group
from vlarl_jobs.report.records import Floats
from vlarl_jobs.report.run_folder import Run
from vlarl_jobs.report.theme import APRICOT, BLUE, GREEN, GREY, ORANGE, PALE, PURPLE, SKY

PHASES = {
    "rollout: simulators": BLUE,
    "rollout: policy": SKY,
    "learning: inference": APRICOT,
    "learning: updates": ORANGE,
    "checkpoint": GREY,
    "publish": GREEN,
    "evaluation": PURPLE,
    "other": PALE,
}
"""In the order in which they follow one another."""
_WORTH_A_NUMBER = 0.06


def phase_seconds(run: Run) -> dict[str, Floats]:
    """[iterations] wall-clock seconds of each phase. A rollout's are shared out between simulators
    and policy as its episodes' own time is; an evaluation counts to the iteration after which it
    came, and one before training to the first.
    """

    def seconds(name: str) -> Floats:
        return np.nan_to_num(run.metric(name))

    episodes, waiting = seconds("seconds_in_episodes"), seconds("seconds_waiting_for_policy")
    share = np.divide(waiting, episodes, out=np.zeros_like(waiting), where=episodes > 0)
    rollout, learning = seconds("seconds_rollout"), seconds("seconds_learning")
    inference = seconds("seconds_inference")
    checkpoint, publish = seconds("seconds_checkpoint"), seconds("seconds_publish")
    other = seconds("seconds_iteration") - rollout - learning - checkpoint - publish
    evaluation = np.zeros_like(rollout)
    for one in run.evaluations:
        evaluation[min(max(one.iteration - 1, 0), len(evaluation) - 1)] += one.seconds
    found = (
        rollout * (1 - share),
        rollout * share,
        inference,
        np.maximum(learning - inference, 0),
        checkpoint,
        publish,
        evaluation,
        np.maximum(other, 0),
    )
    return dict(zip(PHASES, found, strict=True))


def phase_panels(groups: Sequence[Group]) -> list[Panel]:
    """Seconds by iteration, of a single group; and shares of the whole, of all."""
    panels = [_by_iteration(groups[0])] if len(groups) == 1 else []
    return [*panels, _by_group(groups)]


def _by_iteration(group: Group) -> Panel:
    def paint(axes: Axes) -> None:
        paint_stacked(axes, [phase_seconds(run) for run in group.runs], PHASES)
        axes.set_ylabel("seconds")

    return draw("phases-iterations", "Seconds of an iteration", paint, WIDE)


def _by_group(groups: Sequence[Group]) -> Panel:
    def paint(axes: Axes) -> None:
        for row, group in enumerate(groups):
            parts = [phase_seconds(run) for run in group.runs]
            totals = {phase: sum(float(one[phase].sum()) for one in parts) for phase in PHASES}
            whole = sum(totals.values()) or 1.0
            left = 0.0
            for phase, colour in PHASES.items():
                width = totals[phase] / whole
                label = phase if row == 0 else None
                axes.barh(row, width, 0.55, left=left, color=colour, label=label)
                if width > _WORTH_A_NUMBER:
                    axes.text(left + width / 2, row - 0.4, f"{width:.0%}", ha="center", fontsize=8)
                left += width
        named = len(groups) > 1
        axes.set_yticks(range(len(groups)), [group.label if named else "" for group in groups])
        axes.set_ylim(len(groups) - 0.5, -0.7)
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0], ["0%", "25%", "50%", "75%", "100%"])
        axes.set_xlabel("share of the time")
        axes.grid(visible=False)
        legend_below(axes)

    size = (WIDE[0], 1.9 + 0.45 * len(groups))
    return draw("phases-shares", "Shares of the whole time", paint, size)
