"""Films can be played, show what happened, and are as many as were asked for."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import cv2  # noqa: E402

from vlarl.images import encode_jpeg  # noqa: E402
from vlarl.policy.v1 import policy_pb2  # noqa: E402
from vlarl.rollout.v1 import rollout_pb2  # noqa: E402
from vlarl_jobs.evaluation.film import WIDTH, FilmError, FilmMaker, draw_frames  # noqa: E402

pytestmark = pytest.mark.torch


def trajectory(
    init_state: int = 0, *, success: bool = True, side: int = 84, rewards: Sequence[float] = ()
) -> rollout_pb2.Trajectory:
    grey = [encode_jpeg(np.full((side, side, 3), 40 * n, np.uint8)) for n in range(4)]
    action = policy_pb2.Action(token_ids=range(31900, 31907), values=[0.1] * 7)
    return rollout_pb2.Trajectory(
        spec=rollout_pb2.EpisodeSpec(
            task=rollout_pb2.Task(suite="reach", index=3), init_state=init_state, record_frames=True
        ),
        instruction="reach the point above the bowl " * 5,
        steps=[rollout_pb2.Step(image=image, action=action) for image in grey[:3]],
        final_image=grey[3],
        outcome=rollout_pb2.OUTCOME_SUCCESS if success else rollout_pb2.OUTCOME_TIME_LIMIT,
        scores=rollout_pb2.RewardScores(total=rewards),
    )


def test_a_film_plays_and_shows_the_frames(tmp_path: Path) -> None:
    maker = FilmMaker(tmp_path, each=1, action_repeat=5)
    path = maker.take(trajectory())
    assert path == tmp_path / "task-03_init-00_success.mp4"
    film = cv2.VideoCapture(str(path))
    assert film.get(cv2.CAP_PROP_FPS) == pytest.approx(4.0)
    levels = []
    while (read := film.read())[0]:
        assert read[1].shape[1] == WIDTH
        levels.append(read[1][WIDTH // 2, WIDTH // 2].mean())
    # Three actions, and the last picture for a second.
    np.testing.assert_allclose(levels, [0, 40, 80, 120, 120, 120, 120], atol=6)


def test_what_is_seen_before_several_actions_lasts_as_long_as_they() -> None:
    chunked = trajectory()
    for step, executed in zip(chunked.steps, (8, 8, 3), strict=True):
        step.action.horizon, step.executed = 8, executed
        del step.action.token_ids[:], step.action.values[:]
        step.action.token_ids.extend(range(31900, 31956))
        step.action.values.extend([0.1] * 56)
    levels = [frame[WIDTH // 2, WIDTH // 2].mean() for frame in draw_frames(chunked, None, hold=1)]
    np.testing.assert_allclose(levels, [0] * 8 + [40] * 8 + [80] * 3 + [120], atol=6)


def test_each_outcome_of_each_task_gets_its_share(tmp_path: Path) -> None:
    maker = FilmMaker(tmp_path, each=1, action_repeat=1)
    assert maker.wants(3)
    assert maker.take(trajectory(0)) is not None
    assert maker.take(trajectory(1)) is None
    assert maker.wants(3), "no failure yet"
    assert maker.take(trajectory(2, success=False)) is not None
    assert not maker.wants(3)
    assert maker.wants(4)
    again = FilmMaker(tmp_path, each=1, action_repeat=1)
    assert not again.wants(3), "films of an earlier start count"
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["task-03_init-00_success.mp4", "task-03_init-02_failure.mp4"]


def test_an_episode_without_frames_is_not_filmed(tmp_path: Path) -> None:
    unseen = trajectory()
    unseen.spec.record_frames = False
    assert FilmMaker(tmp_path, each=1, action_repeat=1).take(unseen) is None


def test_what_is_drawn_depends_on_what_is_known() -> None:
    asked = []

    def critic(frames: Sequence[bytes], instruction: str) -> list[float]:
        asked.append((len(frames), instruction))
        return [0.25] * len(frames)

    plain = next(draw_frames(trajectory(side=96), None, hold=1))
    rewarded = next(draw_frames(trajectory(side=96, rewards=[0.0, 0.0, 1.0]), None, hold=1))
    valued = next(draw_frames(trajectory(side=96), critic, hold=1))
    assert plain.shape == rewarded.shape == valued.shape
    assert all(side % 2 == 0 for side in plain.shape[:2])
    pictures = [picture[WIDTH:] for picture in (plain, rewarded, valued)]
    assert (pictures[0] != pictures[1]).any()
    assert (pictures[0] != pictures[2]).any()
    assert asked == [(3, trajectory().instruction)]


def test_a_film_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    maker = FilmMaker(tmp_path, each=1, action_repeat=1)
    tmp_path.rmdir()
    with pytest.raises(FilmError, match="can't write the film"):
        maker.take(trajectory())
