"""What the env server counts."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

from vlarl_env.errors import SimulatorError


class EnvMetrics:
    """Prometheus metrics of one server."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.episodes = Counter(
            "vlarl_env_episodes_total",
            "Episodes ended, by who drove them and how they ended.",
            ["driver", "outcome"],
            registry=registry,
        )
        self.control_steps = Counter(
            "vlarl_env_control_steps_total", "Control steps (1/20 s) simulated.", registry=registry
        )
        self.render_seconds = Counter(
            "vlarl_env_render_seconds_total",
            "Seconds of rendering and encoding frames.",
            registry=registry,
        )
        self.physics_seconds = Counter(
            "vlarl_env_physics_seconds_total", "Seconds of physics.", registry=registry
        )
        self.restarts = Counter(
            "vlarl_env_simulator_restarts_total",
            "Simulator processes replaced, by cause.",
            ["cause"],
            registry=registry,
        )
        self.active = Gauge("vlarl_env_active_envs", "Simulators in an episode.", registry=registry)
        self.simulators = Gauge(
            "vlarl_env_simulators", "Simulator processes that are up.", registry=registry
        )
        self.policy_wait_seconds = Counter(
            "vlarl_env_policy_wait_seconds_total",
            "Seconds in which episodes waited for the policy.",
            registry=registry,
        )
        # Known causes appear from the start, so that a rate over them has no gap.
        for cause in (
            "recycled",
            *sorted({kind.cause for kind in SimulatorError.__subclasses__()}),
        ):
            self.restarts.labels(cause)
