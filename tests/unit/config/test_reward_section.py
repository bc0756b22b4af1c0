"""`[reward]` is one of several sections: `model` says which, and others' keys do no harm."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vlarl.config import (
    ConfigError,
    OutcomeRewardConfig,
    PpoConfig,
    ProcessRewardConfig,
    RewardSection,
    RunConfig,
    dump_toml,
    load_config,
    load_saved,
    save_config,
)
from vlarl.config.resuming import OnResume, kinds, terms
from vlarl.config.reward_terms import reward_terms
from vlarl_cli import app
from vlarl_cli.runs import chosen_run

PROCESS = ("reward.model=rprm", "reward.checkpoint=rewards/reach")
EARLIER = """
[reward]
model = "MODEL"
success_reward = 1.0
batch_trajectories = 8
checkpoint = "rewards/reach"
coefficient = 0.3
form = "potential"
watch_episodes = 200
warn_below = 0.1
batch_steps = 64
dtype = "auto"
"""
"""As versions wrote it that had one section for both models."""


def test_without_a_model_it_is_the_outcome() -> None:
    assert load_config(None).reward == OutcomeRewardConfig()
    assert load_config(None, ["reward.success_reward=2"]).reward.success_reward == 2


def test_an_override_chooses_another_model_and_back(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('[reward]\ncheckpoint = "rewards/reach"\ncoefficient = 0.3\n')
    assert load_config(file).reward == OutcomeRewardConfig()
    chosen = load_config(file, ["reward.model=rprm", "reward.form=potential"]).reward
    assert isinstance(chosen, ProcessRewardConfig)
    assert (chosen.checkpoint, chosen.coefficient) == (Path("rewards/reach"), 0.3)
    file.write_text(dump_toml(load_config(None, PROCESS)))
    assert load_config(file, ["reward.model=outcome"]).reward == OutcomeRewardConfig()


@pytest.mark.parametrize("overrides", [(), PROCESS])
def test_it_reads_back_equal_with_its_own_keys_alone(overrides: tuple[str, ...]) -> None:
    config = load_config(None, overrides)
    written = tomllib.loads(dump_toml(config))["reward"]
    assert RunConfig.model_validate({"reward": written}) == config
    assert ("coefficient" in written) == bool(overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["reward.coeficient=1"], r"reward.coeficient: unknown key; did you mean 'coefficient'\?$"),
        ([*PROCESS, "reward.coeficient=1"], r"reward.coeficient: .* did you mean 'coefficient'\?$"),
        (["coeficient=1"], r"coeficient: unknown key; did you mean reward.coefficient\?$"),
        (["sucess_reward=1"], r"did you mean reward.success_reward\?$"),
        (["reward.xyzzy=1"], r"reward.xyzzy: unknown key; known: model, success_reward, .* form, "),
        (["reward.model=rprm"], r'reward: reward.model = "rprm" needs reward.checkpoint, a folder'),
        (["reward.model=x"], r"reward.model: Input should be 'outcome' or 'rprm' \(got 'x'\)$"),
        (["reward.batch_trajectories=0"], r"reward.batch_trajectories: .* \(got 0\)$"),
        ([*PROCESS, "reward.form=x"], r"reward.form: Input should be .* \(got 'x'\)$"),
        ([*PROCESS, "reward.form=potential", "reward.stop_below=0"], "reward: .* nothing to farm"),
    ],
)
def test_mistakes_are_named_by_the_keys_of_the_file(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, overrides)


def earlier_run(folder: Path, model: str) -> Path:
    save_config(load_config(None, ["tasks.suite=reach"]), folder)
    saved = folder / "config.toml"
    text = saved.read_text().replace(
        '[reward]\nmodel = "outcome"\nsuccess_reward = 1.0\nbatch_trajectories = 8\n',
        EARLIER.replace("MODEL", model),
    )
    assert "coefficient = 0.3" in text
    saved.write_text(text)
    return folder


@pytest.mark.parametrize("model", ["outcome", "rprm"])
def test_a_run_of_an_earlier_version_goes_on(tmp_path: Path, model: str) -> None:
    run = earlier_run(tmp_path / "run", model)
    with chosen_run(RunConfig, "vlarl up", None, run, None, ["trainer.iterations=3"]):
        pass
    reward = load_config(run / "config.toml").reward
    assert reward == load_saved(RunConfig, run / "config.toml").reward
    if model == "outcome":
        assert reward == OutcomeRewardConfig()
        assert reward_terms(reward, PpoConfig()) == "151189c1274b6104"
    else:
        assert isinstance(reward, ProcessRewardConfig)
        assert (reward.coefficient, reward.form) == (0.3, "potential")
        assert reward_terms(reward, PpoConfig()) == "0df02ee67276e2f3"


def test_an_earlier_run_takes_up_another_model(tmp_path: Path) -> None:
    run = earlier_run(tmp_path / "run", "outcome")
    with chosen_run(RunConfig, "vlarl up", None, run, None, ["reward.model=rprm"]):
        pass
    assert isinstance(load_config(run / "config.toml").reward, ProcessRewardConfig)


def test_a_misspelt_key_in_a_saved_run_is_refused(tmp_path: Path) -> None:
    run = earlier_run(tmp_path / "run", "outcome")
    saved = run / "config.toml"
    saved.write_text(saved.read_text().replace("batch_steps", "batch_stepz"))
    with pytest.raises(ConfigError, match=r"reward.batch_stepz: unknown key; .*'batch_steps'"):
        load_config(saved)
    assert load_saved(RunConfig, saved).reward == OutcomeRewardConfig()


def test_rewards_of_earlier_versions_have_the_same_terms() -> None:
    """Digests that they wrote into scores: a queue may hold some when a run goes on."""

    def digest(**reward: object) -> str:
        config = RunConfig.model_validate({"reward": reward})
        return reward_terms(config.reward, PpoConfig())

    assert digest(success_reward=2.0) == "71733a54dcc25119"
    assert digest(model="rprm", checkpoint="here") == "07b58db17583c2b0"
    assert digest(model="rprm", checkpoint="elsewhere", threads=3) == "07b58db17583c2b0"


def test_every_key_of_every_model_has_a_kind_and_is_in_the_reference() -> None:
    known = {key.removeprefix("reward."): kind for key, kind in kinds(RunConfig).items()}
    page = CliRunner().invoke(app, ["config", "reference"]).output
    for section in (OutcomeRewardConfig, ProcessRewardConfig):
        assert issubclass(section, RewardSection)
        (model,) = section.model_fields["model"].annotation.__args__  # type: ignore[union-attr]
        _, table = page.split(f'## `[reward]` with `model = "{model}"`\n')
        rows = table.partition("\n## ")[0]
        for key in section.model_fields:
            assert f"| `{key}` |" in rows
            assert known[key] is not None
    assert "| `checkpoint` | Path | required |" in rows


def test_no_term_of_a_checkpoint_is_a_reward_models() -> None:
    fixed = [key for key, kind in kinds(RunConfig).items() if kind.on_resume is OnResume.FIXED]
    assert not [key for key in fixed if key.startswith("reward.")]
    assert terms(load_config(None)) == terms(load_config(None, PROCESS))
