"""Labels to look at: an episode's frames, the hand's speed, the fingers, and what was found."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vlarl.config.libero import CONTROL_RATE
from vlarl.data.dataset import TaskSamples
from vlarl.images import decode_image
from vlarl_jobs.report.theme import BLUE, GREEN, INK, MUTED, ORANGE, PICTURE
from vlarl_jobs.reward_model.labels import EpisodeLabels, Floats, Indices, speed

_SHOWN = 12
"""Frames beside one another at most."""


def draw_episode(path: Path, task: TaskSamples, samples: Indices, labels: EpisodeLabels) -> None:
    """Writes a picture of an episode with its labels.

    Args:
        path: the PNG.
        task: with motion.
        samples: [M], numbers of the episode's samples.
        labels: of them.
    """
    assert task.motion is not None  # noqa: S101 - labels were made from it
    episode = int(task.episodes[samples[0]])
    steps = slice(*task.motion.offsets[episode : episode + 2])
    starts = task.motion.starts[samples].astype(np.int64)
    with mpl.rc_context(PICTURE):
        figure = Figure(figsize=(11, 4.6), layout="constrained")
        grid = figure.add_gridspec(2, 1, height_ratios=[1, 2.4])
        above, below = figure.add_subfigure(grid[0]), figure.add_subfigure(grid[1])
        above.suptitle(
            f"{task.instruction}   ({task.suite} {task.index}, episode {episode})",
            x=0.01, ha="left", fontsize=10, fontweight="bold", color=INK,
        )  # fmt: skip
        chosen = np.unique(np.linspace(0, len(samples) - 1, _SHOWN).round().astype(int))
        strips = above.subplots(1, len(chosen), squeeze=False)[0]
        for strip, place in zip(strips, chosen, strict=True):
            _draw_frame(strip, task.frames[int(samples[place])], bool(labels.positive[place]))
            strip.set_xlabel(f"{starts[place] / CONTROL_RATE:.1f} s")
        moves, fingers = below.subplots(2, 1, sharex=True)
        hand = task.motion.hand[steps].astype(np.float64)
        _draw_motion(moves, speed(hand), starts, labels)
        moves.set_title("speed of the hand, m/s: dots are key frames, green leads to them")
        opening = task.motion.opening[steps].astype(np.float64)
        fingers.plot(np.arange(len(opening)) / CONTROL_RATE, 100 * opening, color=ORANGE)
        fingers.set_title("opening of the fingers, cm: dashes are milestones")
        fingers.set_xlabel("seconds")
        for axes in (moves, fingers):
            axes.set_xlim(0, len(opening) / CONTROL_RATE)
            axes.set_ylim(bottom=0)
            for cut in labels.milestones:
                axes.axvline(cut / CONTROL_RATE, color=MUTED, linestyle="--", linewidth=1)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)


def _draw_frame(axes: Axes, encoded: bytes, positive: bool) -> None:
    axes.imshow(decode_image(encoded))
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set(visible=True, color=GREEN if positive else MUTED, linewidth=3 if positive else 1)


def _draw_motion(axes: Axes, speeds: Floats, starts: Indices, labels: EpisodeLabels) -> None:
    seconds = np.arange(len(speeds)) / CONTROL_RATE
    axes.plot(seconds, speeds, color=BLUE)
    stops = np.append(starts[1:], len(speeds))
    for start, stop, positive in zip(starts, stops, labels.positive, strict=True):
        if positive:
            axes.axvspan(start / CONTROL_RATE, stop / CONTROL_RATE, color=GREEN, alpha=0.15, lw=0)
    keys = np.minimum(labels.key_frames, len(speeds) - 1)
    axes.plot(keys / CONTROL_RATE, speeds[keys], "o", color=GREEN, markersize=5)
