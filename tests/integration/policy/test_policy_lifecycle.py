"""A policy server's start, its trainer, and its end, however it comes."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import grpc
import psutil
import pytest

torch = pytest.importorskip("torch")

from tests.integration.policy.policy_harness import (  # noqa: E402
    INSTRUCTIONS,
    KEY,
    START_SECONDS,
    PolicyProcess,
    Reference,
    frames,
    random_adapter,
)
from vlarl.clients.policy import AsyncPolicyClient  # noqa: E402
from vlarl.launch.supervisor import free_address  # noqa: E402
from vlarl.policy.v1 import policy_pb2 as pb  # noqa: E402
from vlarl.policy.v1 import policy_pb2_grpc  # noqa: E402
from vlarl.rpc import errors  # noqa: E402
from vlarl.rpc.channel import open_channel, wait_until_serving  # noqa: E402
from vlarl.trainer.v1 import trainer_pb2, trainer_pb2_grpc  # noqa: E402
from vlarl.weights import adapter as wire  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.timeout(600)]
SERVICE = "vlarl.policy.v1.PolicyService"


async def serves(process: PolicyProcess) -> None:
    """Waits until it serves; kills it where it doesn't."""
    try:
        address = await asyncio.to_thread(lambda: process.address)
        async with open_channel(address) as channel:
            await wait_until_serving(channel, SERVICE, START_SECONDS)
    except BaseException:
        process.process.kill()
        raise


class Lives:
    """A server that several tests look at and one of them ends: whoever comes next starts another.

    start: of a new one.
    """

    def __init__(self, start: Callable[[], PolicyProcess]) -> None:
        self._start = start
        self.process: PolicyProcess | None = None

    def begin(self) -> PolicyProcess:
        """A new one, as it starts."""
        self.end()
        self.process = self._start()
        return self.process

    async def serving(self) -> PolicyProcess:
        """The one that lives, or a new one, as it serves."""
        if self.process is None or self.process.process.poll() is not None:
            await serves(self.begin())
        assert self.process is not None
        return self.process

    def end(self) -> None:
        """Kills what lives."""
        if self.process is not None and self.process.process.poll() is None:
            self.process.stop(signal.SIGKILL)


