"""How sure a success rate is."""

from __future__ import annotations

import math


def wilson_interval(successes: float, episodes: float, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a success rate, 95 % by default (Wilson 1927)."""
    if not episodes:
        return 0.0, 1.0
    rate = successes / episodes
    center = rate + z * z / (2 * episodes)
    spread = z * math.sqrt(rate * (1 - rate) / episodes + z * z / (4 * episodes * episodes))
    scale = 1 + z * z / episodes
    return max(0.0, (center - spread) / scale), min(1.0, (center + spread) / scale)
