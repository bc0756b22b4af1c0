"""PolicyService: checks a request at the door, hands its observations to the engine."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from vlarl.config import PolicyConfig
from vlarl.config.services import MAX_TEMPERATURE, MIN_TEMPERATURE
from vlarl.errors import ConfigError
from vlarl.images import ImageError
from vlarl.models.base import Processor
from vlarl.models.instructions import MAX_INSTRUCTION_CHARACTERS, words_of
from vlarl.models.serving import Encoded, Observation, ObservationError, SampledAction
from vlarl.models.statistics import ActionStats
from vlarl.policy.v1 import policy_pb2 as pb
from vlarl.policy.v1 import policy_pb2_grpc
from vlarl.rpc.errors import FailedPrecondition, Internal, InvalidRequest, Unavailable
from vlarl.rpc.interception import Context
from vlarl.weights.adapter import AdapterError
from vlarl_policy.metrics import PolicyMetrics
from vlarl_policy.swap import SwapFailedError, VersionRefused, WeightsLostError, WeightSwapper
from vlarl_policy.vllm_engine import EngineDeadError, PolicyEngine

Problem = tuple[str, str]
"""A request's field and what is wrong with it."""

_SKIP_SECONDS = 10.0
_LARGEST = float(np.finfo(np.float32).max)
"""What answers can hold: they are float32."""


class UnsoundActionError(Exception):
    """An answer that must not leave, in one sentence: a robot would move by it."""


