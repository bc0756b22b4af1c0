"""The code of docs/extend-reward.md, as it stands there, where the page puts it."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from pydantic import create_model

from vlarl.config import ConfigError, OutcomeRewardConfig, PpoConfig, Section, as_section, reward
from vlarl.config.reward_terms import reward_terms
from vlarl_reward.models import registry

PAGE = Path(__file__).parents[3] / "docs/extend-reward.md"


def after(module: types.ModuleType, code: str, **names: object) -> dict[str, Any]:
    """What a module would hold with this code at its end."""
    found = vars(module) | names
    exec(code, found)  # noqa: S102 - our own page
    return found


def test_the_pages_reward_model_is_chosen_and_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    section, model, loader, test = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    config = after(reward, section)
    haste = types.ModuleType("vlarl_reward.models.haste")
    haste.__dict__.update(after(haste, model))
    monkeypatch.setitem(sys.modules, haste.__name__, haste)
    load = after(registry, loader, **vars(haste))["_haste"]
    monkeypatch.setitem(registry.LOADERS, config["HasteRewardConfig"], load)

    kind = (config["RewardConfig"], OutcomeRewardConfig())
    run: Any = create_model("Run", __base__=Section, reward=kind)
    cheap, dear = (
        as_section(run, {"reward": {"model": "haste", "price": price}}, "here").reward
        for price in (0.5, 0.6)
    )
    assert registry.load_reward_model(cheap, PpoConfig()).name == "haste"
    assert reward_terms(cheap, PpoConfig()) != reward_terms(dear, PpoConfig())
    assert as_section(run, {"reward": {"price": 0.5}}, "here").reward == OutcomeRewardConfig()
    with pytest.raises(ConfigError, match=r"reward\.prize: unknown key; did you mean 'price'"):
        as_section(run, {"reward": {"model": "haste", "prize": 0.5}}, "here")

    after(types.ModuleType("test_haste_reward"), test)["test_each_action_costs_its_price"]()
