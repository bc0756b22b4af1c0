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
from vlarl.learning.optimizer import DivergedError, take_step  # noqa: E402
from vlarl.learning.ranks import World  # noqa: E402
from vlarl.models.openvla.config import OpenVLAConfig  # noqa: E402
from vlarl_trainer.algorithms.critic import Critic  # noqa: E402

pytestmark = pytest.mark.torch
GOLDEN = Path(__file__).parents[2] / "golden/openvla-tiny"


def steep(parameter: Tensor) -> Tensor:
    """0, with an infinite gradient: the root's slope at 0."""
    return (parameter - parameter.detach()).sum().sqrt()


def test_a_step_is_adamws_on_the_scaled_gradient() -> None:
    one, other = (nn.Parameter(torch.tensor([3.0, 4.0])) for _ in range(2))
    ours, theirs = (torch.optim.AdamW([p], lr=0.1, weight_decay=0.0) for p in (one, other))
    one.square().sum().backward()
    assert take_step(ours, [one], 1.0, "no") == pytest.approx(10.0)  # |(6, 8)|
    assert one.grad is None
    other.grad = torch.tensor([0.6, 0.8])
    theirs.step()
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("slope", [float("inf"), float("nan"), 1e38])
def test_a_gradient_without_a_norm_changes_nothing(slope: float) -> None:
    """1e38 is finite, but its square isn't, and with it all would be scaled to 0."""
    parameter = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = torch.optim.AdamW([parameter], lr=0.1)
    parameter.sum().backward()
    take_step(optimizer, [parameter], 1.0, "no")
    weights = parameter.detach().clone()
    moments = {key: value.clone() for key, value in optimizer.state[parameter].items()}
    parameter.grad = torch.tensor([0.0, slope])
    with pytest.raises(DivergedError, match="lower the rate"):
        take_step(optimizer, [parameter], 1.0, "lower the rate")
    assert torch.equal(parameter, weights)
    assert all(torch.equal(value, moments[k]) for k, value in optimizer.state[parameter].items())
    assert parameter.grad is None


def test_the_critic_refuses_what_overflows() -> None:
    model = OpenVLAConfig.from_directory(GOLDEN)
    critic = Critic(model, CriticConfig(hidden=(4,), clip=0.0), 3, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(16, len(critic.head[0].mean), generator=generator)

    def fit(returns: Tensor) -> None:
        critic.fit(
            features,
            returns,
            epochs=1,
            mini_batch=1,
            max_grad_norm=1.0,
            generator=np.random.default_rng(0),
        )

    fit(torch.ones(16))
    before = {key: value.clone() for key, value in critic.head.state_dict().items()}
    # Squared, 1.8e19 is a float32, and its gradient's squared norm is not; 1e20 is none itself.
    for size, what in ((1.8e19, "gradient"), (1e20, "loss")):
        with pytest.raises(
            DivergedError, match=rf"critic's {what} .*trainer\.critic\.learning_rate"
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
    fit = Fit(stage, objective, World.from_environment())  # type: ignore[arg-type]
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
