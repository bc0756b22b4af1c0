"""Sends the policy's factors to every replica, and makes sure that they serve them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import grpc
import torch
from torch import Tensor

from vlarl.config import ChannelConfig, RunConfig
from vlarl.errors import FatalError
from vlarl.models.registry import lora_layers
from vlarl.models.spec import PolicySpec
from vlarl.policy.v1 import policy_pb2, policy_pb2_grpc
from vlarl.rpc.channel import open_channel, replica_addresses
from vlarl.rpc.errors import describe
from vlarl.weights.adapter import Adapter, adapter_chunks, adapter_header, merged_digest
from vlarl.weights.merge import DTYPES, Checksums, checksums, merged_tensors
from vlarl_trainer.record.progress import Progress

if TYPE_CHECKING:
    from vlarl.policy.v1.policy_pb2_grpc import PolicyServiceAsyncStub as Stub

T = TypeVar("T")

_LOG = logging.getLogger(__name__)
_PASSING = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED, grpc.StatusCode.CANCELLED}
_WRITE_FAILED = "Internal error from Core"
"""What gRPC's asyncio client says where an answer, or the end of the connection, falls into its
writing. It hides the answer's own code, so the server is asked again."""
_RETRY_SECONDS = 1.0


class PublishError(FatalError):
    """The replicas don't serve what was published; the message says which and why."""


@dataclass(frozen=True)
class PublishReport:
    """What a publication took."""

    replicas: int
    pause_seconds: float
    """Longest time for which a replica could start no action."""


def published_adapter(
    progress: Progress,
    factors: Mapping[str, tuple[Tensor, Tensor]],
    scaling: float,
    checked_layers: Collection[str],
) -> Adapter:
    """What the replicas are sent at this point of a run: the factors as the optimizer has them.

    checked_layers: those of whose merged weights the replicas are asked for checksums.
    """
    return Adapter(
        run_id=progress.run_id,
        version=progress.version,
        base_digest=progress.base_digest,
        scaling=scaling,
        factors=factors,
        checked_layers=sorted(checked_layers),
    )


