"""`vlarl eval`: how often a policy succeeds, by the benchmark's protocol."""

from __future__ import annotations

import time
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlarl.config import ConfigError, RunConfig
from vlarl.config.checkpoints import with_checkpoints
from vlarl.config.files import toml_value
from vlarl.config.libero import LIBERO_SUITES
from vlarl.ownership import owned
from vlarl.weights.hub import folder_of
from vlarl_cli.logs import configure_logging
from vlarl_cli.options import Overrides, Verbose, one_sentence_errors, read_config, read_saved
from vlarl_cli.perturbing import Perturb, evaluate_perturbed, perturbations, perturbed_suite
from vlarl_cli.runs import check_reward, config_of_policy, folder_of_run

if TYPE_CHECKING:
    from vlarl.env.v1 import env_pb2

LIBERO_PROTOCOL = {"env.profile": "faithful", "env.settle_steps": 10, "tasks.max_actions": 0}
"""What published numbers of LIBERO's suites mean, whatever a run trains with. --set wins."""

ConfigArgument = Annotated[
    Path | None, typer.Argument(help="TOML file: the checkpoint, the tasks, the simulators.")
]
Checkpoint = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint",
        help="Checkpoint of OpenVLA or OpenVLA-OFT to evaluate as it is: a folder, or "
        "OWNER/NAME[@REVISION] on the Hugging Face hub.",
    ),
]
Trained = Annotated[
    Path | None,
    typer.Option(
        "--run",
        help="Folder of a run, for the policy of its last checkpoint, or RUN/checkpoints/NAME.",
    ),
]
Best = Annotated[
    bool,
    typer.Option(
        "--best",
        help="With --run RUN: the policy of the checkpoint that is the best by the run's own "
        "evaluations, instead of the last.",
    ),
]
Suite = Annotated[
    str | None, typer.Option("--suite", help="Suite to evaluate on; default: the configuration's.")
]
Tasks = Annotated[
    str | None,
    typer.Option(
        "--tasks", help="Tasks, e.g. 0,1; default: the configuration's, with --suite all."
    ),
]
Episodes = Annotated[
    int,
    typer.Option("--episodes-per-task", min=1, max=100, help="Official initial states of a task."),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", help="Folder of the results; one that was begun is gone on with."),
]
Videos = Annotated[
    int, typer.Option("--videos", min=0, help="Films of each task's successes and failures.")
]


def evaluate(
    config: ConfigArgument = None,
    checkpoint: Checkpoint = None,
    run: Trained = None,
    best: Best = False,
    suite: Suite = None,
    tasks: Tasks = None,
    episodes_per_task: Episodes = 50,
    perturb: Perturb = None,
    out: Out = None,
    videos: Videos = 0,
    record: Annotated[
        bool, typer.Option("--record", help="Keep all episodes as a dataset, OUT/rollouts.")
    ] = False,
    overrides: Overrides = None,
    verbose: Verbose = False,
) -> None:
    """Evaluate a policy by the benchmark's protocol, on this machine.

    Greedy, from the official initial states. On LIBERO's suites within the suite's step limit,
    after ten settling steps, in the faithful simulator, unless --set says otherwise; on other
    suites as the configuration says. Starts the services that it needs and stops them. Killed, it
    goes on where it stopped when the same --out is given again. With --perturb, one evaluation
    after the other, and a table of all at the end.
    """
    configure_logging(verbose)
    with one_sentence_errors():
        settings, protocol = evaluation_config(
            config, checkpoint, run, suite, tasks, episodes_per_task, overrides
        )
        check_best(best, run)
        kinds = perturbations(perturb, settings.tasks.suite)
        folder = out or _default_folder(run, settings.tasks.suite, robustness=bool(kinds))
        with owned(folder, "vlarl eval"):
            # Before the policy is looked at, which takes longer the larger it is.
            suites = [settings.tasks.suite, *(perturbed_suite(settings, kind) for kind in kinds)]
            chosen = {name: _tasks_of(settings, name) for name in suites}
            from vlarl.models.registry import check_policy_checkpoint

            settings = with_checkpoints(settings, folder_of, _loaded(videos))
            check_policy_checkpoint(settings.policy.checkpoint)  # before torch is loaded
            if videos:
                check_reward(settings)
            from vlarl_jobs.evaluation.main import run as run_evaluation

            def one(name: str, trained: Path | None, into: Path) -> int:
                return run_evaluation(
                    _with_suite(settings, name),
                    trained,
                    chosen[name],
                    into,
                    best=best and trained is not None,
                    videos=videos,
                    record=record,
                    protocol=protocol,
                    named=folder,
                )

            if not kinds:
                code = one(settings.tasks.suite, run, folder)
            else:
                code = evaluate_perturbed(settings, run, kinds, folder, one)
    raise typer.Exit(code)


