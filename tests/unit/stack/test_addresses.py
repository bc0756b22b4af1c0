"""Ports that are free, and stay so."""

from __future__ import annotations

import socket
from pathlib import Path

from vlarl.launch.supervisor import free_address


def test_a_free_address_is_none_that_outgoing_connections_get() -> None:
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    found = {free_address() for _ in range(50)}
    assert len(found) > 40, "always the same"
    for address in found:
        host, port = address.split(":")
        assert 1024 < int(port) < max(first, 11_000)
        with socket.socket() as server:
            server.bind((host, int(port)))
