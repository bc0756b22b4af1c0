"""What docs/results.md says one can do with the published runs can be done, and will be."""

from __future__ import annotations

import logging
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vlarl.config import ConfigError, RunConfig, load_saved, load_section
from vlarl_cli import app
from vlarl_cli.evaluate import evaluation_config
from vlarl_jobs.report.run_folder import read_run

pytestmark = pytest.mark.torch
ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/results.md").read_text(encoding="utf-8")
COMMANDS = sorted(set(re.findall(r"(?m)^vlarl [^#\n]+|(?<=`)vlarl [^`]+(?=`)", PAGE)))
RUNS = sorted((ROOT / "docs/results").rglob("config.toml"))


def arguments_of(command: str) -> list[str]:
    """As a shell would split it, patterns filled in."""
    parts = shlex.split(command)[1:]
    return [one for part in parts for one in sorted(map(str, ROOT.glob(part))) or [part]]


def test_the_page_names_commands_of_all_kinds() -> None:
    assert {command.split()[1] for command in COMMANDS} == {"report", "up", "eval"}


@pytest.mark.parametrize("command", [one for one in COMMANDS if one.startswith("vlarl report")])
def test_every_report_that_the_page_names_is_made(command: str, tmp_path: Path) -> None:
    arguments = arguments_of(command)
    assert len(arguments) > 1, "no such runs"
    made = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "page.html")])
    assert made.exit_code == 0, made.output
    assert (tmp_path / "page.html").stat().st_size > 10_000


@pytest.mark.parametrize("command", [one for one in COMMANDS if one.startswith("vlarl up")])
def test_every_run_that_the_page_names_is_configured(command: str) -> None:
    started = re.sub(r"--resume runs/(\S+)-TIME", r"configs/\1.toml", command)
    shown = CliRunner().invoke(app, ["config", "show", *arguments_of(started)[1:]])
    assert shown.exit_code == 0, shown.output


@pytest.mark.parametrize("saved", RUNS, ids=[str(one.parent.relative_to(ROOT)) for one in RUNS])
def test_every_published_run_is_readable(saved: Path) -> None:
    run = read_run(saved.parent)
    assert run.config.trainer.ppo.gamma > 0
    settings, _ = evaluation_config(None, None, saved.parent, None, None, 50, None)
    assert settings.tasks.suite == run.config.tasks.suite


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """The configuration of a run that another version saved."""
    saved = tmp_path / "config.toml"
    saved.write_text(
        "seed = 9\nflavour = 'mint'\n[reward]\ngamma = 0.9\n"
        "[trainer]\nspin = { a = 1 }\nepochs = 2\n",
        encoding="utf-8",
    )
    return saved


def test_keys_of_other_versions_are_told_and_left_out(
    older: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        config = load_saved(RunConfig, older, ["trainer.iterations=3"])
    assert (config.seed, config.trainer.ppo.gamma, config.trainer.iterations) == (9, 0.9, 3)
    assert sorted(record.getMessage() for record in caplog.records) == [
        f"{older}: flavour, of another version, is left out",
        f"{older}: reward.gamma, of an older version, is trainer.ppo.gamma now",
        *[f"{older}: trainer.{key}, of another version, is left out" for key in ("epochs", "spin")],
    ]
    caplog.clear()
    load_saved(RunConfig, older)
    assert not caplog.records, "told once"


def test_what_the_user_writes_is_as_strict_as_ever(older: Path) -> None:
    with pytest.raises(ConfigError, match=r"trainer.iteration: unknown key; did you mean"):
        load_saved(RunConfig, older, ["trainer.iteration=3"])
    with pytest.raises(ConfigError, match=r"reward.gamma: unknown key; did you mean trainer"):
        load_section(RunConfig, older)
    older.write_text("[trainer]\niterations = 'many'\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"trainer.iterations: .* \(got 'many'\)"):
        load_saved(RunConfig, older)


def test_a_configuration_of_another_kind_is_none_of_an_older_version() -> None:
    with pytest.raises(ConfigError, match="unknown keys"):
        load_saved(RunConfig, ROOT / "configs/sft-reach.toml")
