"""A new run, or one to go on with."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlarl.cli.runs import choose_run
from vlarl.config import ConfigError, RunConfig, load_config

ROOT = Path(__file__).parents[3]


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A run's folder, with nothing but its configuration yet."""
    _, folder = choose_run(
        RunConfig, ROOT / "configs/reach.toml", None, tmp_path / "one", ["seed=3"]
    )
    return folder


def test_a_new_run_is_named_by_its_folder_and_never_overwrites_one(begun: Path) -> None:
    saved = load_config(begun / "config.toml")
    assert (saved.name, saved.seed) == ("one", 3)
    with pytest.raises(ConfigError, match="holds a run already; go on with --resume"):
        choose_run(RunConfig, ROOT / "configs/reach.toml", None, begun, None)


def test_what_changes_on_resuming_reaches_the_runs_processes(begun: Path) -> None:
    """They read the folder's configuration, not the command line."""
    settings, folder = choose_run(RunConfig, None, begun, None, ["trainer.iterations=77"])
    assert folder == begun
    assert settings.trainer.iterations == 77
    assert load_config(begun / "config.toml") == settings


@pytest.mark.parametrize("change", ["seed=4", "name=two"])
def test_a_run_that_goes_on_stays_the_same_run(begun: Path, change: str) -> None:
    before = (begun / "config.toml").read_text()
    with pytest.raises(ConfigError, match="keeps its name and its seed"):
        choose_run(RunConfig, None, begun, None, [change])
    assert (begun / "config.toml").read_text() == before
