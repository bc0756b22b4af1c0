"""A table's runs: resolved in order, and every mistake named before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.unit.ablation.tables import plan_in, write_table
from vlarl.config import (
    AblationConfig,
    ConfigError,
    OutcomeRewardConfig,
    ProcessRewardConfig,
    RunConfig,
    TrainerConfig,
    load_config,
    load_section,
    save_config,
)
from vlarl_cli import app
from vlarl_cli.runs import chosen_run
from vlarl_jobs.ablation.plan import make_plan, standing

ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.torch


def test_all_variants_of_a_seed_come_before_the_next_seed(tmp_path: Path) -> None:
    ablation = plan_in(tmp_path)
    names = [run.name for run in ablation.runs]
    assert names == ["full-7", "hot-7", "fast-7", "full-8", "hot-8", "fast-8"]
    assert [run.config.seed for run in ablation.runs] == [7, 7, 7, 8, 8, 8]
    assert [run.config.trainer.temperature for run in ablation.runs[:3]] == [1.5, 2.0, 1.5]
    assert all(run.folder == tmp_path / "out" / run.config.name for run in ablation.runs)


def test_what_all_change_lies_between_the_base_and_a_variant(tmp_path: Path) -> None:
    common = "[common]\ntrainer = { iterations = 2, temperature = 1.0 }\n"
    full, hot, *_ = plan_in(tmp_path, common).runs
    assert (full.config.trainer.iterations, full.config.trainer.temperature) == (2, 1.0)
    assert (hot.config.trainer.iterations, hot.config.trainer.temperature) == (2, 2.0)


def test_a_variant_chooses_what_its_base_prepares(tmp_path: Path) -> None:
    """The base's own run ignores the keys of a reward model that it doesn't choose."""
    file = write_table(tmp_path, "[variants.dense]\nreward.model = 'rprm'\n")
    table = load_section(AblationConfig, file)
    prepared = '[reward]\ncheckpoint = "rewards/reach"\ncoefficient = 0.3\n'
    base = tmp_path / table.base
    base.write_text(base.read_text() + prepared)
    full, *_, dense = make_plan(table, file, tmp_path / "out").runs[: len(table.variants)]
    assert full.config.reward == OutcomeRewardConfig()
    assert isinstance(dense.config.reward, ProcessRewardConfig)
    assert dense.config.reward.coefficient == 0.3


@pytest.mark.parametrize(
    ("further", "message"),
    [
        (
            "[variants.last]\ntrainer.critic.warmup_iteration = 0",
            r"variants.last: trainer.critic.warmup_iteration: unknown key; did you mean",
        ),
        ("[variants.last]\ntrainer.temperature = -1", "variants.last: trainer.temperature: "),
        ("[variants.last]\nseed = 3", "variants.last.seed: can't be changed"),
        ("[common]\nname = 'a'", "common.name: can't be changed"),
        ("[variants.twin]\ntrainer.temperature = 2", "hot and twin are the same configuration"),
        ("[variants.last]\npolicy.checkpoint = 'gone'", "last: there is no checkpoint folder gone"),
        ("[variants.'a/b']\ntrainer.temperature = 1", "variants.a/b: names a folder"),
        ("[paper]\nhat = 1", "paper.hat: there is no such variant; known: full, hot, fast"),
        ("[paper]\nhot = { succes = 1 }", r"paper.hot.succes: unknown key; did you mean 'success'"),
        ("[paper]\nhot = 190", "paper.hot.success: .*less than or equal to 100"),
        ("[variant.last]", r"variant: unknown key; did you mean 'variants'\?"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, further: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_in(tmp_path, further)


def test_a_mistake_in_the_last_variant_starts_nothing(tmp_path: Path) -> None:
    file = write_table(tmp_path, "[variants.last]\ntrainer.temprature = 1\n")
    refused = CliRunner().invoke(app, ["ablate", str(file), "--out", str(tmp_path / "out")])
    assert refused.exit_code == 1
    assert refused.output.endswith("unknown key; did you mean 'temperature'?\n")
    assert len(refused.output.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ("tasks.suite = 'rech'", "variants.last: unknown suite 'rech'; did you mean 'reach'? The"),
        (
            "tasks.indices = [3]",
            "variants.last: suite 'reach' has tasks 0 to 0, so there is no number 3",
        ),
        (
            "tasks.suite = 'approach'\nevaluation.episodes_per_task = 60",
            "variants.last: task 0 of suite 'approach' has 50 official initial states, fewer than ",
        ),
    ],
)
def test_a_variant_of_a_suite_that_is_not_there_starts_nothing(
    tmp_path: Path, changes: str, sentence: str
) -> None:
    further = f"[variants.last]\n{changes}\n"
    file = write_table(tmp_path, further)
    policy = f"common.policy.checkpoint={ROOT / 'policies/reach'}"
    arguments = ["ablate", str(file), "--set", policy, "--out", str(tmp_path / "out")]
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 1
    assert refused.output.startswith(f"error: {sentence}")
    assert len(refused.output.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_seed_twice_and_a_missing_base_are_named(tmp_path: Path) -> None:
    file = write_table(tmp_path)
    with pytest.raises(ConfigError, match="seeds names 7 twice"):
        load_section(AblationConfig, file, ["seeds=[7, 8, 7]"])
    astray = load_section(AblationConfig, file, ["base=gone.toml"])
    with pytest.raises(ConfigError, match=r"gone.toml: can't be read"):
        make_plan(astray, file, tmp_path / "out")


def test_a_folder_of_another_configuration_is_refused(tmp_path: Path) -> None:
    run = plan_in(tmp_path).runs[1]
    assert not standing(run).begun
    save_config(run.config, run.folder)
    assert standing(run).begun
    # What `vlarl up --resume` makes of it.
    with chosen_run(RunConfig, "vlarl up", None, run.folder, None, None) as chosen:
        assert chosen == (run.config, run.folder)
    save_config(load_config(run.folder / "config.toml", ["trainer.temperature=1.9"]), run.folder)
    with pytest.raises(ConfigError, match=r"hot-7 was begun with another trainer.temperature than"):
        standing(run)


def shipped(name: str) -> tuple[TrainerConfig, dict[str, RunConfig]]:
    """The base's trainer, and each variant's run."""
    file = Path(f"configs/{name}.toml")
    ablation = make_plan(load_section(AblationConfig, file), file, Path("runs/none"))
    assert {run.config.seed for run in ablation.runs} == {7, 8, 9}
    base = load_config(file.parent / "reach.toml").trainer
    return base, {run.variant: run.config for run in ablation.runs}


def as_measured(base: TrainerConfig) -> TrainerConfig:
    """Reach as it was when the tables were made, before the critic saw the policy as it is."""
    critic = base.critic.model_copy(update={"features": "base"})
    return base.model_copy(update={"iterations": 9, "critic": critic})


def test_the_shipped_tables_change_what_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    base, runs = shipped("ablations-critic")
    trainers = {name: run.trainer for name, run in runs.items()}
    assert trainers["full"] == as_measured(base)
    assert trainers["hidden-critic"].critic.patch_channels == 0 < base.critic.patch_channels
    critic, ppo = trainers["lambda-095"].critic, trainers["lambda-095"].ppo
    assert (critic, ppo.gae_lambda) == (as_measured(base).critic, 0.95)
    _, runs = shipped("ablations-curriculum")
    kinds = {name: run.curriculum.kind for name, run in runs.items()}
    assert kinds == {"full": "paper", "no-curriculum": "uniform", "frontier": "frontier"}
    base, runs = shipped("ablations-reach")
    trainers = {name: run.trainer for name, run in runs.items()}
    assert trainers["full"] == as_measured(base)
    warmups = [
        trainers[name].critic.warmup_iterations for name in ("no-warmup", "full", "warmup-5")
    ]
    assert warmups == [0, 1, 5]
    assert [trainers[name].temperature for name in ("cold", "full", "hot")] == [0.7, 1.0, 1.5]
    rate = trainers["learning-rate-x10"].ppo.learning_rate
    assert rate == pytest.approx(10 * base.ppo.learning_rate), "the base has moved on"
