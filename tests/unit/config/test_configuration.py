"""Configuration: TOML in, typed sections out, every mistake named."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from vlarl.config import (
    AblationConfig,
    ConfigError,
    RewardModelConfig,
    RunConfig,
    SecurityConfig,
    ServerConfig,
    SftConfig,
    as_section,
    dump_toml,
    load_config,
    load_section,
    save_config,
)
from vlarl_cli import app

ROOT = Path(__file__).parents[3]


def test_the_dumped_configuration_reads_back_equal(tmp_path: Path) -> None:
    overrides = [
        "trainer.ppo.kl_stop=0",
        'env.bddl_directories={ mine = "/bddl" }',
        "env.crop=[1, 2, 3, 4]",
    ]
    config = load_config(None, overrides)
    file = tmp_path / "config.toml"
    file.write_text(dump_toml(config))
    assert load_config(file) == config


@pytest.mark.parametrize(
    "name", ["\U0001f600 robot", "müller's [2]", "a\x7fb", 'c:\\new "x"', "tab\there", "\u2028"]
)
def test_any_name_reads_back_equal(tmp_path: Path, name: str) -> None:
    """As a value, and as a key of a table that users name."""
    values = {
        "policy": {"checkpoint": f"/data/{name}"},
        "env": {"bddl_directories": {name: "/bddl"}, "cameras": [name]},
    }
    config = as_section(RunConfig, values, "test")
    save_config(config, tmp_path / "run")
    assert load_config(tmp_path / "run/config.toml") == config
    assert config.policy.checkpoint == Path("/data") / name


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"policy": {"checkpoint": "/data/\udcfc"}}, "policy.checkpoint"),
        ({"env": {"cameras": ["\udcfc"]}}, "env.cameras"),
        ({"env": {"bddl_directories": {"\udcfc": "/bddl"}}}, r"env.bddl_directories.\udcfc"),
    ],
)
def test_a_name_that_is_not_utf8_is_refused(values: dict[str, object], key: str) -> None:
    """Of a file on disk, whose bytes Python hands on as lone surrogates."""
    with pytest.raises(ConfigError) as refused:
        as_section(RunConfig, values, "run.toml")
    assert str(refused.value).startswith(f"run.toml: {key}: ")
    assert r"\udcfc' isn't UTF-8" in str(refused.value)
    assert "rename the file" in str(refused.value)


def test_a_fine_tuning_run_reads_back_equal(tmp_path: Path) -> None:
    overrides = ['data.datasets=["a", "b"]', "model.text_dim=64", "pretrain.steps=3"]
    config = load_section(SftConfig, None, overrides)
    file = tmp_path / "config.toml"
    file.write_text(dump_toml(config))
    assert load_section(SftConfig, file) == config
    assert config.training.steps != config.pretrain.steps == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.learningrate=1", r"unknown key; did you mean 'learning_rate'\?"),
        ("training.micro_batch=200", "must not exceed mini_batch"),
        ("model.text_dim=100", "model.text_dim: .*multiple of 32"),
        ("checkpoint=here", r"either checkpoint or \[model\]"),
        ("data.statistics=checkpoint", "no statistics of its own"),
        ("data.datasets=[]", "data.datasets: "),
    ],
)
def test_mistakes_in_fine_tuning_are_named(override: str, message: str) -> None:
    base = ['data.datasets=["a"]', "model.text_dim=64"]
    with pytest.raises(ConfigError, match=message):
        load_section(SftConfig, None, [*base, override])


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.toml")), ids=lambda p: p.name)
def test_the_shipped_configurations_are_valid(file: Path) -> None:
    kinds = {"sft": SftConfig, "ablations": AblationConfig, "reward": RewardModelConfig}
    load_section(kinds.get(file.name.partition("-")[0], RunConfig), file)


def test_overrides_win_and_bare_words_are_text(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('name = "a"\n[trainer]\niterations = 3\ntemperature = 1.0\n')
    config = load_config(file, ["trainer.iterations=5", "tasks.suite=libero_goal"])
    assert (config.trainer.iterations, config.trainer.temperature) == (5, 1.0)
    assert config.tasks.suite == "libero_goal"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("env.procesess=1", r"env.procesess: unknown key; did you mean 'processes'\?"),
        ("trainer.ppo.epoch=2", r"trainer.ppo.epoch: unknown key; did you mean 'epochs'\?"),
        ("iterations=3", r"^configuration: iterations: unknown .* mean trainer.iterations\?$"),
        ("trainer.iteratons=3", r"unknown key; did you mean 'iterations'\?"),
        ("env.gamma=1", r"env.gamma: unknown key; did you mean trainer.ppo.gamma or trainer.grpo"),
        ("clip_lo=1", r"did you mean trainer.ppo.clip_low or trainer.grpo"),
        ("temprature=1", r"did you mean trainer.temperature\?"),
        ("gae_lambda=1", "trainer.ppo.gae_lambda or trainer.critic.gae_lambda"),
        ("xyzzy=1", "xyzzy: unknown key; known: name, seed"),
        ("trainer.temperature=0", r"trainer.temperature: .* equal to 0.01 \(got 0\)"),
        ("trainer.ppo.micro_batch=100", "must not exceed mini_batch"),
        ("trainer.stop_at_success=90", "trainer.stop_at_success: .*less than or equal to 1"),
        ("trainer.rollback_rate=0", "trainer.rollback_rate: .*greater than 0"),
        ("trainer.ppo.schedule=step", "trainer.ppo.schedule: .*'constant', 'linear' or 'cosine'"),
        ("name=a/b", "name: "),
        ("temperature", "an override is written section.key=value"),
    ],
)
def test_mistakes_are_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, [override])


@pytest.mark.parametrize("override", ["trainer.stop_at_success=0.9", "trainer.rollback=3"])
def test_what_goes_by_evaluations_needs_some(override: str) -> None:
    key = override.partition("=")[0]
    none = rf"{key} goes by evaluations between iterations, .* has none: set evaluation.every_it"
    for never in (["at_start=true"], ["every_env_steps=100", "episodes_per_task=0"]):
        with pytest.raises(ConfigError, match=none):
            load_config(None, [override, *(f"evaluation.{one}" for one in never)])
    for often in ("every_env_steps=100", "every_iterations=5"):
        load_config(None, [override, f"evaluation.{often}"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["ppo.gamma=0.9"],
            r"ppo.gamma is read by another algorithm .*: move it to \[trainer.grpo\], or",
        ),
        (["critic.epochs=2"], r'critic.epochs is .* algorithm = "grpo": leave it out'),
        (["rloo.epochs=2"], r"rloo.epochs is read by another algorithm"),
        (
            ["algorithm=ppo", "grpo.epochs=2"],
            r"grpo.epochs is read .*: move it to \[trainer.ppo\], or",
        ),
        (["grpo.group_size=1"], r"trainer.grpo.group_size: .* greater than or equal to 2"),
        (["grpo.group_size=5"], r"episodes_per_iteration \(16\) has to be a multiple of grpo.gro"),
        (["grpo.keep_between=[0.9, 0.1]"], r"keep_between \[0.9, 0.1\] has to be two shares, the"),
        (["grpo.keep_between=[0.1, 1.1]"], r"keep_between \[0.1, 1.1\] has to be two shares, the"),
        (["grpo.keep_between=[0.13, 0.2]"], r"holds no share that 8 episodes \(group_size\) can"),
        (
            ["grpo.mini_batch=97"],
            r"trainer.grpo.mini_batch is 97 answers of the policy, but 16 episodes .* 96",
        ),
        (["algorithm=dpo"], r"trainer.algorithm: .*'ppo', 'grpo' or 'rloo'"),
    ],
)
def test_mistakes_with_algorithms_are_named(overrides: list[str], message: str) -> None:
    base = ["trainer.algorithm=grpo", "trainer.episodes_per_iteration=16", "tasks.max_actions=6"]
    load_config(None, [*base, "trainer.grpo.mini_batch=96"])
    with pytest.raises(ConfigError, match=message):
        load_config(None, [*base, *(f"trainer.{one}" for one in overrides)])


@pytest.mark.parametrize(
    ("kind", "file", "sentence"),
    [
        (
            SftConfig,
            "reach.toml",
            "missing keys data; unknown keys tasks, policy, env, trainer, evaluation: "
            "`vlarl sft` takes ",
        ),
        (
            AblationConfig,
            "reach.toml",
            "missing keys base, seeds, variants; unknown keys seed, tasks, policy, env, trainer, "
            "evaluation: `vlarl ablate` takes ",
        ),
        (
            RunConfig,
            "sft-reach.toml",
            "unknown keys mode, target_sigma, input_sigma, export, model, data, augmentation, "
            "pretrain, training: `vlarl up` takes ",
        ),
    ],
)
def test_a_file_of_another_kind_is_one_sentence(kind: type, file: str, sentence: str) -> None:
    path = ROOT / "configs" / file
    with pytest.raises(ConfigError) as refused:
        load_section(kind, path)
    assert str(refused.value).startswith(f"{path}: {sentence}")
    assert len(str(refused.value).splitlines()) == 1


def test_what_a_table_lacks_is_named_without_its_content() -> None:
    required = ["name=a", "base=b", "seeds=[1]", "variants.a.seed=1"]
    with pytest.raises(ConfigError, match=r"paper.a.success: missing$"):
        load_section(AblationConfig, None, [*required, "paper.a.against=3"])


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing.toml: can't be read"):
        load_config(tmp_path / "missing.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("[trainer\n")
    with pytest.raises(ConfigError, match=r"broken.toml: not TOML"):
        load_config(broken)
    broken.write_text('name = "m\u00fcller"\n', encoding="latin-1")
    with pytest.raises(ConfigError, match=r"broken.toml: not UTF-8.*; save the file as UTF-8"):
        load_config(broken)


def test_a_byte_order_mark_does_not_matter(tmp_path: Path) -> None:
    marked = tmp_path / "marked.toml"
    marked.write_text("seed = 3\n", encoding="utf-8-sig")
    assert load_config(marked).seed == 3


def test_every_key_is_explained() -> None:
    def sections(section: type, path: str = "") -> list[str]:
        from vlarl.config.base import sections_in

        missing = []
        for name, field in section.model_fields.items():  # type: ignore[attr-defined]
            if not field.description:
                missing.append(f"{path}{name}")
            for inner in sections_in(field.annotation):
                missing += sections(inner, f"{path}{name}.")
        return missing

    assert sections(RunConfig) + sections(SftConfig) + sections(AblationConfig) == []


def test_the_reference_is_up_to_date() -> None:
    shown = CliRunner().invoke(app, ["config", "reference"])
    assert shown.output == (ROOT / "docs/configuration.md").read_text(), "run `make docs`"


@pytest.mark.parametrize(
    ("kind", "file"),
    [("sft", "sft-reach"), ("ablate", "ablations-reach"), ("reward", "reward-reach")],
)
def test_other_commands_configurations_are_shown(kind: str, file: str) -> None:
    path = str(ROOT / f"configs/{file}.toml")
    shown = CliRunner().invoke(app, ["config", "show", "--config", path, "--of", kind])
    assert shown.exit_code == 0, shown.output
    values = tomllib.loads(shown.output)
    assert values["name"] == file
    assert CliRunner().invoke(app, ["config", "show", "--config", path]).exit_code == 2


def test_a_folder_of_runs_is_no_run_and_names_them(tmp_path: Path) -> None:
    for name in ("full-7", "hot-7"):
        save_config(RunConfig(name=name), tmp_path / name)
    result = CliRunner(env={"COLUMNS": "300"}).invoke(app, ["status", str(tmp_path)])
    assert result.exit_code != 0
    assert "no run here (config.toml is missing); the runs inside it are full-7, hot-7" in (
        " ".join(result.output.replace("│", " ").split())
    )


def test_a_mistake_on_the_command_line_is_one_sentence() -> None:
    result = CliRunner().invoke(app, ["config", "show", "--set", "trainer.iteration=3"])
    assert result.exit_code == 2
    assert "did you mean 'iterations'?" in " ".join(result.output.replace("│", " ").split())


def test_a_server_gets_all_of_a_runs_credentials(tmp_path: Path) -> None:
    rate = {"client_calls_per_second": 5.0, "client_burst": 7}
    files = {name: tmp_path / name for name in SecurityConfig.model_fields if name not in rate}
    given = files | rate
    secured = SecurityConfig(**given).secured(ServerConfig(listen="127.0.0.1:1", drain_seconds=3))
    shared = SecurityConfig.model_fields.keys() & ServerConfig.model_fields.keys()
    assert shared >= {"token_file", "client_token_file", "tls_key", "tls_client_ca", *rate}
    assert {name: getattr(secured, name) for name in shared} == {
        name: given[name] for name in shared
    }
    assert (secured.listen, secured.drain_seconds) == ("127.0.0.1:1", 3)
    with pytest.raises(ValidationError, match="client_token_file needs token_file"):
        SecurityConfig(client_token_file=tmp_path / "clients")
    with pytest.raises(ValidationError, match="client_calls_per_second needs token_file"):
        SecurityConfig(client_calls_per_second=5)


def test_a_tag_that_wandb_refuses_is_named() -> None:
    with pytest.raises(ConfigError, match=r"wandb_tags has 'x+', of 65 characters; wandb takes 1"):
        load_config(None, [f"logging.wandb_tags=['{'x' * 65}']"])
    with pytest.raises(ConfigError, match=r"logging\.wandb_project"):
        load_config(None, ["logging.wandb_project=a/b"])
