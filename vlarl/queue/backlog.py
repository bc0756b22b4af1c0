"""What lies in the queue, a number a stream: for dashboards and for people."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from vlarl.queue.rollout_queue import RolloutQueue

_STREAMS = ("episodes", "trajectories", "scored")


@dataclass(frozen=True)
class Backlog:
    """The queue's streams, those of all runs' trainers as one."""

    waiting: dict[str, int]
    """Entries that nobody has taken yet, by stream."""
    in_work: dict[str, int]
    """Entries that somebody has taken and not passed on, by stream."""
    dead_letters: int
    """Episodes that were given up."""


async def backlog(queue: RolloutQueue) -> Backlog:
    """Looks at the queue once."""
    # Zero where there is no such stream: before the first order, and where Redis was emptied.
    length, pending = Counter(dict.fromkeys(_STREAMS, 0)), Counter(dict.fromkeys(_STREAMS, 0))
    for state in await queue.states():
        stream = state.stream.partition(":")[0]
        length[stream] += state.length
        pending[stream] += state.pending
    # Not Redis's own lag, which it loses count of where entries are deleted.
    waiting = {stream: length[stream] - pending[stream] for stream in length}
    return Backlog(waiting, dict(pending), await queue.dead_count())
