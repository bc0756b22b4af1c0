"""Answers of which a part was executed, against their formulas written out as plain sums."""

import math
from collections.abc import Sequence

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

from vlarl.config import TrainerConfig  # noqa: E402
from vlarl.config.learning import Ratio  # noqa: E402
from vlarl_trainer.algorithms.executed import (  # noqa: E402
    averaged,
    executed_mask,
    log_ratio,
    mean_of_all,
    summed,
)
from vlarl_trainer.algorithms.surrogate import (  # noqa: E402
    before_a_step,
    clipped_policy_terms,
    corrected,
    reference_kl,
)

pytestmark = pytest.mark.torch
CHUNK, WIDTH = 4, 3
COUNTS = (4, 1, 2, 3, 4)
LOW, HIGH, CAP = 0.2, 0.28, 1.1
RATIOS: Sequence[Ratio] = ("token", "step", "action")


def logprobs(seed: int) -> Tensor:
    """[5, 12], close to one another for seeds that are."""
    drawn = torch.Generator().manual_seed(1)
    first = -5 + torch.randn(len(COUNTS), CHUNK * WIDTH, generator=drawn, dtype=torch.float64)
    drawn = torch.Generator().manual_seed(seed)
    return first + 0.1 * torch.randn(first.shape, generator=drawn, dtype=torch.float64)


EXECUTED = executed_mask(torch.tensor(COUNTS), CHUNK)
NEW, OLD, START = logprobs(2), logprobs(3), logprobs(4)
ADVANTAGES = torch.tensor([1.0, -0.5, 2.0, -1.0, 0.3], dtype=torch.float64)


def parts(row: int, ratio: Ratio) -> list[list[int]]:
    """The places of a row's executed tokens, by what its ratios are of."""
    places = list(range(COUNTS[row] * WIDTH))
    if ratio == "token":
        return [[place] for place in places]
    if ratio == "step":
        return [places[start : start + WIDTH] for start in range(0, len(places), WIDTH)]
    return [places]


def moved(one: Tensor, other: Tensor, row: int, places: list[int]) -> float:
    return sum(float(one[row, place] - other[row, place]) for place in places)


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("ratio", RATIOS)
def test_losses_are_means_over_what_was_executed(ratio: Ratio, weighed: bool) -> None:
    old, weights = corrected(
        "decoupled" if weighed else "server",
        start=START,
        server=OLD,
        fresh=torch.zeros(len(COUNTS), dtype=torch.bool),
        ratio=ratio,
        cap=CAP,
        executed=EXECUTED,
    )
    terms = clipped_policy_terms(
        NEW,
        old,
        START,
        ADVANTAGES,
        clip_low=LOW,
        clip_high=HIGH,
        ratio=ratio,
        weights=weights,
        executed=EXECUTED,
    )
    clips = []
    for row, advantage in enumerate(ADVANTAGES.tolist()):
        losses, clipped = [], []
        for places in parts(row, ratio):
            rho = math.exp(moved(NEW, START if weighed else OLD, row, places))
            weight = min(math.exp(moved(START, OLD, row, places)), CAP) if weighed else 1.0
            bounded = min(max(rho, 1 - LOW), 1 + HIGH)
            losses.append(weight * max(-advantage * rho, -advantage * bounded))
            clipped.append(-advantage * bounded > -advantage * rho)
        clips += clipped
        assert terms.loss[row].item() == pytest.approx(np.mean(losses))
        assert terms.clipped[row].item() == pytest.approx(np.mean(clipped))
        whole = moved(NEW, START, row, list(range(COUNTS[row] * WIDTH)))
        assert terms.kl[row].item() == pytest.approx(math.exp(whole) - 1 - whole)
    assert 0 < sum(clips) < len(clips)


@pytest.mark.parametrize("ratio", RATIOS)
def test_distances_before_a_step_are_of_what_was_executed(ratio: Ratio) -> None:
    found = before_a_step(START, OLD, clip_low=LOW, clip_high=HIGH, ratio=ratio, executed=EXECUTED)
    rows = range(len(COUNTS))
    rho = [math.exp(moved(START, OLD, row, places)) for row in rows for places in parts(row, ratio)]
    outside = [not 1 - LOW <= one <= 1 + HIGH for one in rho]
    assert found["start_outside_clip"] == pytest.approx(np.mean(outside), abs=1e-6)
    assert ratio == "token" or any(outside)
    whole = [moved(START, OLD, row, parts(row, "action")[0]) for row in rows]
    expected = np.mean([math.exp(one) - 1 - one for one in whole])
    assert found["start_k3"] == pytest.approx(expected)


