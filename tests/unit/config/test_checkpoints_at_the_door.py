"""Every command that takes a checkpoint looks at it first, by the same check."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

pytest.importorskip("transformers", reason="runs in the torch environment (.venv)")

import torch
from huggingface_hub import constants

from tests.checkpoint_layouts import BROKEN, WHOLE, lay_out
from tests.integration.trainer.demonstrated import write_dataset
from vlarl.config import EnvConfig
from vlarl.env.v1 import env_pb2
from vlarl.launch import tasks
from vlarl_cli import app

pytestmark = pytest.mark.torch
ROOT = Path(__file__).parents[3]
RUN = str(ROOT / "configs/reach.toml")
HUB_NAME = "openvla/openvla-7b-finetuned-libero-spatial"


def sets(**values: object) -> list[str]:
    keys = ((key.replace("__", "."), value) for key, value in values.items())
    return [part for key, value in keys for part in ("--set", f"{key}={value}")]


def data(here: Path) -> str:
    return f'["{here / "data"}"]'


def ablation(here: Path, checkpoint: Path) -> list[str]:
    file = here / "table.toml"
    file.write_text(f'name = "t"\nbase = "{RUN}"\nseeds = [1]\nvariants.a = {{}}\n')
    return ["ablate", str(file), *sets(common__policy__checkpoint=checkpoint), "--out"]


COMMANDS: dict[str, Callable[[Path, Path], list[str]]] = {
    "checkpoint show": lambda _, it: ["checkpoint", "show", str(it)],
    "serve policy": lambda _, it: ["serve", "policy", "--checkpoint", str(it)],
    "serve reward": lambda _, it: [
        *("serve", "reward", *sets(reward__model="rprm", reward__checkpoint=it)),
    ],
    "up": lambda _, it: ["up", RUN, *sets(policy__checkpoint=it), "--run-dir"],
    "up: reward": lambda _, it: [
        *("up", RUN, *sets(reward__model="rprm", reward__checkpoint=it), "--run-dir"),
    ],
    "train": lambda _, it: ["train", RUN, *sets(policy__checkpoint=it), "--run-dir"],
    "eval": lambda _, it: ["eval", "--checkpoint", str(it), "--suite", "reach", "--out"],
    "eval: reward": lambda _, it: [
        *("eval", RUN, "--videos", "1", *sets(reward__model="rprm", reward__checkpoint=it)),
        "--out",
    ],
    "sft": lambda here, it: [
        *("sft", str(ROOT / "configs/sft-7b.toml"), *sets(checkpoint=it)),
        *(*sets(data__datasets=data(here)), "--run-dir"),
    ],
    "reward train": lambda here, it: [
        *("reward", "train", str(ROOT / "configs/reward-reach.toml"), *sets(checkpoint=it)),
        *(*sets(data__datasets=data(here)), "--run-dir"),
    ],
    "reward judge": lambda here, it: ["reward", "judge", str(it), str(here / "data")],
    "ablate": ablation,
}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from vlarl.models.openvla.tiny import make_tiny_checkpoint

    folder = tmp_path_factory.mktemp("door")
    tiny = folder / "tiny"
    make_tiny_checkpoint(tiny, image_size=28, tower_dim=32, tower_depth=2, text_dim=64)
    (tiny / "reward_model.json").write_text('{"version": "1"}')
    write_dataset(folder / "data")
    return folder


@pytest.fixture(scope="module", autouse=True)
def suites_are_listed_once() -> Iterator[None]:
    """A process of the simulator's environment lists a suite; hundreds of commands ask here."""
    listed: dict[str, list[env_pb2.TaskDescription]] = {}
    ask = tasks.suite_tasks

    def known(env: EnvConfig, suite: str) -> list[env_pb2.TaskDescription]:
        if suite not in listed:
            listed[suite] = ask(env, suite)
        return listed[suite]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "suite_tasks", known)
        yield


def refusal(here: Path, command: str, checkpoint: Path) -> str:
    """What a command says of a checkpoint; it must write nothing."""
    arguments = COMMANDS[command](here, checkpoint)
    out = here / "out"
    if arguments[-1].startswith("--"):
        arguments.append(str(out))
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 1, (refused.output, refused.exception)
    assert not out.exists()
    said = refused.output.strip()
    assert len(said.splitlines()) == 1
    assert said.startswith("error: ")
    return said


