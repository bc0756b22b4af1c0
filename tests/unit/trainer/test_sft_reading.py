"""Datasets as samples: labels, held-out episodes, decoding, and every mistake in one sentence."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.integration.trainer.demonstrated import (  # noqa: E402
    CAPTURE,
    sft_config,
    task_samples,
    write_dataset,
)
from vlarl.config import DataConfig  # noqa: E402
from vlarl.data.dataset import DatasetError, Frames  # noqa: E402
from vlarl.data.frames import FrameStore  # noqa: E402
from vlarl.errors import ConfigError  # noqa: E402
from vlarl.images import decode_image, prepare_image  # noqa: E402
from vlarl.learning.fit import prefetched  # noqa: E402
from vlarl.learning.ranks import Ranks  # noqa: E402
from vlarl.models.openvla.config import OpenVLAConfig  # noqa: E402
from vlarl.models.openvla.prompt import PromptBuilder  # noqa: E402
from vlarl.models.openvla.tiny import make_tiny_checkpoint  # noqa: E402
from vlarl.models.statistics import ActionStats  # noqa: E402
from vlarl_jobs.sft.perception import Perception  # noqa: E402
from vlarl_jobs.sft.reading import Demonstrations, read_demonstrations  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sft") / "tiny"
    make_tiny_checkpoint(directory, image_size=28, tower_dim=32, text_dim=64, tower_depth=2)
    return directory


def read(checkpoint: Path, *folders: Path, crop: bool = False, **data: object) -> Demonstrations:
    config = DataConfig.model_validate({"datasets": folders, "held_out": 0.25, **data})
    return read_demonstrations(config, checkpoint, center_crop=crop, seed=1)


def test_samples_are_what_the_policy_will_see_and_say(tiny: Path, tmp_path: Path) -> None:
    tasks = [task_samples(index=0), task_samples(index=7, episodes=2, size=50)]
    tasks[1] = replace(tasks[1], instruction="go to the other square, please")
    write_dataset(tmp_path, *tasks)
    for crop in (False, True):
        read_in = read(tiny, tmp_path, crop=crop, held_out=0.0)
        assert len(read_in.held_out) == 0
        batch = read_in.train[np.array([3, 14])]
        config = OpenVLAConfig.from_directory(tiny)
        stats = ActionStats.from_json(read_in.statistics["squares"]["action"])
        tokenizer = config.action_tokenizer
        for row, (task, place) in enumerate([(tasks[0], 3), (tasks[1], 2)]):
            # Learned from as they are, and cropped at random later.
            frame = prepare_image(decode_image(task.frames[place]), 28, False)
            assert np.array_equal(batch.frames[row].numpy(), frame)
            ids = PromptBuilder(tiny).token_ids(task.instruction)
            assert batch.prompt_ids[row, : batch.prompt_lengths[row]].tolist() == ids
            expected = tokenizer.encode(stats.normalize(task.actions[place]))
            assert batch.token_ids[row].tolist() == expected.tolist()
            assert batch.poses[row].tolist() == task.poses[place].tolist()


def test_held_out_episodes_are_whole_and_stay_the_same(tiny: Path, tmp_path: Path) -> None:
    few = task_samples(episodes=8, length=5)
    # The pose tells which episode a sample comes from.
    marked = replace(few, poses=np.stack([few.episodes, few.episodes], 1).astype(np.float32))
    write_dataset(tmp_path, marked)
    read_in = read(tiny, tmp_path, crop=True)
    learned, away = (set(one.poses[:, 0]) for one in (read_in.train, read_in.held_out))
    assert (len(learned), len(away), learned & away) == (6, 2, set())
    assert (len(read_in.train), len(read_in.held_out)) == (30, 10)
    again = read(tiny, tmp_path, crop=True)
    assert set(again.held_out.poses[:, 0]) == away
    thinned = read(tiny, tmp_path, held_out_samples=4)
    assert len(thinned.held_out) == 4
    assert len(thinned.train) == 30
    frame = read_in.held_out[np.array([0])].frames[0].numpy()
    episode = int(read_in.held_out.poses[0, 0])
    first = marked.frames[int(np.flatnonzero(marked.episodes == episode)[0])]
    assert np.array_equal(frame, prepare_image(decode_image(first), 28, True))


def test_failures_are_not_imitated(tiny: Path, tmp_path: Path) -> None:
    few = task_samples(episodes=6, length=3)
    marked = replace(
        few,
        poses=np.stack([few.episodes, few.episodes], 1).astype(np.float32),
        succeeded=np.isin(few.episodes, [1, 2, 5]),
    )
    read_in = read(tiny, write_dataset(tmp_path, marked))
    seen = {*read_in.train.poses[:, 0], *read_in.held_out.poses[:, 0]}
    assert seen == {1, 2, 5}
    assert read_in.statistics["squares"]["num_trajectories"] == 3


def test_what_only_failed_is_nothing_to_learn_from(tiny: Path, tmp_path: Path) -> None:
    lost = replace(task_samples(suite="lost"), succeeded=np.zeros(12, np.bool_))
    folder = write_dataset(tmp_path, lost)
    with pytest.raises(DatasetError, match="no sample to learn from"):
        read(tiny, folder)
    write_dataset(tmp_path, task_samples())
    assert list(read(tiny, folder).statistics) == ["squares"]


def test_each_suite_has_statistics_of_its_own(tiny: Path, tmp_path: Path) -> None:
    small_ones = [task_samples(index=0), task_samples(index=1, episodes=2)]
    tenth = np.array([0.1] * 6 + [1], np.float32)
    small_ones = [replace(one, actions=one.actions * tenth) for one in small_ones]
    large = task_samples(suite="large")
    one = write_dataset(tmp_path / "one", *small_ones)
    other = write_dataset(tmp_path / "other", large)
    read_in = read(tiny, one, other)
    assert read_in.statistics["squares"]["num_trajectories"] == 6
    assert read_in.statistics["squares"]["num_transitions"] == 18
    small, big = (read_in.statistics[suite]["action"] for suite in ("squares", "large"))
    assert big["q99"][0] == pytest.approx(10 * small["q99"][0])
    assert "squares, large: 30 samples of 10 episodes" in read_in.description


def test_poses_of_different_tasks_have_columns_of_their_own(tiny: Path, tmp_path: Path) -> None:
    other = replace(task_samples(index=1), pose_names=("square_y", "lid"))
    write_dataset(tmp_path, task_samples(index=0), other)
    read_in = read(tiny, tmp_path, held_out=0.0)
    assert read_in.pose_names == ("square_x", "square_y", "lid")
    known = np.isfinite(read_in.train.poses)
    assert known[:12].tolist() == [[True, True, False]] * 12
    assert known[12:].tolist() == [[False, True, True]] * 12


def test_frames_are_kept_as_far_as_memory_goes() -> None:
    decoded: list[int] = []

    def decode(encoded: bytes) -> np.ndarray:
        decoded.append(encoded[0])
        return np.full((4, 4, 3), encoded[0], np.uint8)

    store = FrameStore([bytes([number]) for number in range(6)], decode, 4, 3 * 48 + 47)
    for _ in range(2):
        got = store[np.array([5, 0, 1, 0])]
        assert got[:, 0, 0, 0].tolist() == [5, 0, 1, 0]
    assert sorted(decoded) == [0, 1, 5, 5]
    assert store.kept_bytes == 3 * 48


def test_loading_runs_ahead_in_order_and_its_errors_arrive() -> None:
    seen: list[int] = []

    def load(item: int) -> int:
        seen.append(item)
        if item == 7:
            raise ValueError("seven")
        return 10 * item

    loading = prefetched(range(20), load)
    assert [next(loading) for _ in range(3)] == [(0, 0), (1, 10), (2, 20)]
    with pytest.raises(ValueError, match="seven"):
        list(loading)
    assert len(seen) < 12, "not everything at once"


def test_mistakes_are_one_sentence(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="nowhere: no dataset here"):
        read(tiny, tmp_path / "nowhere")
    four = write_dataset(tmp_path / "four")
    with pytest.raises(ConfigError, match="no dataset statistics named 'squares'"):
        read(tiny, four, statistics="checkpoint")
    five = write_dataset(tmp_path / "five", capture=replace(CAPTURE, action_repeat=5))
    with pytest.raises(DatasetError, match=r"four .* 4 control steps, .*five for 5"):
        read(tiny, four, five)
    broken = replace(task_samples(), frames=Frames.of([b"no image"] * 12))
    read_in = read(tiny, write_dataset(tmp_path / "broken", broken))
    with pytest.raises(DatasetError, match="frame is no image"):
        read_in.train[np.array([0])]
    blind = replace(task_samples(), poses=np.zeros((12, 0), np.float32), pose_names=())
    read_in = read(tiny, write_dataset(tmp_path / "blind", blind))
    with pytest.raises(DatasetError, match=r"\[pretrain\] needs poses"):
        Perception(sft_config(four), tiny, read_in, Ranks.from_environment())


def test_a_suite_that_the_checkpoint_knows_keeps_its_bins(tiny: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path, task_samples(suite="libero_goal"))
    read_in = read(tiny, tmp_path, statistics="checkpoint", held_out=0.0)
    assert read_in.statistics == {}
    config = OpenVLAConfig.from_directory(tiny)
    normalised = config.spec.statistics("libero_goal").normalize(
        task_samples(suite="libero_goal").actions
    )
    expected = config.action_tokenizer.encode(normalised)
    assert np.array_equal(read_in.train.token_ids, expected)
