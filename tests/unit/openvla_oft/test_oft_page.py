"""docs/openvla-oft.md and configs/libero-7b-oft.toml against the code."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers", reason="runs in the torch environment (.venv)")

from typer.testing import CliRunner

from vlarl.config import load_config
from vlarl.config.learning import GrpoConfig
from vlarl.models.openvla_oft.starting import make_tiny_oft_checkpoint
from vlarl_cli import app

pytestmark = pytest.mark.torch
ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/openvla-oft.md").read_text(encoding="utf-8")
RUN = ROOT / "configs/libero-7b-oft.toml"
PACKAGE = ROOT / "vlarl/models/openvla_oft"


def test_each_module_is_on_the_page_with_what_it_needs() -> None:
    rows = dict(re.findall(r"^\| (`\w+\.py`.*?) \|.*\| (.+?) \|$", PAGE, re.MULTILINE))
    needs = {name: need for names, need in rows.items() for name in re.findall(r"\w+\.py", names)}
    assert needs.keys() == {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py"}
    for name, need in needs.items():
        tree = ast.parse((PACKAGE / name).read_text(encoding="utf-8"))
        named = [one.module or "" for one in ast.walk(tree) if isinstance(one, ast.ImportFrom)]
        of_vllm = any(one.partition(".")[0] == "vllm" for one in named)
        assert of_vllm == (need == "vLLM"), name


def test_the_pages_commands_have_their_options() -> None:
    commands = re.findall(r"^vlarl ((?:.*\\\n)*.*)$", PAGE, re.MULTILINE)
    names = {" ".join(shlex.split(one)[:2]) for one in commands}
    assert {"checkpoint adopt", "serve policy", "eval configs/libero-7b-oft.toml"} <= names
    assert "up configs/libero-7b-oft.toml" in names
    for command in commands:
        words = shlex.split(command.replace("\\\n", " "))
        path = words[:2] if words[0] in ("checkpoint", "serve") else words[:1]
        shown = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "200"}).output
        for option in (one for one in words if one.startswith("--")):
            assert option in shown, (command, option)


def test_fine_tuning_is_shown_by_the_commands_of_its_configuration() -> None:
    head = (ROOT / "configs/sft-object-oft.toml").read_text(encoding="utf-8").partition("\nname")[0]
    shown = (ROOT / "docs/sft.md").read_text(encoding="utf-8").partition("## Chunks")[2]
    of_head, of_page = (
        [command.replace("\\\n", "").split() for command in re.findall(pattern, text, re.MULTILINE)]
        for pattern, text in (
            (r"^vlarl (?:.*\\\n)*.*$", re.sub(r"^# *", "", head, flags=re.MULTILINE)),
            (r"^vlarl (?:.*\\\n)*.*$", shown),
        )
    )
    assert len(of_head) == 3
    assert of_page[:3] == of_head


def test_a_source_and_a_base_may_be_names_on_the_hub() -> None:
    shown = CliRunner().invoke(app, ["checkpoint", "adopt", "--help"], env={"COLUMNS": "200"})
    assert shown.output.count("OWNER/NAME[@REVISION]") == 2


def test_the_run_begins_with_a_policy_of_the_family(tmp_path: Path) -> None:
    policy, run = tmp_path / "policy", tmp_path / "run"
    spec = make_tiny_oft_checkpoint(policy).spec
    begun = ["begin", str(RUN), "--run-dir", str(run), "--set", f"policy.checkpoint={policy}"]
    done = CliRunner().invoke(app, begun)
    assert done.exit_code == 0, done.output
    trainer = load_config(run / "config.toml").trainer
    assert isinstance(trainer.chosen, GrpoConfig)
    assert trainer.chosen.group_size == 8
    assert trainer.chosen.ratio_for(spec.chunk) == "token"
    one_step = GrpoConfig().kl_stop
    assert trainer.chosen.kl_stop == pytest.approx(spec.chunk * one_step)
