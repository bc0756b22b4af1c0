"""What the policy server counts."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from vlarl.weights.adapter import CAUSES

_FAILURES = {
    "PredictActions": ("invalid", "engine", "value"),
    "UpdateWeights": (*CAUSES, "version", "swap", "engine", "cancelled"),
}


class PolicyMetrics:
    """The server's metrics, in the registry that its `/metrics` port shows."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.actions = Counter("vlarl_policy_actions", "Actions answered", registry=registry)
        self.request_seconds = Histogram(
            "vlarl_policy_request_seconds",
            "Seconds from a PredictActions request to its answer",
            buckets=(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30),
            registry=registry,
        )
        self.batch_size = Histogram(
            "vlarl_policy_batch_size",
            "Actions that the engine was computing together, seen when one of them ended",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
            registry=registry,
        )
        self.running = Gauge(
            "vlarl_policy_actions_running", "Actions in the engine's batch", registry=registry
        )
        self.waiting = Gauge(
            "vlarl_policy_actions_waiting", "Actions that wait for the engine", registry=registry
        )
        self.weights_version = Gauge(
            "vlarl_policy_weights_version", "Version of the weights that serve", registry=registry
        )
        self.swaps = Counter("vlarl_policy_swaps", "Weight swaps done", registry=registry)
        self.swap_seconds = Histogram(
            "vlarl_policy_swap_seconds",
            "Seconds from an adapter's first message to its weights serving",
            buckets=(0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120),
            registry=registry,
        )
        self.pause_seconds = Histogram(
            "vlarl_policy_pause_seconds",
            "Seconds of a swap during which no action could start",
            buckets=(0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60),
            registry=registry,
        )
        self.interrupted = Counter(
            "vlarl_policy_actions_interrupted",
            "Actions that began again because the weights changed",
            registry=registry,
        )
        self.swap_bytes = Counter(
            "vlarl_policy_swap_bytes", "Bytes of factors received and applied", registry=registry
        )
        self.failures = Counter(
            "vlarl_policy_failures",
            "Requests and updates that failed, by cause",
            ["method", "cause"],
            registry=registry,
        )
        # Known ones appear from the start, so that a rate over them has no gap.
        for method, causes in _FAILURES.items():
            for cause in causes:
                self.failures.labels(method, cause)
