"""What a run says where there is no terminal, in a log for instance."""

from pathlib import Path

import pytest

from vlarl.config import RunConfig
from vlarl.env.v1 import env_pb2
from vlarl.invocation import invocation
from vlarl.trainer.v1 import trainer_pb2
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
    again = "the same command with --out 'my runs/a'"
    tasks = [env_pb2.TaskDescription()]
    display = EvaluationDisplay(tasks, RunConfig(), Path("my runs/a"), "", again)
    display.finish(evaluation)
    said = capsys.readouterr().out
    assert said.count("1 episode was given up and counts as failed") == 2
    assert "; the same command with --out 'my runs/a' tries them again\n" in said
    assert said.count("33.3%") == 2
    assert said.count("50.0%") == 2
    assert said.count("3 (1 given up)") == 2
    assert said.count("4 (1 given up)") == 2


def test_an_iteration_says_what_it_has(capsys: pytest.CaptureFixture[str]) -> None:
    """Of groups how many were kept; where there were none, no number is made up."""
    seconds = {f"seconds_{name}": 1.0 for name in ("rollout", "learning", "checkpoint", "publish")}
    common = {"success_rate": 0.5, "episode_return": 0.5, "episode_actions": 9.0}
    groups = {"groups_kept": 0.0, "groups_dropped_failure": 3.0, "groups_void": 1.0}
    display = Display("run", iterations=3, done=0)
    for metrics in (groups, {"entropy": 2.0, "value_loss": 0.1, "logprob_gap": 1e-6}):
        all_metrics = common | seconds | {"seconds_iteration": 4.0} | metrics
        display.iteration(trainer_pb2.Iteration(iteration=0, metrics=all_metrics))
    first, second = capsys.readouterr().out.splitlines()
    assert "KL –  entropy –  gap –  groups kept 0 of 4  seconds" in first
    assert "KL warm-up  entropy 2.000  gap 1.0e-06  seconds" in second
