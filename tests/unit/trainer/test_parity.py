"""What of the differences between server and trainer stops a run."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from vlarl_trainer.parity import GAP_BOUNDS, Disagreement, Parity  # noqa: E402

pytestmark = pytest.mark.torch


def differences(size: float, count: int = 70_000) -> np.ndarray:
    """Rounding noise of a standard deviation."""
    generator = np.random.default_rng(0)
    return (generator.standard_normal((count // 7, 7)) * size).astype(np.float32)


def test_the_numbers_are_what_they_say() -> None:
    found = Parity.of(np.array([[0.0, -0.5], [0.25, 0.0]], np.float32))
    assert found.logprob_gap == found.logprob_gap_p999 == 0.5
    assert found.logprob_gap_mean == pytest.approx(0.1875)
    by_hand = (math.exp(-0.5) - 1 + 0.5 + math.exp(0.25) - 1 - 0.25) / 4
    assert found.logprob_gap_k3 == pytest.approx(by_hand)
    many = differences(1.0)
    exact = np.sort(np.abs(many).ravel())[math.ceil(0.999 * (many.size - 1))]
    assert Parity.of(many).logprob_gap_p999 == pytest.approx(float(exact))


@pytest.mark.parametrize(("dtype", "noise"), [("float16", 0.008), ("bfloat16", 0.06)])
def test_noise_of_half_a_million_tokens_is_no_error_and_its_largest_is_shown(
    dtype: str, noise: float
) -> None:
    bound = GAP_BOUNDS[getattr(torch, dtype)]
    many = differences(noise, 490_000)
    many[17, 3] = 1.2 * bound  # one token in half a million
    found = Parity.of(many)
    assert found.logprob_gap == pytest.approx(1.2 * bound)
    assert found.logprob_gap_p999 < bound
    assert found.excess(bound) == ""


def test_what_is_wrong_is_an_error_however_rare_or_small() -> None:
    bound = 0.05
    rare = differences(0.002)
    rare[::500, 0] = 0.06  # more than one token in a thousand would do; here it is one in 3,500
    assert Parity.of(rare).excess(bound) == ""
    rare[::100] = 0.06  # a tokens' seventh part of one in a hundred actions, all tokens
    assert Parity.of(rare).excess(bound).startswith("99.9 % are within 0.06, more than 0.05")
    everywhere = differences(0.002) + np.float32(0.02)
    assert Parity.of(everywhere).excess(bound).startswith("the mean is 0.02, more than 0.0125")
    far = differences(0.002)
    far[5, 2] = 6.0  # a single token of another policy
    assert Parity.of(far).excess(bound).startswith("k3 is ")
    for broken in (np.nan, np.inf, -np.inf):
        far[5, 2] = broken
        assert Parity.of(far).excess(bound)
    assert "nan" in Parity.of(np.full((1, 7), np.nan, np.float32)).excess(bound)


def test_a_single_wrong_token_of_a_small_batch_stops_a_float32_run() -> None:
    few = differences(1e-6, 700)
    few[3, 3] = 2e-4
    assert Parity.of(few).excess(1e-4)


def disagreement(trainer: np.ndarray, again: np.ndarray) -> Disagreement:
    """About a server that says 0 of everything."""
    count = len(trainer)
    return Disagreement(
        np.zeros_like(trainer),
        trainer,
        again,
        token_ids=np.zeros(trainer.shape, np.int64),
        episodes=np.array(["a", "a", "b"][:count]),
        places=np.array([0, 1, 0][:count]),
    )


def test_the_worst_answer_is_named_even_if_it_is_not_a_number() -> None:
    trainer = np.array([[0, 0.5], [0, 0], [0.25, np.nan]], np.float32)
    assert (
        disagreement(trainer, trainer)
        .sentence(1e-4)
        .startswith(
            "3 of 6 tokens, in 2 of 3 answers, are more than 0.0001 apart, the largest difference "
            "is nan, in answer 0 of episode b. Do both use the same checkpoint"
        )
    )


def test_the_machine_is_suspect_only_if_two_passes_are_far_apart() -> None:
    wrong, sound = np.array([[0, 0.5]], np.float32), np.zeros((1, 2), np.float32)
    suspect = disagreement(wrong, sound).sentence(1e-4)
    assert "up to 0.5 away from its second: it was wrong" in suspect
    # About the bound two passes of a GPU may differ by a little.
    above, below = np.full((2, 1, 2), 1.01e-4, np.float32) * np.float32([[[1]], [[0.97]]])
    assert "Do both use" in disagreement(above, below).sentence(1e-4)
    # The mean is too large, and no token is.
    everywhere = np.full((1, 2), 0.02, np.float32)
    assert (
        disagreement(everywhere, everywhere)
        .sentence(0.05)
        .startswith("the largest difference is 0.02, in answer 0 of episode a. Do both use")
    )
