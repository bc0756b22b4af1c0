"""Addresses and certificates, as configured."""

from __future__ import annotations

from pathlib import Path

from vlarl.errors import ConfigError


class ListenError(ConfigError):
    """A server can't listen as configured; the message says where and why."""


def split_address(address: str) -> tuple[str, int]:
    """HOST and PORT of "HOST:PORT"; the brackets of an IPv6 address stay.

    Raises:
        ListenError: it isn't of that form.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ListenError(f"{address!r} is not HOST:PORT")
    return host, int(port)


def read_pem(path: Path) -> bytes:
    """The bytes of a PEM file.

    Raises:
        ListenError: it can't be read, or isn't PEM.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ListenError(f"TLS file {path} can't be read: {error.strerror}") from error
    if b"-----BEGIN" not in content:
        raise ListenError(f"TLS file {path} is not PEM")
    return content