class PolicyServicer(policy_pb2_grpc.PolicyServiceServicer):
    """The service's calls.

    It listens before it can answer; `open` gives it the engine. `lost` resolves, with one
    sentence, when the engine can't go on.
    """

    def __init__(
        self,
        config: PolicyConfig,
        processor: Processor,
        base_digest: str,
        metrics: PolicyMetrics,
    ) -> None:
        self._config = config
        self._processor = processor
        self._spec = processor.spec
        self._base_digest = base_digest
        self._metrics = metrics
        self._replica: tuple[PolicyEngine, WeightSwapper] | None = None
        self._image_threads = ThreadPoolExecutor(thread_name_prefix="image")
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def open(self, engine: PolicyEngine, swapper: WeightSwapper) -> None:
        """From now on calls are answered."""
        self._replica = engine, swapper

    def _opened(self) -> tuple[PolicyEngine, WeightSwapper]:
        if self._replica is None:
            raise Unavailable("the checkpoint is still being loaded", reason="STARTING")
        return self._replica

    async def GetPolicy(
        self,
        request: pb.GetPolicyRequest,  # noqa: ARG002
        context: Context,  # noqa: ARG002
    ) -> pb.GetPolicyResponse:
        """Describes the model and the weights that serve now."""
        engine, swapper = self._opened()
        serving = swapper.serving
        return pb.GetPolicyResponse(
            model=self._spec.name,
            run_id=serving.run_id,
            policy_version=serving.version,
            action_dim=self._spec.action_dim,
            unnorm_keys=sorted(self._spec.norm_stats),
            image_size=self._spec.image_size,
            center_crop=self._processor.center_crop,
            action_bins=len(self._spec.action_ids),
            dtype=engine.dtype,
            base_digest=self._base_digest,
            merged_digest=serving.merged_digest,
            family=self._spec.family,
            chunk=self._spec.chunk,
            cameras=self._spec.cameras,
            proprio=self._spec.proprio_dim,
        )

    async def PredictActions(
        self,
        request: pb.PredictActionsRequest,
        context: Context,  # noqa: ARG002
    ) -> pb.PredictActionsResponse:
        """One answer for each observation."""
        started = time.perf_counter()
        engine, _ = self._opened()
        try:
            temperature = _temperature(request)
            statistics = self._check_request(request, temperature)
            encoded = await self._encode(request)
            seeds = [one.seed if one.HasField("seed") else None for one in request.observations]
            sampled = await asyncio.gather(
                *(
                    engine.act(one, temperature, seed)
                    for one, seed in zip(encoded, seeds, strict=True)
                )
            )
        except InvalidRequest:
            self._metrics.failures.labels("PredictActions", "invalid").inc()
            raise
        except EngineDeadError as error:
            self._metrics.failures.labels("PredictActions", "engine").inc()
            raise self.lose(f"the engine died: {error}") from error
        try:
            actions = [action_of(one, statistics, self._processor) for one in sampled]
        except UnsoundActionError as error:
            self._metrics.failures.labels("PredictActions", "value").inc()
            raise Internal(str(error), reason="NOT_FINITE") from error
        self._metrics.actions.inc(len(sampled))
        self._metrics.request_seconds.observe(time.perf_counter() - started)
        return pb.PredictActionsResponse(actions=actions)

    async def UpdateWeights(
        self,
        request_iterator: AsyncIterator[pb.UpdateWeightsRequest],
        context: Context,  # noqa: ARG002
    ) -> pb.UpdateWeightsResponse:
        """Receives an adapter and swaps it in."""
        _, swapper = self._opened()
        try:
            return await _update(swapper, request_iterator)
        except AdapterError as error:
            self._metrics.failures.labels("UpdateWeights", error.cause).inc()
            if error.cause == "base":
                raise FailedPrecondition(str(error), reason="OTHER_BASE") from error
            field = "header" if error.cause in ("header", "layer", "shape", "size") else "chunk"
            raise InvalidRequest([(field, str(error))]) from error
        except VersionRefused as error:
            self._metrics.failures.labels("UpdateWeights", "version").inc()
            raise FailedPrecondition(str(error), reason="VERSION") from error
        except SwapFailedError as error:
            self._metrics.failures.labels("UpdateWeights", "swap").inc()
            raise Internal(str(error), reason="SWAP_FAILED") from error
        except (WeightsLostError, EngineDeadError) as error:
            self._metrics.failures.labels("UpdateWeights", "engine").inc()
            raise self.lose(str(error) or "the engine died") from error
        except asyncio.CancelledError:
            self._metrics.failures.labels("UpdateWeights", "cancelled").inc()
            raise

    def close(self) -> None:
        """Ends the image threads."""
        self._image_threads.shutdown(wait=False, cancel_futures=True)

    def lose(self, sentence: str) -> Unavailable:
        """Declares this process unable to answer, and makes the error that says so."""
        if not self.lost.done():
            self.lost.set_result(sentence)
        return Unavailable(sentence, reason="ENGINE_DEAD")

    def _check_request(self, request: pb.PredictActionsRequest, temperature: float) -> ActionStats:
        problems: list[Problem] = []
        count = len(request.observations)
        if not 1 <= count <= self._config.max_observations:
            problems.append(
                ("observations", f"1 to {self._config.max_observations} of them, not {count}")
            )
        if temperature != 0 and not MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE:
            problems.append(
                (
                    "temperature",
                    f"0 (greedy) or {MIN_TEMPERATURE} to {MAX_TEMPERATURE:g}, not {temperature:g}",
                )
            )
        try:
            statistics = self._spec.statistics(request.unnorm_key)
        except ConfigError as error:
            problems.append(("unnorm_key", str(error)))
        # Of those that are too many, of which a client can send millions, nothing more is said.
        for index, observation in enumerate(request.observations[: self._config.max_observations]):
            where = f"observations[{index}]"
            problems += [(f"{where}.{field}", text) for field, text in self._missing(observation)]
            length = len(observation.instruction)
            if not words_of(observation.instruction) or length > MAX_INSTRUCTION_CHARACTERS:
                problems.append(
                    (
                        f"{where}.instruction",
                        f"1 to {MAX_INSTRUCTION_CHARACTERS} characters, not {length}",
                    )
                )
        if problems:
            raise InvalidRequest(problems)
        return statistics

    def _missing(self, observation: pb.Observation) -> Iterator[Problem]:
        """What of the observation the policy needs, and lacks."""
        images, cameras = _images(observation, self._spec.cameras), self._spec.cameras
        if not images.get(cameras[0]):
            yield "image", "is empty"
        for camera in cameras[1:]:
            if not images.get(camera):
                sees = ", ".join(cameras)
                yield "images", f"the policy sees {sees}: the image of {camera} is missing"
        found, wanted = len(observation.proprio), self._spec.proprio_dim
        if wanted and found != wanted:
            yield "proprio", f"the policy reads {wanted} numbers, not {found}"

    def _observation(
        self, observation: pb.Observation, unnorm_key: str, center_crop: bool | None
    ) -> Observation:
        images = _images(observation, self._spec.cameras)
        return Observation(
            [images[camera] for camera in self._spec.cameras],
            observation.instruction,
            observation.proprio,
            unnorm_key,
            center_crop,
        )

    async def _encode(self, request: pb.PredictActionsRequest) -> list[Encoded]:
        loop = asyncio.get_running_loop()
        crop = request.center_crop if request.HasField("center_crop") else None
        answers = await asyncio.gather(
            *(
                loop.run_in_executor(
                    self._image_threads,
                    self._processor.encode,
                    self._observation(observation, request.unnorm_key, crop),
                )
                for observation in request.observations
            ),
            # One answer names every bad observation of a request.
            return_exceptions=True,
        )
        problems: list[Problem] = []
        encoded: list[Encoded] = []
        for index, answer in enumerate(answers):
            match answer:
                case ImageError():
                    problems.append((f"observations[{index}].image", str(answer)))
                case ObservationError():
                    problems.append((f"observations[{index}].{answer.field}", str(answer)))
                case BaseException():
                    raise answer
                case _:
                    encoded.append(answer)
        if problems:
            raise InvalidRequest(problems)
        return encoded


