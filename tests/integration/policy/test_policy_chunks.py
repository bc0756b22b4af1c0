"""A running server of OpenVLA-OFT: the originals' numbers, what it refuses, and its end."""

from __future__ import annotations

import asyncio
import json
import math
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace

import grpc
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.integration.policy.policy_harness import START_SECONDS, PolicyProcess  # noqa: E402
from tests.unit.openvla_oft.oft_golden import CAMERAS, GOLDEN, make_checkpoint  # noqa: E402
from vlarl.clients.policy import Action, AsyncPolicyClient, Observation, PolicyError  # noqa: E402
from vlarl.rpc.channel import open_channel, wait_until_serving  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.timeout(600)]

NUMBERS = np.load(GOLDEN / "golden.npz", allow_pickle=False)
TEXT = json.loads((GOLDEN / "golden.json").read_text())
KEY = TEXT["unnorm_key"]
ALL = "stop_img2_proprio"
"""The one that has two cameras and proprioception."""


@dataclass
class Golden:
    """A server of the golden checkpoint, with the originals' numbers of this name."""

    name: str
    process: PolicyProcess

    def original(self, what: str) -> np.ndarray:
        return NUMBERS[f"{self.name}_{what}"]

    def observations(self) -> list[Observation]:
        """The six that the numbers are of."""
        found = []
        for row, instruction in enumerate(TEXT["instructions"]):
            seen = Observation(NUMBERS["images"][row], instruction)
            if "img2" in self.name:
                seen = replace(seen, images={CAMERAS[1]: NUMBERS["wrist_images"][row]})
            if "proprio" in self.name:
                seen = replace(seen, proprio=NUMBERS["proprio"][row])
            found.append(seen)
        return found


@pytest.fixture(scope="module", params=["nostop_img1", ALL])
def golden(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Golden]:
    folder = tmp_path_factory.mktemp("golden")
    (folder / "oft").mkdir()
    checkpoint = make_checkpoint(folder / "oft", request.param)
    process = PolicyProcess(checkpoint, folder, "-s", "policy.dtype=float32")
    yield Golden(request.param, process)
    if process.process.poll() is None:
        process.stop(signal.SIGKILL)


@pytest.fixture
async def client(golden: Golden) -> AsyncIterator[AsyncPolicyClient]:
    address = golden.process.address
    async with open_channel(address) as channel:
        await wait_until_serving(channel, "vlarl.policy.v1.PolicyService", START_SECONDS)
    async with AsyncPolicyClient(address, timeout_seconds=60) as opened:
        yield opened


async def ask(client: AsyncPolicyClient, *observations: Observation) -> list[Action]:
    return await client.predict_batch(observations, unnorm_key=KEY, center_crop=False)


async def test_greedy_chunks_are_the_originals(golden: Golden, client: AsyncPolicyClient) -> None:
    """Six prompts of 9 to 31 tokens at once. Reached: 4e-5 on a log-prob (fp32)."""
    chunks = await ask(client, *golden.observations())
    tokens = np.array([chunk.token_ids for chunk in chunks])
    np.testing.assert_array_equal(tokens, golden.original("tokens"))
    logprobs = np.array([chunk.logprobs for chunk in chunks])
    np.testing.assert_allclose(logprobs, golden.original("logprobs_t1"), atol=5e-4, rtol=0)
    values = np.array([chunk.values for chunk in chunks])
    assert values.shape == (6, 8, 7)
    np.testing.assert_allclose(values, golden.original("actions"), atol=1e-5, rtol=0)
    assert {chunk.horizon for chunk in chunks} == {8}


async def test_sampled_ones_have_the_originals_log_probs(
    golden: Golden, client: AsyncPolicyClient
) -> None:
    temperature = 1.6
    chunks = await client.predict_batch(
        golden.observations(),
        temperature=temperature,
        seeds=range(6),
        unnorm_key=KEY,
        center_crop=False,
    )
    logits = torch.from_numpy(golden.original("logits")).double()
    expected = (logits / temperature).log_softmax(dim=-1)
    bins = torch.from_numpy(np.array([chunk.token_ids for chunk in chunks]) - 768)
    expected = expected.gather(-1, bins[..., None])[..., 0]
    logprobs = np.array([chunk.logprobs for chunk in chunks])
    np.testing.assert_allclose(logprobs, expected.numpy(), atol=5e-4, rtol=0)
    assert not np.array_equal(bins.numpy() + 768, golden.original("tokens"))


PROPRIO = NUMBERS["proprio"][0]
WRONG = {
    "no wrist camera": ({"images": None}, "images", CAMERAS[1]),
    "another camera": ({"images": {"wrist": NUMBERS["images"][0]}}, "images", CAMERAS[1]),
    "a wrist image that is none": ({"images": {CAMERAS[1]: b"GIF89a"}}, "images", CAMERAS[1]),
    "no proprioception": ({"proprio": None}, "proprio", "reads 8 numbers, not 0"),
    "too little of it": ({"proprio": PROPRIO[:7]}, "proprio", "reads 8 numbers, not 7"),
}


@pytest.mark.parametrize("golden", [ALL], indirect=True)
@pytest.mark.parametrize("case", WRONG)
async def test_what_the_policy_lacks_is_named(
    golden: Golden, client: AsyncPolicyClient, case: str
) -> None:
    change, field, words = WRONG[case]
    good = golden.observations()[0]
    with pytest.raises(PolicyError) as refused:
        await ask(client, good, replace(good, **change))
    assert refused.value.code is grpc.StatusCode.INVALID_ARGUMENT
    ((where, sentence),) = refused.value.violations
    assert where == f"observations[1].{field}"
    assert words in sentence


@pytest.mark.parametrize("golden", ["nostop_img1"], indirect=True)
async def test_what_it_does_not_read_is_left_alone(
    golden: Golden, client: AsyncPolicyClient
) -> None:
    seen = golden.observations()[0]
    more = replace(seen, images={CAMERAS[1]: b"not looked at"}, proprio=[1.0, 2.0])
    plain, other = await ask(client, seen, more)
    assert other.token_ids.tolist() == plain.token_ids.tolist()
    assert math.isfinite(other.logprobs.sum())


async def test_what_was_asked_before_the_end_is_answered(
    golden: Golden, client: AsyncPolicyClient
) -> None:
    """Ends the server, so it comes last."""
    seen = golden.observations()
    asked = [asyncio.create_task(ask(client, *seen)) for _ in range(4)]
    while golden.process.metric("vlarl_policy_actions_running") == 0:
        await asyncio.sleep(0.005)
        assert not all(one.done() for one in asked)
    assert await asyncio.to_thread(golden.process.stop) == 0
    answers = await asyncio.gather(*asked)
    for chunks in answers:
        tokens = np.array([chunk.token_ids for chunk in chunks])
        np.testing.assert_array_equal(tokens, golden.original("tokens"))
