"""The learning rate as a function of the step, and nothing else."""

from __future__ import annotations

import math

from vlarl.config import FitConfig


def learning_rate(step: int, fit: FitConfig) -> float:
    """Rate of a step, counted from 0: a linear rise, then constant or down a cosine to 0."""
    rise = min(1.0, (step + 1) / max(1, fit.warmup_steps))
    if fit.schedule == "constant":
        return fit.learning_rate * rise
    done = max(0, step - fit.warmup_steps) / max(1, fit.steps - fit.warmup_steps)
    return fit.learning_rate * rise * 0.5 * (1.0 + math.cos(math.pi * done))
