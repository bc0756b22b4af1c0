"""What a reward model gives successes and failures as they go on, to look at."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vlarl_jobs.report.theme import GREEN, ORANGE, PICTURE
from vlarl_jobs.reward_model.scoring import ScoredTask

_FEWEST = 3
"""Episodes behind a mean that is drawn: later ones are fewer, as successes end."""


def draw_scores(path: Path, scored: ScoredTask) -> None:
    """Writes a picture: the probability by action, and episodes' means.

    Args:
        path: the PNG.
        scored: episodes of which some succeeded and some failed.
    """
    with mpl.rc_context(PICTURE):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        over_time, means = figure.subplots(1, 2, width_ratios=[1.6, 1])
        kinds = (("successes", GREEN, scored.succeeded), ("failures", ORANGE, ~scored.succeeded))
        for name, colour, chosen in kinds:
            if chosen.any():
                shown = [steps for steps, one in zip(scored.episodes, chosen, strict=True) if one]
                _draw_course(over_time, shown, f"{len(shown)} {name}", colour)
                means.hist(
                    scored.scores[chosen], bins=np.linspace(0, scored.scores.max(), 31).tolist(),
                    color=colour, alpha=0.7, label=name,
                )  # fmt: skip
        over_time.set_title("P(leads somewhere) as episodes go on: mean, quartiles")
        over_time.set_xlabel("action of the episode")
        over_time.set_ylim(0, 1)
        over_time.legend()
        means.set_title(f"episodes by their mean; AUC {scored.auc:.3f}")
        means.set_xlabel("mean over an episode")
        means.legend()
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)


def _draw_course(axes: Axes, episodes: list[np.ndarray], label: str, colour: str) -> None:
    longest = max(len(steps) for steps in episodes)
    padded = np.full((len(episodes), longest), np.nan)
    for row, steps in zip(padded, episodes, strict=True):
        row[: len(steps)] = steps
    enough = (~np.isnan(padded)).sum(axis=0) >= min(_FEWEST, len(episodes))
    padded = padded[:, enough]
    low, high = np.nanquantile(padded, [0.25, 0.75], axis=0)
    numbers = np.arange(1, padded.shape[1] + 1)
    axes.fill_between(numbers, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.plot(numbers, np.nanmean(padded, axis=0), color=colour, label=label)
