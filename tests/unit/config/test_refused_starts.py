"""What can't work is refused in one sentence before anything is started or written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from tests.integration.trainer.demonstrated import sft_config, write_dataset
from vlarl.cli import app
from vlarl.config import dump_toml

pytestmark = pytest.mark.torch
ROOT = Path(__file__).parents[3]


def refusal(run_dir: Path, *arguments: str) -> str:
    """What the command says; it must leave nothing behind."""
    refused = CliRunner().invoke(app, [*arguments, "--run-dir", str(run_dir)])
    assert refused.exit_code == 1
    assert not run_dir.exists()
    assert len(refused.output.strip().splitlines()) == 1
    return refused.output.strip()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["tasks.suite=libero_spatal"], "unknown suite 'libero_spatal'; did you mean 'libero_sp"),
        (["tasks.indices=[0, 4]"], "suite 'reach' has tasks 0 to 0, so there is no number 4"),
        (["policy.checkpoint=nowhere"], "there is no checkpoint folder nowhere (seen from "),
        (["unnorm_key=bridge"], "no dataset statistics named 'bridge'; the checkpoint has: reach"),
        (
            ["reward.model=rprm", "reward.checkpoint=policies/reach"],
            "policies/reach is no reward model (reward_model.json is missing): `",
        ),
    ],
)
def test_the_stack_is_not_started(tmp_path: Path, settings: list[str], sentence: str) -> None:
    overrides = [part for setting in settings for part in ("--set", setting)]
    said = refusal(tmp_path / "run", "up", str(ROOT / "configs/reach.toml"), *overrides)
    assert said.startswith(f"error: {sentence}")


@pytest.mark.parametrize(
    "arguments",
    [["checkpoint", "show"], ["serve", "policy", "--checkpoint"], ["status"]],
    ids=lambda arguments: " ".join(arguments),
)
def test_a_folder_that_is_something_else_is_named(arguments: list[str]) -> None:
    refused = CliRunner().invoke(app, [*arguments, str(ROOT / "docs")])
    assert refused.exit_code == 1
    assert " is missing" in refused.output
    assert len(refused.output.strip().splitlines()) == 1


def test_fine_tuning_looks_at_what_it_shall_simulate(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data")
    tasks = tmp_path / "tasks.toml"
    tasks.write_text('[tasks]\nsuite = "reach"\nindices = [3]\n')
    simulation = {"config": tasks, "every_steps": 2}
    file = tmp_path / "sft.toml"
    file.write_text(dump_toml(sft_config(tmp_path / "data", simulation=simulation)))
    said = refusal(tmp_path / "run", "sft", str(file))
    assert said == "error: suite 'reach' has tasks 0 to 0, so there is no number 3"
    with pytest.raises(ValidationError, match="must be a multiple"):
        sft_config(tmp_path / "data", simulation={**simulation, "every_steps": 3})


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_nor_with_half_a_checkpoint(tmp_path: Path, missing: str) -> None:
    shutil.copytree(ROOT / "policies/reach", tmp_path / "half")
    (tmp_path / "half" / missing).unlink()
    checkpoint = f"policy.checkpoint={tmp_path / 'half'}"
    arguments = ["up", str(ROOT / "configs/reach.toml"), "--set", checkpoint]
    assert missing in refusal(tmp_path / "run", *arguments)


def test_a_suite_of_the_users_own_is_known(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "services/env/bddl/reach", tmp_path / "mine")
    settings = ["tasks.suite=mine", f"env.bddl_directories.mine={tmp_path / 'mine'}"]
    overrides = [part for one in (*settings, "tasks.indices=[1]") for part in ("--set", one)]
    said = refusal(tmp_path / "run", "up", str(ROOT / "configs/reach.toml"), *overrides)
    assert said == "error: suite 'mine' has tasks 0 to 0, so there is no number 1"


def test_a_suite_without_states_to_evaluate_on_is_refused(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "services/env/bddl/approach", tmp_path / "mine")
    settings = ["tasks.suite=mine", f"env.bddl_directories.mine={tmp_path / 'mine'}"]
    overrides = [part for one in settings for part in ("--set", one)]
    said = refusal(tmp_path / "run", "up", str(ROOT / "configs/reach.toml"), *overrides)
    assert said == (
        "error: task 0 of suite 'mine' has 50 official initial states, fewer than 100 episodes "
        "(evaluation.episodes_per_task)"
    )


def test_a_trainer_without_a_queue_says_what_starts_one(tmp_path: Path) -> None:
    url = f"queue.url=unix://{tmp_path}/nothing"
    said = refusal(tmp_path / "run", "train", str(ROOT / "configs/reach.toml"), "--set", url)
    assert said.startswith(f"error: no queue at unix://{tmp_path}/nothing: ")
    assert " up CONFIG` starts one with everything else" in said


def test_a_policy_that_nobody_serves_says_how_to_serve_one() -> None:
    image = ROOT / "docs/pictures/reach-success.png"
    arguments = ["--image", str(image), "--instruction", "go", "--address", "127.0.0.1:9"]
    refused = CliRunner().invoke(app, ["act", *arguments])
    assert refused.exit_code == 1
    assert "serve policy --checkpoint DIR`, or name another one with --address" in refused.output


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--token-file", "/nowhere/token"], "token file /nowhere/token can't be read: "),
        (["--tls-ca", "/nowhere/ca.pem"], "TLS file /nowhere/ca.pem can't be read: "),
        (["--tls-key", "/nowhere/key.pem"], "mutual TLS needs both tls_certificate and tls_key"),
        (["--address", "127.0.0.1:1,nowhere.invalid:1"], "nowhere.invalid:1: "),
        (["--temperature", "-1"], "temperature must be 0 or above, not -1.0"),
    ],
)
def test_an_action_that_can_not_be_asked_for(options: list[str], sentence: str) -> None:
    image = ROOT / "docs/pictures/reach-success.png"
    asked = ["act", "--image", str(image), "--instruction", "go", *options]
    refused = CliRunner().invoke(app, asked)
    assert refused.exit_code == 1
    assert refused.output.startswith(f"error: {sentence}")
    assert len(refused.output.splitlines()) == 1


def test_fine_tuning_looks_for_its_datasets_first(tmp_path: Path) -> None:
    datasets = f'data.datasets=["{tmp_path / "none"}"]'
    arguments = ["sft", str(ROOT / "configs/sft-reach.toml"), "--set", datasets]
    assert "no dataset here" in refusal(tmp_path / "run", *arguments)
