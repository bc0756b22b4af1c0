"""Run folders are read as they were written, and what is wrong with one is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.unit.report.run_folders import evaluate, make_run
from vlarl.config import DataConfig, EvaluationConfig, SftConfig, TrainerConfig, dump_toml
from vlarl.json_lines import DamagedFileError, read_lines
from vlarl_jobs.report.errors import ReportError
from vlarl_jobs.report.run_folder import read_run
from vlarl_jobs.report.sections import Rate

pytestmark = pytest.mark.torch


@pytest.fixture
def copied(run_dir: Path, tmp_path: Path) -> Path:
    """A run to damage."""
    return Path(shutil.copytree(run_dir, tmp_path / "alone"))


def test_a_run_is_read_as_it_was_written(run_dir: Path) -> None:
    run = read_run(run_dir)
    assert (run.name, run.config.seed, run.done) == ("alone", 7, True)
    assert run.metric("success_rate") == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert run.env_steps.tolist() == [100, 200, 300, 400, 500, 600]
    assert np.isnan(run.metric("approximate_kl")).tolist() == [True] + [False] * 5
    assert [one.iteration for one in run.evaluations] == [0, 3, 6]
    last = run.evaluations[-1]
    assert (last.total.successes, last.total.episodes, last.tasks[3].rate) == (12, 20, 0.6)
    assert [one.iteration for one in run.actions] == [0, 5]
    assert run.actions[0].values.shape == (80, 7)
    assert "cores" in run.starts[0].machine


def test_a_run_whose_success_was_enough_is_done(tmp_path: Path) -> None:
    """After three of nine iterations 3 of 10 episodes of each task succeed."""
    for name, enough, evaluated, done in (
        ("enough", 0.3, (0, 3), True),
        ("little", 0.31, (0, 3), False),
        ("earlier", 0.2, (0, 2), False),
    ):
        trainer = TrainerConfig(iterations=9, stop_at_success=enough)
        often = EvaluationConfig(every_iterations=1)
        sections = {"trainer": trainer, "evaluation": often}
        run = make_run(tmp_path / name, iterations=3, evaluated=evaluated, config=sections)
        assert (read_run(run).done, read_run(run).wanted) == (done, 3 if done else 9)


def test_time_is_that_of_work(run_dir: Path) -> None:
    run = read_run(run_dir)
    # Half a minute of evaluation before the first, after the third and after the sixth iteration.
    assert run.hours * 60 == pytest.approx([1.5, 2.5, 3.5, 5, 6, 7])
    evaluated = [run.evaluation_hours(one) * 60 for one in run.evaluations]
    assert evaluated == pytest.approx([0.5, 4, 7.5])
    assert run.worked_hours * 60 == pytest.approx(7.5)


def test_evaluations_are_found_inside_a_run_and_beside_it(copied: Path) -> None:
    evaluate(copied, copied.parent / "eval-beside", films=False)
    evaluate(copied.parent / "other", copied.parent / "eval-of-another")
    (copied.parent / "broken").mkdir()
    (copied.parent / "broken" / "evaluation.json").write_text("{")
    folders = read_run(copied).folders
    assert sorted(one.path.name for one in folders) == ["eval-beside", "evaluation"]
    (films,) = (one.films for one in folders if one.path.name == "evaluation")
    assert [(film.task, film.init_state, film.success) for film in films] == [
        (0, 0, True),
        (0, 1, False),
    ]


def test_given_up_episodes_are_failures_of_earlier_versions_too(copied: Path) -> None:
    """Those left them out of the tasks' episodes, and wrote down how many there were."""
    file = copied / "evaluations.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    now, before = rows[-1], json.loads(json.dumps(rows[-1]))
    now["tasks"]["3"] |= {"episodes": 12, "missing": 2}
    now["missing"] = 2
    before["iteration"], before["missing"] = 4, 2
    for score in before["tasks"].values():
        del score["missing"]
    file.write_text("".join(json.dumps(row) + "\n" for row in (before, now)))
    first, last = read_run(copied).evaluations
    for one in (first, last):
        total = one.total
        assert (total.successes, total.episodes, total.missing, total.ended) == (12, 22, 2, 20)
        assert Rate.of(total).text.endswith("; 2 given up, which count as failed)")


def test_the_line_that_is_being_written_is_left_out(copied: Path) -> None:
    with (copied / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 6, "policy_ver')
    assert len(read_run(copied).iterations) == 6


def test_a_damaged_line_is_named(copied: Path) -> None:
    file = copied / "evaluations.jsonl"
    first, second, third = file.read_text().splitlines()
    file.write_text("\n".join([first, second[:40], third, ""]))
    with pytest.raises(
        DamagedFileError, match=r"evaluations\.jsonl, line 2: damaged .*; mend or remove"
    ):
        read_run(copied)
    file.write_text(f"{first}\n[1, 2]\n")
    with pytest.raises(DamagedFileError, match="line 2: not an object"):
        read_run(copied)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "env_steps",
            None,
            r"metrics\.jsonl, line 1: env_steps: Field required; .*another version",
        ),
        ("env_steps", "many", r"line 1: env_steps: Input should be a valid integer"),
        ("success_rate", None, r"line 1: success_rate is missing"),
        ("entropy", "high", r"line 1: metrics\.entropy: Input should be a valid number"),
    ],
)
def test_lines_of_another_version_are_named(
    copied: Path, field: str, value: object, message: str
) -> None:
    file = copied / "metrics.jsonl"
    row = json.loads(file.read_text().splitlines()[0])
    del row[field]
    file.write_text(json.dumps(row | ({field: value} if value else {})) + "\n")
    with pytest.raises(ReportError, match=message):
        read_run(copied)


def test_a_run_of_another_version_is_named_with_that_version(copied: Path) -> None:
    config = copied / "config.toml"
    written = config.read_text()
    config.write_text("velocity = 3\n" + written)
    assert read_run(copied).name == "alone"
    config.write_text(written.replace("seed = 7", 'seed = "seven"', 1))
    with pytest.raises(ReportError, match=r"another version .* \(vlarl \S+ made it\).*seed"):
        read_run(copied)
    config.write_text("seed = ")
    with pytest.raises(ReportError, match="not TOML"):
        read_run(copied)


def test_actions_that_cannot_be_read_are_named(copied: Path) -> None:
    file = copied / "actions" / "iteration-00005.npz"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ReportError, match=r"iteration-00005\.npz: can't be read"):
        read_run(copied)
    np.savez(file.open("wb"), values=np.array([{}], dtype=object))
    with pytest.raises(ReportError, match="can't be read"):
        read_run(copied)


def test_other_folders_are_refused(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="there is no such folder"):
        read_run(tmp_path / "none")
    with pytest.raises(ReportError, match=r"not a run's folder \(config\.toml is missing\)"):
        read_run(tmp_path)
    with pytest.raises(ReportError, match="an evaluation, not a run"):
        read_run(run_dir / "evaluation")
    with pytest.raises(ReportError, match="no iteration is complete yet"):
        read_run(make_run(tmp_path / "young", iterations=0))
    (tmp_path / "sft").mkdir()
    imitation = SftConfig(
        data=DataConfig(datasets=(Path("datasets/reach"),)), checkpoint=Path("tiny")
    )
    (tmp_path / "sft" / "config.toml").write_text(dump_toml(imitation))
    with pytest.raises(ReportError, match="a run of `vlarl sft`"):
        read_run(tmp_path / "sft")


def test_a_file_that_is_not_there_has_no_lines(tmp_path: Path) -> None:
    assert read_lines(tmp_path / "none.jsonl") == []
