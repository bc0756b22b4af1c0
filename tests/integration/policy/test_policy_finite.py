"""A policy server answers with finite numbers or not at all, whatever its weights say."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("vllm", reason="runs in the torch environment (.venv)")

import numpy as np  # noqa: E402
from prometheus_client import generate_latest  # noqa: E402

from vlarl.clients.policy import AsyncPolicyClient, PolicyError  # noqa: E402
from vlarl.config import PolicyConfig, ServerConfig  # noqa: E402
from vlarl.images import encode_jpeg  # noqa: E402
from vlarl.models.openvla.processor import Processor  # noqa: E402
from vlarl.models.openvla.tokens import ActionTokenizer  # noqa: E402
from vlarl.models.registry import policy_family  # noqa: E402
from vlarl.models.serving import SampledAction  # noqa: E402
from vlarl.models.statistics import ActionStats  # noqa: E402
from vlarl.policy.v1 import policy_pb2_grpc  # noqa: E402
from vlarl.rpc.server import RpcServer  # noqa: E402
from vlarl_policy.follower import PolicyServerError  # noqa: E402
from vlarl_policy.metrics import PolicyMetrics  # noqa: E402
from vlarl_policy.server import _warm_up  # noqa: E402
from vlarl_policy.service import PolicyServicer, UnsoundActionError, action_of  # noqa: E402

pytestmark = pytest.mark.torch
SOUND = SampledAction([700] * 7, [-1.0] * 7, 0)
STATISTICS = ActionStats.from_json({"q01": [-1.0] * 7, "q99": [1.0] * 7})
UNSOUND = [
    replace(SOUND, logprobs=[-1.0] * 6 + [math.nan]),
    replace(SOUND, logprobs=[-math.inf] + [-1.0] * 6),
    replace(SOUND, logprobs=[1e300] * 7),  # infinite once it is a float32
    replace(SOUND, token_ids=[700] * 6 + [0]),  # what the argmax of NaN may be
    replace(SOUND, token_ids=[768] * 7),
]


class Engine:
    """In the engine's place: answers what it is told to."""

    dtype = "float32"

    def __init__(self, answer: SampledAction) -> None:
        self.answer = answer

    async def act(self, *_: object, **__: object) -> SampledAction:
        return self.answer


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from vlarl.models.openvla.tiny import make_tiny_checkpoint

    folder = tmp_path_factory.mktemp("finite") / "tiny"
    make_tiny_checkpoint(folder, image_size=28, tower_dim=32, tower_depth=2, text_dim=64)
    return folder


@pytest.fixture(scope="module")
def processor(tiny: Path) -> Processor:
    return policy_family(tiny).processor(center_crop=False)


def test_a_sound_action_is_answered(processor: Processor) -> None:
    action = action_of(SOUND, STATISTICS, processor)
    assert list(action.token_ids) == SOUND.token_ids
    assert list(action.values) == pytest.approx(ActionTokenizer(768).decode([700] * 7))


@pytest.mark.parametrize("sampled", UNSOUND)
def test_an_unsound_one_is_not(processor: Processor, sampled: SampledAction) -> None:
    with pytest.raises(UnsoundActionError, match="the checkpoint's weights give probabilities"):
        action_of(sampled, STATISTICS, processor)
    with pytest.raises(UnsoundActionError, match="version 3's weights"):
        action_of(replace(sampled, policy_version=3), STATISTICS, processor)


def test_nor_are_statistics_that_nobody_has_checked(processor: Processor) -> None:
    broken = replace(STATISTICS, q99=np.full(7, math.nan))
    with pytest.raises(UnsoundActionError, match="the dataset statistics"):
        action_of(SOUND, broken, processor)


@pytest.fixture
async def served(tiny: Path, processor: Processor) -> AsyncIterator[tuple[RpcServer, str, Engine]]:
    rpc = RpcServer(ServerConfig(listen="127.0.0.1:0"), ["vlarl.policy.v1.PolicyService"])
    engine = Engine(SOUND)
    servicer = PolicyServicer(
        PolicyConfig(checkpoint=tiny), processor, "digest", PolicyMetrics(rpc.registry)
    )
    policy_pb2_grpc.add_PolicyServiceServicer_to_server(servicer, rpc.grpc)
    address = await rpc.start()
    servicer.open(engine, None)  # type: ignore[arg-type]
    yield rpc, address, engine
    servicer.close()
    await rpc.stop()


async def test_a_client_gets_an_error_and_no_number(
    served: tuple[RpcServer, str, Engine],
) -> None:
    rpc, address, engine = served
    frame = encode_jpeg(np.zeros((28, 28, 3), np.uint8))
    async with AsyncPolicyClient(address) as client:
        action = await client.predict(frame, "go", unnorm_key="libero_goal")
        assert np.isfinite(action.values).all()
        engine.answer = UNSOUND[0]
        with pytest.raises(PolicyError, match="aren't finite numbers") as refused:
            await client.predict(frame, "go", unnorm_key="libero_goal")
        assert (refused.value.code.name, refused.value.reason) == ("INTERNAL", "NOT_FINITE")
        engine.answer = SOUND
        await client.predict(frame, "go", unnorm_key="libero_goal")
    counted = 'vlarl_policy_failures_total{cause="value",method="PredictActions"} 1.0'
    assert counted in generate_latest(rpc.registry).decode()


async def test_a_server_whose_weights_give_none_does_not_start(
    tiny: Path, processor: Processor
) -> None:
    config = PolicyConfig(checkpoint=tiny)
    await _warm_up(Engine(SOUND), config, processor)  # type: ignore[arg-type]
    with pytest.raises(PolicyServerError, match=f"{tiny}: the checkpoint's weights give"):
        await _warm_up(Engine(UNSOUND[0]), config, processor)  # type: ignore[arg-type]