def test_sums_and_means_leave_out_what_was_not_executed() -> None:
    rows = [NEW[row, : count * WIDTH] for row, count in enumerate(COUNTS)]
    assert summed(NEW, EXECUTED).tolist() == pytest.approx([row.sum().item() for row in rows])
    assert averaged(NEW, EXECUTED).tolist() == pytest.approx([row.mean().item() for row in rows])
    assert mean_of_all(NEW, EXECUTED) == pytest.approx(torch.cat(rows).mean().item())
    held = reference_kl(NEW, OLD, EXECUTED)
    first = [(o - n).item() for n, o in zip(NEW[1, :WIDTH], OLD[1, :WIDTH], strict=True)]
    assert held[1].item() == pytest.approx(sum(math.exp(one) - 1 - one for one in first))


@pytest.mark.parametrize("ratio", RATIOS)
def test_what_was_not_executed_has_no_gradient_and_spoils_nothing(ratio: Ratio) -> None:
    """Even where its ratio would be infinite."""
    unread = ~EXECUTED.repeat_interleave(WIDTH, dim=1)
    new = NEW.masked_fill(unread, 0.0).requires_grad_()
    old = OLD.masked_fill(unread, -1e4)
    terms = clipped_policy_terms(
        new, old, old, ADVANTAGES, clip_low=LOW, clip_high=HIGH, ratio=ratio, executed=EXECUTED
    )
    (terms.loss + reference_kl(new, old, EXECUTED)).sum().backward()
    assert terms.loss.isfinite().all()
    assert new.grad is not None
    assert new.grad.isfinite().all()
    assert not new.grad[unread].any()
    assert new.grad[~unread].any()


@pytest.mark.parametrize("ratio", RATIOS)
def test_answers_of_one_step_need_no_mask(ratio: Ratio) -> None:
    """A mask of ones says the same, and a step is the whole answer."""
    assert executed_mask(torch.ones(5, dtype=torch.int64), 1) is None
    ones = torch.ones(len(COUNTS), 1, dtype=torch.bool)
    keys = {"clip_low": LOW, "clip_high": HIGH, "ratio": ratio}
    bare = clipped_policy_terms(NEW, OLD, START, ADVANTAGES, **keys)
    masked = clipped_policy_terms(NEW, OLD, START, ADVANTAGES, **keys, executed=ones)
    for name in ("loss", "kl", "clipped"):
        torch.testing.assert_close(getattr(bare, name), getattr(masked, name))
    assert torch.equal(log_ratio(NEW, OLD, "step"), log_ratio(NEW, OLD, "action"))


@pytest.mark.parametrize(
    ("algorithm", "asked", "one_step", "chunks"),
    [
        ("ppo", {}, "action", "token"),
        ("grpo", {}, "token", "token"),
        ("rloo", {}, "token", "token"),
        ("ppo", {"ratio": "step"}, "step", "step"),
        ("grpo", {"ratio": "action"}, "action", "action"),
    ],
)
def test_the_ratio_follows_the_policy_unless_it_is_named(
    algorithm: str, asked: dict[str, str], one_step: str, chunks: str
) -> None:
    config = TrainerConfig.model_validate(
        {"algorithm": algorithm, "episodes_per_iteration": 8, algorithm: asked}
    )
    assert (config.chosen.ratio_for(1), config.chosen.ratio_for(8)) == (one_step, chunks)


def test_runs_that_were_saved_with_a_ratio_in_every_section_go_on() -> None:
    saved = {"ppo": {"ratio": "action"}, "rloo": {"ratio": "token"}, "grpo": {"ratio": "action"}}
    run = {"algorithm": "grpo", "episodes_per_iteration": 8}
    assert TrainerConfig.model_validate(run | saved).chosen.ratio_for(1) == "action"
    with pytest.raises(ValueError, match=r"ppo\.ratio is read by another algorithm"):
        TrainerConfig.model_validate(run | {"ppo": {"ratio": "step"}})
