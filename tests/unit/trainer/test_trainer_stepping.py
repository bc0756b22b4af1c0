"""Steps are taken whole or refused: by the critic and by fine-tuning, with what they know kept."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from tests.integration.trainer.demonstrated import sft_config, write_dataset  # noqa: E402
from vlarl.config import CriticConfig, FitConfig  # noqa: E402
from vlarl.data.samples import SampleBatch  # noqa: E402
from vlarl.learning.fit import Fit, Stage  # noqa: E402
from vlarl.learning.optimizer import DivergedError, LossScale, StepOptimizer  # noqa: E402
from vlarl.learning.ranks import MicroBatch, Ranks  # noqa: E402
from vlarl.models.openvla.config import OpenVLAConfig  # noqa: E402
from vlarl_trainer.algorithms.critic import Critic  # noqa: E402

pytestmark = pytest.mark.torch
GOLDEN = Path(__file__).parents[2] / "golden/openvla-tiny"


def steep(parameter: Tensor) -> Tensor:
    """0, with an infinite gradient: the root's slope at 0."""
    return (parameter - parameter.detach()).sum().sqrt()


def optimizer_of(parameter: nn.Parameter, loss_scale: LossScale | None = None) -> StepOptimizer:
    return StepOptimizer(
        {"one": parameter},
        Ranks.alone(torch.device("cpu")),
        rate=lambda _: 0.1,
        max_grad_norm=1.0,
        name="the thing",
        rate_key="thing.rate",
        loss_scale=loss_scale,
    )


def test_a_scaled_loss_takes_the_same_steps() -> None:
    """A power of two changes no digit."""
    plain, scaled = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    for parameter, scale in ((plain, None), (scaled, LossScale())):
        optimizer = optimizer_of(parameter, scale)
        for step in range(3):
            accumulate(optimizer, (parameter * (step + 0.3)).square().sum())
            optimizer.means()
            assert optimizer.step() is not None
    assert torch.equal(plain, scaled)


def test_a_gradient_that_overflows_by_the_scale_is_left_out_and_the_scale_halved() -> None:
    parameter, scale = nn.Parameter(torch.ones(3)), LossScale()
    scale.value = 2.0**70
    optimizer = optimizer_of(parameter, scale)
    for value in (2.0**69, 2.0**68):
        accumulate(optimizer, parameter[0] * 1e18)
        optimizer.means()
        assert optimizer.step() is None
        assert scale.value == value
    assert torch.equal(parameter, torch.ones(3))
    assert optimizer.steps_taken == 0
    accumulate(optimizer, parameter[0] * 1e18)
    optimizer.means()
    assert optimizer.step() == pytest.approx(1e18)
    scale.value = 1.0
    accumulate(optimizer, steep(parameter))
    optimizer.means()
    with pytest.raises(DivergedError, match="gradient is not finite"):
        optimizer.step()


def test_a_scale_rises_in_peace_and_is_kept_with_the_moments() -> None:
    parameter, scale = nn.Parameter(torch.ones(3)), LossScale()
    optimizer = optimizer_of(parameter, scale)
    for _ in range(1003):
        scale.stepped()
    assert scale.value == 2.0**17
    resumed = LossScale()
    optimizer_of(parameter, resumed).restore(optimizer.tensors("it"), "it")
    assert (resumed.value, resumed.state().tolist()) == (2.0**17, [2.0**17, 3.0])


def accumulate(optimizer: StepOptimizer, *losses: Tensor, rest: int = 0) -> None:
    """One sample a micro-batch; `rest` further ones are another rank's."""
    size = len(losses) + rest
    for number, loss in enumerate(losses, start=1):
        place = np.array([number - 1])
        optimizer.accumulate(loss[None], MicroBatch(place, place, 1, size, number == len(losses)))


