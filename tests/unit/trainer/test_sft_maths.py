"""Loss, targets, statistics and schedule of supervised fine-tuning against sums by hand."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from vlarl.config import FitConfig  # noqa: E402
from vlarl.learning.optimizer import learning_rate, scheduled  # noqa: E402
from vlarl.models.openvla.losses import action_loss  # noqa: E402
from vlarl.models.openvla.tokens import ActionTokenizer  # noqa: E402
from vlarl.models.statistics import (  # noqa: E402
    ActionStats,
    dataset_statistics,
)
from vlarl_jobs.sft.losses import (  # noqa: E402
    jittered,
    label_logprobs,
    pose_loss,
    soft_targets,
)

pytestmark = pytest.mark.torch


def made_up(batch: int = 3, tokens: int = 7, bins: int = 256) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(batch, tokens, bins, generator=generator)
    labels = torch.randint(bins, (batch, tokens), generator=generator)
    return logits, labels


def test_the_loss_is_plain_cross_entropy_written_by_hand() -> None:
    logits, labels = made_up()
    got = action_loss(logits, labels, soft_targets([0.0] * 7, 256))
    for sample in range(3):
        total = 0.0
        for token in range(7):
            row = [math.exp(float(value)) for value in logits[sample, token]]
            total -= math.log(row[int(labels[sample, token])] / sum(row))
        assert float(got[sample]) == pytest.approx(total / 7, rel=1e-5)
    torch.testing.assert_close(-label_logprobs(logits, labels).mean(dim=1), got)


def test_softened_targets_are_a_gaussian_over_the_bins() -> None:
    sigmas = [6.0, 9.0, 0.0, 6.0, 0.0, 1.0, 20.0]
    targets = soft_targets(sigmas, 256)
    for token, sigma in enumerate(sigmas):
        for label in (0, 100, 255):
            width = 2 * sigma**2 or 1e-9
            weights = [math.exp(-((bin - label) ** 2) / width) for bin in range(256)]
            expected = torch.tensor([weight / sum(weights) for weight in weights])
            torch.testing.assert_close(targets[token, label], expected, atol=1e-7, rtol=1e-4)
    logits, labels = made_up()
    wanted = torch.stack(
        [torch.stack([targets[token, row[token]] for token in range(7)]) for row in labels]
    )
    by_hand = -(wanted * logits.log_softmax(-1)).sum(-1).mean(-1)
    torch.testing.assert_close(action_loss(logits, labels, targets), by_hand)
    # No prediction does better than the target itself.
    entropy = -(wanted * wanted.clamp(min=1e-30).log()).sum(-1).mean(-1)
    perfect = action_loss(wanted.clamp(min=1e-30).log(), labels, targets)
    torch.testing.assert_close(perfect, entropy)


def test_labels_are_jittered_by_gaussian_noise_within_the_bins() -> None:
    labels = torch.tensor([[0, 100, 255]]).expand(20_000, 3)
    draws = torch.rand(20_000, 3, generator=torch.Generator().manual_seed(0))
    moved = jittered(labels, draws, 5.0, 256)
    off = (moved[:, 1] - 100).double()
    assert float(off.mean()) == pytest.approx(0, abs=0.15)
    # Rounding to whole bins adds 1/12 of variance.
    assert float(off.std()) == pytest.approx(math.sqrt(25 + 1 / 12), rel=0.02)
    assert (int(moved.min()), int(moved.max())) == (0, 255)
    assert torch.equal(jittered(labels, draws, 0.0, 256), labels)
    moved = jittered(labels, torch.zeros(20_000, 3), 5.0, 256)
    assert moved[0, 1] > 50, "a draw of 0 is no infinity"


def test_unknown_poses_count_for_nothing() -> None:
    poses = torch.tensor([[1.0, 2.0], [float("nan"), 3.0], [float("nan")] * 2])
    predicted = torch.zeros(3, 2, requires_grad=True)
    loss = pose_loss(predicted, poses)
    assert loss.tolist() == [2.5, 9.0, 0.0]
    loss.sum().backward()
    assert predicted.grad.isfinite().all()
    assert predicted.grad[1, 0] == 0


def test_statistics_are_quantiles_over_all_samples() -> None:
    rng = np.random.default_rng(0)
    actions = rng.normal(size=(250, 7)).astype(np.float32)
    actions[:, 6] = rng.integers(0, 2, 250)
    entry = dataset_statistics(actions, 12, range_floor=0.1)
    assert (entry["num_transitions"], entry["num_trajectories"]) == (250, 12)
    got = entry["action"]
    assert got["mask"] == [True] * 6 + [False]
    for dimension in range(7):
        values = sorted(float(value) for value in actions[:, dimension])
        for name, share in (("q01", 0.01), ("q99", 0.99)):
            place = share * 249
            low = math.floor(place)
            by_hand = values[low] + (place - low) * (values[low + 1] - values[low])
            assert got[name][dimension] == pytest.approx(by_hand, abs=1e-9)
        assert (got["min"][dimension], got["max"][dimension]) == (values[0], values[-1])
        mean = sum(values) / 250
        assert got["mean"][dimension] == pytest.approx(mean)
        variance = sum((value - mean) ** 2 for value in values) / 250
        assert got["std"][dimension] == pytest.approx(math.sqrt(variance))


def test_statistics_of_proprioception_are_quantiles_as_they_are() -> None:
    """No mask and no floor, as openvla-oft writes them: a constant dimension keeps no range."""
    rng = np.random.default_rng(2)
    state = rng.normal(size=(120, 8)).astype(np.float32)
    state[:, 5] = 0.25
    entry = dataset_statistics(np.zeros((120, 7), np.float32), 3, range_floor=0.1, proprio=state)
    assert list(entry) == ["action", "proprio", "num_transitions", "num_trajectories"]
    got = entry["proprio"]
    assert sorted(got) == ["max", "mean", "min", "q01", "q99", "std"]
    for dimension in range(8):
        values = sorted(float(value) for value in state[:, dimension])
        # 0.01 and 0.99 of 119 steps: 1.19 and 117.81.
        low = values[1] + 0.19 * (values[2] - values[1])
        high = values[117] + 0.81 * (values[118] - values[117])
        assert got["q01"][dimension] == pytest.approx(low, abs=1e-9)
        assert got["q99"][dimension] == pytest.approx(high, abs=1e-9)
        assert (got["min"][dimension], got["max"][dimension]) == (values[0], values[-1])
    assert got["q01"][5] == got["q99"][5] == 0.25
    assert "proprio" not in dataset_statistics(np.zeros((9, 7), np.float32), 1, range_floor=0.1)


def test_a_dimension_that_hardly_moves_keeps_a_range_and_its_constant() -> None:
    actions = np.zeros((100, 7), np.float32)
    actions[:, 1] = 0.3
    actions[:, 2] = np.linspace(-1, 1, 100)
    actions[:, 3] = np.linspace(0.0, 0.01, 100)
    stats = ActionStats.from_json(dataset_statistics(actions, 1, range_floor=0.1)["action"])
    assert (stats.q99 - stats.q01)[[0, 1, 3]] == pytest.approx([0.1] * 3)
    assert (stats.q99 - stats.q01)[2] == pytest.approx(1.96)
    # The gripper never moved, and is left alone all the same.
    assert (stats.q01[6], stats.q99[6]) == (0, 0)
    tokenizer = ActionTokenizer(1000)
    decoded = stats.unnormalize(tokenizer.decode(tokenizer.encode(stats.normalize(actions))))
    assert decoded[:, :2] == pytest.approx(actions[:, :2], abs=1e-6)
    # Half a bin of the range that each dimension has; what lies beyond q01 and q99 is clipped.
    assert np.abs(decoded[1:-1, 3] - actions[1:-1, 3]).max() < 0.1 / 255
    assert np.abs(decoded[1:-1, 2] - actions[1:-1, 2]).max() < 1.96 / 255


def test_a_schedule_is_a_share_of_the_rate_by_what_is_done() -> None:
    dones = (0.0, 0.25, 0.5, 1.0)
    assert [scheduled(done, "constant") for done in dones] == [1, 1, 1, 1]
    assert [scheduled(done, "linear") for done in dones] == [1, 0.75, 0.5, 0]
    # (1 + cos 45°) / 2 = 0.853553...
    cosine = [scheduled(done, "cosine") for done in dones]
    assert cosine == pytest.approx([1, 0.8535534, 0.5, 0])


def test_the_rate_rises_and_falls() -> None:
    cosine = FitConfig(steps=100, warmup_steps=10, learning_rate=2.0, schedule="cosine")
    assert learning_rate(0, cosine) == pytest.approx(0.2)
    assert learning_rate(9, cosine) == pytest.approx(2.0)
    assert learning_rate(10, cosine) == pytest.approx(2.0)
    assert learning_rate(55, cosine) == pytest.approx(1.0)
    assert 0 < learning_rate(99, cosine) < 1e-3
    rates = [learning_rate(step, cosine) for step in range(10, 100)]
    assert rates == sorted(rates, reverse=True)
    linear = FitConfig(steps=100, warmup_steps=20, learning_rate=2.0, schedule="linear")
    rates = [learning_rate(step, linear) for step in (0, 19, 20, 40, 98)]
    assert rates == pytest.approx([0.1, 2.0, 2.0, 1.5, 0.05])
    constant = FitConfig(steps=100, warmup_steps=4, learning_rate=2.0)
    assert [learning_rate(step, constant) for step in (0, 3, 99)] == [0.5, 2.0, 2.0]
