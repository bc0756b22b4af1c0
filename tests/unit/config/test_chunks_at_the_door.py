"""What doesn't go together with a policy that answers chunks is refused before anything starts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

pytest.importorskip("transformers", reason="runs in the torch environment (.venv)")

from tests.integration.trainer.demonstrated import sft_config, write_dataset
from vlarl.config import EnvConfig, dump_toml
from vlarl.launch import tasks
from vlarl.models.openvla_oft.starting import make_tiny_oft_checkpoint
from vlarl_cli import app

pytestmark = pytest.mark.torch
ROOT = Path(__file__).parents[3]
JUDGED = ("reward.model=rprm", f"reward.checkpoint={ROOT / 'rewards/reach'}")
GROUPS = ("trainer.algorithm=grpo", "trainer.episodes_per_iteration=16")
RUN = """
unnorm_key = "libero_goal"
[tasks]
suite = "reach"
[env]
action_repeat = 4
"""
"""Episodes as long as reach allows: 60 control steps, 15 actions."""


@pytest.fixture(scope="module", autouse=True)
def reach_is_listed_once() -> Iterator[None]:
    """A process of the simulator's environment lists a suite, which takes seconds."""
    listed = tasks.suite_tasks(EnvConfig(), "reach")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "suite_tasks", lambda env, suite: listed)
        yield


def refusal(folder: Path, command: str, checkpoint: Path, *settings: str) -> str:
    """What a command says of reach with this policy; it must write nothing."""
    run, config, table = folder / "run", folder / "run.toml", folder / "table.toml"
    config.write_text(RUN)
    settings = (f"policy.checkpoint={checkpoint}", *settings)
    arguments = [command, str(config), "--out" if command == "eval" else "--run-dir", str(run)]
    if command == "eval" and "reward.model=rprm" in settings:
        arguments += ["--videos", "1"]
    if command == "ablate":
        table.write_text('name = "t"\nbase = "run.toml"\nseeds = [1]\nvariants.a = {}\n')
        settings = tuple(f"common.{one}" for one in settings)
        arguments = ["ablate", str(table), "--out", str(run)]
    sets = [part for one in settings for part in ("--set", one)]
    refused = CliRunner().invoke(app, [*arguments, *sets])
    assert refused.exit_code == 1, (refused.output, refused.exception)
    assert not run.exists()
    said = refused.output.strip()
    assert len(said.splitlines()) == 1
    return said.removeprefix("error: ").removeprefix("variants.a: ")


@pytest.fixture(scope="module")
def chunked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("oft") / "eight"
    make_tiny_oft_checkpoint(folder, image_size=28)
    return folder


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More actions than reach has time for."""
    folder = tmp_path_factory.mktemp("oft") / "wide"
    make_tiny_oft_checkpoint(folder, image_size=28, chunk=16)
    return folder


@pytest.mark.parametrize("command", ["up", "train", "begin", "ablate", "eval"])
def test_a_judge_of_single_actions(command: str, tmp_path: Path, chunked: Path) -> None:
    said = refusal(tmp_path, command, chunked, *JUDGED)
    assert said.startswith('reward.form = "additive" scores actions one by one, and the policy')
    # What is recorded is the whole answer, also where one action of it is executed.
    assert refusal(tmp_path, command, chunked, *JUDGED, "env.replan_after=1") == said


@pytest.mark.parametrize("command", ["up", "ablate", "eval"])
def test_a_chunk_longer_than_an_episode(command: str, tmp_path: Path, wide: Path) -> None:
    said = refusal(tmp_path, command, wide)
    assert said.startswith("16 actions of each answer are executed, and an episode has at most 15:")


def test_nor_is_one_trained_that_reach_has_no_time_for(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data")
    (tmp_path / "run.toml").write_text(RUN)
    simulation = {"config": tmp_path / "run.toml", "every_steps": 2}
    family = {"chunk": 16}
    file = tmp_path / "sft.toml"
    settings = {"simulation": simulation, "family": family, "data": {"partial_chunks": True}}
    file.write_text(dump_toml(sft_config(tmp_path / "data", **settings)))
    arguments = ["sft", str(file), "--run-dir", str(tmp_path / "run")]
    refused = CliRunner().invoke(app, arguments)
    assert refused.output.startswith("error: 16 actions of each answer are executed, and an ep")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["up", "train", "begin", "ablate", "eval"])
def test_a_camera_that_reach_lacks(command: str, tmp_path: Path, chunked: Path) -> None:
    said = refusal(tmp_path, command, chunked, 'env.cameras=["wrist"]')
    assert said.startswith("env.cameras: the scenes of reach have no camera 'wrist'; set env.came")


@pytest.mark.parametrize("command", ["up", "ablate"])
def test_a_mini_batch_that_an_iteration_never_has(
    command: str, tmp_path: Path, chunked: Path
) -> None:
    mini_batch = ("trainer.grpo.mini_batch=33", "trainer.grpo.micro_batch=1")
    said = refusal(tmp_path, command, chunked, *GROUPS, *mini_batch)
    assert said.startswith("trainer.grpo.mini_batch is 33 answers of the policy, but 16 episodes")