class Publisher:
    """The policy's replicas, as the trainer sees them."""

    def __init__(
        self,
        addresses: str,
        channel: ChannelConfig,
        checkpoint: Path,
        *,
        digests: Literal["require", "report"],
        timeout_seconds: float,
    ) -> None:
        """See PolicyConfig.addresses and TrainerConfig.merged_digest."""
        self._addresses = addresses
        self._channel = channel
        self._checkpoint = checkpoint
        self._digests = digests
        self._timeout = timeout_seconds

    @classmethod
    def of_run(cls, config: RunConfig) -> Publisher:
        """The replicas of a run's configuration."""
        return cls(
            config.policy.addresses,
            config.security.channel(),
            config.policy.checkpoint,
            digests=config.trainer.merged_digest,
            timeout_seconds=config.trainer.publish_timeout_seconds,
        )

    async def describe(self) -> list[policy_pb2.GetPolicyResponse]:
        """What every replica serves, once it can be reached.

        Raises:
            PublishError: a replica can't be reached in time, or refuses.
        """
        answers: dict[str, policy_pb2.GetPolicyResponse] = {}
        while not answers:
            answers = await self._ask_all(
                lambda stub: stub.GetPolicy(policy_pb2.GetPolicyRequest()), await self._replicas()
            )
        return list(answers.values())

    async def publish(
        self, adapter: Adapter, *, takeover: bool, expected: Checksums | None = None
    ) -> PublishReport:
        """Returns when every replica serves the adapter, also those that came in the meantime;
        those that left the name behind `policy.addresses` are no longer waited for.

        Args:
            adapter: the factors and their version.
            takeover: whether they may replace another run's, or a newer version of this run.
            expected: checksums of the layers that the adapter says are to be checked; none: they
                are made from the checkpoint.

        Raises:
            PublishError: a replica refuses, can't be reached in time, or merged other weights.
        """
        header = await asyncio.to_thread(adapter_header, adapter, takeover=takeover)
        dtype = (await self.describe())[0].dtype
        expecting = asyncio.create_task(asyncio.to_thread(self._expected, adapter, dtype, expected))
        answers: dict[str, policy_pb2.UpdateWeightsResponse] = {}
        while new := [address for address in await self._replicas() if address not in answers]:
            answers |= await self._ask_all(
                lambda stub: stub.UpdateWeights(_requests(header, adapter), timeout=self._timeout),
                new,
            )
        checksums = await expecting
        for address, answer in answers.items():
            self._verify(address, answer, header, dtype, checksums)
        return PublishReport(
            replicas=len(answers),
            pause_seconds=max(answer.pause_seconds for answer in answers.values()),
        )

    def _expected(self, adapter: Adapter, dtype: str, known: Checksums | None) -> Mapping[str, int]:
        """The checksums that replicas of this data type should have."""
        if known is not None:
            if known.layers and known.dtype != dtype:
                _LOG.warning(
                    "the policy servers hold %s and the trainer %s, so their merged weights aren't "
                    "compared; the log-probs are",
                    dtype,
                    known.dtype,
                )
            return known.layers if known.dtype == dtype else {}
        checked = {layer: adapter.factors[layer] for layer in adapter.checked_layers}
        layers = lora_layers(self._checkpoint)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        merged = merged_tensors(
            self._checkpoint, layers, checked, adapter.scaling, DTYPES[dtype], device=device
        )
        return checksums(merged)

    def _verify(
        self,
        address: str,
        answer: policy_pb2.UpdateWeightsResponse,
        header: policy_pb2.AdapterHeader,
        dtype: str,
        checksums: Mapping[str, int],
    ) -> None:
        version = header.version
        if answer.policy_version != version:
            raise PublishError(
                f"policy server {address} serves version {answer.policy_version} after version "
                f"{version} was sent"
            )
        if answer.merged_digest != merged_digest(header, dtype):
            raise PublishError(
                f"policy server {address} made version {version} of other weights, or in another "
                "way, than the trainer: run the same release with the same policy.dtype on all of "
                "them"
            )
        wrong = [
            layer
            for layer, own in checksums.items()
            if answer.checksums.get(layer, own if answer.already_applied else None) != own
        ]
        if not wrong:
            return
        difference = (
            f"policy server {address} merged version {version} into other weights than the "
            f"trainer, in {len(wrong)} of {len(checksums)} layers ({wrong[0]})"
        )
        if self._digests == "require":
            raise PublishError(
                f'{difference}. On different hardware set trainer.merged_digest = "report"'
            )
        _LOG.warning("%s", difference)

    async def _replicas(self) -> list[str]:
        found = await asyncio.to_thread(replica_addresses, self._addresses)
        if not found:
            raise PublishError(f"policy.addresses = {self._addresses!r} names no policy server")
        return found

    async def _ask_all(
        self, call: Callable[[Stub], Awaitable[T]], addresses: Sequence[str]
    ) -> dict[str, T]:
        answers = await asyncio.gather(*(self._ask(call, address) for address in addresses))
        pairs = zip(addresses, answers, strict=True)
        return {address: answer for address, answer in pairs if answer is not None}

    async def _ask(self, call: Callable[[Stub], Awaitable[T]], address: str) -> T | None:
        """One replica's answer, asked again while the replica is away; None: it is gone for good,
        as when a deployment is scaled down.
        """
        deadline = time.monotonic() + self._timeout
        async with open_channel(address, self._channel) as channel:
            stub: Stub = policy_pb2_grpc.PolicyServiceStub(channel)
            while True:
                try:
                    return await call(stub)
                except grpc.aio.AioRpcError as error:
                    if not passes(error) or time.monotonic() > deadline:
                        raise PublishError(f"policy server {address}: {describe(error)}") from error
                    if address not in await self._replicas():
                        _LOG.info("policy server %s is no longer one of the run's", address)
                        return None
                    _LOG.warning("policy server %s: %s; trying again", address, describe(error))
                await asyncio.sleep(_RETRY_SECONDS)


def passes(error: grpc.aio.AioRpcError) -> bool:
    """Whether to ask again may help."""
    return error.code() in _PASSING or error.details() == _WRITE_FAILED


async def _requests(
    header: policy_pb2.AdapterHeader, adapter: Adapter
) -> AsyncIterator[policy_pb2.UpdateWeightsRequest]:
    yield policy_pb2.UpdateWeightsRequest(header=header)
    for chunk in adapter_chunks(adapter):
        yield policy_pb2.UpdateWeightsRequest(chunk=chunk)


def check_policy(
    policy: policy_pb2.GetPolicyResponse,
    model: PolicySpec,
    digest: str,
    center_crop: bool | None,
) -> None:
    """What must agree before the first episode is worth anything.

    Raises:
        PublishError: the server has another base checkpoint, answers or sees otherwise, or crops
            otherwise.
    """
    if policy.base_digest != digest:
        raise PublishError(
            f"the policy server has base checkpoint {policy.base_digest[:12]} ({policy.model}), "
            f"the trainer {digest[:12]}: policy.checkpoint must be the same on both"
        )
    # What family.json says isn't among the weights. Servers before it say nothing of it.
    served = (policy.chunk or 1, tuple(policy.cameras) or model.cameras, policy.proprio)
    if served != (own := (model.chunk, model.cameras, model.proprio_dim)):
        raise PublishError(
            f"the policy server answers {_described(*served)}, the trainer's policy "
            f"{_described(*own)}: policy.checkpoint must be the same on both, family.json included"
        )
    expected = model.crops(center_crop)
    if policy.center_crop != expected:
        raise PublishError(
            f"the policy server's centre crop is {policy.center_crop}, the trainer's {expected}: "
            "policy.center_crop must be the same on both"
        )


def _described(chunk: int, cameras: Sequence[str], proprio: int) -> str:
    """What a policy answers to what."""
    reads = f" and {proprio} numbers of proprioception" if proprio else ""
    return f"{chunk} control steps to {', '.join(cameras)}{reads}"
