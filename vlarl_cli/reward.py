"""`vlarl reward`: labels for the process reward model, and its training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from vlarl.config import LabelConfig, RewardModelConfig
from vlarl.terminal import say, show, track
from vlarl_cli.groups import command_group
from vlarl_cli.logs import configure_logging
from vlarl_cli.options import Overrides, Verbose, one_sentence_errors, read_section
from vlarl_cli.runs import Resume, RunDirectory, check_sources, chosen_run

if TYPE_CHECKING:
    from vlarl.data.dataset import TaskSamples
    from vlarl_jobs.reward_model.labels import EpisodeLabels
    from vlarl_jobs.reward_model.scoring import Moment, ReturnFit, ScoredTask

app = command_group("Label demonstrations and train the process reward model.")


@app.command()
def label(
    datasets: Annotated[list[Path], typer.Argument(help="Folders that `vlarl demos` converted.")],
    plot: Annotated[
        Path | None, typer.Option(help="Folder for a picture of each task's first episodes.")
    ] = None,
    episodes: Annotated[int, typer.Option(min=1, help="Episodes of each task to draw.")] = 2,
    overrides: Overrides = None,
) -> None:
    """Label demonstrations without a person: which actions led somewhere.

    Milestones are where the fingers begin to open or close, key frames where the hand comes to
    rest between them; actions that lead to a key frame are positive. Prints what was found in
    each task; look at pictures of it before a model learns from it:

        vlarl reward label datasets/object --plot labels/ --set lead_seconds=0.75

    Keys of --set are those of [labels] in docs/configuration.md, without its name.
    """
    with one_sentence_errors():
        from vlarl.data.dataset import read_dataset
        from vlarl_jobs.reward_model.labels import label_task

        config = read_section(LabelConfig, None, overrides)
        tasks = [task for folder in datasets for task in read_dataset(folder).tasks]
        labelled = [(task, label_task(task, config)) for task in tasks]
        labels = [(task, [one for _, one in found]) for task, found in labelled]
        show(_table(labels))
        if plot is None:
            return
        from vlarl_jobs.reward_model.label_plot import draw_episode

        drawn = [(task, *one) for task, found in labelled for one in found[:episodes]]
        for task, samples, one in track(drawn, "drawing"):
            number = task.episodes[samples[0]]
            path = plot / f"{task.suite}-{task.index:02d}-{number:03d}.png"
            draw_episode(path, task, samples, one)
        say(f"{len(drawn)} pictures in {plot}")


@app.command()
def train(
    config: Annotated[
        Path | None, typer.Argument(help="The run's TOML file, e.g. configs/reward-object.toml.")
    ] = None,
    resume: Resume = None,
    run_dir: RunDirectory = None,
    overrides: Overrides = None,
    verbose: Verbose = False,
) -> None:
    """Train a process reward model; writes RUN/checkpoint with a model card.

    It starts from a policy's checkpoint and learns to say, after a frame, an instruction and an
    action's tokens, whether the action leads somewhere. Killed at any moment, it goes on with
    --resume RUN. Under torchrun every process runs this command.
    """
    configure_logging(verbose)
    with one_sentence_errors():
        chosen = chosen_run(
            RewardModelConfig,
            "vlarl reward train",
            config,
            resume,
            run_dir,
            overrides,
            check_sources,
        )
        with chosen as (settings, directory):
            from vlarl_jobs.reward_model.main import run

            run(settings, directory)


@app.command()
def judge(
    checkpoint: Annotated[Path, typer.Argument(help="The reward model.")],
    rollouts: Annotated[
        list[Path],
        typer.Argument(help="Folders that `vlarl eval --record` or a run's recording wrote."),
    ],
    plot: Annotated[
        Path | None, typer.Option(help="PNG: the probability as episodes go on, and their means.")
    ] = None,
    states: Annotated[
        bool, typer.Option("--states", help="Judge states, as reward.form = 'potential' does.")
    ] = False,
    gamma: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Discount of a recorded step, for --states."),
    ] = 0.99,
) -> None:
    """Judge recorded episodes: does the model's mean tell successes from failures?

    The AUC is how often a success has the higher mean. A second table asks the same of single
    steps as episodes go on: how soon does the model know? With --states it says, too, how much of
    the returns' variance a state's probability explains, and with which reward.coefficient. Compare
    that with the run's explained_variance: a potential helps by what the critic doesn't know. Use
    rollouts of a policy that the model hasn't seen, from the official initial states:

        vlarl eval --run runs/mine --record --out runs/seen
        vlarl reward judge runs/reward/checkpoint runs/seen/rollouts
    """
    with one_sentence_errors():
        from vlarl.models.registry import check_reward_model
        from vlarl.weights.hub import folder_of

        checkpoint = folder_of(checkpoint)
        version = check_reward_model(checkpoint)  # before torch is loaded
        from vlarl.data.dataset import read_dataset
        from vlarl.models.process_reward.model import ProcessRewardModel
        from vlarl_jobs.reward_model.scoring import (
            fit_returns,
            moments,
            score_rollouts,
            together,
        )

        datasets = [(folder, read_dataset(folder)) for folder in rollouts]
        shown = track(datasets, "judging")
        scored = score_rollouts(ProcessRewardModel(checkpoint), shown, states)
        everything = together(scored)
        rows = [*scored, everything] if len(scored) > 1 else scored
        show(_verdicts(rows, version))
        show(_course(moments(everything)))
        if states:
            say(_fit(fit_returns(everything, gamma), gamma))
        if plot is not None:
            from vlarl_jobs.reward_model.score_plot import draw_scores

            draw_scores(plot, everything)
            say(f"picture: {plot}")


def _verdicts(scored: list[ScoredTask], version: str) -> Table:
    """A row each."""
    table = Table("task", "episodes", "succeeded", "mean of successes", "of failures", "AUC")
    table.caption = f"reward model {version}"
    for one in scored:
        counts = (str(len(one.scores)), str(one.succeeded.sum()))
        table.add_row(one.name, *counts, *_apart(one))
    return table


def _course(passed: list[Moment]) -> Table:
    """A row a moment."""
    table = Table("step", "episodes", "will succeed", "mean of these", "of the others", "AUC")
    table.caption = "episodes that come to that step"
    for one in passed:
        counts = (str(len(one.scores)), str(one.succeeded.sum()))
        table.add_row(str(one.step), *counts, *_apart(one))
    return table


def _fit(fit: ReturnFit | None, gamma: float) -> str:
    """A sentence."""
    if fit is None:
        return "all returns or all probabilities are alike: nothing to fit"
    return (
        f"explains {fit.explained:.2f} of the variance of returns discounted by {gamma:g}, "
        f"with reward.coefficient = {fit.coefficient:.2f}"
    )


def _apart(one: ScoredTask | Moment) -> list[str]:
    """Means of successes and of failures, and the AUC."""
    import numpy as np

    means = [
        f"{one.scores[chosen].mean():.3f}" if chosen.any() else "–"
        for chosen in (one.succeeded, ~one.succeeded)
    ]
    return [*means, "–" if np.isnan(one.auc) else f"{one.auc:.3f}"]


def _table(labels: list[tuple[TaskSamples, list[EpisodeLabels]]]) -> Table:
    """A row a task, and one for all."""
    table = Table(
        "task", "episodes", "samples", "milestones", "key frames", "positive", "by segment"
    )
    for task, found in labels:
        table.add_row(f"{task.suite} {task.index}", *_row(found))
    if len(labels) > 1:
        table.add_section()
        table.add_row("all", *_row([one for _, found in labels for one in found]))
    return table


def _row(found: list[EpisodeLabels]) -> list[str]:
    """Counts; milestones and key frames are means of an episode."""
    import numpy as np

    if not found:
        return ["0", "0", "", "", "", ""]
    positive = np.concatenate([one.positive for one in found])
    segment = np.concatenate([one.segment for one in found])
    shares = [
        f"{positive[segment == number].mean():.0%} of {(segment == number).sum()}"
        for number in np.unique(segment)
    ]
    return [
        str(len(found)),
        str(len(positive)),
        f"{np.mean([len(one.milestones) for one in found]):.1f}",
        f"{np.mean([len(one.key_frames) for one in found]):.1f}",
        f"{positive.mean():.0%}",
        ", ".join(shares),
    ]
