"""Fine-tuning of OpenVLA-OFT: targets by hand, what it reads, and the originals' losses."""

import json
import math
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.integration.trainer.demonstrated import (  # noqa: E402
    CAPTURE,
    sft_config,
    task_samples,
    two_cameras,
    write_dataset,
)
from tests.unit.openvla_oft.oft_golden import GOLDEN, make_checkpoint  # noqa: E402
from vlarl.config import DataConfig  # noqa: E402
from vlarl.data.chunks import chunk_targets  # noqa: E402
from vlarl.data.dataset import Capture, DatasetError, Frames, TaskSamples  # noqa: E402
from vlarl.data.pixels import camera_draws  # noqa: E402
from vlarl.errors import ConfigError  # noqa: E402
from vlarl.images import decode_image, prepare_image  # noqa: E402
from vlarl.learning.ranks import Ranks  # noqa: E402
from vlarl.models.openvla_oft.config import OFTConfig  # noqa: E402
from vlarl.models.openvla_oft.losses import softened_losses, supervised_loss  # noqa: E402
from vlarl.models.openvla_oft.starting import make_tiny_oft_checkpoint  # noqa: E402
from vlarl.models.registry import policy_family  # noqa: E402
from vlarl.models.statistics import ActionStats  # noqa: E402
from vlarl_jobs.sft.imitation import ParallelImitation, imitation  # noqa: E402
from vlarl_jobs.sft.losses import soft_targets  # noqa: E402
from vlarl_jobs.sft.reading import Demonstrations, read_demonstrations  # noqa: E402

pytestmark = pytest.mark.torch
CAMERAS = ("agentview", "robot0_eye_in_hand")
SIZES = {"image_size": 28, "tower_dim": 32, "text_dim": 64, "tower_depth": 2}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Chunks of 3 actions, two cameras, proprioception."""
    directory = tmp_path_factory.mktemp("oft") / "tiny"
    make_tiny_oft_checkpoint(directory, chunk=3, cameras=CAMERAS, proprio=8, **SIZES)
    return directory


def read(checkpoint: Path, folder: Path, **data: object) -> Demonstrations:
    config = DataConfig.model_validate({"datasets": [folder], "held_out": 0.0, **data})
    return read_demonstrations(config, checkpoint, center_crop=False, seed=1)


def test_targets_end_with_their_episode() -> None:
    """Episodes of 4, 1 and 2 samples, whose numbers needn't follow one another."""
    episodes = np.array([0, 0, 0, 0, 3, 7, 7], np.int32)
    targets = chunk_targets(episodes, 3)
    assert targets.samples.tolist() == [
        [0, 1, 2],
        [1, 2, 3],
        [2, 3, 3],
        [3, 3, 3],
        [4, 4, 4],
        [5, 6, 6],
        [6, 6, 6],
    ]
    lengths = [3, 3, 2, 1, 1, 2, 1]
    assert targets.exist.sum(axis=1).tolist() == lengths
    assert all(row.tolist() == sorted(row, reverse=True) for row in targets.exist)
    assert targets.whole.tolist() == [length == 3 for length in lengths]
    assert chunk_targets(episodes, 1).whole.all()


def test_samples_are_what_the_policy_will_see_read_and_say(tiny: Path, tmp_path: Path) -> None:
    task = two_cameras(task_samples(episodes=3, length=5))
    folder = write_dataset(tmp_path, task, capture=replace(CAPTURE, further_cameras=CAMERAS[1:]))
    family = policy_family(tiny)
    whole, partial = read(tiny, folder), read(tiny, folder, partial_chunks=True)
    assert (len(whole.train), len(partial.train)) == (9, 15)
    assert whole.statistics == partial.statistics, "of all samples"
    stats = ActionStats.from_json(whole.statistics["squares"]["action"])
    ids = family.action_tokenizer.tokens(task.actions, stats).tolist()
    # The last sample of the second episode, and one two before its end.
    batch = partial.train[np.array([9, 7])]
    assert batch.token_ids.tolist() == [ids[9] * 3, ids[7] + ids[8] + ids[9]]
    assert batch.counted.tolist() == [[True] * 7 + [False] * 14, [True] * 21]
    # Among whole chunks this is the sixth sample.
    alone = whole.train[np.array([5])]
    assert alone.token_ids.tolist() == batch.token_ids[1:].tolist()
    assert alone.counted.all()
    assert alone.further_frames is not None
    for camera, frames in enumerate((alone.frames, alone.further_frames[:, 0])):
        seen = prepare_image(decode_image(task.all_frames[camera][7]), 28, False)
        assert np.array_equal(frames[0].numpy(), seen)
    assert not torch.equal(alone.frames, alone.further_frames[:, 0])
    state, ends = task.proprio[7].astype(float), whole.statistics["squares"]["proprio"]
    low, high = np.array(ends["q01"]), np.array(ends["q99"])
    expected = np.clip(2 * (state - low) / (high - low + 1e-8) - 1, -1, 1)
    np.testing.assert_allclose(alone.proprio[0].numpy(), expected, atol=1e-6)
    named = write_dataset(
        tmp_path / "named",
        replace(task, suite="libero_goal"),
        capture=replace(CAPTURE, further_cameras=CAMERAS[1:]),
    )
    own = read(tiny, named, statistics="checkpoint").train[np.array([5])]
    bounds = family.spec.proprio_stats["libero_goal"]
    wide = np.clip(2 * (state - bounds.q01) / (bounds.q99 - bounds.q01) - 1, -1, 1)
    np.testing.assert_allclose(own.proprio[0].numpy(), wide, atol=1e-6)


