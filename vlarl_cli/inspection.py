"""`vlarl demos inspect`: numbers and pictures of demonstrations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from vlarl.config.libero import ACTION_DIMENSIONS
from vlarl.terminal import say, show
from vlarl_cli.options import OwnSuites, one_sentence_errors, own_suites

if TYPE_CHECKING:
    from vlarl_jobs.demonstrations.inspection import Summary

_QUANTILES = (0.0, 0.01, 0.5, 0.99, 1.0)


def inspect(
    path: Annotated[Path, typer.Argument(help="An .hdf5 file, a folder of them, or a dataset.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for a contact sheet and a video.")
    ] = None,
    episodes: Annotated[int, typer.Option(min=1, help="Episodes of each task to show.")] = 4,
    bddl: OwnSuites = None,
) -> None:
    """Show demonstrations: lengths, successes, the actions' quantiles, pictures."""
    from vlarl_jobs.demonstrations.inspection import filmed, summaries

    with one_sentence_errors():
        found = summaries(path)
        for note in [note for summary in found for note in summary.notes]:
            say(note, stderr=True)
        for table in _tables(found):
            show(table)
        if out is None:
            return
        from vlarl_jobs.demonstrations.media import contact_sheet, write_picture, write_video

        shown, rate = filmed(path, episodes, own_suites(bddl))
        out.mkdir(parents=True, exist_ok=True)
        write_picture(out / "episodes.png", contact_sheet(shown))
        write_video(out / "episodes.mp4", [frame for frames in shown for frame in frames], rate)
        say(f"{out / 'episodes.png'}\n{out / 'episodes.mp4'}")


def _tables(summaries: list[Summary]) -> list[Table]:
    import numpy as np

    tasks = Table("task", "episodes", "succeeded", "shortest", "median", "longest")
    for summary in summaries:
        lengths = summary.lengths
        row = (len(lengths), summary.succeeded, lengths.min(), np.median(lengths), lengths.max())
        tasks.add_row(summary.name, *(f"{value:g}" for value in row))
    actions = Table("action", "mean", *(f"q{100 * quantile:02g}" for quantile in _QUANTILES))
    everything = np.concatenate([summary.actions for summary in summaries])
    for name, values in zip(ACTION_DIMENSIONS, everything.T, strict=True):
        row = (values.mean(), *np.quantile(values, _QUANTILES))
        actions.add_row(name, *(f"{value:+.3f}" for value in row))
    return [tasks, actions]
