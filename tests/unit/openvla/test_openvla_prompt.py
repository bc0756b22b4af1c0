from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vlarl.errors import ConfigError

if TYPE_CHECKING:
    from vlarl.models.openvla.prompt import PromptBuilder

pytestmark = pytest.mark.torch

GOLDEN = Path(__file__).parents[2] / "golden/openvla-tiny"


def _builder(checkpoint: Path) -> PromptBuilder:
    from vlarl.models.openvla.prompt import PromptBuilder

    return PromptBuilder(checkpoint)


def test_golden_instructions_give_golden_ids() -> None:
    golden = json.loads((GOLDEN / "golden.json").read_text())
    builder = _builder(GOLDEN)
    ids = [builder.token_ids(instruction) for instruction in golden["instructions"]]
    assert ids == golden["prompt_ids"]
    assert builder.space_id == golden["empty_token_id"]


@pytest.mark.parametrize(
    "written",
    [
        "Open the drawer\n",
        "open the drawer\r\n",
        "  open the drawer ",
        "\ufeffopen the drawer\n",
        "open the\n  drawer",
        "open\tthe  drawer",
        "open the\u00a0drawer\u2028",
    ],
)
def test_white_space_changes_no_prompt(written: str) -> None:
    builder = _builder(GOLDEN)
    assert builder.token_ids(written) == builder.token_ids("open the drawer")


def test_words_are_those_of_the_original() -> None:
    """Byte for byte the original's `instruction.lower()` where single blanks part the words."""
    written = "put BOTH the cream-cheese (box) & the butter, gently: ÄÖÜ 桃 into it!"
    text = _builder(GOLDEN).text(written)
    assert text == f"In: What action should the robot take to {written.lower()}?\nOut:"


def test_special_tokens_in_an_instruction_are_text() -> None:
    ids = _builder(GOLDEN).token_ids("say <s></s><unk><PAD> zürich 桃")
    assert not {0, 1, 2, 1024} & set(ids[1:])


def test_version_01_speaks_vicuna(tmp_path: Path) -> None:
    directory = tmp_path / "openvla-v01-7b"
    shutil.copytree(GOLDEN, directory)
    text = _builder(directory).text("Open the drawer")
    assert text.startswith("A chat between a curious user")
    assert text.endswith("USER: What action should the robot take to open the drawer? ASSISTANT:")


@pytest.mark.parametrize("content", [None, "{", '{"version": "1.0"}'])
def test_a_broken_tokenizer_is_named(tmp_path: Path, content: str | None) -> None:
    shutil.copy(GOLDEN / "config.json", tmp_path)
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        _builder(tmp_path)