def _default_folder(run: Path | None, suite: str, *, robustness: bool) -> Path:
    if robustness and run is not None:
        return folder_of_run(run) / "robustness"  # where the run's report looks
    kind = "robustness" if robustness else "eval"
    return Path("runs") / f"{kind}-{suite}-{time.strftime('%Y%m%d-%H%M%S')}"


def _tasks_of(settings: RunConfig, suite: str) -> list[env_pb2.TaskDescription]:
    from vlarl.launch.tasks import choose_tasks, suite_tasks

    episodes = settings.evaluation.episodes_per_task
    return choose_tasks(suite_tasks(settings.env, suite), settings.tasks.indices, episodes)


def check_best(best: bool, run: Path | None) -> None:
    """Whether there is something to choose the best of.

    Raises:
        ConfigError: there isn't.
    """
    if best and (run is None or run.parent.name == "checkpoints"):
        raise ConfigError("--best chooses among a run's checkpoints: name its folder, --run RUN")


def _loaded(videos: int) -> list[str]:
    """Keys of the checkpoints that an evaluation loads: films show the reward, too."""
    return ["policy.checkpoint", "reward.checkpoint"] if videos else ["policy.checkpoint"]


def evaluation_config(
    config: Path | None,
    checkpoint: Path | None,
    run: Path | None,
    suite: str | None,
    tasks: str | None,
    episodes_per_task: int,
    overrides: list[str] | None,
) -> tuple[RunConfig, str]:
    """The configuration of an evaluation, and its protocol in words; no task indices mean the
    whole suite.

    Raises:
        ConfigError: nothing to evaluate is named, or too much.
    """
    if run is not None and (config is not None or checkpoint is not None):
        raise ConfigError("--run takes the run's own configuration and base checkpoint")
    if config is None and checkpoint is None and run is None:
        raise ConfigError("name what to evaluate: a configuration, --checkpoint DIR or --run RUN")
    if config is None and run is None and suite is None:
        raise ConfigError("name the --suite to evaluate on, e.g. --suite libero_spatial")
    chosen = [f"evaluation.episodes_per_task={episodes_per_task}"]
    if checkpoint is not None:
        chosen.append(f"policy.checkpoint={toml_value(str(checkpoint))}")
    if suite is not None:
        chosen += [f"tasks.suite={toml_value(suite)}", "tasks.indices=[]"]
    if tasks is not None:
        chosen.append(f"tasks.indices={_numbers(tasks)}")
    read = (
        partial(read_config, config) if run is None else partial(read_saved, config_of_policy(run))
    )
    chosen += overrides or []
    given = read(chosen)
    if given.tasks.suite not in LIBERO_SUITES:
        return given, f"the configuration's own, as {given.tasks.suite} is none of LIBERO's suites"
    protocol = [f"{key}={value}" for key, value in LIBERO_PROTOCOL.items()]
    settings = read([*protocol, *chosen])
    return settings, _libero_protocol(given, settings)


def _libero_protocol(given: RunConfig, settings: RunConfig) -> str:
    """LIBERO's protocol: what it changes, and what --set changes of it."""
    remarks = []
    for key, value in LIBERO_PROTOCOL.items():
        before, now = (attrgetter(key)(config) for config in (given, settings))
        if now != value:
            remarks.append(f"--set {key}={now}")
        elif now != before:
            remarks.append(f"{key} {now} instead of {before}")
    return ": ".join(filter(None, ["LIBERO's", ", ".join(remarks)]))


def _with_suite(settings: RunConfig, suite: str) -> RunConfig:
    """The same evaluation on another suite with the same tasks."""
    return settings.model_copy(update={"tasks": settings.tasks.model_copy(update={"suite": suite})})


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--tasks {text}: write tasks as numbers with commas, 0,1") from error
