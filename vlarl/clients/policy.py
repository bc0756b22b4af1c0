"""Clients of the policy server.

    with PolicyClient("127.0.0.1:50051") as policy:
        action = policy.predict(frame, "put the bowl on the plate", temperature=1.0, seed=3)
        action.values            # float32[7]: un-normalised, in the dataset's units

An image is encoded bytes (JPEG or PNG), sent as they are, or a uint8 array [height, width, 3],
sent as PNG so that the server sees exactly these pixels. Whoever trades pixels for bandwidth
encodes a JPEG and sends its bytes. docs/clients.md has more, `vlarl.clients.env` the simulator's
side.
"""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import grpc
import numpy as np
from google.protobuf.message import Message
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from vlarl.clients.closing import Closing
from vlarl.clients.retry import Patience
from vlarl.policy.v1 import policy_pb2, policy_pb2_grpc
from vlarl.rpc.arguments import (
    LONGEST_SECONDS,
    finite_numbers,
    flag,
    float32,
    number,
    optional_text,
    sequence,
    text,
    whole,
)
from vlarl.rpc.channel import channel_config, open_channel, open_sync_channel
from vlarl.rpc.errors import PolicyError

__all__ = ["Action", "AsyncPolicyClient", "Observation", "PolicyClient", "PolicyError"]

T = TypeVar("T")
EncodedOrFrame = bytes | NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Action:
    """One answer: of most policies for one control step of D numbers (7), of those with a chunk for
    H steps at once.
    """

    token_ids: NDArray[np.int64]
    """[H * D], vocabulary ids of the action tokens."""
    logprobs: NDArray[np.float32]
    """[H * D], natural-log probability of each token over the 256 action ids, at the sampling
    temperature (at temperature 0: at temperature 1)."""
    values: NDArray[np.float32]
    """[D], the un-normalised action, in the units of the dataset; of a chunk [H, D]."""
    policy_version: int
    """Version of the weights that produced it."""
    horizon: int = 1
    """H, the control steps that it is for."""


@dataclass(frozen=True, eq=False)
class Observation:
    """What one answer is asked for; see `PolicyClient.predict`."""

    image: EncodedOrFrame
    """The main camera's."""
    instruction: str
    """The task in words."""
    images: Mapping[str, EncodedOrFrame] | None = None
    """Of further cameras, by their names."""
    proprio: ArrayLike | None = None
    """[P], in the dataset's units."""


class PolicyClient(Closing):
    """Asks a policy server, or several behind one address; may be shared between threads.

    Methods raise `PolicyError` where a call fails and `ValueError` for arguments that can't be
    sent.
    """

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        token_file: Path | str | None = None,
        tls_ca: Path | str | None = None,
        tls_certificate: Path | str | None = None,
        tls_key: Path | str | None = None,
        timeout_seconds: float = 30.0,
    ) -> None:
        """Opens a channel; the first call connects.

        Args:
            address: HOST:PORT, HOST:PORT,HOST:PORT or dns:///NAME:PORT.
            token: bearer token.
            token_file: file with the bearer token, read again when it changes.
            tls_ca: certificates (PEM) to trust; turns TLS on.
            tls_certificate: the client's own certificate chain (PEM), for mutual TLS.
            tls_key: its private key (PEM).
            timeout_seconds: deadline of a call, its retries included, and its waiting where the
                server finds this client too fast.

        Raises:
            ValueError: an argument is of another kind; the message names it.
            ConfigError: a file of these can't be used, or an address of a list found.
        """
        config = channel_config(token_file, tls_ca, tls_certificate, tls_key, timeout_seconds)
        self._address = address
        self._timeout = config.timeout_seconds
        self._channel = open_sync_channel(address, config, token=token)
        self._stub = policy_pb2_grpc.PolicyServiceStub(self._channel)

    def get_policy(self) -> policy_pb2.GetPolicyResponse:
        """Describes the model and the weights that serve now."""
        return self._answer(self._stub.GetPolicy, policy_pb2.GetPolicyRequest())

    def predict(
        self,
        image: EncodedOrFrame,
        instruction: str,
        *,
        images: Mapping[str, EncodedOrFrame] | None = None,
        proprio: ArrayLike | None = None,
        temperature: float = 0.0,
        seed: int | None = None,
        unnorm_key: str | None = None,
        center_crop: bool | None = None,
        timeout_seconds: float | None = None,
    ) -> Action:
        """Answers what to do next.

        Args:
            image: JPEG or PNG bytes, or uint8 [height, width, 3], of the main camera.
            instruction: the task in words.
            images: of further cameras by their names, where the policy sees several
                (`get_policy().cameras`).
            proprio: [P], in the dataset's units, where the policy reads it
                (`get_policy().proprio`).
            temperature: 0 takes the most probable tokens.
            seed: of the sampling; none: the server's own random stream.
            unnorm_key: dataset statistics that give the action its units; none: the only ones.
            center_crop: overrides the server's centre crop.
            timeout_seconds: deadline of this call; none: the client's.

        Raises:
            ValueError: an argument can't be sent; the message names it.
            PolicyError: the call failed.
        """
        asked = [_observation(image, instruction, seed, images, proprio)]
        request = _request(asked, temperature, unnorm_key, center_crop)
        return _actions(self._answer(self._stub.PredictActions, request, timeout_seconds), 1)[0]

    def predict_batch(
        self,
        observations: Sequence[tuple[EncodedOrFrame, str] | Observation],
        *,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
        unnorm_key: str | None = None,
        center_crop: bool | None = None,
        timeout_seconds: float | None = None,
    ) -> list[Action]:
        """Answers each (image, instruction), or `Observation`, in one request; see `predict`."""
        asked = _observations(observations, seeds)
        request = _request(asked, temperature, unnorm_key, center_crop)
        answer = self._answer(self._stub.PredictActions, request, timeout_seconds)
        return _actions(answer, len(asked))

    def _answer(self, call: Callable[..., T], request: Message, seconds: float | None = None) -> T:
        patience = Patience(self._timeout if seconds is None else _seconds(seconds))
        while True:
            try:
                return call(request, timeout=patience.left)
            except grpc.RpcError as error:
                pause = patience.pause_after(PolicyError.from_rpc(error, self._address))
            time.sleep(pause)

    def close(self) -> None:
        """Closes the channel; calls in progress are cancelled."""
        self._channel.close()


