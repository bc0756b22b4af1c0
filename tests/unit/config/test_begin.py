"""`vlarl begin`, and `vlarl gpus`: what is said before a stack's services start."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

pytest.importorskip("torch", reason="runs in the torch environment (.venv)")

from vlarl.config import ConfigError, load_config
from vlarl.launch.gpus import Gpu, check_room, chosen_gpu
from vlarl.ownership import owned
from vlarl_cli import app

pytestmark = pytest.mark.torch
ROOT = Path(__file__).parents[3]
REACH = ROOT / "configs/reach.toml"
GIB = 2**30
SMALL, LARGE = Gpu("NVIDIA L4", 24 * GIB), Gpu("NVIDIA H200", 140 * GIB)


def begin(run: Path, checkpoint: Path, config: Path = REACH, code: int = 0) -> str:
    arguments = ["begin", str(config), "--run-dir", str(run), "--set"]
    done = CliRunner().invoke(app, [*arguments, f"policy.checkpoint={checkpoint}"])
    assert done.exit_code == code, (done.output, done.exception)
    return done.output.strip()


def test_a_run_begins_once_and_goes_on_as_it_is(tmp_path: Path) -> None:
    run, policy = tmp_path / "mine", ROOT / "policies/reach"
    assert "there is no checkpoint folder" in begin(run, tmp_path / "absent", code=1)
    assert not run.exists()
    begin(run, policy)
    saved = (run / "config.toml").read_bytes()
    config = load_config(run / "config.toml")
    assert (config.name, config.policy.checkpoint) == ("mine", policy)
    with owned(run, "vlarl train"):
        begin(run, policy)
    assert (run / "config.toml").read_bytes() == saved
    said = begin(run, ROOT / "policies/object", code=1)
    assert f"{run} began with {policy}, and now policy.checkpoint is" in said
    assert "VLARL_RUN_NAME" in said


def test_a_run_needs_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    begin(tmp_path / "mine", ROOT / "policies/reach")
    done = CliRunner().invoke(app, ["gpus", str(tmp_path / "mine")])
    assert done.exit_code == 1
    assert done.output.startswith("error: CUDA can't be used here (")
    assert "driver for CUDA 13 (580 or later)" in done.output


def test_a_reward_server_without_torch_says_what_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    model = ["--set", "reward.model=rprm", "--set", "reward.checkpoint=openvla/judge"]
    done = CliRunner().invoke(app, ["serve", "reward", *model])
    assert done.exit_code == 1
    assert done.output.startswith('error: reward.model = "rprm" needs torch')
    assert "REWARD_LOCK=torch-cuda" in done.output


def test_weights_fit_or_a_sentence_says_what_would() -> None:
    weights = 14 * GIB
    check_room([LARGE], {"policy server": (0, weights), "trainer": (0, weights)})
    check_room([SMALL, SMALL], {"policy server": (0, weights), "trainer": (1, weights)})
    with pytest.raises(ConfigError) as refused:
        check_room([SMALL], {"policy server": (0, weights), "trainer": (0, weights)})
    assert str(refused.value) == (
        "GPU 0 (NVIDIA L4) has 24 GiB, and weights alone take 14 GiB for the policy server and 14 "
        "GiB for the trainer: use a larger GPU, or a second one (docs/sizing.md)"
    )


def test_gpus_are_named_by_numbers_or_the_last() -> None:
    assert chosen_gpu([SMALL], "last", "trainer") == 0
    assert chosen_gpu([SMALL, LARGE], "last", "trainer") == 1
    assert chosen_gpu([SMALL, LARGE], "0", "trainer") == 0
    for chosen in ("2", "-1", "first"):
        with pytest.raises(ConfigError, match=f"trainer: there is no GPU {chosen} here; those se"):
            chosen_gpu([SMALL, LARGE], chosen, "trainer")
