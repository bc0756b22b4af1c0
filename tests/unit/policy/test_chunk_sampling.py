"""How a chunk's tokens are drawn inside the engine, and from which hidden states."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("vllm", reason="runs in the torch environment (.venv)")

from vllm import PoolingParams  # noqa: E402
from vllm.v1.pool.metadata import PoolingMetadata, PoolingStates  # noqa: E402

from tests.unit.openvla_oft.oft_golden import write_settings  # noqa: E402
from vlarl.config import PolicyConfig  # noqa: E402
from vlarl.models.openvla_oft.sampling import draw, uniforms  # noqa: E402
from vlarl.models.openvla_oft.vllm_pooler import TASK, ChunkPooler  # noqa: E402
from vlarl.models.registry import policy_family  # noqa: E402

pytestmark = pytest.mark.torch
BINS = 256


def some_logits(rows: int, tokens: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(rows, tokens, BINS, generator=torch.Generator().manual_seed(seed))


def by_hand(logits: np.ndarray, temperature: float, seed: int) -> list[int]:
    """The bin at which the distribution function passes the uniform number."""
    scaled = logits.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    upto = np.cumsum(weights / weights.sum(axis=-1, keepdims=True), axis=-1)
    drawn = np.random.default_rng(seed).random(len(logits))
    return [
        int(np.searchsorted(row, one, side="right")) for row, one in zip(upto, drawn, strict=True)
    ]


def test_each_row_is_drawn_by_its_own_seed_and_temperature() -> None:
    logits, seeds = some_logits(3, 56), [0, 7, 2**64 - 1]
    temperatures = [0.5, 1.0, 1.6]
    numbers = torch.from_numpy(np.stack([uniforms(seed, 56) for seed in seeds]))
    bins, logprobs = draw(logits, torch.tensor(temperatures), numbers)
    for row, (seed, temperature) in enumerate(zip(seeds, temperatures, strict=True)):
        assert bins[row].tolist() == by_hand(logits[row].numpy(), temperature, seed)
        expected = (logits[row] / temperature).log_softmax(-1)
        chosen = expected.gather(-1, bins[row][:, None])[:, 0]
        torch.testing.assert_close(logprobs[row], chosen, atol=1e-6, rtol=0)
        alone, _ = draw(logits[row : row + 1], torch.tensor([temperature]), numbers[row : row + 1])
        assert alone[0].tolist() == bins[row].tolist()


def test_at_temperature_zero_the_likeliest_is_taken_with_its_log_prob_at_one() -> None:
    logits = some_logits(2, 14)
    bins, logprobs = draw(logits, torch.tensor([0.0, 1.0]), torch.zeros(2, 14).double())
    assert bins[0].tolist() == logits[0].argmax(-1).tolist()
    torch.testing.assert_close(logprobs[0], logits[0].log_softmax(-1).max(-1).values)
    # The smallest number falls into the first bin.
    assert bins[1].tolist() == [0] * 14


def test_bins_come_as_often_as_they_are_likely() -> None:
    logits, rows = some_logits(1, 1), 20_000
    numbers = torch.from_numpy(np.random.default_rng(3).random((rows, 1)))
    bins, _ = draw(logits.expand(rows, -1, -1), torch.ones(rows), numbers)
    found = torch.bincount(bins[:, 0], minlength=BINS) / rows
    expected = logits[0, 0].softmax(-1)
    assert (found - expected).abs().max() < 4 * math.sqrt(0.25 / rows)


def test_an_impossible_bin_is_never_drawn() -> None:
    logits = torch.full((1, 3, BINS), -math.inf)
    logits[..., 5], logits[..., 9] = 0.0, 0.0
    numbers = torch.tensor([[0.0, 0.5, math.nextafter(1.0, 0.0)]], dtype=torch.float64)
    bins, logprobs = draw(logits, torch.ones(1), numbers)
    assert bins.tolist() == [[5, 9, 9]]
    torch.testing.assert_close(logprobs, torch.full((1, 3), -math.log(2.0)))


def test_broken_weights_give_log_probs_that_are_none() -> None:
    logits = torch.full((2, 3, BINS), math.nan)
    bins, logprobs = draw(logits, torch.tensor([0.0, 1.0]), torch.full((2, 3), 0.5).double())
    assert logprobs.isnan().all()
    assert ((bins >= 0) & (bins < BINS)).all()


def requests(lengths: list[int], computed: list[int] | None = None) -> PoolingMetadata:
    """Greedy ones of these lengths, in one pass."""
    count = len(lengths)
    asked = PoolingParams(task=TASK, extra_kwargs={"temperature": 0.0, "seed": 1})
    metadata = PoolingMetadata(
        prompt_lens=torch.tensor(lengths),
        prompt_token_ids=None,
        prompt_token_ids_cpu=None,
        pooling_params=[asked] * count,
        pooling_states=[PoolingStates() for _ in range(count)],
    )
    here = np.array(computed or lengths)
    metadata.build_pooling_cursor(here, torch.from_numpy(here), torch.device("cpu"))
    return metadata


@pytest.mark.parametrize("behind", [0, 1])
def test_logits_are_read_from_the_prompts_last_token_on(behind: int) -> None:
    """Of a request of 6 + 4 + `behind` tokens: from the sixth to the last placeholder but one."""
    lengths = [6 + 4 + behind, 3 + 4 + behind]
    hidden = torch.zeros(sum(lengths), BINS)
    hidden[torch.arange(len(hidden)), torch.arange(len(hidden)) + 100] = 9.0
    pooler = ChunkPooler(lambda states: states, 4, behind)
    pooler.version = 12
    answers = pooler(hidden, requests(lengths))
    assert answers.dtype == torch.float64
    assert answers[:, 0].tolist() == [12.0, 12.0]
    assert answers[0, 1:5].tolist() == [105.0, 106.0, 107.0, 108.0]
    second = 100 + lengths[0] + 2
    assert answers[1, 1:5].tolist() == [second + step for step in range(4)]
    expected = hidden[0].log_softmax(-1).max().double()
    torch.testing.assert_close(answers[:, 5:], expected.expand(2, 4), atol=1e-6, rtol=0)


def test_requests_that_are_shorter_than_an_answer_are_survived() -> None:
    """By which vLLM measures memory."""
    pooler = ChunkPooler(lambda states: states, 56, 1)
    assert pooler(torch.zeros(6, BINS), requests([2, 2, 2])).shape == (3, 113)


def test_a_part_of_a_request_is_no_answer() -> None:
    pooler = ChunkPooler(lambda states: states, 4, 0)
    with pytest.raises(AssertionError, match="a part of a request"):
        pooler(torch.zeros(11, BINS), requests([10, 10], [10, 1]))


def test_a_pass_has_room_for_the_longest_request(tmp_path: Path) -> None:
    family = policy_family(write_settings(tmp_path))
    told = family.serving().engine_args(PolicyConfig(max_batch=3), itemsize=4)
    # One image, 240 tokens of prompt, 56 placeholders and stop.
    assert told["max_model_len"] == 256 + 240 + 56 + 1
    assert told["max_num_batched_tokens"] == 3 * told["max_model_len"]
