"""How often a caller may call: a token bucket for each, and when to come back for who is too fast.

The run's own services are never counted: whoever sends a token of `token_file` passes. Everybody
else has a bucket of its own, known by its client token, or by its address where it sends none that
is good, so that guessing tokens is slowed down too. Opening a stream is one call, whatever goes
through it.
"""

from __future__ import annotations

import contextlib
import ipaddress
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from urllib.parse import unquote

from prometheus_client import CollectorRegistry, Counter

from vlarl.rpc.auth import OPEN_SERVICES, TokenFile, sent_authorization
from vlarl.rpc.errors import ResourceExhausted
from vlarl.rpc.interception import Context, Guard, Method

MAX_CALLERS = 10_000
"""Callers remembered at once. One that is forgotten comes back with a full bucket."""


# Not the package `limits`: it counts in windows, without a burst apart from the rate, and says when
# to come back only if it is asked again.
class CallRate:
    """A token bucket for each caller.

    Of a bucket only the time is kept at which it is full again (the generic cell rate algorithm):
    a call moves it `1 / per_second` on, and may not move it further than `burst` calls from now.
    """

    def __init__(
        self,
        per_second: float,
        burst: int,
        *,
        max_callers: int = MAX_CALLERS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Takes what flows into a bucket, what fits into it, and a clock in seconds."""
        self._interval = 1 / per_second
        self._slack = (burst - 1) / per_second
        self._max_callers = max_callers
        self._clock = clock
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        """Callers remembered."""
        return len(self._full_at)

    def take(self, caller: str) -> float:
        """Seconds until the caller's next call is allowed; 0: this one is, and is counted."""
        now = self._clock()
        full_at = max(now, self._full_at.get(caller, now))
        wait = full_at - now - self._slack
        if wait > 1e-9:  # what sums of floats are off by
            return wait
        self._full_at[caller] = full_at + self._interval
        self._full_at.move_to_end(caller)
        if len(self._full_at) > self._max_callers:
            self._full_at.popitem(last=False)
        return 0.0


def rate_guard(
    rate: CallRate,
    own: TokenFile | None,
    clients: TokenFile | None,
    registry: CollectorRegistry,
) -> Guard:
    """Refuses calls of callers that are too fast, except to health.

    Args:
        rate: the buckets.
        own: tokens of the run's services, which are never refused.
        clients: tokens by which other callers are told apart.
        registry: where refusals are counted.
    """
    throttled = Counter(
        "grpc_server_throttled",
        "Calls refused because their caller was too fast.",
        ("grpc_service", "grpc_method"),
        registry=registry,
    )

    @contextlib.asynccontextmanager
    async def guard(method: Method, context: Context) -> AsyncIterator[None]:
        sent = sent_authorization(context)
        if method.service not in OPEN_SERVICES and not (own and own.accepts(sent)):
            known = clients is not None and clients.accepts(sent)
            wait = rate.take(sent if known else host_of(context.peer()))
            if wait:
                throttled.labels(method.service, method.name).inc()
                raise ResourceExhausted(
                    f"too many calls: the next one is allowed in {wait:.1f} s",
                    reason="TOO_FAST",
                    retry_seconds=wait,
                )
        yield

    return guard


def host_of(peer: str) -> str:
    """The host in gRPC's name of a peer ("ipv4:10.0.0.1:4711", "ipv6:%5B::1%5D:4711", "unix:...").

    Of an IPv6 address it's the network of 64 bits: a host has as many addresses as it wants there.
    """
    kind, _, address = unquote(peer).partition(":")
    if kind not in ("ipv4", "ipv6"):
        return kind
    host = address.rpartition(":")[0].strip("[]")
    if kind == "ipv6":
        with contextlib.suppress(ValueError):
            numeric = ipaddress.IPv6Address(host.partition("%")[0])
            return str(ipaddress.IPv6Network((numeric, 64), strict=False))
    return host