class AsyncPolicyClient:
    """`PolicyClient` for asyncio: construct and use it within one running event loop."""

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        token_file: Path | str | None = None,
        tls_ca: Path | str | None = None,
        tls_certificate: Path | str | None = None,
        tls_key: Path | str | None = None,
        timeout_seconds: float = 30.0,
    ) -> None:
        """Opens a channel; see `PolicyClient`."""
        config = channel_config(token_file, tls_ca, tls_certificate, tls_key, timeout_seconds)
        self._address = address
        self._timeout = config.timeout_seconds
        self._channel = open_channel(address, config, token=token)
        self._stub: policy_pb2_grpc.PolicyServiceAsyncStub = policy_pb2_grpc.PolicyServiceStub(
            self._channel
        )

    async def get_policy(self) -> policy_pb2.GetPolicyResponse:
        """Describes the model and the weights that serve now."""
        return await self._answer(self._stub.GetPolicy, policy_pb2.GetPolicyRequest())

    async def predict(
        self,
        image: EncodedOrFrame,
        instruction: str,
        *,
        images: Mapping[str, EncodedOrFrame] | None = None,
        proprio: ArrayLike | None = None,
        temperature: float = 0.0,
        seed: int | None = None,
        unnorm_key: str | None = None,
        center_crop: bool | None = None,
        timeout_seconds: float | None = None,
    ) -> Action:
        """Answers what to do next; see `PolicyClient.predict`."""
        asked = [_observation(image, instruction, seed, images, proprio)]
        request = _request(asked, temperature, unnorm_key, center_crop)
        answer = await self._answer(self._stub.PredictActions, request, timeout_seconds)
        return _actions(answer, 1)[0]

    async def predict_batch(
        self,
        observations: Sequence[tuple[EncodedOrFrame, str] | Observation],
        *,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
        unnorm_key: str | None = None,
        center_crop: bool | None = None,
        timeout_seconds: float | None = None,
    ) -> list[Action]:
        """Answers each (image, instruction), or `Observation`; see `PolicyClient.predict`."""
        asked = _observations(observations, seeds)
        request = _request(asked, temperature, unnorm_key, center_crop)
        answer = await self._answer(self._stub.PredictActions, request, timeout_seconds)
        return _actions(answer, len(asked))

    async def _answer(
        self, call: Callable[..., Awaitable[T]], request: Message, seconds: float | None = None
    ) -> T:
        patience = Patience(self._timeout if seconds is None else _seconds(seconds))
        while True:
            try:
                return await call(request, timeout=patience.left)
            except grpc.RpcError as error:
                pause = patience.pause_after(PolicyError.from_rpc(error, self._address))
            await asyncio.sleep(pause)

    async def close(self) -> None:
        """Closes the channel; calls in progress are cancelled."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()


def _request(
    observations: list[policy_pb2.Observation],
    temperature: float,
    unnorm_key: str | None,
    center_crop: bool | None,
) -> policy_pb2.PredictActionsRequest:
    return policy_pb2.PredictActionsRequest(
        observations=observations,
        temperature=float32("temperature", temperature),
        unnorm_key=optional_text("unnorm_key", unnorm_key),
        center_crop=flag("center_crop", center_crop),
    )


def _observations(
    observations: Sequence[tuple[EncodedOrFrame, str] | Observation], seeds: Sequence[int] | None
) -> list[policy_pb2.Observation]:
    pairs = sequence("observations", observations, "(image, instruction)")
    if not pairs:
        raise ValueError("observations: at least one is needed")
    chosen: list[object] = [None] * len(pairs)
    if seeds is not None:
        given = enumerate(sequence("seeds", seeds, "whole numbers"))
        chosen = [whole(f"seeds[{index}]", seed, 64) for index, seed in given]
    if len(chosen) != len(pairs):
        raise ValueError(f"seeds: {len(chosen)} of them for {len(pairs)} observations")
    found = []
    for index, (pair, seed) in enumerate(zip(pairs, chosen, strict=True)):
        where = f"observations[{index}]"
        if isinstance(pair, Observation):
            asked = (pair.image, pair.instruction, seed, pair.images, pair.proprio)
        elif isinstance(pair, tuple | list) and len(pair) == 2:
            asked = (pair[0], pair[1], seed, None, None)
        else:
            raise ValueError(f"{where} must be (image, instruction), or an Observation")
        found.append(_observation(*asked, f"{where}: "))
    return found


def _observation(
    image: object,
    instruction: object,
    seed: object,
    images: object = None,
    proprio: object = None,
    where: str = "",
) -> policy_pb2.Observation:
    words = text(f"{where}instruction", instruction)
    if not words.strip():
        raise ValueError(f"{where}instruction is empty: the task in words")
    if images is not None and not isinstance(images, Mapping):
        kind = type(images).__name__
        raise ValueError(f"{where}images must be images by their camera's name, not {kind}")
    further = images if isinstance(images, Mapping) else {}
    return policy_pb2.Observation(
        image=_encoded(image, f"{where}image"),
        instruction=words,
        seed=None if seed is None else whole("seed", seed, 64),
        images=[
            policy_pb2.CameraImage(
                camera=text(f"{where}images' camera", camera),
                image=_encoded(one, f"{where}images[{camera!r}]"),
            )
            for camera, one in further.items()
        ],
        proprio=None if proprio is None else finite_numbers(f"{where}proprio", proprio),
    )


def _seconds(seconds: float) -> float:
    return number("timeout_seconds", seconds, most=LONGEST_SECONDS)


def _encoded(image: object, name: str) -> bytes:
    """The image as encoded bytes: an array becomes PNG, which keeps every pixel."""
    if isinstance(image, bytes | bytearray | memoryview):
        if not image.nbytes if isinstance(image, memoryview) else not image:
            raise ValueError(f"{name} has no bytes")
        return bytes(image)
    if not isinstance(image, np.ndarray):
        kind = type(image).__name__
        raise ValueError(f"{name} must be encoded bytes or a uint8 array, not {kind}")
    if image.dtype != np.uint8:
        raise ValueError(f"{name} must be an array of uint8 (0 to 255), not {image.dtype}")
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"{name} must be [height, width, 3], not {list(image.shape)}")
    encoded = io.BytesIO()
    # Level 1 is several times faster than the default and some per cent larger.
    Image.fromarray(np.ascontiguousarray(image)).save(encoded, "PNG", compress_level=1)
    return encoded.getvalue()


def _actions(response: policy_pb2.PredictActionsResponse, expected: int) -> list[Action]:
    if len(response.actions) != expected:
        text = f"{len(response.actions)} actions for {expected} observations"
        raise PolicyError(grpc.StatusCode.INTERNAL, text)
    return [
        Action(
            token_ids=np.array(action.token_ids, np.int64),
            logprobs=np.array(action.logprobs, np.float32),
            values=_values(action),
            policy_version=action.policy_version,
            horizon=max(action.horizon, 1),
        )
        for action in response.actions
    ]


def _values(action: policy_pb2.Action) -> NDArray[np.float32]:
    values = np.array(action.values, np.float32)
    if action.horizon <= 1:
        return values
    if len(values) % action.horizon:
        text = f"{len(values)} values for {action.horizon} control steps"
        raise PolicyError(grpc.StatusCode.INTERNAL, text)
    return values.reshape(action.horizon, -1)
