"""The trainer's latest adapter, fetched by a replica that was not there when it was published."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

import grpc

from vlarl.config import ChannelConfig
from vlarl.errors import FatalError
from vlarl.policy.v1 import policy_pb2 as pb
from vlarl.rpc.channel import open_channel
from vlarl.rpc.errors import describe
from vlarl.trainer.v1 import trainer_pb2, trainer_pb2_grpc
from vlarl.weights.adapter import AdapterError
from vlarl_policy.swap import SwapFailedError, VersionRefused, WeightsLostError, WeightSwapper
from vlarl_policy.vllm_engine import EngineDeadError

_LOG = logging.getLogger(__name__)
_TRAINER_SECONDS = 120.0
_AWAY = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}


class PolicyServerError(FatalError):
    """The policy server can't go on; the message is one sentence for the log."""


class WeightFollower:
    """What one replica asks the trainer."""

    def __init__(
        self, address: str, channel: ChannelConfig, base_digest: str, swapper: WeightSwapper
    ) -> None:
        self._address = address
        self._channel = channel
        self._base_digest = base_digest
        self._swapper = swapper

    async def fetch_first(self) -> None:
        """Swaps in the adapter that the trainer published last.

        A trainer that can't be reached isn't an error: it may start after this server, and
        publishes to it then.

        Raises:
            PolicyServerError: the trainer refuses, or its adapter doesn't fit this checkpoint.
        """
        try:
            await self._fetch()
        except (AdapterError, SwapFailedError, WeightsLostError) as error:
            raise PolicyServerError(f"the adapter of trainer {self._address}: {error}") from error
        except grpc.aio.AioRpcError as error:
            if error.code() not in _AWAY:
                raise PolicyServerError(f"trainer {self._address}: {describe(error)}") from error
            _LOG.warning("the base checkpoint serves, no trainer: %s", describe(error))
        if not self._swapper.serving.version:
            _LOG.info("trainer %s has published nothing yet", self._address)

    async def follow(self, seconds: float, lose: Callable[[str], object]) -> None:
        """Asks again and again, until cancelled; what goes wrong is logged, the old weights serve.

        Args:
            seconds: between two questions.
            lose: told when neither the new weights nor the old ones can serve.
        """
        while True:
            await asyncio.sleep(seconds)
            before = self._swapper.serving.version
            try:
                await self._fetch()
            except (WeightsLostError, EngineDeadError) as error:
                lose(str(error) or "the engine died")
                return
            except VersionRefused as error:
                # A run that goes on from an earlier point says so itself when it publishes.
                _LOG.debug("trainer %s has published another version: %s", self._address, error)
            except (AdapterError, SwapFailedError) as error:
                _LOG.warning("the adapter of trainer %s: %s", self._address, error)
            except grpc.aio.AioRpcError as error:
                level = logging.DEBUG if error.code() in _AWAY else logging.WARNING
                _LOG.log(level, "trainer %s: %s", self._address, describe(error))
            if self._swapper.serving.version != before:
                _LOG.info("a publication had missed this replica")

    async def _fetch(self) -> None:
        serving = self._swapper.serving
        request = trainer_pb2.GetWeightsRequest(
            base_digest=self._base_digest,
            run_id=serving.run_id,
            policy_version=serving.version,
        )
        async with open_channel(self._address, self._channel) as channel:
            stub = trainer_pb2_grpc.TrainerServiceStub(channel)
            call = stub.GetWeights(request, timeout=_TRAINER_SECONDS)

            async def parts() -> AsyncIterator[pb.AdapterHeader | pb.AdapterChunk]:
                async for answer in call:
                    yield answer.header if answer.WhichOneof("part") == "header" else answer.chunk

            stream = parts()
            header = await anext(stream, None)
            if header is not None:
                await self._swapper.update(_chain(header, stream))


async def _chain(
    first: pb.AdapterHeader | pb.AdapterChunk,
    rest: AsyncIterator[pb.AdapterHeader | pb.AdapterChunk],
) -> AsyncIterator[pb.AdapterHeader | pb.AdapterChunk]:
    yield first
    async for part in rest:
        yield part
