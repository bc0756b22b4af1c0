"""What the reward server reports to Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram


class RewardMetrics:
    """The reward server's own metrics, in the registry of its server."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ["source", "model"]
        self.trajectories = Counter(
            "vlarl_reward_trajectories_total", "Trajectories scored.", labels, registry=registry
        )
        self.steps = Counter("vlarl_reward_steps_total", "Steps scored.", labels, registry=registry)
        self.failures = Counter(
            "vlarl_reward_failures_total",
            "Trajectories that could not be scored.",
            ["source"],
            registry=registry,
        )
        # Both appear from the start, so that a rate over them has no gap.
        for source in ("queue", "client"):
            self.failures.labels(source)
        self.batch = Histogram(
            "vlarl_reward_batch_trajectories",
            "Trajectories scored at once.",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=registry,
        )
        self.score_seconds = Histogram(
            "vlarl_reward_score_seconds",
            "Seconds in which one batch was scored.",
            buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30),
            registry=registry,
        )
