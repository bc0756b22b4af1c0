"""The code of docs/extend-policy-family.md, as it stands there, where the page puts it."""

from __future__ import annotations

import json
import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", reason="runs in the torch environment (.venv)")

from vlarl.errors import ConfigError  # noqa: E402
from vlarl.images import encode_jpeg  # noqa: E402
from vlarl.models import registry  # noqa: E402
from vlarl.models.network import PolicyNetwork  # noqa: E402
from vlarl.models.openvla.processor import Processor  # noqa: E402
from vlarl.models.openvla.tiny import make_tiny_checkpoint  # noqa: E402
from vlarl.models.process_reward.model import ProcessRewardModel  # noqa: E402
from vlarl.models.serving import Observation  # noqa: E402

pytestmark = pytest.mark.torch
PAGE = Path(__file__).parents[3] / "docs/extend-policy-family.md"


def test_the_pages_family_is_named_checked_and_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    module: Any = types.ModuleType("vlarl.models.mirrored")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(code, vars(module))  # noqa: S102 - our own page
    folder = tmp_path / "it"
    make_tiny_checkpoint(folder, image_size=28, tower_dim=32, tower_depth=2, text_dim=64)
    (folder / "family.json").write_text(json.dumps({"family": "mirrored"}))
    with pytest.raises(ConfigError, match="family is 'mirrored'; known: openvla, openvla_oft"):
        registry.policy_family(folder)

    families: Any = registry.FAMILIES
    monkeypatch.setitem(families, "mirrored", module.MirroredFamily)
    assert registry.check_policy_checkpoint(folder).family == "mirrored"
    family = registry.policy_family(folder)
    image = encode_jpeg(np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8))
    seen = family.processor(center_crop=False).encode(Observation([image], "go"))
    plain = Processor(folder, family.sizes, center_crop=False).encode(Observation([image], "go"))
    np.testing.assert_array_equal(seen.pixels, plain.pixels[:, ::-1])
    assert seen.prompt_ids == plain.prompt_ids
    network = family.network(torch.float32, torch.device("cpu"))
    judges_as_it_sees(folder, image, network)
    assert family.lora_layers().keys() <= {
        key.removesuffix(".weight") for key in network.state_dict()
    }


def judges_as_it_sees(folder: Path, image: bytes, network: PolicyNetwork) -> None:
    """Made a reward model, it reads mirrored frames, too."""
    (folder / "reward_model.json").write_text(json.dumps({"version": "1"}))
    assert registry.check_reward_model(folder) == "1"
    judge = ProcessRewardModel(folder)
    family = registry.policy_family(folder)
    mirrored = family.processor(family.spec.center_crop).frame(image)
    np.testing.assert_array_equal(judge.frame(image), mirrored)
    prompts, ids = [judge.prompt("go")], np.full((1, 7), family.spec.action_ids.start)
    seen = family.processor(center_crop=False).batch(mirrored[None], prompts, torch.device("cpu"))
    with torch.inference_mode():
        verdicts = network.answer(seen, torch.from_numpy(ids), family.verdict_ids()).logits
    wanted = verdicts[:, -1].softmax(dim=-1)[:, 1]
    found = judge.probabilities(mirrored[None], prompts, ids)
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-6)
