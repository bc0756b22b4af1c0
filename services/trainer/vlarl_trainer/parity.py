"""How far policy server and trainer are apart about the same actions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vlarl.errors import FatalError

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


@dataclass(frozen=True)
class Disagreement:
    """N answers of K tokens, by weights that both sides have, about which they disagree."""

    server: NDArray[np.float32]
    """[N, K], log-probs as the policy server reported them, in nats."""
    trainer: NDArray[np.float32]
    """[N, K], as the trainer computed them."""
    again: NDArray[np.float32]
    """[N, K], as it computed them once more, from frames that were decoded once more."""
    token_ids: NDArray[np.int64]
    """[N, K]."""
    episodes: NDArray[np.str_]
    """[N], each answer's episode."""
    places: NDArray[np.int64]
    """[N], which of its episode's answers each is, counted from 0."""

    def sentence(self, bound: float) -> str:
        """How many are how far apart, which is the worst, and what the second pass says of it."""
        apart, moved = np.abs(self.server - self.trainer), np.abs(self.trainer - self.again)
        beyond = ~(apart <= bound)  # not finite ones, too
        worst = int(np.where(np.isfinite(apart), apart, np.inf).max(axis=1).argmax())
        found = (
            f"the largest difference is {apart[worst].max():.3g}, in answer {self.places[worst]} "
            f"of episode {self.episodes[worst]}"
        )
        if beyond.any():
            found = (
                f"{int(beyond.sum())} of {beyond.size} tokens, in {int(beyond.any(axis=1).sum())} "
                f"of {len(beyond)} answers, are more than {bound:.3g} apart, {found}"
            )
        if (moved <= bound).all() or Parity.of(self.server - self.again).excess(bound):
            return (
                f"{found}. Do both use the same checkpoint, data type, centre crop and "
                "temperature? (trainer.logprob_gap_bound)"
            )
        return (
            f"{found}. Computed once more, the trainer agrees with the server, and its own first "
            f"pass is up to {moved.max():.3g} away from its second: it was wrong. Nothing was "
            "learned from it; go on with --resume. If it comes again, look for faulty memory or a "
            "faulty processor"
        )

    def save(self, path: Path) -> None:
        """Writes all of it to a new file, by these names, as an .npz without pickled objects."""
        with path.open("xb") as file:
            np.savez_compressed(file, **vars(self))


class ParityError(FatalError):
    """Policy server and trainer disagree about the same action's probability."""

    def __init__(self, excess: str, disagreement: Disagreement, bound: float) -> None:
        """Args: excess: what `Parity.excess` says."""
        super().__init__(
            f"policy server and trainer disagree about the log-probs of tokens: {excess}, and the "
            f"ratio would mean nothing: {disagreement.sentence(bound)}"
        )
        self.disagreement = disagreement
