"""What rewards mean: a trainer must not learn from some of one kind and some of another."""

from __future__ import annotations

import hashlib
import json

from vlarl.config import AlgorithmConfig, RewardConfig


def reward_terms(reward: RewardConfig, algorithm: AlgorithmConfig) -> str:
    """Digest of `reward.terms`, which scores carry: 16 hexadecimal digits."""
    terms = json.dumps(reward.terms(algorithm), sort_keys=True)
    return hashlib.sha256(terms.encode()).hexdigest()[:16]