def test_what_the_policy_reads_and_a_dataset_lacks_is_said(tiny: Path, tmp_path: Path) -> None:
    one = write_dataset(tmp_path / "one", task_samples(length=5))
    with pytest.raises(DatasetError, match=r"one has no frames of robot0_eye_in_hand, .*--camera"):
        read(tiny, one)
    both = replace(CAPTURE, further_cameras=CAMERAS[1:])
    blind = replace(two_cameras(task_samples(length=5)), proprio=None)
    with pytest.raises(DatasetError, match=r"squares task 0 has 0 numbers of proprioception.*8"):
        read(tiny, write_dataset(tmp_path / "blind", blind, capture=both))
    short = two_cameras(task_samples(length=2))
    with pytest.raises(DatasetError, match="episodes of at least 3 actions, the policy's chunk"):
        read(tiny, write_dataset(tmp_path / "short", short, capture=both))


def test_cameras_come_in_the_policys_order(tmp_path: Path) -> None:
    make_tiny_oft_checkpoint(tmp_path / "c", chunk=1, cameras=("wrist", "front"), **SIZES)
    task = two_cameras(task_samples())
    capture = Capture("front", 128, None, "fast", 4, further_cameras=("wrist",))
    train = read(tmp_path / "c", write_dataset(tmp_path / "d", task, capture=capture)).train
    batch = train[np.array([2])]
    wrist = prepare_image(decode_image(task.further_frames[0][2]), 28, False)
    assert np.array_equal(batch.frames[0].numpy(), wrist)


def test_each_camera_has_random_numbers_of_its_own() -> None:
    draws = torch.arange(48.0).expand(2, -1)
    taken = [camera_draws(draws, camera) for camera in range(8)]
    assert [one.shape for one in taken] == [(2, 6)] * 8
    assert torch.equal(torch.cat(taken, dim=1), draws)


def test_cameras_are_augmented_differently(tiny: Path, tmp_path: Path) -> None:
    """Two that see the same differ by their random numbers alone."""
    task = two_cameras(task_samples(length=5))
    task = replace(task, further_frames=(task.frames,))
    folder = write_dataset(tmp_path, task, capture=replace(CAPTURE, further_cameras=CAMERAS[1:]))
    config = sft_config(folder, model=None, checkpoint=tiny)
    found = read_demonstrations(config.data, tiny, center_crop=False, seed=0)
    batch = found.train[np.arange(2)]
    draws = torch.rand(2, 48, generator=torch.Generator().manual_seed(0))
    alike = torch.cat([draws[:, :6], draws[:, :6], draws[:, 12:]], dim=1)
    with Ranks.joined(1) as ranks:
        objective = imitation(config, tiny, found, ranks)
    for given, same in ((None, True), (alike, True), (draws, False)):
        main, wrist = objective._observations(batch, given).pixel_values.chunk(2, dim=1)
        assert main.shape == (2, 6, 28, 28)
        assert torch.equal(main, wrist) == same


def test_the_loss_is_that_of_its_formula() -> None:
    """Softened, with tokens that don't count, as sums in float64."""
    rng = np.random.default_rng(5)
    logits = rng.normal(size=(2, 4, 20))
    bins = rng.integers(0, 6, size=(2, 3))
    counted = np.array([[True, True, True], [True, False, False]])
    targets = soft_targets([1.5, 0.0, 0.7], 6)
    got = softened_losses(
        torch.from_numpy(logits),
        torch.from_numpy(bins),
        torch.from_numpy(counted),
        targets.double(),
        first_id=11,
    )
    for row in range(2):
        total = 0.0
        for place in range(4):
            norm = math.log(sum(math.exp(one) for one in logits[row, place]))
            if place == 3:
                total += norm - logits[row, place, 2]  # stop
            elif counted[row, place]:
                for number in range(6):
                    share = float(targets[place, bins[row, place], number])
                    total += share * (norm - logits[row, place, 11 + number])
        assert float(got[row]) == pytest.approx(total / 4, abs=1e-6)