@pytest.mark.parametrize("layout", BROKEN)
def test_a_broken_checkpoint_is_refused_by_two_commands_in_turn(layout: str, here: Path) -> None:
    """And one that is cut short by all: they ask the same check."""
    change, expected = BROKEN[layout]
    checkpoint = here / "broken"
    place = list(BROKEN).index(layout)
    commands = [list(COMMANDS)[(2 * place + one) % len(COMMANDS)] for one in range(2)]
    if layout == "cut":
        commands = list(COMMANDS)
    try:
        lay_out(here / "tiny", checkpoint, change)
        if not (checkpoint / "reward_model.json").exists():
            (checkpoint / "reward_model.json").write_text('{"version": "1"}')
        for command in commands:
            said = refusal(here, command, checkpoint)
            for part in expected:
                assert part.replace("{}", str(checkpoint)) in said, command
    finally:
        shutil.rmtree(checkpoint)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_asks_the_hub_for_a_name(
    command: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(here / "cache"))
    said = refusal(here, command, Path(HUB_NAME))
    assert "http://127.0.0.1:1 can't be reached (ConnectError: [Errno 111]" in said
    assert f"{HUB_NAME}@main isn't whole in the cache" in said


@pytest.mark.parametrize("command", ["serve policy", "serve reward", "eval", "reward judge"])
def test_no_engine_is_loaded_to_find_out(command: str, here: Path, tmp_path: Path) -> None:
    checkpoint = lay_out(here / "tiny", tmp_path / "it", BROKEN["cut"][0])
    arguments = COMMANDS[command](here, checkpoint)
    arguments += [str(tmp_path / "out")] if arguments[-1].startswith("--") else []
    program = (
        "import sys; from vlarl_cli import app\n"
        "try: app(sys.argv[1:])\n"
        "except SystemExit as ended: assert ended.code == 1\n"
        "assert not {'torch', 'vllm'} & sys.modules.keys()"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    assert "is cut short" in ran.stderr


def test_a_policy_that_reads_no_actions_judges_none(here: Path, tmp_path: Path) -> None:
    checkpoint = lay_out(here / "tiny", tmp_path / "it", lambda _: None)
    use = {"family": "openvla_oft", "chunk": 8, "convention": "stop"}
    (checkpoint / "family.json").write_text(json.dumps(use))
    for command in ("reward train", "serve reward", "up: reward", "reward judge"):
        said = refusal(here, command, checkpoint)
        assert said.endswith("which reads no actions, so it can't be a reward model")


def test_a_vocabulary_without_room_for_placeholders_is_refused(here: Path, tmp_path: Path) -> None:
    """By each command that takes a policy: no server listens or reads weights first."""
    from tests.checkpoint_layouts import LM_HEAD, configured, weights

    checkpoint = lay_out(here / "tiny", tmp_path / "it", lambda _: None)
    last = json.loads((checkpoint / "config.json").read_text())["pad_token_id"] + 1

    def cut_off(tensors: dict[str, torch.Tensor]) -> None:
        for key in (LM_HEAD, "language_model.model.embed_tokens.weight"):
            tensors[key] = tensors[key][:last].clone()

    weights(checkpoint, cut_off)
    configured(
        checkpoint,
        lambda config: (
            config["text_config"].update(vocab_size=last),
            config.update(pad_to_multiple_of=1),
        ),
    )
    assert CliRunner().invoke(app, ["checkpoint", "show", str(checkpoint)]).exit_code == 0
    use = {"family": "openvla_oft", "chunk": 8, "convention": "stop"}
    (checkpoint / "family.json").write_text(json.dumps(use))
    for command in ("checkpoint show", "serve policy", "up", "train", "eval", "sft", "ablate"):
        said = refusal(here, command, checkpoint)
        assert f"{checkpoint}: placeholders are the id after pad_token_id, which is" in said
        assert "give embed_tokens and lm_head a row more" in said


def test_another_arms_actions_are_not_simulated(here: Path, tmp_path: Path) -> None:
    checkpoint = lay_out(here / "tiny", tmp_path / "it", WHOLE["eight dimensions"])
    for command in ("up", "train", "eval"):
        said = refusal(here, command, checkpoint)
        assert said.endswith("its actions have 8 dimensions, and the simulated arm takes 7")


def test_statistics_of_the_base_alone_say_where_the_suites_are(here: Path, tmp_path: Path) -> None:
    checkpoint = lay_out(
        here / "tiny", tmp_path / "it", WHOLE["the base's statistics in config.json"]
    )
    (checkpoint / "dataset_statistics.json").unlink()
    from tests.checkpoint_layouts import configured

    configured(
        checkpoint,
        lambda config: config["norm_stats"].update(fractal=config["norm_stats"]["bridge_orig"]),
    )
    for command in ("up", "eval"):
        said = refusal(here, command, checkpoint)
        assert "config.json of the checkpoint has statistics for bridge_orig, fractal" in said
        assert "lie in its dataset_statistics.json" in said


@pytest.mark.parametrize("layout", WHOLE)
def test_a_whole_one_is_shown(layout: str, here: Path, tmp_path: Path) -> None:
    checkpoint = lay_out(here / "tiny", tmp_path / "it", WHOLE[layout])
    shown = CliRunner().invoke(app, ["checkpoint", "show", str(checkpoint)])
    assert shown.exit_code == 0, shown.output
    assert "centre crop" in shown.output
    assert "actions in the units " in shown.output
