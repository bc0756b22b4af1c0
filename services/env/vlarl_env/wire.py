"""What the server and a simulator process say to each other, over a socket pair.

A frame is a header (payload length, kind, seconds of physics, seconds of rendering) and a payload.
Commands and answers are the messages of vlarl.env.v1; an error's payload is its text. Nothing is
pickled: a simulator process can't make the server run anything.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

HEADER = struct.Struct("<IBdd")
MAX_PAYLOAD = 64 * 2**20


class Kind(enum.IntEnum):
    """What a frame carries."""

    SETTINGS = 1
    """To the simulator, first: EnvConfig as JSON."""
    READY = 2
    """From the simulator: its libraries are loaded. No payload."""
    COMMAND = 3
    """To the simulator: an InteractRequest."""
    ANSWER = 4
    """From the simulator: an InteractResponse."""
    REFUSED = 5
    """From the simulator: the command makes no sense, nothing has happened. Text."""
    FAILED = 6
    """From the simulator: it broke, and must be replaced. Text."""
    BROKEN_TASK = 7
    """From the simulator: this task's scene can't be built, here or elsewhere. Text."""


@dataclass(frozen=True)
class Frame:
    """One frame. The seconds are those that an answer cost."""

    kind: Kind
    payload: bytes = b""
    physics_seconds: float = 0.0
    render_seconds: float = 0.0

    def encode(self) -> bytes:
        """Header and payload."""
        header = HEADER.pack(
            len(self.payload), self.kind, self.physics_seconds, self.render_seconds
        )
        return header + self.payload


def decode_header(header: bytes) -> tuple[int, Kind, float, float]:
    """Length of the payload, kind, seconds of physics, seconds of rendering.

    Raises:
        ValueError: this is no header of ours.
    """
    length, kind, physics_seconds, render_seconds = HEADER.unpack(header)
    if length > MAX_PAYLOAD:
        raise ValueError(f"a frame of {length} bytes is longer than {MAX_PAYLOAD}")
    return length, Kind(kind), physics_seconds, render_seconds
