"""What the engine computes at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlarl.config import PolicyConfig
from vlarl.models.openvla.config import OpenVLAConfig
from vlarl.models.openvla.limits import longest_sequence, max_batched_tokens

GOLDEN = Path(__file__).parents[2] / "golden/openvla-tiny"


@pytest.mark.parametrize(("batch", "requests"), [(1, 1), (3, 3), (16, 16), (10_000, None)])
def test_a_pass_has_what_the_batch_can_need_and_no_more(batch: int, requests: int | None) -> None:
    model = OpenVLAConfig.from_directory(GOLDEN)
    found = max_batched_tokens(PolicyConfig(max_batch=batch), model)
    longest = longest_sequence(model)
    expected = 10_000 if requests is None else min(requests * longest, 8192)
    assert found == expected
    assert found >= longest  # the engine asks for that
