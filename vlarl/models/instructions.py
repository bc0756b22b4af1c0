"""Instructions as they come, and as models read them."""

from __future__ import annotations

MAX_INSTRUCTION_CHARACTERS = 1000
"""Longest instruction that a server takes from its clients."""


def words_of(instruction: str) -> str:
    """The instruction as prompts have it: in lower case, one space between words, none around.

    The last line end of a file, a line that an editor broke, a tab or a byte order mark change no
    action. OpenVLA's own code keeps them: what differs is in docs/openvla.md.
    """
    return " ".join(instruction.replace("\ufeff", " ").lower().split())
