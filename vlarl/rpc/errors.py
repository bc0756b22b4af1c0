# ruff: noqa: N818 - the exceptions are named after gRPC's status codes
"""Errors across gRPC: typed exceptions in servicers, statuses with details on the wire, sentences
at the client.

    raise InvalidRequest([("observations[0].image", "not a JPEG or PNG image")])
    raise FailedPrecondition("version 3 serves already, 2 is older", reason="OLDER_VERSION")

Details are google.rpc's: BadRequest for fields, ErrorInfo (domain "vlarl") for the reason,
RetryInfo for when to come back.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, ClassVar, Self

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from vlarl.rpc.interception import Context, MalformedRequest, Method

logger = logging.getLogger(__name__)

DOMAIN = "vlarl"
# Details travel as a header, of which a client takes 8 KiB.
_MAX_TEXT = 500
_MAX_VIOLATIONS = 8

Violation = tuple[str, str]
"""A field's path in the request, and what is wrong with it."""


class ServiceError(Exception):
    """A refusal that the client is told about; servicers raise the subclasses."""

    code: ClassVar[grpc.StatusCode]

    def __init__(self, message: str, *, reason: str = "") -> None:
        """Takes one sentence for people and an UPPER_SNAKE_CASE reason for programs."""
        super().__init__(message)
        self.message = message
        self.reason = reason or self.code.name

    def details(self) -> list[Any]:
        """Messages of google.rpc that the status carries."""
        return [error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN)]


class InvalidRequest(ServiceError):
    """The request is wrong in itself, whatever state the server is in."""

    code = grpc.StatusCode.INVALID_ARGUMENT

    def __init__(self, violations: Sequence[Violation], *, reason: str = "") -> None:
        """Takes each wrong field with its description."""
        shown = [(field, text[:_MAX_TEXT]) for field, text in violations[:_MAX_VIOLATIONS]]
        super().__init__(_sentence(shown)[:_MAX_TEXT], reason=reason)
        self.violations = shown

    def details(self) -> list[Any]:
        """The reason, and every wrong field."""
        fields = [
            error_details_pb2.BadRequest.FieldViolation(field=field, description=text)
            for field, text in self.violations
        ]
        return [*super().details(), error_details_pb2.BadRequest(field_violations=fields)]


class NotFound(ServiceError):
    """What the request names doesn't exist."""

    code = grpc.StatusCode.NOT_FOUND


class FailedPrecondition(ServiceError):
    """The server's state forbids the request, and repeating it won't help."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class Unavailable(ServiceError):
    """Not now: the same request may be sent again."""

    code = grpc.StatusCode.UNAVAILABLE


class ResourceExhausted(ServiceError):
    """More than the server has or allows."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED

    def __init__(
        self, message: str, *, reason: str = "", retry_seconds: float | None = None
    ) -> None:
        """Takes the seconds after which the same request is worth another try, if they're known."""
        super().__init__(message, reason=reason)
        self.retry_seconds = retry_seconds

    def details(self) -> list[Any]:
        """The reason, and when to come back."""
        if self.retry_seconds is None:
            return super().details()
        delay = Duration()
        # Up, or who comes back on time would be too early.
        delay.FromNanoseconds(math.ceil(self.retry_seconds * 1e9))
        return [*super().details(), error_details_pb2.RetryInfo(retry_delay=delay)]


class DeadlineExceeded(ServiceError):
    """It took longer than it may."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class Unauthenticated(ServiceError):
    """The caller didn't prove who it is."""

    code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDenied(ServiceError):
    """The caller is known, and may not do this."""

    code = grpc.StatusCode.PERMISSION_DENIED


class Unimplemented(ServiceError):
    """The server doesn't have this method."""

    code = grpc.StatusCode.UNIMPLEMENTED


class Internal(ServiceError):
    """The server's own fault, with a cause it can name."""

    code = grpc.StatusCode.INTERNAL


def _sentence(violations: Iterable[Violation]) -> str:
    return "; ".join(f"{field}: {text}" for field, text in violations)