@pytest.fixture(scope="module")
def own_checkpoint(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy that may come to harm."""
    return Path(shutil.copytree(checkpoint, tmp_path_factory.mktemp("own") / "tiny"))


TRAINER = free_address()


@pytest.fixture(scope="module")
def replica(own_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lives]:
    """A server that follows the trainer at TRAINER, if there is one."""
    options = ("--trainer", TRAINER, "-s", "policy.catch_up_seconds=0.3")
    lives = Lives(
        lambda: PolicyProcess(own_checkpoint, tmp_path_factory.mktemp("server"), *options)
    )
    yield lives
    lives.end()


@pytest.fixture(scope="module")
def opposed(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lives]:
    """A server whose trainer is away, and whose caller's environment wants the opposite of what it
    needs.
    """
    program = [str(Path(__file__).with_name("start_method_as_on_cuda.py"))]
    options = ("--trainer", "127.0.0.1:1", "-s", "policy.dtype=float32")
    options += ("-s", "policy.exact_float32=true")
    opposite = {"TRITON_F32_DEFAULT": "tf32", "VLLM_FLOAT32_MATMUL_PRECISION": "medium"}
    fork = {"VLLM_WORKER_MULTIPROC_METHOD": "fork"}
    # Or the process's title would take the place of what the kernel shows of its environment.
    readable = {"SPT_NOENV": "1"}
    lives = Lives(
        lambda: PolicyProcess(
            checkpoint,
            tmp_path_factory.mktemp("server"),
            *options,
            program=program,
            environment=opposite | fork | readable,
        )
    )
    yield lives
    lives.end()


class OneAdapterTrainer(trainer_pb2_grpc.TrainerServiceServicer):
    """Publishes what it is given."""

    def __init__(self, adapter: wire.Adapter) -> None:
        self.adapter = adapter
        self.asked: list[tuple[str, str, int]] = []

    async def GetWeights(
        self, request: trainer_pb2.GetWeightsRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[trainer_pb2.GetWeightsResponse]:
        self.asked.append((request.base_digest, request.run_id, request.policy_version))
        if request.policy_version == self.adapter.version:
            return
        yield trainer_pb2.GetWeightsResponse(header=wire.adapter_header(self.adapter))
        for chunk in wire.adapter_chunks(self.adapter):
            yield trainer_pb2.GetWeightsResponse(chunk=chunk)


async def test_a_late_replica_asks_the_trainer_refuses_until_it_can_answer_and_follows(
    replica: Lives, checkpoint: Path
) -> None:
    adapter = random_adapter(checkpoint, 12)
    trainer = OneAdapterTrainer(adapter)
    trainer_server = grpc.aio.server()
    trainer_pb2_grpc.add_TrainerServiceServicer_to_server(trainer, trainer_server)
    trainer_server.add_insecure_port(TRAINER)
    await trainer_server.start()
    process = replica.begin()
    try:
        address = await asyncio.to_thread(lambda: process.address)
        async with open_channel(address) as channel:
            stub = policy_pb2_grpc.PolicyServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as early:
                await stub.GetPolicy(pb.GetPolicyRequest())
            assert early.value.code() is grpc.StatusCode.UNAVAILABLE
            assert errors.reason(early.value) == "STARTING"
            await wait_until_serving(channel, SERVICE, START_SECONDS)
            policy = await stub.GetPolicy(pb.GetPolicyRequest())
        assert (policy.run_id, policy.policy_version) == ("run", 12)
        assert trainer.asked[0] == (policy.base_digest, "", 0)
        async with AsyncPolicyClient(address) as client:
            image = frames(1)[0]
            action = await client.predict(image, INSTRUCTIONS[0], unnorm_key=KEY)
        reference = Reference(checkpoint, adapter)
        assert policy.merged_digest == reference.merged_digest
        assert reference.check([image], INSTRUCTIONS[:1], [action], 0.0) < 1e-4
        # A publication that misses this replica.
        trainer.adapter = random_adapter(checkpoint, 13)
        async with open_channel(address) as channel, asyncio.timeout(60):
            stub = policy_pb2_grpc.PolicyServiceStub(channel)
            while (await stub.GetPolicy(pb.GetPolicyRequest())).policy_version != 13:
                await asyncio.sleep(0.1)
            asked = len(trainer.asked)
            while len(trainer.asked) < asked + 2:
                await asyncio.sleep(0.1)
        assert trainer.asked[-1] == (policy.base_digest, "run", 13)
        # A trainer that goes back without saying so, and one that goes away, change nothing.
        trainer.adapter = random_adapter(checkpoint, 7)
        asked = len(trainer.asked)
        async with asyncio.timeout(60):
            while len(trainer.asked) < asked + 2:
                await asyncio.sleep(0.1)
        await trainer_server.stop(0)
        await asyncio.sleep(0.5)
        async with AsyncPolicyClient(address) as client:
            action = await client.predict(image, INSTRUCTIONS[0], unnorm_key=KEY)
        assert action.policy_version == 13
    finally:
        await trainer_server.stop(0)


async def test_without_its_base_a_server_keeps_the_weights_that_it_has(
    replica: Lives, own_checkpoint: Path
) -> None:
    process = await replica.serving()
    adapter = random_adapter(own_checkpoint, 20)
    weights = own_checkpoint / "model.safetensors"
    async with open_channel(process.address) as channel:
        stub = policy_pb2_grpc.PolicyServiceStub(channel)
        before = await stub.GetPolicy(pb.GetPolicyRequest())
        weights.rename(aside := own_checkpoint / "aside")
        try:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.UpdateWeights(wire.update_requests(adapter, takeover=True))
        finally:
            aside.rename(weights)
        assert refused.value.code() is grpc.StatusCode.INTERNAL
        assert "version 20 couldn't be merged" in str(refused.value.details())
        assert await stub.GetPolicy(pb.GetPolicyRequest()) == before
        answer = await stub.UpdateWeights(wire.update_requests(adapter, takeover=True))
        assert answer.policy_version == 20


async def test_a_server_dies_with_its_engine(replica: Lives) -> None:
    server = await replica.serving()
    family = server.family()
    server.engine().kill()
    code = await asyncio.to_thread(server.process.wait, 60)
    assert code not in (0, -signal.SIGKILL)
    assert server.fatal_sentence == "the engine's process died"
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive


async def test_without_its_trainer_it_serves_the_base(opposed: Lives) -> None:
    process = await opposed.serving()
    async with open_channel(process.address) as channel:
        stub = policy_pb2_grpc.PolicyServiceStub(channel)
        assert (await stub.GetPolicy(pb.GetPolicyRequest())).policy_version == 0
    assert "no trainer" in process.log


async def test_exact_float32_reaches_the_engines_process(opposed: Lives) -> None:
    variables = (await opposed.serving()).engine().environ()
    assert variables["TRITON_F32_DEFAULT"] == "ieee"
    assert variables["NVIDIA_TF32_OVERRIDE"] == "0"
    assert variables["VLLM_FLOAT32_MATMUL_PRECISION"] == "highest"


async def test_a_killed_server_takes_along_an_engine_that_hangs_though_the_caller_wants_a_fork(
    opposed: Lives,
) -> None:
    process = await opposed.serving()
    process.engine().suspend()  # no thread of its own can notice anything
    assert await asyncio.to_thread(process.stop, signal.SIGKILL) == -signal.SIGKILL


def test_a_signal_during_the_start_ends_it_cleanly(checkpoint: Path, tmp_path: Path) -> None:
    process = PolicyProcess(checkpoint, tmp_path)
    assert process.address  # it listens, and has just begun to load
    assert process.stop() == 143, "0 is that of a server that has served"
    assert "stopped while starting" in process.log


def test_a_checkpoint_that_cannot_be_used_is_one_sentence(tmp_path: Path) -> None:
    process = PolicyProcess(tmp_path / "nowhere", tmp_path)
    assert process.process.wait(timeout=120) == 1
    assert "nowhere" in process.fatal_sentence
    assert "Traceback" not in process.log
