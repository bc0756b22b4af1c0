"""What can't work is refused in one sentence before anything is started or written."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

pytest.importorskip("transformers", reason="runs in the torch environment (.venv)")

from tests.integration.trainer.demonstrated import sft_config, task_samples, write_dataset
from vlarl.config import EnvConfig, dump_toml
from vlarl.config.suites import check_suite
from vlarl.models.openvla.tiny import make_tiny_checkpoint
from vlarl.models.openvla_oft.starting import make_tiny_oft_checkpoint
from vlarl_cli import app, main
from vlarl_cli.sft import _check

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
        (
            ["tasks.indices=[]"],
            "tasks.indices is empty: name the tasks to train on, e.g. [0, 1, 2]",
        ),
        (
            ["tasks.suite=rech", "policy.checkpoint=nowhere"],
            "unknown suite 'rech'; did you mean 'r",
        ),
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


@pytest.mark.parametrize("command", ["begin", "train"])
def test_a_run_without_tasks_is_refused(command: str, tmp_path: Path) -> None:
    reach = str(ROOT / "configs/reach.toml")
    said = refusal(tmp_path / "run", command, reach, "--set", "tasks.indices=[]")
    assert said.startswith("error: tasks.indices is empty")


@pytest.mark.parametrize("command", ["up", "train"])
def test_wandb_has_to_be_installed_where_it_is_wanted(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlarl_cli.extras.find_spec", lambda name: None)
    wanted = ("--set", "logging.wandb=offline")
    said = refusal(tmp_path / "run", command, str(ROOT / "configs/reach.toml"), *wanted)
    assert said.startswith('error: logging.wandb = "offline" needs wandb, which isn\'t installed')
    assert said.endswith(" install 'vlarl[wandb]'")


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


def test_a_chunk_policy_is_not_made_one_again(tmp_path: Path) -> None:
    make_tiny_oft_checkpoint(tmp_path / "oft", chunk=2, cameras=["agentview"])
    write_dataset(tmp_path / "data")
    settings = {"mode": "lora", "model": None, "checkpoint": tmp_path / "oft"}
    file = tmp_path / "sft.toml"
    file.write_text(dump_toml(sft_config(tmp_path / "data", family={"chunk": 2}, **settings)))
    said = refusal(tmp_path / "run", "sft", str(file))
    assert said == (
        f"error: {tmp_path / 'oft'} is of the family openvla_oft already, and [family] is for an "
        "OpenVLA: leave [family] out"
    )
    file.write_text(dump_toml(sft_config(tmp_path / "data", input_sigma=2.0, **settings)))
    said = refusal(tmp_path / "run", "sft", str(file))
    assert said.startswith("error: input_sigma: it is noise on action tokens")


def test_a_chunk_that_does_not_fit_is_refused_before_a_folder_exists(tmp_path: Path) -> None:
    """Episodes of 5 actions; the language model takes 2,048 tokens."""
    data = write_dataset(tmp_path / "data", task_samples(length=5))
    make_tiny_checkpoint(tmp_path / "plain", image_size=28, tower_dim=32, text_dim=64)
    make_tiny_oft_checkpoint(tmp_path / "oft", chunk=6, image_size=28, tower_dim=32, text_dim=64)
    named = {"model": None, "checkpoint": tmp_path / "plain"}
    file = tmp_path / "sft.toml"

    def said(**changes: object) -> str:
        file.write_text(dump_toml(sft_config(data, **changes)))
        return refusal(tmp_path / "run", "sft", str(file))

    short = "with episodes of at least 6 actions, the policy's chunk, or set data.partial_chunks"
    assert short in said(family={"chunk": 6})
    assert short in said(family={"chunk": 6}, **named)
    assert short in said(model=None, checkpoint=tmp_path / "oft")
    long = "and the language model takes 2048: take a smaller chunk or fewer cameras"
    partial = {"partial_chunks": True}
    assert long in said(family={"chunk": 300}, data=partial)
    assert long in said(family={"chunk": 300}, data=partial, **named)
    one_long = [task_samples(length=5), task_samples(index=1, episodes=1, length=6)]
    write_dataset(tmp_path / "data", *one_long)
    for fits in ({"family": {"chunk": 6}}, {"family": {"chunk": 9}, "data": partial}):
        _check(sft_config(data, **fits))


def test_what_fine_tuning_learns_from_is_looked_for_before_a_folder_exists(tmp_path: Path) -> None:
    make_tiny_checkpoint(tmp_path / "plain", image_size=28, tower_dim=32, text_dim=64)
    failed = replace(task_samples(), succeeded=np.zeros(12, np.bool_))
    blind = replace(task_samples(), poses=np.zeros((12, 0), np.float32), pose_names=())
    named = {"model": None, "checkpoint": tmp_path / "plain"}
    file = tmp_path / "sft.toml"
    for number, (task, changes, sentence) in enumerate(
        (
            (failed, {}, "add demonstrations that reach their goals"),
            (blind, {"pretrain": {"steps": 1}}, "[pretrain] needs poses, and no dataset has any"),
            (
                task_samples(),
                {**named, "data": {"statistics": "checkpoint"}},
                "no dataset statistics named 'squares'; the checkpoint has: libero_10, ",
            ),
            (task_samples(), {"model": {"tower_dim": 112}}, "impossible size of tower"),
        )
    ):
        data = write_dataset(tmp_path / f"data{number}", task)
        file.write_text(dump_toml(sft_config(data, **changes)))
        assert sentence in refusal(tmp_path / "run", "sft", str(file))


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_nor_with_half_a_checkpoint(tmp_path: Path, missing: str) -> None:
    shutil.copytree(ROOT / "policies/reach", tmp_path / "half")
    (tmp_path / "half" / missing).unlink()
    checkpoint = f"policy.checkpoint={tmp_path / 'half'}"
    arguments = ["up", str(ROOT / "configs/reach.toml"), "--set", checkpoint]
    assert missing in refusal(tmp_path / "run", *arguments)


def test_a_suite_of_the_users_own_is_known(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "services/env/vlarl_env/simulators/libero/bddl/reach", tmp_path / "mine")
    settings = ["tasks.suite=mine", f"env.bddl_directories.mine={tmp_path / 'mine'}"]
    overrides = [part for one in (*settings, "tasks.indices=[1]") for part in ("--set", one)]
    said = refusal(tmp_path / "run", "up", str(ROOT / "configs/reach.toml"), *overrides)
    assert said == "error: suite 'mine' has tasks 0 to 0, so there is no number 1"


def test_a_suite_without_states_to_evaluate_on_is_refused(tmp_path: Path) -> None:
    shutil.copytree(
        ROOT / "services/env/vlarl_env/simulators/libero/bddl/approach", tmp_path / "mine"
    )
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


def test_a_trainer_looks_at_the_suites_name_before_the_policy(tmp_path: Path) -> None:
    """Its machine may have no simulator, nor the folders of the simulators' own suites."""
    reach = str(ROOT / "configs/reach.toml")
    nowhere = ["--set", "policy.checkpoint=nowhere"]
    names = {
        "libero_spacial": "unknown suite 'libero_spacial'; did you mean 'libero_spatial'? There ",
        "mien": "unknown suite 'mien'; did you mean 'mine'? There are approach, libero_10, ",
        "mine": "there is no checkpoint folder nowhere (seen from ",
        "approach": "there is no checkpoint folder nowhere (seen from ",
    }
    for suite, sentence in names.items():
        own = ["--set", "env.bddl_directories.mine=/elsewhere", "--set", f"tasks.suite={suite}"]
        said = refusal(tmp_path / "run", "train", reach, *own, *nowhere)
        assert said.startswith(f"error: {sentence}")


