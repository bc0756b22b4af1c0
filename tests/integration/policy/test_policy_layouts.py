"""Checkpoints as they lie on disks, in a real server: the engine reads what the check lets in."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from tests.checkpoint_layouts import WHOLE, lay_out, tensor, then  # noqa: E402
from tests.integration.policy.policy_harness import (  # noqa: E402
    INSTRUCTIONS,
    START_SECONDS,
    PolicyProcess,
    Reference,
    frames,
)
from vlarl.clients.policy import AsyncPolicyClient  # noqa: E402
from vlarl.rpc.channel import open_channel, wait_until_serving  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.timeout(600)]
NORM = "language_model.model.norm.weight"


async def test_an_odd_folder_is_served_as_the_plain_one(checkpoint: Path, tmp_path: Path) -> None:
    odd = then(
        *(WHOLE[name] for name in ("eight dimensions", "an adapter beside the weights")),
        *(WHOLE[name] for name in ("remote code", "byte-order marks", "links")),
    )
    folder = lay_out(checkpoint, tmp_path / "odd", odd)
    server = PolicyProcess(folder, tmp_path)
    try:
        async with open_channel(server.address) as channel:
            await wait_until_serving(channel, "vlarl.policy.v1.PolicyService", START_SECONDS)
        async with AsyncPolicyClient(server.address, timeout_seconds=60) as client:
            image = frames(1)[0]
            action = await client.predict(image, INSTRUCTIONS[0])
        assert len(action.values) == 8
        assert Reference(folder).check([image], [INSTRUCTIONS[0]], [action], 0.0) < 1e-4
        assert "odd: actions in the units of my_robot (config.json); centre crop off" in server.log
    finally:
        server.stop()


def test_weights_of_nan_are_never_served(checkpoint: Path, tmp_path: Path) -> None:
    broken = tensor(NORM, torch.full((128,), float("nan")))
    folder = lay_out(checkpoint, tmp_path / "nan", broken)
    server = PolicyProcess(folder, tmp_path, "--set", "policy.dtype=float16")
    try:
        assert server.process.wait(timeout=START_SECONDS) == 1
    finally:
        server.stop()
    assert "weights give probabilities that aren't finite numbers" in server.fatal_sentence
    assert 'set policy.dtype and trainer.dtype to "bfloat16"' in server.fatal_sentence
