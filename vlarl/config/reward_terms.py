"""What rewards mean: a trainer must not learn from some of one kind and some of another."""

from __future__ import annotations

import hashlib
import json

from vlarl.config import PpoConfig, RewardConfig


def reward_terms(reward: RewardConfig, ppo: PpoConfig) -> str:
    """Digest of what rewards are made by, which scores carry: 16 hexadecimal digits.

    The process reward model isn't among it: another one may take its folder in the midst of a run.
    """
    terms: dict[str, object] = {"model": reward.model, "success_reward": reward.success_reward}
    if reward.model == "rprm":
        terms |= {"coefficient": reward.coefficient, "form": reward.form}
        if reward.form == "potential":
            # Its last state's potential depends on what the limit means (docs/decisions/0014).
            terms |= {"gamma": ppo.gamma, "time_limit": ppo.time_limit}
    return hashlib.sha256(json.dumps(terms, sort_keys=True).encode()).hexdigest()[:16]