def test_the_suites_that_a_trainer_knows_are_all_there_are() -> None:
    from vlarl_env.simulators.libero.suites import SHIPPED_SUITES

    for suite in SHIPPED_SUITES:
        check_suite(EnvConfig(), suite)


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
        (["--camera", "wrist.png"], "--camera 'wrist.png' must be NAME=FILE"),
        (["--camera", "wrist=/nowhere"], "--camera 'wrist=/nowhere': No such file or directory"),
        (["--proprio", "1,x"], "--proprio '1,x' must be numbers with commas between them"),
        (["--address", "policy"], "'policy' is not HOST:PORT"),
        (["--address", "http://policy:1"], "'http://policy:1': an address is HOST:PORT, without"),
    ],
)
def test_an_action_that_can_not_be_asked_for(options: list[str], sentence: str) -> None:
    image = ROOT / "docs/pictures/reach-success.png"
    asked = ["act", "--image", str(image), "--instruction", "go", *options]
    refused = CliRunner().invoke(app, asked)
    assert refused.exit_code == 1
    assert refused.output.startswith(f"error: {sentence}")
    assert len(refused.output.splitlines()) == 1


@pytest.mark.parametrize("service", ["policy", "env", "reward"])
@pytest.mark.parametrize("option", ["--listen", "--metrics-listen"])
def test_a_server_looks_where_it_shall_listen_first(service: str, option: str) -> None:
    refused = CliRunner().invoke(app, ["serve", service, option, "50051"], env={"COLUMNS": "200"})
    assert refused.exit_code == 2
    assert f"Invalid value for '{option}': '50051' is not HOST:PORT" in refused.output


