"""What a run says where there is no terminal, in a log for instance."""

from pathlib import Path

import pytest

from services.trainer.display import Display
from vlarl.invocation import invocation

pytestmark = pytest.mark.torch


def test_a_long_silence_is_announced(capsys: pytest.CaptureFixture[str]) -> None:
    Display("run", iterations=3, done=0).evaluation_begins(episodes=100)
    assert capsys.readouterr().out == "a greedy evaluation begins, of 100 episodes\n"


def test_the_last_line_can_be_pasted(capsys: pytest.CaptureFixture[str]) -> None:
    Display("run", iterations=3, done=3).finish(Path("runs/mine"))
    said = capsys.readouterr().out
    assert f"; {invocation('tensorboard')} --logdir runs/mine/tensorboard; " in said
    assert f"{invocation()} report runs/mine)" in said
