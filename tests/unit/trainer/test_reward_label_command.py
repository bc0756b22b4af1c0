"""`vlarl reward label` from its arguments to its table and pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("vllm")

from PIL import Image
from typer.testing import CliRunner

from vlarl.data.dataset import Capture, Frames, Motion, TaskSamples, write_task
from vlarl.images import encode_jpeg
from vlarl_cli import app

pytestmark = pytest.mark.torch
CAPTURE = Capture("agentview", 64, None, "fast", 5)


def task() -> TaskSamples:
    """Two episodes of 2 s: there, a rest in which the fingers close, and back."""
    speeds = np.concatenate([np.full(18, 0.4), np.zeros(6), np.full(16, -0.4)])
    hand = np.zeros((40, 3), np.float32)
    hand[1:, 0] = np.cumsum(speeds[:-1]) / 20
    opening = np.concatenate([np.full(21, 0.08), np.full(19, 0.02)]).astype(np.float32)
    frame = encode_jpeg(np.full((64, 64, 3), 120, np.uint8))
    return TaskSamples(
        suite="libero_spatial",
        index=3,
        instruction="pick up the bowl for $5",
        frames=Frames.of([frame] * 16),
        actions=np.zeros((16, 7), np.float32),
        episodes=np.repeat(np.arange(2, dtype=np.int32), 8),
        poses=np.zeros((16, 0), np.float32),
        pose_names=(),
        motion=Motion(
            hand=np.concatenate([hand, hand]),
            opening=np.concatenate([opening, opening]),
            offsets=np.array([0, 40, 80]),
            starts=np.tile(np.arange(0, 40, 5, dtype=np.int32), 2),
        ),
    )


def label(*arguments: object) -> tuple[int, str]:
    done = CliRunner(env={"COLUMNS": "140"}).invoke(app, ["reward", "label", *map(str, arguments)])
    return done.exit_code, done.output


def test_the_table_and_the_pictures(tmp_path: Path) -> None:
    write_task(tmp_path / "data", CAPTURE, task())
    settings = ["--set", "lead_seconds=0.5", "--plot", tmp_path / "pictures", "--episodes", 1]
    code, output = label(tmp_path / "data", *settings)
    assert code == 0, output
    # Key frames at 19, 21 (the milestone) and 40; of 0, 5, ... 35 those from 10 and from 30 on.
    (row,) = [line for line in output.splitlines() if "libero_spatial 3" in line]
    cells = [cell.strip() for cell in row.strip("│ \n").split("│")]
    assert cells[1:] == ["2", "16", "1.0", "3.0", "62%", "60% of 10, 67% of 6"]
    (picture,) = (tmp_path / "pictures").iterdir()
    assert picture.name == "libero_spatial-03-000.png"
    pixels = np.asarray(Image.open(picture).convert("RGB")).reshape(-1, 3)
    # The green of frames that lead somewhere.
    assert (np.abs(pixels.astype(int) - [11, 138, 106]).max(axis=1) < 3).sum() > 200


def test_what_is_wrong_is_said_in_one_sentence(tmp_path: Path) -> None:
    code, output = label(tmp_path / "nothing")
    assert code == 1
    assert "no dataset here" in output
    write_task(tmp_path / "data", CAPTURE, replace(task(), motion=None))
    code, output = label(tmp_path / "data")
    assert code == 1
    assert "libero_spatial task 3 has no motion" in output
    code, output = label(tmp_path / "data", "--set", "lead_seconds=-1")
    assert code == 2
    assert "lead_seconds" in output
