"""What the client refuses before it sends anything."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from vlarl.client import PolicyClient

FRAME = np.zeros((4, 4, 3), np.uint8)


@pytest.fixture(scope="module")
def client() -> Iterator[PolicyClient]:
    """A client of nobody: a call that is sent fails with PolicyError, not with ValueError."""
    with PolicyClient("127.0.0.1:1", timeout_seconds=0.1) as opened:
        yield opened


@pytest.mark.parametrize(
    ("image", "complaint"),
    [
        (FRAME.astype(np.float32), "must be uint8 .* not float32"),
        (FRAME[..., 0], r"\[height, width, 3\], not \[4, 4\]"),
        (np.zeros((4, 4, 4), np.uint8), r"not \[4, 4, 4\]"),
        (np.zeros((0, 4, 3), np.uint8), r"not \[0, 4, 3\]"),
        (b"", "no bytes"),
        ("image.jpg", "not str"),
        (None, "not NoneType"),
    ],
)
def test_images(client: PolicyClient, image: Any, complaint: str) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=complaint):
        client.predict(image, "lift the bowl")


@pytest.mark.parametrize(
    ("instruction", "complaint"),
    [
        ("", "an instruction is needed"),
        ("  ", "an instruction is needed"),
        (None, "an instruction is text, not NoneType"),
        (b"lift", "an instruction is text, not bytes"),
    ],
)
def test_instructions(client: PolicyClient, instruction: Any, complaint: str) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=complaint):
        client.predict(FRAME, instruction)


@pytest.mark.parametrize("token", ["two\nlines", "caf\u00e9"])
def test_tokens(token: str) -> None:
    with pytest.raises(ValueError, match="a token is one line of printable ASCII characters"):
        PolicyClient("127.0.0.1:1", token=token)


@pytest.mark.parametrize("temperature", [-1.0, float("nan"), float("inf")])
def test_temperatures(client: PolicyClient, temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature must be 0 or above"):
        client.predict(FRAME, "lift the bowl", temperature=temperature)


def test_seeds(client: PolicyClient) -> None:
    with pytest.raises(ValueError, match="a seed must be within"):
        client.predict(FRAME, "lift the bowl", seed=-1)
    with pytest.raises(ValueError, match="a seed must be within"):
        client.predict(FRAME, "lift the bowl", seed=2**64)
    with pytest.raises(ValueError, match="1 seeds for 2 observations"):
        client.predict_batch([(FRAME, "a"), (FRAME, "b")], seeds=[1])


def test_an_empty_batch(client: PolicyClient) -> None:
    with pytest.raises(ValueError, match="at least one observation"):
        client.predict_batch([])
