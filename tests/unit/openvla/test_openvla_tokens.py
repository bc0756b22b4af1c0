from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from vlarl.models.openvla.config import OpenVLAConfig
from vlarl.models.openvla.tokens import ActionTokenizer
from vlarl.models.statistics import ActionStats, to_simulator

GOLDEN = Path(__file__).parents[2] / "golden"
LLAMA = ActionTokenizer(32000)


def test_ids_of_the_ends_and_the_middle() -> None:
    assert LLAMA.encode([-1.0, 0.0, 1.0]).tolist() == [31999, 31872, 31744]
    assert LLAMA.encode([-7.0, 7.0]).tolist() == [31999, 31744]
    assert LLAMA.action_ids == range(31744, 32000)
    assert len(LLAMA.action_ids) == LLAMA.bins == 256


def test_decoded_values_are_bin_centres() -> None:
    np.testing.assert_allclose(LLAMA.decode([31999, 31745]), [-0.99607843, 0.99607843], atol=1e-8)
    assert LLAMA.decode(31744) == LLAMA.decode(31745)


@given(npst.arrays(np.float64, (3, 7), elements=st.floats(-1.0, 1.0)))
def test_a_value_decodes_to_within_half_a_bin(values: np.ndarray) -> None:
    ids = LLAMA.encode(values)
    assert ids.min() >= 31744
    assert ids.max() <= 31999
    assert np.abs(LLAMA.decode(ids) - values).max() <= 1 / 255 + 1e-12


@given(st.integers(1000, 200_000), st.integers(1, 255))
def test_ids_survive_a_round_trip(vocab_size: int, bin_index: int) -> None:
    tokenizer = ActionTokenizer(vocab_size)
    token = vocab_size - bin_index
    assert tokenizer.encode(tokenizer.decode(token)) == token


@pytest.mark.parametrize("token", [31743, 32000, 29871])
def test_other_tokens_are_no_actions(token: int) -> None:
    with pytest.raises(ValueError, match="action ids lie in"):
        LLAMA.decode([31800, token])


def test_not_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        LLAMA.encode([0.0, float("nan")])


def test_golden_tokens_give_golden_actions() -> None:
    golden = np.load(GOLDEN / "openvla-tiny/golden.npz")
    config = OpenVLAConfig.from_directory(GOLDEN / "openvla-tiny")
    values = config.action_tokenizer.decode(golden["tokens"])
    actions = config.spec.statistics("libero_spatial").unnormalize(values)
    np.testing.assert_array_equal(actions, golden["actions"])


def _stats(**changes: object) -> ActionStats:
    action = {"q01": [-0.5, 0.0, 0.0], "q99": [0.5, 0.0, 1.0], "min": [-1.0, 0.0, 0.0]}
    action |= {"max": [1.0, 0.0, 1.0], "mask": [True, True, False]}
    return ActionStats.from_json(action | changes)


def test_normalizing_clips_masks_and_zeroes() -> None:
    normal = _stats().normalize([[0.25, 3.0, 1.0], [-9.0, 0.0, 0.0]])
    np.testing.assert_allclose(normal, [[0.5, 0.0, 1.0], [-1.0, 0.0, 0.0]], atol=1e-7)


@given(st.floats(-0.5, 0.5), st.floats(0, 1))
def test_normalizing_and_back(first: float, gripper: float) -> None:
    stats = _stats()
    action = np.array([first, 0.0, gripper])
    np.testing.assert_allclose(stats.unnormalize(stats.normalize(action)), action, atol=1e-7)


def test_a_missing_mask_normalizes_everything() -> None:
    action = {"q01": [0.0], "q99": [2.0], "min": [0.0], "max": [2.0]}
    assert ActionStats.from_json(action).unnormalize([0.0]).tolist() == [1.0]


def test_statistics_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="length"):
        _stats(q99=[1.0])


def test_the_gripper_turns_round_for_the_simulator() -> None:
    actions = np.array([[0.1] * 6 + [0.996], [0.1] * 6 + [0.0]])
    turned = to_simulator(actions)
    assert turned[:, -1].tolist() == [-1.0, 1.0]
    np.testing.assert_array_equal(turned[:, :-1], actions[:, :-1])
    assert actions[0, -1] == 0.996
