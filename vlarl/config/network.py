"""How services listen, how clients connect, and where the queue lives."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from vlarl.config.base import Section


class ServerConfig(Section):
    """One gRPC server."""

    listen: str = "127.0.0.1:0"
    """HOST:PORT to listen on; port 0 takes a free one."""
    address_file: Path | None = None
    """File that receives the bound HOST:PORT once the server listens."""
    metrics_listen: str | None = None
    """HOST:PORT of the Prometheus endpoint; none: no endpoint."""
    metrics_address_file: Path | None = None
    """File that receives the bound HOST:PORT of the Prometheus endpoint."""
    token_file: Path | None = None
    """File with the bearer token that callers must send; read again when it changes."""
    client_token_file: Path | None = None
    """File with further tokens, which let their callers ask and change nothing."""
    client_calls_per_second: float | None = Field(default=None, gt=0)
    """Calls a second of each caller without a token of `token_file`; none: any number."""
    client_burst: int = Field(default=100, ge=1)
    """Calls that such a caller may make at once after a rest."""
    tls_certificate: Path | None = None
    """Certificate chain (PEM). TLS is on when certificate and key are given."""
    tls_key: Path | None = None
    """Private key (PEM)."""
    tls_client_ca: Path | None = None
    """Certificates (PEM) that clients must be signed by: mutual TLS."""
    reflection: bool = False
    """Serve the reflection API, for grpcurl and `buf curl`."""
    max_message_mib: int = Field(default=32, ge=1, le=1024)
    """Largest request and answer, in MiB."""
    max_concurrent_rpcs: int | None = Field(default=None, ge=1)
    """RPCs in progress above which new ones are refused; none: no bound."""
    max_unary_seconds: float = Field(default=3600.0, gt=0)
    """Time after which the server ends a unary call, whatever deadline its client set."""
    max_connection_age_seconds: float = Field(default=60.0, gt=0)
    """Age at which a connection is closed, between calls, so that clients find new replicas."""
    drain_seconds: float = Field(default=30.0, ge=0)
    """Seconds that calls in progress have left after SIGTERM."""


class ChannelConfig(Section):
    """How a client reaches a server."""

    token_file: Path | None = None
    """File with the bearer token to send."""
    tls_ca: Path | None = None
    """Certificates (PEM) to trust; TLS is on when given."""
    tls_certificate: Path | None = None
    """The client's own certificate chain (PEM), for mutual TLS."""
    tls_key: Path | None = None
    """The client's own private key (PEM)."""
    timeout_seconds: float = Field(default=30.0, gt=0)
    """Deadline of a call."""
    max_message_mib: int = Field(default=32, ge=1, le=1024)
    """Largest request and answer, in MiB."""
    retries: int = Field(default=4, ge=0, le=4)
    """Further tries of an idempotent call that found the server unavailable."""


class QueueConfig(Section):
    """The rollout queue: Redis or Valkey."""

    url: str = "redis://127.0.0.1:6379/0"
    """redis://, rediss:// (TLS) or unix:// address. A password belongs into `password_file`."""
    password_file: Path | None = None
    """File with the password."""
    tls_ca: Path | None = None
    """Certificates (PEM) that a rediss:// server is checked with; none: the system's."""
    tls_certificate: Path | None = None
    """This client's certificate chain (PEM), where the server demands one."""
    tls_key: Path | None = None
    """The private key (PEM) of `tls_certificate`."""
    claim_after_seconds: float = Field(default=60.0, gt=0)
    """Time without a sign of life after which a worker's entries are taken over by others."""
    max_deliveries: int = Field(default=3, ge=1)
    """Deliveries after which an entry goes to the dead letters."""
    blobs: str = "redis"
    """Where trajectories lie: "redis", or an fsspec URL (file:///mnt/shared, s3://bucket/prefix)."""

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        chosen = {"tls_ca": self.tls_ca, "tls_certificate": self.tls_certificate}
        chosen["tls_key"] = self.tls_key
        given = [name for name, file in chosen.items() if file is not None]
        if given and not self.url.startswith("rediss://"):
            raise ValueError(f"{given[0]} needs a rediss:// url, not {self.url.split(':')[0]}://")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("mutual TLS needs both tls_certificate and tls_key")
        return self

    def tls(self) -> dict[str, str]:
        """redis-py's arguments for a rediss:// server; none for another."""
        files = {
            "ssl_ca_certs": self.tls_ca,
            "ssl_certfile": self.tls_certificate,
            "ssl_keyfile": self.tls_key,
        }
        return {name: str(file) for name, file in files.items() if file is not None}


class SecurityConfig(Section):
    """Credentials of a run's services, used by its servers and clients alike."""

    token_file: Path | None = None
    """Bearer token that every call carries and every server demands."""
    client_token_file: Path | None = None
    """Further tokens, one a line, for clients from outside: they may ask for actions, tasks,
    episodes, rewards and the run's state, and change neither weights nor the run."""
    client_calls_per_second: float | None = Field(default=None, gt=0)
    """Calls a second that each client's token may make of each server; none: any number. Faster
    ones are RESOURCE_EXHAUSTED with the time to wait. The run's own services are never slowed down:
    `token_file` tells them from clients. Opening a stream is one call."""
    client_burst: int = Field(default=100, ge=1)
    """Calls that a client may make at once after a rest."""
    tls_certificate: Path | None = None
    """The servers' certificate chain (PEM)."""
    tls_key: Path | None = None
    """The servers' private key (PEM)."""
    tls_ca: Path | None = None
    """Certificates (PEM) that clients trust."""
    tls_client_ca: Path | None = None
    """Certificates (PEM) that servers demand clients to be signed by: mutual TLS."""
    tls_client_certificate: Path | None = None
    """The clients' certificate chain (PEM), for mutual TLS."""
    tls_client_key: Path | None = None
    """The clients' private key (PEM), for mutual TLS."""

    @model_validator(mode="after")
    def _clients_are_told_from_services(self) -> Self:
        if self.client_token_file is not None and self.token_file is None:
            raise ValueError(
                "client_token_file needs token_file: without it everybody may do everything"
            )
        if self.client_calls_per_second is not None and self.token_file is None:
            raise ValueError(
                "client_calls_per_second needs token_file: without it the run's own services, "
                "which must never be slowed down, look like clients"
            )
        return self

    def secured(self, server: ServerConfig) -> ServerConfig:
        """The server with these credentials."""
        return server.model_copy(
            update={
                "token_file": self.token_file,
                "client_token_file": self.client_token_file,
                "client_calls_per_second": self.client_calls_per_second,
                "client_burst": self.client_burst,
                "tls_certificate": self.tls_certificate,
                "tls_key": self.tls_key,
                "tls_client_ca": self.tls_client_ca,
            }
        )

    def channel(self, timeout_seconds: float = 30.0) -> ChannelConfig:
        """Channel settings that fit these credentials."""
        return ChannelConfig(
            token_file=self.token_file,
            tls_ca=self.tls_ca,
            tls_certificate=self.tls_client_certificate,
            tls_key=self.tls_client_key,
            timeout_seconds=timeout_seconds,
        )