def dealt(count: int, ranks: int, **settings: object) -> list[list[MicroBatch]]:
    """Each rank's micro-batches of the samples 100, 101, ..."""
    shares = []
    for rank in range(ranks):
        one = replace(Ranks.alone(torch.device("cpu")), rank=rank, size=ranks)
        shares.append(list(one.share(np.arange(100, 100 + count), **settings)))
    return shares


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("most_tokens", [None, 60, 1])
def test_samples_of_like_length_go_together_in_step(ranks: int, most_tokens: int | None) -> None:
    lengths = np.random.default_rng(1).integers(10, 40, size=23)
    shares = dealt(23, ranks, micro_batch=4, lengths=lengths, most_tokens=most_tokens)
    assert len({len(share) for share in shares}) == 1, "a sharded model's passes go in step"
    placed = []
    for share in shares:
        counted = np.concatenate([one.places[: one.counted] for one in share])
        assert (np.diff(lengths[counted]) <= 0).all()
        placed += counted.tolist()
        assert [one.last for one in share] == [False] * (len(share) - 1) + [True]
        for one in share:
            assert 1 <= len(one.samples) <= 4
            assert (one.samples == one.places + 100).all()
            tokens = len(one.samples) * lengths[one.places].max()
            assert most_tokens is None or tokens <= most_tokens or len(one.samples) == 1
    assert sorted(placed) == list(range(23)), "each sample counts once"


