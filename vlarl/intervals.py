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


def difference_interval(
    successes: float, episodes: float, base_successes: float, base_episodes: float
) -> tuple[float, float]:
    """95 % interval of a success rate less another one, from both Wilson intervals (Newcombe 1998,
    method 10). It takes the episodes as independent, so pairs from the same states are surer.
    """
    if not episodes or not base_episodes:
        return -1.0, 1.0
    rate, base = successes / episodes, base_successes / base_episodes
    low, high = wilson_interval(successes, episodes)
    base_low, base_high = wilson_interval(base_successes, base_episodes)
    difference = rate - base
    return (
        difference - math.hypot(rate - low, base_high - base),
        difference + math.hypot(high - rate, base - base_low),
    )
