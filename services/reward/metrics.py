"""What the reward server reports to Prometheus."""

from __future__ import annotations

from prometheus_client import Counter, Histogram

TRAJECTORIES = Counter(
    "vlarl_reward_trajectories_total", "Trajectories scored.", ["source", "model"]
)
STEPS = Counter("vlarl_reward_steps_total", "Steps scored.", ["source", "model"])
FAILURES = Counter(
    "vlarl_reward_failures_total", "Trajectories that could not be scored.", ["source"]
)
BATCH = Histogram(
    "vlarl_reward_batch_trajectories",
    "Trajectories scored at once.",
    buckets=(1, 2, 4, 8, 16, 32, 64),
)
SCORE_SECONDS = Histogram(
    "vlarl_reward_score_seconds",
    "Seconds in which one batch was scored.",
    buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30),
)