def test_one_hot_targets_are_the_originals_loss() -> None:
    logits = torch.randn(3, 15, 40, generator=torch.Generator().manual_seed(0))
    ids = torch.randint(20, 36, (3, 14), generator=torch.Generator().manual_seed(1))
    every = torch.ones(3, 14, dtype=torch.bool)
    ours = softened_losses(logits, ids - 20, every, soft_targets([0.0] * 14, 16), 20)
    torch.testing.assert_close(ours.mean(), supervised_loss(logits, ids))


def golden_dataset(folder: Path, checkpoint: Path) -> Path:
    """An episode of eight actions each, whose tokens are the golden ones."""
    numbers = np.load(GOLDEN / "golden.npz")
    stats = OFTConfig.from_directory(checkpoint).spec.statistics("libero_spatial")
    # The last bin is beyond q99: its end is only reached by what is cut off there.
    normal = np.where(abs(numbers["sft_actions"]) == 1, 1.1, 1) * numbers["sft_actions"]
    actions = stats.unnormalize(normal).astype(np.float32)
    instructions = json.loads((GOLDEN / "golden.json").read_text())["instructions"]
    for number in range(6):
        write_dataset(
            folder,
            TaskSamples(
                suite="libero_spatial",
                index=number,
                instruction=instructions[number],
                frames=Frames.of([as_png(numbers["images"][number])] * 8),
                actions=actions[number],
                episodes=np.zeros(8, np.int32),
                poses=np.zeros((8, 0), np.float32),
                pose_names=(),
                succeeded=np.ones(8, np.bool_),
            ),
        )
    return folder


def as_png(frame: np.ndarray) -> bytes:
    """Without loss."""
    done, encoded = cv2.imencode(".png", frame[..., ::-1])
    assert done
    return encoded.tobytes()


def test_losses_of_a_dataset_are_the_originals(tmp_path: Path) -> None:
    """From encoded frames and actions in the units of the arm to the loss, each sample alone."""
    (tmp_path / "policy").mkdir()
    checkpoint = make_checkpoint(tmp_path / "policy", "stop_img1")
    config = sft_config(
        golden_dataset(tmp_path / "data", checkpoint),
        model=None,
        checkpoint=checkpoint,
        data={"held_out": 0.0, "statistics": "checkpoint"},
        augmentation={"random_crop": False},
    )
    found = read_demonstrations(config.data, checkpoint, center_crop=False, seed=0)
    assert len(found.train) == 6, "one whole chunk each"
    numbers = np.load(GOLDEN / "golden.npz")
    batch = found.train[np.arange(6)]
    assert np.array_equal(batch.token_ids.numpy(), numbers["sft_tokens"])
    with Ranks.joined(1) as ranks:
        objective = imitation(config, checkpoint, found, ranks)
        assert isinstance(objective, ParallelImitation)
        with torch.inference_mode():
            rows = objective.measure(batch)
    np.testing.assert_allclose(rows[:, 0].numpy(), numbers["sft_loss_each"], atol=1e-4)
    summary = objective.summary(rows)
    assert summary["held_out_loss"] == pytest.approx(float(numbers["sft_loss_batch"]), abs=1e-4)
    assert summary.keys() >= {"held_out_bins/x", "held_out_accuracy/gripper", "held_out_l1"}


def test_what_does_not_count_is_not_measured(tiny: Path, tmp_path: Path) -> None:
    """A row of one counted step and two others, by hand: the others' numbers don't matter."""
    task = two_cameras(task_samples(length=5))
    folder = write_dataset(tmp_path, task, capture=replace(CAPTURE, further_cameras=CAMERAS[1:]))
    config = sft_config(folder, model=None, checkpoint=tiny, augmentation={"random_crop": False})
    found = read_demonstrations(config.data, tiny, center_crop=False, seed=0)
    with Ranks.joined(1) as ranks:
        objective = imitation(config, tiny, found, ranks)
    logp = torch.tensor([-1.0] * 7 + [-50.0] * 14)
    likeliest = torch.tensor([5.0] * 7 + [99.0] * 14)
    chosen = torch.tensor([6.0] * 7 + [200.0] * 14)
    bins = torch.full((21,), 5.0)
    counted = torch.tensor([1.0] * 7 + [0.0] * 14)
    row = torch.cat([torch.tensor([2.5]), logp, likeliest, chosen, bins, counted])
    summary = objective.summary(row[None])
    assert summary["held_out_loss"] == 2.5
    assert summary["held_out_nll"] == 1.0
    assert summary["held_out_accuracy"] == 1.0
    assert summary["held_out_bins/yaw"] == 1.0


def test_a_policy_without_statistics_of_proprioception_says_so(tiny: Path) -> None:
    path = tiny / "config.json"
    before = path.read_text()
    try:
        path.write_text(before.replace('"proprio"', '"propio"'))
        with pytest.raises(ConfigError, match=r"proprio statistics of 'libero_spatial'.*missing"):
            policy_family(tiny)
    finally:
        path.write_text(before)
