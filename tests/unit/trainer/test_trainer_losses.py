"""PPO's losses against golden numbers, and the mistakes they must make impossible."""

import json
import math
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from vlarl.learning.trainable import token_logprobs  # noqa: E402
from vlarl_trainer.algorithms.critic import explained_variance, value_loss  # noqa: E402
from vlarl_trainer.algorithms.surrogate import (  # noqa: E402
    approximate_kl,
    before_a_step,
    clipped_policy_terms,
    corrected,
    reference_kl,
)

pytestmark = pytest.mark.torch
FOLDER = Path(__file__).parents[2] / "golden"
GOLDEN = json.loads((FOLDER / "rl.json").read_text())
GROUPS = json.loads((FOLDER / "groups.json").read_text())


def tensor(values: list) -> "torch.Tensor":
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("case", GOLDEN["ppo"])
def test_clipped_loss_equals_the_definition(case: dict) -> None:
    terms = clipped_policy_terms(
        tensor(case["logprobs_new"]),
        tensor(case["logprobs_old"]),
        tensor(case["logprobs_old"]),
        tensor(case["advantages"]),
        clip_low=case["clip_low"],
        clip_high=case["clip_high"],
        ratio="action",
    )
    assert terms.loss.mean().item() == pytest.approx(case["loss"], abs=1e-12)
    assert terms.clipped.mean().item() == pytest.approx(case["clip_fraction"], abs=1e-6)
    ratios = tensor(case["ratios"])
    torch.testing.assert_close(terms.kl, ratios - 1 - ratios.log())


def test_the_kl_is_the_updates_own_and_the_ratio_that_of_the_weights_that_acted() -> None:
    """The last update moved this action's probability by e^0.3, this one has moved it by e^0.1."""
    acted, start, new = (torch.tensor([[value]]) for value in (-2.0, -1.7, -1.6))
    terms = clipped_policy_terms(
        new, acted, start, torch.tensor([-1.0]), clip_low=0.2, clip_high=0.2, ratio="action"
    )
    assert terms.loss.item() == pytest.approx(math.exp(0.4))
    assert terms.kl.item() == pytest.approx(math.exp(0.1) - 1 - 0.1, abs=1e-6)


def test_token_ratio_clips_each_token_alone() -> None:
    old = torch.zeros(1, 2)
    new = torch.tensor([[2.0, 0.0]]).log().nan_to_num(neginf=0.0)  # ratios 2 and 1
    advantage = torch.ones(1)
    clips = {"clip_low": 0.2, "clip_high": 0.2}
    terms = clipped_policy_terms(new, old, old, advantage, ratio="token", **clips)
    assert terms.loss.item() == pytest.approx(-(1.2 + 1.0) / 2)
    assert terms.clipped.item() == pytest.approx(0.5)


def test_clipped_samples_have_no_gradient_and_the_others_have() -> None:
    new = torch.tensor([[0.5], [0.0]], requires_grad=True)
    old = torch.zeros(2, 1)
    terms = clipped_policy_terms(
        new, old, old, torch.ones(2), clip_low=0.2, clip_high=0.2, ratio="action"
    )
    terms.loss.sum().backward()
    assert new.grad[0].item() == 0.0
    assert new.grad[1].item() == pytest.approx(-1.0)


def test_approximate_kl_is_unbiased_and_never_negative() -> None:
    generator = torch.Generator().manual_seed(0)
    old, new = torch.randn(2, 256, generator=generator).log_softmax(-1).double()
    exact = (old.exp() * (old - new)).sum()
    estimate = (old.exp() * approximate_kl(new - old)).sum()
    assert estimate.item() == pytest.approx(exact.item())
    assert approximate_kl(torch.linspace(-3, 3, 101)).min() >= 0


def test_value_loss_takes_the_worse_of_clipped_and_unclipped() -> None:
    values, old, returns = tensor([1.0, 0.1]), tensor([0.0, 0.0]), tensor([1.0, 1.0])
    loss = value_loss(values, old, returns, clip=0.2)
    assert loss.tolist() == pytest.approx([0.5 * 0.8**2, 0.5 * 0.9**2])
    assert value_loss(values, old, returns, clip=0).tolist() == pytest.approx([0.0, 0.5 * 0.9**2])


def test_explained_variance() -> None:
    returns = tensor([0.0, 1.0, 2.0])
    assert explained_variance(returns, returns) == 1.0
    assert explained_variance(torch.zeros(3), returns) == 0.0
    assert explained_variance(torch.zeros(3), torch.ones(3)) == 0.0


def test_logprobs_are_over_the_bins_at_the_sampling_temperature() -> None:
    logits = torch.randn(3, 7, 256, generator=torch.Generator().manual_seed(1))
    choices = torch.randint(256, (3, 7), generator=torch.Generator().manual_seed(2))
    logp, entropy = token_logprobs(logits, choices, temperature=1.5)
    reference = torch.distributions.Categorical(logits=logits / 1.5)
    torch.testing.assert_close(logp, reference.log_prob(choices))
    torch.testing.assert_close(entropy, reference.entropy())


@pytest.mark.parametrize("case", GROUPS["corrections"])
def test_corrected_losses_equal_the_definition(case: dict) -> None:
    start, server = tensor(case["proximal"]), tensor(case["behaviour"])
    ratio = case["ratio"]
    old, weights = corrected(
        case["kind"],
        start=start,
        server=server,
        fresh=torch.tensor(case["fresh"]),
        ratio=ratio,
        cap=case["cap"],
    )
    terms = clipped_policy_terms(
        tensor(case["new"]),
        old,
        start,
        tensor(case["advantages"]),
        clip_low=case["clip_low"],
        clip_high=case["clip_high"],
        ratio=ratio,
        weights=weights,
    )
    assert terms.loss.tolist() == pytest.approx(case["loss"], abs=1e-9)


@pytest.mark.parametrize("case", GROUPS["reference_kl"])
def test_the_kl_from_where_training_began_equals_the_definition(case: dict) -> None:
    found = reference_kl(tensor(case["new"]), tensor(case["reference"]))
    assert found.tolist() == pytest.approx([sum(row) for row in case["k3"]], abs=1e-9)


@pytest.mark.parametrize(("ratio", "outside"), [("action", 1 / 2), ("token", 1 / 4)])
def test_what_lies_outside_the_clip_band_before_a_step(ratio: str, outside: float) -> None:
    """Ratios of tokens 1, 1 and 1.1, 1.3: of actions 1 and 1.43, of which only 1.3 and 1.43 are
    more than 1.28.
    """
    server = torch.zeros(2, 2)
    start = torch.tensor([[1.0, 1.0], [1.1, 1.3]]).log()
    found = before_a_step(start, server, clip_low=0.2, clip_high=0.28, ratio=ratio)
    assert found["start_outside_clip"] == pytest.approx(outside)
    assert found["start_k3"] == pytest.approx((1.43 - 1 - math.log(1.43)) / 2, abs=1e-6)
