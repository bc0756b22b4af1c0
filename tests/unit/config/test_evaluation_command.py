"""What `vlarl eval`'s arguments amount to, and how it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from vlarl.config import ConfigError, RunConfig
from vlarl.env.v1 import env_pb2
from vlarl.invocation import invocation
from vlarl_cli import app
from vlarl_cli.evaluate import evaluation_config

ROOT = Path(__file__).parents[3]
EMBEDDED = ROOT / "configs/embedded.toml"
NOTHING = {
    "iteration": 0,
    "policy_version": 0,
    "env_steps": 0,
    "tasks": {},
    "missing": 0,
    "ended": 1,
}
"""An evaluation.json."""


def resolved(**changes: object) -> tuple[RunConfig, str]:
    arguments = {
        "config": None,
        "checkpoint": None,
        "run": None,
        "suite": None,
        "tasks": None,
        "episodes_per_task": 50,
        "overrides": None,
    }
    return evaluation_config(**(arguments | changes))


def configured(**changes: object) -> RunConfig:
    return resolved(**changes)[0]


def test_liberos_protocol_wins_over_how_a_run_trains_and_says_so() -> None:
    config, protocol = resolved(config=EMBEDDED)
    assert protocol == (
        "LIBERO's: env.profile faithful instead of fast, tasks.max_actions 0 instead of 12"
    )
    assert (config.env.profile, config.env.settle_steps) == ("faithful", 10)
    assert config.tasks.max_actions == 0, "not the suite's own step limit"
    assert config.evaluation.episodes_per_task == 50
    # What belongs to the policy stays.
    assert (config.env.action_repeat, config.env.render_size) == (5, 84)
    assert (config.tasks.suite, config.tasks.indices) == ("libero_spatial", (0, 4, 8))


def test_the_command_line_wins_over_the_protocol() -> None:
    overrides = ["env.profile=fast", "tasks.max_actions=3"]
    config, protocol = resolved(config=EMBEDDED, episodes_per_task=2, overrides=overrides)
    assert protocol == "LIBERO's: --set env.profile=fast, --set tasks.max_actions=3"
    assert (config.env.profile, config.tasks.max_actions) == ("fast", 3)
    assert config.evaluation.episodes_per_task == 2


def test_on_a_suite_of_our_own_the_configuration_holds(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text((ROOT / "configs/reach.toml").read_text())
    for source in ({"config": ROOT / "configs/reach.toml"}, {"run": tmp_path}):
        config, protocol = resolved(**source)
        assert (config.env.profile, config.env.settle_steps) == ("fast", 0)
        assert config.tasks.max_actions == 6
        assert protocol == "the configuration's own, as reach is none of LIBERO's suites"
    assert resolved(checkpoint=Path("tiny"), suite="libero_10_swap")[1] == "LIBERO's"


def test_more_states_than_there_are_is_an_error() -> None:
    with pytest.raises(
        typer.BadParameter, match=r"embedded.toml: evaluation.*libero_spatial has 50"
    ):
        configured(config=EMBEDDED, episodes_per_task=100)
    reach = configured(config=ROOT / "configs/reach.toml", episodes_per_task=100)
    assert reach.evaluation.episodes_per_task == 100


def test_a_suite_is_whole_unless_tasks_are_named() -> None:
    checkpoint = Path("my checkpoint")
    whole = configured(checkpoint=checkpoint, suite="libero_goal_swap")
    assert (whole.tasks.suite, whole.tasks.indices) == ("libero_goal_swap", ())
    assert whole.policy.checkpoint == checkpoint
    some = configured(config=EMBEDDED, suite="libero_10", tasks="0,7")
    assert (some.tasks.suite, some.tasks.indices) == ("libero_10", (0, 7))


@pytest.mark.parametrize("name", ["\U0001f600", "a\x7fb", 'it\'s [2] = "x"', "müller"])
def test_a_checkpoint_may_have_any_name(name: str) -> None:
    assert configured(checkpoint=Path(name), suite="reach").policy.checkpoint == Path(name)
    assert configured(config=EMBEDDED, suite=name).tasks.suite == name


def test_a_checkpoints_name_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(typer.BadParameter, match=r"policy.checkpoint: 'a\\udcfc' isn't UTF-8"):
        configured(checkpoint=Path("a\udcfc"), suite="reach")


def test_a_run_or_one_of_its_checkpoints_brings_its_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(EMBEDDED.read_text())
    named = tmp_path / "checkpoints" / "iteration-00003"
    for run in (tmp_path, named):
        assert configured(run=run).tasks.indices == (0, 4, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "name what to evaluate"),
        ({"checkpoint": Path("tiny")}, "name the --suite"),
        ({"run": Path("runs/none")}, r"neither a run nor one of its checkpoints"),
        ({"run": Path("runs/a"), "config": EMBEDDED}, "--run takes the run's own"),
        ({"config": EMBEDDED, "tasks": "0,a"}, "write tasks as numbers with commas"),
    ],
)
def test_mistakes_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        configured(**changes)


@pytest.mark.parametrize("arguments", [[str(EMBEDDED)], ["--run", "RUN/checkpoints/one"]])
def test_the_best_is_one_of_a_runs_checkpoints(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "config.toml").write_text(EMBEDDED.read_text())
    named = [one.replace("RUN", str(tmp_path)) for one in arguments]
    refused = CliRunner().invoke(app, ["eval", *named, "--best", "--out", str(tmp_path / "out")])
    assert refused.exit_code == 1
    assert refused.output.strip() == (
        "error: --best chooses among a run's checkpoints: name its folder, --run RUN"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.torch
def test_a_missing_checkpoint_is_one_sentence(tmp_path: Path) -> None:
    arguments = ["eval", "--checkpoint", str(tmp_path / "none"), "--suite", "reach"]
    refused = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out")])
    assert refused.exit_code == 1
    assert refused.output.strip() == (
        f"error: there is no checkpoint folder {tmp_path / 'none'} (seen from {Path.cwd()}); "
        f"`{invocation()} checkpoint tiny DIR` makes an untrained one"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.torch
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--suite", "libero_spacial"], "unknown suite 'libero_spacial'; did you mean 'libero_spa"),
        (["--suite", "reach", "--tasks", "4"], "suite 'reach' has tasks 0 to 0, so there is no"),
    ],
)
def test_the_suite_and_its_tasks_are_looked_at_before_the_policy(
    tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    nowhere = ["eval", "--checkpoint", str(tmp_path / "none"), "--out", str(tmp_path / "out")]
    refused = CliRunner().invoke(app, [*nowhere, *arguments])
    assert refused.exit_code == 1
    assert refused.output.startswith(f"error: {sentence}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--perturb", "sideways"], "--perturb sideways: there are position, object, language, ta"),
        (["--perturb", "environment"], "--perturb environment: the simulator's package has no sc"),
        (["--perturb", "all", "--suite", "libero_90"], "--perturb: suite 'libero_90' has no pert"),
        (["--perturb", "all", "--suite", "libero_10_swap"], "--perturb: suite 'libero_10_swap' h"),
    ],
)
def test_what_cannot_be_perturbed_is_one_sentence(
    tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    out = tmp_path / "out"
    refused = CliRunner().invoke(app, ["eval", str(EMBEDDED), *arguments, "--out", str(out)])
    assert refused.exit_code == 1
    assert refused.output.startswith(f"error: {sentence}")
    assert len(refused.output.strip().splitlines()) == 1
    assert not out.exists()


@pytest.mark.torch
def test_perturbed_scenes_are_evaluated_beside_the_suites_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is a suite, with the same tasks under the same protocol; the run's start comes first."""
    settings = EMBEDDED.read_text().replace("checkpoints/tiny", f"{ROOT / 'policies/spatial'}")
    (tmp_path / "config.toml").write_text(settings)
    begun = []

    def evaluate(
        config: RunConfig,
        policy: Path | None,
        tasks: list[env_pb2.TaskDescription],
        out: Path,
        **others: object,
    ) -> int:
        assert others["named"] == out.parent == tmp_path / "robustness"
        assert {task.task.suite for task in tasks} == {config.tasks.suite}
        assert config.env.profile == "faithful"
        begun.append((out.name, config.tasks.suite, policy, [task.task.index for task in tasks]))
        (out / "evaluation.json").write_text(json.dumps(NOTHING))
        return 0

    monkeypatch.setattr("vlarl_jobs.evaluation.main.run", evaluate)
    kinds = ["--perturb", "language"]
    done = CliRunner().invoke(app, ["eval", "--run", str(tmp_path), *kinds])
    assert done.exit_code == 0, done.output
    assert begun == [
        ("start-none", "libero_spatial", None, [0, 4, 8]),
        ("start-language", "libero_spatial_lan", None, [0, 4, 8]),
        ("trained-none", "libero_spatial", tmp_path, [0, 4, 8]),
        ("trained-language", "libero_spatial_lan", tmp_path, [0, 4, 8]),
    ]


@pytest.mark.torch
def test_a_checkpoint_without_statistics_is_one_sentence(tmp_path: Path) -> None:
    from vlarl.models.openvla.tiny import make_tiny_checkpoint

    make_tiny_checkpoint(tmp_path, image_size=28, tower_dim=32, text_dim=64, tower_depth=2)
    content = json.loads((tmp_path / "config.json").read_text())
    del content["norm_stats"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    arguments = ["eval", "--checkpoint", str(tmp_path), "--suite", "reach"]
    refused = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out")])
    assert refused.exit_code == 1
    assert "there are no norm_stats" in refused.output
    assert len(refused.output.strip().splitlines()) == 1
