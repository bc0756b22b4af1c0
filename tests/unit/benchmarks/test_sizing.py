"""The arithmetic of docs/sizing.md against what was measured on an H100 (docs/benchmarks.md)."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from benchmarks import sizing
from benchmarks.sizing import GIB, GPU_BYTES
from vlarl.config import RunConfig, load_config
from vlarl.models.openvla.config import OpenVLAConfig
from vlarl.models.openvla_oft.config import OFTConfig
from vlarl.models.statistics import ActionStats
from vlarl_trainer.memory import (
    Placement,
    factor_count,
    parameter_counts,
    sequence_length,
    tensors,
)

pytestmark = pytest.mark.torch

EIGHT = ActionStats.from_json({"q01": [-1.0] * 8, "q99": [1.0] * 8})

MEASURED = Path("docs/benchmarks.md").read_text().partition("A model of OpenVLA-7B's size")[2]


def measured(name: str) -> float:
    """The number in a row of docs/benchmarks.md."""
    (row,) = (line for line in MEASURED.splitlines() if line.startswith(f"| {name} |"))
    return float(row.split("|")[2])


@pytest.fixture(scope="module")
def model() -> OpenVLAConfig:
    return sizing.openvla_7b()


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return load_config(Path("configs/libero-7b.toml"))


def test_parameters_are_the_original_models(model: OpenVLAConfig) -> None:
    assert parameter_counts(model) == {
        "first tower": 303_230_976,
        "second tower": 427_680_704,
        "projector": 71_385_600,
        "language model": 6_738_939_904,
    }


def test_the_trainers_tensors_are_those_measured(config: RunConfig, model: OpenVLAConfig) -> None:
    # As FSDP has them on one rank: the placement that was measured.
    found = tensors(config.trainer, model, Placement(sharded=True, recomputed=True))
    assert found["weights"] / GIB == pytest.approx(measured("memory: weights"), rel=0.01)
    at_rest = found["weights"] + found["LoRA factors, float32"]
    assert at_rest / GIB == pytest.approx(measured("memory: trainer at rest"), rel=0.01)
    sent = 2 * factor_count(model, config.trainer.lora.rank)  # measured in bfloat16
    assert sent / 2**20 == pytest.approx(measured("factors sent"), rel=0.001)
    # Fine-tuning, with the same micro-batch and the same factors, but for the critic; factors were
    # beside the weights then.
    beside = sum(found.values()) - found["W0 of adapted layers, beside the merged"]
    most = measured("memory: SFT, at most")
    assert 1.0 <= beside / GIB / most <= 1.1


@pytest.mark.parametrize(
    ("changes", "row"),
    [
        ({}, "| OpenVLA | 320 | 32.5 | 63.3 |"),
        ({"chunk": 8}, "| OpenVLA-OFT, one camera | 371 | 33.0 | 67.6 |"),
        (
            {"chunk": 8, "cameras": ("main", "wrist"), "proprio_stats": {"libero": EIGHT}},
            "| OpenVLA-OFT, two cameras, proprioception | 628 | 35.9 | 96.5 |",
        ),
    ],
)
def test_the_page_says_what_chunks_take(
    config: RunConfig, model: OpenVLAConfig, changes: dict[str, object], row: str
) -> None:
    chunked = replace(model, spec=replace(model.spec, **changes))
    taken = [
        sum(tensors(config.trainer, chunked, Placement(False, recomputed)).values()) / GIB
        for recomputed in (True, False)
    ]
    name = row.split("|")[1].strip()
    found = f"| {name} | {sequence_length(chunked)} | {taken[0]:.1f} | {taken[1]:.1f} |"
    assert found == row
    assert row in Path("docs/sizing.md").read_text()


def test_a_token_in_the_kv_cache_takes_half_a_mebibyte(
    config: RunConfig, model: OpenVLAConfig
) -> None:
    # 2 (keys, values) x 32 layers x 4096 x 2 bytes; 32 actions of 640 tokens.
    cache = sizing.policy_budget(config, model)["KV cache"]
    assert cache == 32 * 640 * (2 * 32 * 4096 * 2)


@pytest.mark.parametrize("name", sizing.models_7b())
def test_the_page_says_what_policy_servers_take(config: RunConfig, name: str) -> None:
    row = " | ".join([name, *sizing.server_row(config, sizing.models_7b()[name])])
    assert f"| {row} |" in Path("docs/sizing.md").read_text()


def test_a_checkpoint_is_of_its_own_family(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vlarl.models.openvla_oft.starting import make_tiny_oft_checkpoint

    two = ("agentview", "robot0_eye_in_hand")
    made = make_tiny_oft_checkpoint(tmp_path / "oft", cameras=two, proprio=8)
    (tmp_path / "run.toml").write_text(f'policy.checkpoint = "{tmp_path / "oft"}"')
    seen: list[sizing.Model] = []
    monkeypatch.setattr(sizing, "layouts", lambda _, model: seen.append(model) or {})
    monkeypatch.setattr(sys, "argv", ["sizing", str(tmp_path / "run.toml")])
    sizing.main()
    (model,) = seen
    assert isinstance(model, OFTConfig)
    assert sizing.longest_request(model) == made.longest_sequence == 240 + made.num_patches + 58
    budget = sizing.policy_budget(config, model)
    assert "KV cache" not in budget
    # Two images, 8 steps of 7 tokens: what the trainer's passes are of.
    assert sequence_length(sizing.sizes(model)) == made.num_patches + 64 + 49 + 1 + 2
    taken = sizing.trainer_budget(config.trainer, sizing.sizes(model))
    single = replace(model.base, spec=replace(model.spec, cameras=("agentview",)))
    inputs = "activations of blocks"
    assert taken[inputs] > sizing.trainer_budget(config.trainer, single)[inputs]


@pytest.mark.parametrize("run", ["configs/libero-7b.toml", "deploy/compose/run-7b.toml"])
def test_every_layout_fits_even_where_learning_takes_the_most_ever_measured(
    run: str, model: OpenVLAConfig
) -> None:
    config = load_config(Path(run))
    estimated = sum(sizing.trainer_tensors(config.trainer, model).values())
    worst = max(0, measured("memory: learning, at most") * GIB - estimated)
    for layout, budgets in sizing.layouts(config, model).items():
        total = sum(sum(budget.values()) for budget in budgets.values())
        assert total + worst < 0.9 * GPU_BYTES, layout


def test_a_smaller_checkpoint_takes_less(
    config: RunConfig, model: OpenVLAConfig, tmp_path: Path
) -> None:
    from vlarl.models.openvla.tiny import make_tiny_checkpoint

    tiny = make_tiny_checkpoint(tmp_path)
    placement = Placement(sharded=True, recomputed=True)
    for part, size in tensors(config.trainer, tiny, placement).items():
        assert 0 < size < tensors(config.trainer, model, placement)[part], part
