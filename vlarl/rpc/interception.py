# ruff: noqa: ANN401 - requests and responses are of every service's types
"""One server interceptor for all four kinds of gRPC methods.

What errors, authentication, limits and metrics have in common is "something before the call,
something after it". Each is a guard: an async context manager around the servicer's method.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError


class MalformedRequest(ValueError):  # noqa: N818 - what it is, not what went wrong
    """Bytes that are no message of the method, in the message's place."""


@dataclass(frozen=True)
class Method:
    """The method that is called."""

    service: str
    """Full name of the service: vlarl.policy.v1.PolicyService."""
    name: str
    """Name of the method: PredictActions."""
    streaming: bool
    """Whether requests or responses are a stream."""


Context = grpc.aio.ServicerContext[Any, Any]
Guard = Callable[[Method, Context], contextlib.AbstractAsyncContextManager[None]]


class GuardInterceptor(grpc.aio.ServerInterceptor):
    """Runs every call inside its guards; the first is the outermost.

    Servicer methods must be coroutines or async generators: a plain function would block the loop.
    A client that vanishes in the middle of a request stream ends it like one that has finished:
    what has to be whole must be checked for it.
    """

    def __init__(self, guards: Sequence[Guard]) -> None:
        self._guards = tuple(guards)

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wraps the method's handler; an unknown method stays unknown."""
        handler: Any = await continuation(handler_call_details)
        if handler is None:
            return None
        _, service, name = handler_call_details.method.split("/", 2)
        method = Method(service, name, handler.request_streaming or handler.response_streaming)
        kind, behaviour = _behaviour(handler)
        behaviour = (_whole_stream if handler.request_streaming else _whole)(behaviour)
        wrapped = self._streaming if handler.response_streaming else self._single
        constructor: Any = getattr(grpc, f"{kind}_rpc_method_handler")
        return constructor(  # type: ignore[no-any-return]
            wrapped(method, behaviour, handler.request_streaming),
            _tolerant(handler.request_deserializer),
            handler.response_serializer,
        )

    @contextlib.asynccontextmanager
    async def _guarded(
        self, method: Method, context: Context, place: int = 0
    ) -> AsyncIterator[None]:
        # Not an AsyncExitStack: its frame and the error that it raises hold each other, and with
        # them the whole request, until the garbage collector comes by, which may take gigabytes.
        if place == len(self._guards):
            yield
            return
        async with (
            self._guards[place](method, context),
            self._guarded(method, context, place + 1),
        ):
            yield

    def _single(self, method: Method, behaviour: Any, stream_in: bool) -> Any:
        async def call(request: Any, context: Context) -> Any:
            async with _released(request, stream_in), self._guarded(method, context):
                return await behaviour(request, context)

        return call

    def _streaming(self, method: Method, behaviour: Any, stream_in: bool) -> Any:
        # Responses are written, not yielded: a cancelled call then unwinds the servicer's
        # generator at once instead of whenever it is collected.
        async def call(request: Any, context: Context) -> None:
            async with _released(request, stream_in), self._guarded(method, context):
                answered = behaviour(request, context)
                if not hasattr(answered, "__aiter__"):
                    await answered
                    return
                async with contextlib.aclosing(answered) as responses:
                    async for response in responses:
                        await context.write(response)

        return call


@contextlib.asynccontextmanager
async def _released(request: Any, is_stream: bool) -> AsyncIterator[None]:
    """Ends a call such that its request can go: what gRPC keeps in rings of references would stay
    until the garbage collector comes by, which counts objects and not the megabytes in them.
    """
    try:
        yield
    except grpc.aio.AbortError as error:
        # gRPC holds this one, and raises it again itself when the method has returned. Its
        # traceback holds our frames, they hold the call's context, and that holds gRPC's state.
        error.__traceback__ = error.__context__ = None
    finally:
        if is_stream:
            # The reader holds the message that it gave out last.
            await aiter(request).aclose()


def _behaviour(handler: Any) -> tuple[str, Any]:
    requests = "stream" if handler.request_streaming else "unary"
    responses = "stream" if handler.response_streaming else "unary"
    kind = f"{requests}_{responses}"
    return kind, getattr(handler, kind)


def _tolerant(deserialize: Any) -> Callable[[bytes], Any]:
    """Bytes that can't be read become a `MalformedRequest`, which is raised inside the guards: gRPC
    itself would answer INTERNAL, as if it were the server's fault, and no guard would count it.
    """

    def read(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError as error:
            return MalformedRequest(str(error))

    return read


def _checked(request: Any) -> Any:
    if isinstance(request, MalformedRequest):
        raise request
    return request


def _whole(behaviour: Any) -> Any:
    def call(request: Any, context: Context) -> Any:
        return behaviour(_checked(request), context)

    return call


def _whole_stream(behaviour: Any) -> Any:
    async def checked(requests: Any) -> AsyncIterator[Any]:
        async for request in requests:
            yield _checked(request)

    def call(requests: Any, context: Context) -> Any:
        return behaviour(checked(requests), context)

    return call
