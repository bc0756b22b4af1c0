"""How far policy server and trainer are apart about the same actions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

GAP_BOUNDS = {torch.float32: 1e-4, torch.float16: 0.05, torch.bfloat16: 0.3}
"""`Parity.logprob_gap_p999` that is no error yet, in nats, by what the trainer computes in."""


@dataclass(frozen=True)
class Parity:
    """Differences d of tokens' log-probs, server minus trainer, in nats. Metrics by these names."""

    logprob_gap: float
    """The largest |d|. Of half a million tokens it says little about the others."""
    logprob_gap_p999: float
    """The |d| that one token in a thousand exceeds; of fewer tokens the largest."""
    logprob_gap_mean: float
    """The mean |d|."""
    logprob_gap_k3: float
    """The mean of exp(d) - 1 - d: the KL divergence that the update would see where there is none
    (J. Schulman, "Approximating KL Divergence", estimator k3). Few tokens that are far off show."""

    @classmethod
    def of(cls, differences: NDArray[np.float32]) -> Parity:
        """Args: differences: of any shape, not empty."""
        d = differences.astype(np.float64).ravel()
        size = np.abs(d)
        with np.errstate(over="ignore", invalid="ignore"):
            k3 = float(np.mean(np.expm1(d) - d))
        return cls(
            float(size.max()),
            float(np.quantile(size, 0.999, method="higher")),
            float(size.mean()),
            k3,
        )

    def excess(self, bound: float) -> str:
        """What exceeds a bound on `logprob_gap_p999`; empty: nothing.

        The mean may be a quarter of it, and k3 what it would be if all tokens were at the bound,
        bound ** 2 / 2.
        """
        for what, found, most in (
            ("99.9 % are within", self.logprob_gap_p999, bound),
            ("the mean is", self.logprob_gap_mean, bound / 4),
            ("k3 is", self.logprob_gap_k3, bound**2 / 2),
        ):
            if not found <= most:
                return f"{what} {found:.3g}, more than {most:.3g}"
        return ""
