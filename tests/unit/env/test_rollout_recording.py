"""Rollouts as a dataset: which of them are one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vlarl.config import EnvConfig
from vlarl.data.dataset import DatasetError, read_dataset
from vlarl.data.recording import RolloutRecorder
from vlarl.images import encode_jpeg
from vlarl.policy.v1 import policy_pb2
from vlarl.rollout.v1 import rollout_pb2


def trajectory(horizon: int = 0, cameras: tuple[str, ...] = ()) -> rollout_pb2.Trajectory:
    image = encode_jpeg(np.full((16, 16, 3), 90, np.uint8))
    action = policy_pb2.Action(values=[0.5] * 7 * max(1, horizon), horizon=horizon)
    return rollout_pb2.Trajectory(
        spec=rollout_pb2.EpisodeSpec(
            episode_id="run:0", task=rollout_pb2.Task(suite="reach"), placement_seed=3
        ),
        instruction="reach",
        steps=[rollout_pb2.Step(image=image, images=[image] * len(cameras[1:]), action=action)] * 2,
        outcome=rollout_pb2.OUTCOME_SUCCESS,
        cameras=cameras,
    )


@pytest.mark.parametrize(
    ("env", "cameras", "expected"),
    [
        (EnvConfig(), (), "agentview"),
        (EnvConfig(cameras=("sideview",)), (), "sideview"),
        (EnvConfig(), ("frontview", "robot0_eye_in_hand"), "frontview"),
    ],
)
def test_the_main_camera_is_kept(
    tmp_path: Path, env: EnvConfig, cameras: tuple[str, ...], expected: str
) -> None:
    RolloutRecorder(tmp_path, env).write("part", [trajectory(1, cameras)])
    assert read_dataset(tmp_path).capture.camera == expected


def test_answers_of_several_actions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="run:0 has answers of several actions") as refused:
        RolloutRecorder(tmp_path, EnvConfig()).write("part", [trajectory(), trajectory(8)])
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())
