"""Runs that nothing changes, made once."""

from pathlib import Path

import pytest

from tests.unit.report.run_folders import evaluate, make_run


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two tasks, with an evaluation and its films inside."""
    run = make_run(tmp_path_factory.mktemp("runs") / "alone")
    evaluate(run, run / "evaluation")
    return run


@pytest.fixture(scope="session")
def run_dirs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two seeds of one configuration, and one of another that is still going on."""
    folder = tmp_path_factory.mktemp("several")
    return [
        make_run(folder / "a", seed=1),
        make_run(folder / "b", seed=2),
        make_run(folder / "longer", seed=1, iterations=4, wanted=9, evaluated=(0, 3)),
    ]
