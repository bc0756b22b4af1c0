"""Channels to the services: balanced over replicas, retried where repeating is harmless.

An address is "HOST:PORT", "dns:///NAME:PORT" (balanced over all addresses of the name, which is
looked up again as replicas come and go), or a list "HOST:PORT,HOST:PORT".
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import socket
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from vlarl.config.network import ChannelConfig
from vlarl.errors import ConfigError
from vlarl.rpc.address import read_pem, split_address
from vlarl.rpc.arguments import LONGEST_SECONDS, number, optional_path, text
from vlarl.rpc.errors import describe, status_code
from vlarl.rpc.presets import AsyncPresetChannel, Presets, SyncPresetChannel

IDEMPOTENT = {
    "vlarl.policy.v1.PolicyService": ("PredictActions", "GetPolicy"),
    "vlarl.env.v1.EnvService": ("ListTasks",),
    "vlarl.reward.v1.RewardService": ("ScoreTrajectory", "GetRewardModel"),
    "vlarl.trainer.v1.TrainerService": (
        "GetStatus",
        "GetWeights",
        "WatchIterations",
        "Pause",
        "Resume",
    ),
}
"""Methods that are tried again when a server is unavailable, by service."""


def channel_config(
    token_file: Path | str | None,
    tls_ca: Path | str | None,
    tls_certificate: Path | str | None,
    tls_key: Path | str | None,
    timeout_seconds: float,
) -> ChannelConfig:
    """A channel's settings as a client's user gives them, paths as strings too.

    Raises:
        ValueError: one of them is none; the message names it.
    """
    seconds = number("timeout_seconds", timeout_seconds, most=LONGEST_SECONDS)
    if seconds <= 0:
        raise ValueError(f"timeout_seconds must be above 0, not {seconds:g}")
    return ChannelConfig(
        token_file=optional_path("token_file", token_file),
        tls_ca=optional_path("tls_ca", tls_ca),
        tls_certificate=optional_path("tls_certificate", tls_certificate),
        tls_key=optional_path("tls_key", tls_key),
        timeout_seconds=seconds,
    )


def open_channel(
    address: str, config: ChannelConfig | None = None, *, token: str | None = None
) -> grpc.aio.Channel:
    """Opens an asynchronous channel; it connects with its first call.

    Args:
        address: see the module.
        config: limits, credentials and deadline; `timeout_seconds` becomes the deadline of every
            unary call that sets none. Streams live as long as their caller wants.
        token: a bearer token to send instead of the one in `config.token_file`.
    """
    config = config or ChannelConfig()
    target, options = grpc_target(address), _options(address, config)
    credentials = _channel_credentials(config)
    if credentials is None:
        channel = grpc.aio.insecure_channel(target, options)
    else:
        channel = grpc.aio.secure_channel(target, credentials, options)
    return AsyncPresetChannel(channel, Presets(config, token))


def open_sync_channel(
    address: str, config: ChannelConfig | None = None, *, token: str | None = None
) -> grpc.Channel:
    """The same for threads; see `open_channel`."""
    config = config or ChannelConfig()
    target, options = grpc_target(address), _options(address, config)
    credentials = _channel_credentials(config)
    if credentials is None:
        channel = grpc.insecure_channel(target, options)
    else:
        channel = grpc.secure_channel(target, credentials, options)
    return SyncPresetChannel(channel, Presets(config, token))


async def wait_until_serving(channel: grpc.aio.Channel, service: str, timeout: float) -> None:
    """Returns when the service (full name; "" for the server) reports SERVING.

    Raises:
        TimeoutError: it doesn't within `timeout` seconds; the message has its last state.
        grpc.RpcError: the server refuses to tell.
    """
    health = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest(service=service)
    last = "not reachable"
    try:
        async with asyncio.timeout(timeout):
            while True:
                try:
                    async for answer in health.Watch(request, wait_for_ready=True):
                        if answer.status == health_pb2.HealthCheckResponse.SERVING:
                            return
                        last = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.UNAVAILABLE:
                        raise
                    last = describe(error)
                    await asyncio.sleep(0.1)  # a server that drops connections isn't hammered
    except TimeoutError as error:
        name = service or "the server"
        raise TimeoutError(f"{name} isn't serving after {timeout:g} s: {last}") from error


def server_health(address: str, config: ChannelConfig | None = None, service: str = "") -> str:
    """What a server says of its health, asked once, within the configuration's timeout.

    Returns:
        SERVING, NOT_SERVING, ..., or "not reachable" and why.

    Raises:
        grpc.RpcError: it can be reached and refuses to tell.
    """
    config = config or ChannelConfig()
    with open_sync_channel(address, config) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            answer = health.Check(request)
        except grpc.RpcError as error:
            unreachable = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
            if status_code(error) in unreachable:
                return f"not reachable: {describe(error)}"
            raise
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def replica_addresses(address: str) -> list[str]:
    """The single replicas behind an address, for calls that each of them must get.

    A dns:/// name is looked up now; call it again to see replicas that came later.

    Raises:
        OSError: the name can't be resolved.
    """
    if not address.startswith("dns:///"):
        return [part.strip() for part in address.split(",") if part.strip()]
    host, port = split_address(address.removeprefix("dns:///"))
    found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    # sockaddr is (host, port, ...): for IPv6 the host needs its brackets again.
    hosts = {f"[{entry[4][0]}]" if ":" in str(entry[4][0]) else entry[4][0] for entry in found}
    return sorted(f"{host}:{port}" for host in hosts)


def grpc_target(address: str) -> str:
    """The address as gRPC writes it; names of a list are resolved now, gRPC knows none there.

    Raises:
        ValueError: it is no text.
        ConfigError: it's empty or has no port, is a list that mixes IPv4 and IPv6, or a name of a
            list can't be resolved.
    """
    address = text("address", address)
    parts = [part.strip() for part in address.split(",") if part.strip()]
    if not parts:
        raise ConfigError("no address: it is HOST:PORT")
    if len(parts) == 1:
        _check_target(parts[0])
        return parts[0]
    resolved = []
    for part in parts:
        host, port = split_address(part)
        try:
            family, *_, target = socket.getaddrinfo(
                host.strip("[]"), port, type=socket.SOCK_STREAM, family=_family(host)
            )[0]
        except OSError as error:
            raise ConfigError(f"{part}: {error.strerror}") from error
        resolved.append((family, target[0], port))
    if len({family for family, _, _ in resolved}) > 1:
        raise ConfigError(f"{address}: a list can't mix IPv4 and IPv6 addresses")
    if resolved[0][0] == socket.AF_INET6:
        return "ipv6:" + ",".join(f"[{host}]:{port}" for _, host, port in resolved)
    return "ipv4:" + ",".join(f"{host}:{port}" for _, host, port in resolved)


def _check_target(address: str) -> None:
    """Refuses a URL, and a name without its port, to which gRPC would add 443."""
    if address.startswith(("http://", "https://")):
        raise ConfigError(f"{address!r}: an address is HOST:PORT, without http://")
    scheme, colon, _ = address.partition(":")
    if colon and scheme in ("unix", "unix-abstract", "ipv4", "ipv6", "vsock", "xds"):
        return
    split_address(address.removeprefix("dns:").rpartition("/")[2])


def _options(address: str, config: ChannelConfig) -> list[tuple[str, Any]]:
    limit = config.max_message_mib * 2**20
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", limit),
        ("grpc.max_send_message_length", limit),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.dns_min_time_between_resolutions_ms", 1000),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.min_reconnect_backoff_ms", 1000),
        ("grpc.max_reconnect_backoff_ms", 5000),
        ("grpc.service_config", json.dumps(_service_config(config.retries))),
        ("grpc.service_config_disable_resolution", 1),
        # A request that doesn't fit into the retry buffer (256 KiB) would not be retried.
        ("grpc.per_rpc_retry_buffer_size", limit),
        # Services are neighbours: a proxy for the way out must not catch their calls.
        ("grpc.enable_http_proxy", 0),
    ]
    if config.tls_ca is not None and "," in address:
        # A list has no name of its own: its certificates must be valid for the first host.
        host, _ = split_address(address.split(",")[0].strip())
        options.append(("grpc.ssl_target_name_override", host.strip("[]")))
    return options


def _family(host: str) -> socket.AddressFamily:
    try:
        version = ipaddress.ip_address(host.strip("[]")).version
    except ValueError:
        return socket.AF_INET
    return socket.AF_INET6 if version == 6 else socket.AF_INET


def _service_config(retries: int) -> dict[str, Any]:
    config: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
    if retries:
        names = [{"service": s, "method": m} for s, methods in IDEMPOTENT.items() for m in methods]
        config["methodConfig"] = [
            {
                "name": names,
                "retryPolicy": {
                    "maxAttempts": retries + 1,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "2s",
                    "backoffMultiplier": 2.5,
                    # A server that stops cancels calls that reach it in that moment. A client's
                    # own cancellation is never repeated.
                    "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
                },
            }
        ]
    return config


def _channel_credentials(config: ChannelConfig) -> grpc.ChannelCredentials | None:
    if (config.tls_certificate is None) != (config.tls_key is None):
        raise ConfigError("mutual TLS needs both tls_certificate and tls_key")
    if config.tls_ca is None:
        if config.tls_key is not None:
            raise ConfigError("tls_certificate and tls_key need tls_ca")
        return None
    key = read_pem(config.tls_key) if config.tls_key else None
    chain = read_pem(config.tls_certificate) if config.tls_certificate else None
    return grpc.ssl_channel_credentials(read_pem(config.tls_ca), key, chain)