@contextlib.asynccontextmanager
async def error_guard(method: Method, context: Context) -> AsyncIterator[None]:
    """Turns a servicer's exception into the call's status; the unexpected is logged here, once."""
    try:
        yield
    except ServiceError as error:
        await _abort(context, error)
    except MalformedRequest:
        text = f"these bytes are no message of {method.name}"
        await _abort(context, InvalidRequest([("request", text)], reason="MALFORMED"))
    except grpc.aio.AbortError:
        raise
    except NotImplementedError as error:  # from the generated base class
        await _abort(context, Unimplemented(f"{method.name} isn't offered here: {error}"))
    except Exception as error:  # the boundary between servicers and the wire
        logger.exception("%s/%s failed", method.service, method.name)
        text = f"{type(error).__name__} in {method.name}; the server's log has the traceback"
        await _abort(context, Internal(text, reason="UNEXPECTED"))


async def _abort(context: Context, error: ServiceError) -> None:
    status = status_pb2.Status(code=error.code.value[0], message=error.message[:_MAX_TEXT])
    for detail in error.details():
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    raw = rpc_status.to_status(status)
    await context.abort(raw.code, raw.details, raw.trailing_metadata)


class CallError(Exception):
    """A call failed; `str()` is one sentence that says what and where."""

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        violations: Sequence[Violation] = (),
        reason: str = "",
        retry_seconds: float | None = None,
    ) -> None:
        """Takes the status code, the server's sentence, and what else it said."""
        super().__init__(f"{message} ({code.name})")
        self.code = code
        self.message = message
        self.violations = list(violations)
        """The wrong fields that the server named, each with what is wrong with it."""
        self.reason = reason
        """The server's reason for programs (docs/api.md); "" where no server gave one."""
        self.retry_seconds = retry_seconds
        """Seconds after which the server wants to be asked again, where it said so."""

    @classmethod
    def from_rpc(cls, error: grpc.RpcError, address: str) -> Self:
        """The same error with the server's details read, and its address named."""
        message = f"{address}: {_message(error)}"
        return cls(
            status_code(error), message, violations(error), reason(error), retry_seconds(error)
        )


class PolicyError(CallError):
    """A call of a policy server failed."""


class EnvError(CallError):
    """A call of an env server failed, and with it the episode that it belonged to."""


def status_code(error: grpc.RpcError) -> grpc.StatusCode:
    """The failed call's status code."""
    code: grpc.StatusCode = _call(error).code()
    return code


def violations(error: grpc.RpcError) -> list[Violation]:
    """The wrong fields that the server named."""
    bad = error_details_pb2.BadRequest()
    found = [detail for detail in _details(error) if detail.Is(bad.DESCRIPTOR)]
    for detail in found:
        detail.Unpack(bad)
    return [(entry.field, entry.description) for entry in bad.field_violations]


def reason(error: grpc.RpcError) -> str:
    """The server's reason for programs, "" where it gave none."""
    named = error_details_pb2.ErrorInfo()
    for detail in _details(error):
        if detail.Is(named.DESCRIPTOR) and detail.Unpack(named) and named.domain == DOMAIN:
            return str(named.reason)
    return ""


def retry_seconds(error: grpc.RpcError) -> float | None:
    """Seconds after which the server wants to be asked again; None where it doesn't say."""
    info = error_details_pb2.RetryInfo()
    for detail in _details(error):
        if detail.Is(info.DESCRIPTOR) and detail.Unpack(info):
            return float(info.retry_delay.ToNanoseconds() / 1e9)
    return None


def describe(error: grpc.RpcError) -> str:
    """A failed call in one sentence, ending with the status code's name."""
    return f"{_message(error)} ({status_code(error).name})"


def _call(error: grpc.RpcError) -> Any:  # noqa: ANN401
    # Both a failed synchronous call and AioRpcError carry code, details and trailing metadata.
    return error


def _message(error: grpc.RpcError) -> str:
    call = _call(error)
    if call.code() is grpc.StatusCode.DEADLINE_EXCEEDED and not reason(error):
        return "no answer before the deadline"
    if call.code() is grpc.StatusCode.UNIMPLEMENTED and not reason(error):
        return "the server has no such method: is this another service's address?"
    return _sentence(violations(error)) or call.details() or "no message"


def _details(error: grpc.RpcError) -> list[Any]:
    try:
        status = rpc_status.from_call(_call(error))
    except ValueError:  # details that contradict the status, made by something in between
        return []
    return list(status.details) if status is not None else []
