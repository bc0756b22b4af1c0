"""A new run, or one to go on with."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from vlarl.config import ConfigError, RunConfig, load_config, save_config
from vlarl.ownership import OwnedError
from vlarl_cli.runs import chosen_run, run_id_of

ROOT = Path(__file__).parents[3]
REACH = ROOT / "configs/reach.toml"
ODD_NAMES = [
    "my run",
    "läufe [1]",
    "[bold]x[/]",
    'it\'s "quoted" & $HOME; #1?',
    "100% 跑",
    "-dash",
    ".hidden",
    "a" * 250,
]


def choose(
    config: Path | None = None,
    resume: Path | None = None,
    run_dir: Path | None = None,
    overrides: list[str] | None = None,
) -> tuple[RunConfig, Path]:
    """What `vlarl up` begins or goes on with; its end is at once."""
    with chosen_run(RunConfig, "vlarl up", config, resume, run_dir, overrides) as chosen:
        return chosen


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A run's folder, with nothing but its configuration yet."""
    return choose(REACH, run_dir=tmp_path / "one", overrides=["seed=3"])[1]


def test_a_new_run_is_named_by_its_folder_and_never_overwrites_one(begun: Path) -> None:
    saved = load_config(begun / "config.toml")
    assert (saved.name, saved.seed) == ("one", 3)
    with pytest.raises(ConfigError, match="holds a run already; go on with --resume"):
        choose(REACH, run_dir=begun)


def test_what_changes_on_resuming_reaches_the_runs_processes(begun: Path) -> None:
    """They read the folder's configuration, not the command line."""
    settings, folder = choose(resume=begun, overrides=["trainer.iterations=77"])
    assert folder == begun
    assert settings.trainer.iterations == 77
    assert load_config(begun / "config.toml") == settings


@pytest.mark.parametrize("change", ["seed=4", "name=two"])
def test_a_run_that_goes_on_stays_the_same_run(begun: Path, change: str) -> None:
    before = (begun / "config.toml").read_text()
    with pytest.raises(ConfigError, match=f"began with {change.partition('=')[0]} = "):
        choose(resume=begun, overrides=[change])
    assert (begun / "config.toml").read_text() == before


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    """The id that queue keys and metrics' labels are made of is another thing."""
    settings, folder = choose(REACH, run_dir=tmp_path / name)
    assert folder == tmp_path / name
    assert settings.name.isascii()
    assert load_config(folder / "config.toml") == settings, "its own id is refused"
    assert choose(resume=folder, overrides=["trainer.iterations=77"])[0].name == settings.name


def test_two_folders_have_two_ids() -> None:
    ids = [
        run_id_of(Path("runs") / name) for name in [*ODD_NAMES, "my-run", "my  run", "läufe (1)"]
    ]
    assert len(set(ids)) == len(ids)
    assert run_id_of(Path("runs/reach-7")) == "reach-7"
    assert run_id_of(Path("runs/my run")).startswith("my-run-")
    assert run_id_of(Path("runs/läufe")).startswith("laufe-")


@pytest.mark.parametrize("place", [".", "../work", "down/.."])
def test_a_folder_may_be_where_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (tmp_path / "work/down").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    assert choose(REACH, run_dir=Path(place))[0].name == "work"
    assert choose(resume=Path(place))[0].name == "work"
    assert run_id_of(Path("/")).startswith("run-")


def test_a_refused_run_leaves_nothing_behind(tmp_path: Path) -> None:
    def refuse(_: RunConfig) -> None:
        raise ConfigError("no such task")

    for folder in (tmp_path / "new/run", tmp_path):
        chosen = chosen_run(RunConfig, "vlarl up", REACH, None, folder, None, refuse)
        with pytest.raises(ConfigError, match="no such task"), chosen:
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_going_is_not_gone_on_with(begun: Path) -> None:
    before = (begun / "config.toml").read_text()
    with ExitStack() as going:
        going.enter_context(chosen_run(RunConfig, "vlarl up", None, begun, None, None))
        with pytest.raises(OwnedError, match=f"`vlarl up`, process {os.getpid()} on "):
            choose(resume=begun, overrides=["trainer.iterations=77"])
    assert (begun / "config.toml").read_text() == before
    assert choose(resume=begun, overrides=["trainer.iterations=77"])[0].trainer.iterations == 77


def test_other_ranks_need_not_have_the_folder(begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with chosen_run(RunConfig, "vlarl train", None, begun, None, None):
        monkeypatch.setenv("RANK", "1")
        assert choose(resume=begun)[1] == begun


def test_an_evaluations_folder_is_no_runs(tmp_path: Path) -> None:
    save_config(load_config(REACH), tmp_path)
    (tmp_path / "evaluation.json").write_text("{}")
    with pytest.raises(ConfigError, match="an evaluation, not a run"):
        choose(resume=tmp_path)
    with pytest.raises(ConfigError, match="holds an evaluation; name another --run-dir"):
        choose(REACH, run_dir=tmp_path)