def action_of(sampled: SampledAction, statistics: ActionStats, processor: Processor) -> pb.Action:
    """The answer that the sampled tokens become.

    Raises:
        UnsoundActionError: it would hold a number that isn't finite, or another token than an
            action's.
    """
    version, action_ids = sampled.policy_version, processor.spec.action_ids
    sound = (np.abs(sampled.logprobs) <= _LARGEST).all()
    if not sound or not all(token in action_ids for token in sampled.token_ids):
        whose = f"version {version}'s" if version else "the checkpoint's"
        raise UnsoundActionError(
            f"{whose} weights give probabilities that aren't finite numbers, so there is no "
            "action; other weights have to be served"
        )
    values = processor.actions(sampled.token_ids, statistics)
    if not (np.abs(values) <= _LARGEST).all():
        raise UnsoundActionError(
            "the dataset statistics turn the tokens into numbers that aren't finite"
        )
    return pb.Action(
        token_ids=sampled.token_ids,
        logprobs=sampled.logprobs,
        values=values.ravel().tolist(),
        policy_version=version,
        horizon=processor.spec.chunk,
    )


def _images(observation: pb.Observation, cameras: Sequence[str]) -> dict[str, bytes]:
    """By their camera's name; the one without a name is the main camera's."""
    named = {one.camera: one.image for one in observation.images}
    return named | {cameras[0]: observation.image} if observation.image else named


def _temperature(request: pb.PredictActionsRequest) -> float:
    """The request's, of which float32 puts 0.01 just below MIN_TEMPERATURE."""
    lowest = float(np.float32(MIN_TEMPERATURE))
    return MIN_TEMPERATURE if request.temperature == lowest else float(request.temperature)


async def _update(
    swapper: WeightSwapper, requests: AsyncIterator[pb.UpdateWeightsRequest]
) -> pb.UpdateWeightsResponse:
    """The swap; whatever its answer, the client may send to its end before it gets it."""
    try:
        answer = await swapper.update(_parts(requests))
    except (AdapterError, VersionRefused):
        await _skip(requests)
        raise
    await _skip(requests)
    return answer


async def _skip(requests: AsyncIterator[pb.UpdateWeightsRequest]) -> None:
    # An asyncio client in whose writing an answer falls may see INTERNAL in its place.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_SKIP_SECONDS):
            async for _ in requests:
                pass


async def _parts(
    requests: AsyncIterator[pb.UpdateWeightsRequest],
) -> AsyncIterator[pb.AdapterHeader | pb.AdapterChunk]:
    async for request in requests:
        yield request.header if request.WhichOneof("part") == "header" else request.chunk