def test_samples_of_one_length_stay_in_order() -> None:
    """What was computed before lengths were looked at is computed now, to the bit."""
    plain = dealt(7, 2, micro_batch=2)
    alike = dealt(7, 2, micro_batch=2, lengths=np.full(7, 30), most_tokens=10**6)
    for ours, theirs in zip(alike, plain, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert (one.samples == other.samples).all()
            assert (one.counted, one.last) == (other.counted, other.last)


def test_rows_come_back_in_the_order_of_the_states() -> None:
    alone = Ranks.alone(torch.device("cpu"))
    lengths = np.array([3, 9, 5, 9, 1])
    shares = alone.share(np.arange(5), 2, lengths=lengths)
    rows = torch.cat([torch.from_numpy(one.samples)[:, None] for one in shares])
    assert alone.gather(rows, 5, lengths=lengths).flatten().tolist() == [0, 1, 2, 3, 4]


def test_a_step_is_adamws_on_the_scaled_gradient_of_the_mean() -> None:
    one, other = (nn.Parameter(torch.tensor([3.0, 4.0])) for _ in range(2))
    ours = optimizer_of(one)
    theirs = torch.optim.AdamW([other], lr=0.1, weight_decay=0.0)
    accumulate(ours, one.square().sum(), 3 * one.square().sum())
    assert float(ours.means()) == pytest.approx(50.0)
    assert ours.step() == pytest.approx(20.0)  # |(12, 16)|
    assert one.grad is None
    other.grad = torch.tensor([0.6, 0.8])
    theirs.step()
    torch.testing.assert_close(one, other)
    assert ours.steps_taken == 1


def test_what_counts_for_nothing_changes_nothing() -> None:
    """A rank that has no sample left computes one again, so that all ranks' passes go in step."""
    one = nn.Parameter(torch.tensor([3.0, 4.0]))
    ours = optimizer_of(one)
    place = np.array([0])
    ours.accumulate(one.sum()[None], MicroBatch(place, place, counted=0, size=4, last=True))
    assert float(ours.means()) == 0.0
    assert one.grad is not None
    assert not one.grad.any()


def test_moments_and_steps_come_back() -> None:
    one, other = (nn.Parameter(torch.tensor([3.0, 4.0])) for _ in range(2))
    ours, again = optimizer_of(one), optimizer_of(other)
    for _ in range(3):
        accumulate(ours, one.square().sum())
        ours.step()
    kept = ours.tensors("policy_optimizer")
    assert sorted(kept) == [f"policy_optimizer.one.{m}" for m in ("exp_avg", "exp_avg_sq", "step")]
    again.restore(kept, "policy_optimizer")
    other.data.copy_(one)
    assert again.steps_taken == 3
    for parameter, optimizer in ((one, ours), (other, again)):
        accumulate(optimizer, parameter.square().sum())
        optimizer.step()
    assert torch.equal(one, other)


def test_what_has_no_moments_begins_anew() -> None:
    """A run that goes back to where it began takes its first step again."""
    parameter, rates = nn.Parameter(torch.tensor([3.0, 4.0])), iter([0.1, 0.2])
    optimizer = optimizer_of(parameter)
    optimizer._rate = lambda _: next(rates)
    assert optimizer.last_rate == 0.0
    for rate in (0.1, 0.2):
        accumulate(optimizer, parameter.square().sum())
        optimizer.step()
        assert optimizer.last_rate == rate
    optimizer.restore({}, "policy_optimizer")
    assert optimizer.steps_taken == 0
    assert optimizer.tensors("policy_optimizer") == {}


@pytest.mark.parametrize("slope", [float("inf"), float("nan"), 1e38])
def test_a_gradient_without_a_norm_changes_nothing(slope: float) -> None:
    """1e38 is finite, but its square isn't, and with it all would be scaled to 0."""
    parameter = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = optimizer_of(parameter)
    accumulate(optimizer, parameter.sum())
    optimizer.step()
    before = {key: value.clone() for key, value in optimizer.tensors("moments").items()}
    weights = parameter.detach().clone()
    parameter.grad = torch.tensor([0.0, slope])
    with pytest.raises(
        DivergedError, match=r"the thing: the gradient is not finite after 1 .*lower thing\.rate"
    ):
        optimizer.step()
    assert torch.equal(parameter, weights)
    after = optimizer.tensors("moments")
    assert all(torch.equal(value, before[key]) for key, value in after.items())
    assert parameter.grad is None


def test_a_loss_that_is_no_number_is_forgotten() -> None:
    parameter = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = optimizer_of(parameter)
    accumulate(optimizer, parameter.sum() * float("nan"))
    with pytest.raises(DivergedError, match=r"the thing: the loss is not finite after 0 steps"):
        optimizer.means()
    assert parameter.grad is None


def test_the_critic_refuses_what_overflows() -> None:
    model = OpenVLAConfig.from_directory(GOLDEN)
    critic = Critic(
        CriticConfig(hidden=(4,), clip=0.0),
        feature_width=model.text.hidden_size,
        patches=model.num_patches,
        max_grad_norm=1.0,
        seed=3,
        device=torch.device("cpu"),
    )
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(16, len(critic.head[0].mean), generator=generator)

    def fit(returns: Tensor) -> None:
        critic.fit(
            features,
            returns,
            epochs=1,
            mini_batch=1,
            generator=np.random.default_rng(0),
        )

    fit(torch.ones(16))
    before = {key: value.clone() for key, value in critic.head.state_dict().items()}
    # Squared, 1.8e19 is a float32, and its gradient's squared norm is not; 1e20 is none itself.
    for size, what in ((1.8e19, "gradient"), (1e20, "loss")):
        with pytest.raises(
            DivergedError, match=rf"critic: the {what} .*trainer\.critic\.learning_rate"
        ):
            fit(torch.full((16,), size))
    assert all(torch.equal(value, before[k]) for k, value in critic.head.state_dict().items())


class Line:
    """Samples that are nothing but there."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, chosen: np.ndarray) -> SampleBatch:
        empty = torch.zeros(len(chosen), 1)
        return SampleBatch(**{each.name: empty for each in fields(SampleBatch)})


class Falling:
    """Falls towards 1, and once its gradient is infinite."""

    def __init__(self, steep_at: int | None) -> None:
        self.train = Line()
        self.held_out: tuple[()] = ()
        self.weight = nn.Parameter(torch.zeros(2))
        self._left = steep_at

    def named_parameters(self) -> dict[str, nn.Parameter]:
        return {"weight": self.weight}

    def losses(self, batch: SampleBatch, draws: Tensor) -> Tensor:
        loss = (self.weight - 1).square().sum() * torch.ones(len(batch.frames))
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                loss = loss + steep(self.weight)
        return loss

    def synchronise_gradients(self, on: bool) -> None:
        pass


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    shown = write_dataset(tmp_path / "shown")
    fit = FitConfig(steps=6, mini_batch=4, micro_batch=4, evaluate_every=2, learning_rate=0.1)
    config = sft_config(shown).model_copy(update={"training": fit, "seed": 3})
    return Stage("training", 1, tmp_path, fit, config, base_digest="abc", contents={})


def run(stage: Stage, steep_at: int | None = None) -> Tensor:
    objective = Falling(steep_at)
    fit = Fit(stage, objective, Ranks.from_environment())  # type: ignore[arg-type]
    try:
        fit.run()
    finally:
        fit.close()
    return objective.weight.detach()


def test_fine_tuning_refuses_the_step_and_goes_on_from_the_checkpoint(
    stage: Stage, tmp_path: Path
) -> None:
    """SFT and reward training are fits of the same kind."""
    with pytest.raises(
        DivergedError, match=r"gradient is not finite after 3 steps.*training\.lear"
    ):
        run(stage, steep_at=3)
    (kept,) = stage.checkpoints.iterdir()
    assert kept.name == "step-0000002"
    tensors = load_file(kept / "tensors.safetensors")
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    (tmp_path / "other").mkdir()
    undisturbed = replace(stage, run_dir=tmp_path / "other")
    assert torch.equal(run(stage), run(undisturbed))
