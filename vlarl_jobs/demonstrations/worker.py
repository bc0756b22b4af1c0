"""A worker of a job: `python -m vlarl_jobs.demonstrations.worker FD`.

FD is its end of a socket pair. It receives a line of settings and then a line an order, answers
each with a line, and ends when the socket closes or its parent dies.
"""

from __future__ import annotations

import socket
import sys
from typing import Protocol

from vlarl_env.child import leave_the_end_to_the_parent
from vlarl_jobs.demonstrations.messages import Answer, Settings


class Job(Protocol):
    """Carries orders out."""

    def do(self, order: str) -> Answer:
        """Carries one out, given as JSON."""
        ...


def main() -> None:
    """Entry point."""
    leave_the_end_to_the_parent()
    with socket.socket(fileno=int(sys.argv[1])) as connection:
        lines = connection.makefile("rw", encoding="utf-8", newline="\n")
        job = _job(Settings.model_validate_json(lines.readline()))
        for order in lines:
            lines.write(job.do(order).model_dump_json() + "\n")
            lines.flush()


def _job(settings: Settings) -> Job:
    if settings.job == "render":
        from vlarl_jobs.demonstrations.rendering import Renderer

        return Renderer(settings)
    from vlarl_jobs.demonstrations.player import Player

    return Player(settings)


if __name__ == "__main__":
    main()