def test_a_configuration_of_another_command_is_recognised() -> None:
    arguments = ["config", "show", str(ROOT / "configs/sft-reach.toml")]
    refused = CliRunner().invoke(app, arguments, env={"COLUMNS": "300"})
    assert refused.exit_code == 2
    assert "it is one for --of sft" in refused.output
    shown = CliRunner().invoke(app, [*arguments, "--of", "sft"])
    assert (shown.exit_code, "[data]" in shown.output) == (0, True)


@pytest.mark.parametrize(
    ("package", "sentence"),
    [
        ("torch", "torch isn't installed here. After `make setup` this command is .venv/bin/vlarl"),
        (
            "robosuite",
            "robosuite isn't installed here: the simulator has an environment of its own",
        ),
        ("vlarl_trainer", "the trainer service isn't installed here: an image holds its own alone"),
    ],
)
def test_the_environment_that_a_command_wants_is_named(
    package: str, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> None:
        raise ModuleNotFoundError(f"No module named '{package}'", name=package)

    monkeypatch.setattr("vlarl_cli.app", fails)
    monkeypatch.setenv("PYTHONSAFEPATH", "1")  # or what main sets would stay for further tests
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith(f"error: {sentence}")


def test_a_missing_module_of_the_project_is_no_users_mistake(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails() -> None:
        raise ModuleNotFoundError("No module named 'vlarl.gone'", name="vlarl.gone")

    monkeypatch.setattr("vlarl_cli.app", fails)
    monkeypatch.setenv("PYTHONSAFEPATH", "1")  # or what main sets would stay for further tests
    with pytest.raises(ModuleNotFoundError):
        main()


def test_processes_below_a_command_dont_look_into_the_working_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[str | None] = []
    monkeypatch.setattr(
        "vlarl_cli.app",
        lambda: seen.extend(map(os.environ.get, ("PYTHONSAFEPATH", "PYTHONPATH"))),
    )
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", "/a", "", "/b"]))
    main()
    assert seen == ["1", os.pathsep.join(["/a", "/b"])]


def test_fine_tuning_looks_for_its_datasets_first(tmp_path: Path) -> None:
    datasets = f'data.datasets=["{tmp_path / "none"}"]'
    arguments = ["sft", str(ROOT / "configs/sft-reach.toml"), "--set", datasets]
    assert "no dataset here" in refusal(tmp_path / "run", *arguments)


def test_fine_tuning_looks_into_its_datasets_first(tmp_path: Path) -> None:
    wrong = task_samples()
    wrong.actions[3, 6] = 0.5
    write_dataset(tmp_path / "wrong", wrong)
    datasets = f'data.datasets=["{tmp_path / "wrong"}"]'
    arguments = ["sft", str(ROOT / "configs/sft-reach.toml"), "--set", datasets]
    assert "neither 0 (closed) nor 1 (open)" in refusal(tmp_path / "run", *arguments)
    (file,) = (tmp_path / "wrong").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-9])
    assert f"{file} can't be read" in refusal(tmp_path / "run", *arguments)
