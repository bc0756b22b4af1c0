"""The code of docs/extend-policy-family.md, as it stands there, where the page puts it."""

from __future__ import annotations

import json
import re
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", reason="runs in the torch environment (.venv)")

from tests.integration.trainer.demonstrated import sft_config, write_dataset  # noqa: E402
from vlarl.errors import ConfigError  # noqa: E402
from vlarl.images import encode_jpeg  # noqa: E402
from vlarl.learning.ranks import Ranks  # noqa: E402
from vlarl.models import registry  # noqa: E402
from vlarl.models.base import PolicyFamily  # noqa: E402
from vlarl.models.network import PolicyNetwork  # noqa: E402
from vlarl.models.openvla.config import OpenVLAConfig  # noqa: E402
from vlarl.models.openvla.processor import Processor  # noqa: E402
from vlarl.models.openvla.tiny import make_tiny_checkpoint  # noqa: E402
from vlarl.models.openvla_oft.config import OFTConfig  # noqa: E402
from vlarl.models.openvla_oft.family import OFTFamily  # noqa: E402
from vlarl.models.openvla_oft.network import OpenVLAOFT  # noqa: E402
from vlarl.models.openvla_oft.starting import make_tiny_oft_checkpoint  # noqa: E402
from vlarl.models.process_reward.model import ProcessRewardModel  # noqa: E402
from vlarl.models.serving import Observation  # noqa: E402
from vlarl.models.spec import PolicySpec  # noqa: E402
from vlarl_cli.sft import _check  # noqa: E402
from vlarl_jobs.sft.imitation import Imitation, ParallelImitation, imitation  # noqa: E402
from vlarl_jobs.sft.reading import read_demonstrations  # noqa: E402

pytestmark = pytest.mark.torch
SIZES = {"image_size": 28, "tower_dim": 32, "tower_depth": 2, "text_dim": 64}
PAGE = Path(__file__).parents[3] / "docs/extend-policy-family.md"


class Silent(OFTFamily):
    """One that reads no action tokens, and has a loss of its own."""

    def __init__(self, checkpoint: Path) -> None:
        PolicyFamily.__init__(self, checkpoint)
        use = {"chunk": 1, "convention": "stop"}
        self.config = OFTConfig.of_openvla(OpenVLAConfig.from_directory(checkpoint), use, {})

    @property
    def spec(self) -> PolicySpec:
        return replace(super().spec, family="silent")

    def network(self, dtype: torch.dtype, device: torch.device) -> OpenVLAOFT:
        with torch.device(device):
            return OpenVLAOFT(self.config).to(dtype).eval()

    def imitation_losses(self, logits: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return torch.full((len(logits),), 42.0)


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
    _fine_tuning_knows_it_by_what_it_says(folder, tmp_path, monkeypatch)
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


def _fine_tuning_knows_it_by_what_it_says(
    folder: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whether it reads action tokens, and by its loss."""
    data = write_dataset(here / "data")
    named = {"model": None, "checkpoint": folder}
    config = sft_config(data, input_sigma=2.0, **named)
    _check(config)
    for wrong, said in (
        ({"family": {"chunk": 2}}, "is of the family mirrored already, and .family. is for an Op"),
        ({"checkpoint": here / "silent", "input_sigma": 2.0}, "input_sigma: it is noise on action"),
    ):
        families: Any = registry.FAMILIES
        monkeypatch.setitem(families, "silent", Silent)
        make_tiny_oft_checkpoint(here / "silent", chunk=2, **SIZES)
        (here / "silent/family.json").write_text('{"family": "silent"}')
        with pytest.raises(ConfigError, match=said):
            _check(sft_config(data, **{**named, **wrong}))
    found = read_demonstrations(config.data, folder, center_crop=False, seed=0)
    with Ranks.joined(1) as ranks:
        reading = imitation(config, folder, found, ranks)
        silent = imitation(config, here / "silent", found, ranks)
        assert (type(reading), type(silent)) == (Imitation, ParallelImitation)
        batch = found.train[np.arange(2)]
        with torch.inference_mode():
            assert silent.measure(batch)[:, 0].tolist() == [42.0, 42.0]
            assert reading.measure(batch)[:, 0].isfinite().all()
