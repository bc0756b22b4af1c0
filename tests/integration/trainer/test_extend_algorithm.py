"""The code of docs/extend-algorithm.md, as it stands there, where the page puts it."""

from __future__ import annotations

import re
import types
from pathlib import Path
from typing import Any, Literal

import pytest

torch = pytest.importorskip("torch")

from pydantic import create_model  # noqa: E402

from tests.integration.trainer.trainer_samples import (  # noqa: E402
    ActingPolicy,
    made_up_trajectories,
    trainer_config,
)
from vlarl.config import ConfigError, CriticConfig, TrainerConfig, as_section, learning  # noqa: E402
from vlarl.learning.ranks import Ranks  # noqa: E402
from vlarl_trainer.algorithms.registry import ALGORITHMS  # noqa: E402
from vlarl_trainer.batch import Experience  # noqa: E402
from vlarl_trainer.learner import Learner  # noqa: E402

pytestmark = pytest.mark.torch
PAGE = Path(__file__).parents[3] / "docs/extend-algorithm.md"


def trainer_with(section: type) -> type[Any]:
    """A TrainerConfig with the page's two lines."""
    names = Literal["ppo", "grpo", "rloo", "reinforce"]
    added: Any = {"algorithm": (names, "ppo"), "reinforce": (section, section())}
    return create_model("Trainer", __base__=TrainerConfig, **added)


def test_the_pages_algorithm_is_chosen_learns_and_goes_on(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, code = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(code.splitlines()) < 50
    names = vars(learning) | {"__name__": learning.__name__}
    exec(keys, names)  # noqa: S102 - our own page
    module = types.ModuleType("vlarl_trainer.algorithms.reinforce")
    exec(code, vars(module))  # noqa: S102 - our own page
    monkeypatch.setitem(ALGORITHMS, "reinforce", module.Reinforce)

    trainer = trainer_with(names["ReinforceConfig"])
    with pytest.raises(ConfigError, match=r"reinforce\.momentum is read by another algorithm"):
        as_section(trainer, {"reinforce": {"momentum": 0.5}}, "here")
    rates = {"learning_rate": 2e-3, "mini_batch": 8, "micro_batch": 4}
    config = trainer.model_validate(
        trainer_config(ppo={}, critic=CriticConfig()).model_dump()
        | {"algorithm": "reinforce", "reinforce": rates | {"momentum": 0.5}}
    )

    def learner() -> Learner:
        return Learner(
            checkpoint, config, center_crop=False, seed=3, ranks=Ranks.from_environment()
        )

    one, other = learner(), learner()
    acting = ActingPolicy(checkpoint, one.policy, config.temperature)
    experience = Experience(0, 1, made_up_trajectories(acting, 2))
    report = one.learn(experience)
    assert report["policy_steps"] == 1
    kept = one.snapshot().tensors
    assert 0 < kept["reinforce.mean"] < 1
    other.restore(kept)
    again = Experience(1, 2, made_up_trajectories(acting, 2, iteration=1))
    for each in (one, other):
        each.learn(again)
    first, second = one.snapshot().tensors, other.snapshot().tensors
    assert all(torch.equal(first[name], second[name]) for name in first)
