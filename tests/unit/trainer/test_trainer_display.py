"""What a run says where there is no terminal, in a log for instance."""

from pathlib import Path

import pytest

from vlarl.config import RunConfig
from vlarl.env.v1 import env_pb2
from vlarl.invocation import invocation
from vlarl_jobs.evaluation.console import EvaluationDisplay
from vlarl_trainer.record.console import Display
from vlarl_trainer.record.evaluation import Evaluation, TaskScore

pytestmark = pytest.mark.torch


def test_a_long_silence_is_announced(capsys: pytest.CaptureFixture[str]) -> None:
    Display("run", iterations=3, done=0).evaluation_begins(episodes=100)
    assert capsys.readouterr().out == "a greedy evaluation begins, of 100 episodes\n"


def test_the_last_line_can_be_pasted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs/mine/tensorboard").mkdir(parents=True)
    Display("run", iterations=3, done=3).finish(Path("runs/mine"))
    said = capsys.readouterr().out
    assert f"; {invocation('tensorboard')} --logdir runs/mine/tensorboard; " in said
    assert f"{invocation()} report runs/mine)" in said
    Display("run", iterations=3, done=3).finish(Path("runs/without"))
    assert "tensorboard" not in capsys.readouterr().out


def test_a_score_names_what_was_given_up(capsys: pytest.CaptureFixture[str]) -> None:
    scores = {0: TaskScore("reach", 1, 3, 5, missing=1), 4: TaskScore("push", 1, 1, 5)}
    evaluation = Evaluation(3, 4, 500, scores)
    Display("run", iterations=3, done=3).evaluation(evaluation)
    display = EvaluationDisplay([env_pb2.TaskDescription()], RunConfig(), Path("my runs/a"), "")
    display.finish(evaluation)
    said = capsys.readouterr().out
    assert said.count("1 episode was given up and counts as failed") == 2
    assert "; the same command with --out 'my runs/a' tries them again\n" in said
    assert said.count("33.3%") == 2
    assert said.count("50.0%") == 2
    assert said.count("3 (1 given up)") == 2
    assert said.count("4 (1 given up)") == 2
