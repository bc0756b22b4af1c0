"""The token file: what it accepts, and what happens while it is replaced."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlarl.rpc.auth import TokenError, TokenFile


def test_the_first_line_is_sent_and_every_line_accepted(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("new\n\n  old \n")
    tokens = TokenFile(file)
    assert tokens.authorization() == "Bearer new"
    assert tokens.accepts("Bearer new")
    assert tokens.accepts("Bearer old")


@pytest.mark.parametrize("sent", ["Bearer ", "Bearer ne", "Bearer newer", "new", "bearer new", "é"])
def test_anything_else_is_refused(tmp_path: Path, sent: str) -> None:
    file = tmp_path / "token"
    file.write_text("new\n")
    assert not TokenFile(file).accepts(sent)


def test_a_replaced_file_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first")
    tokens = TokenFile(file)
    replacement = tmp_path / "next"
    replacement.write_text("other")
    replacement.replace(file)
    assert tokens.accepts("Bearer other")
    assert not tokens.accepts("Bearer first")


@pytest.mark.parametrize("content", [None, "", "\n \n"])
def test_the_last_good_token_holds_while_the_file_is_gone_or_empty(
    tmp_path: Path, content: str | None
) -> None:
    file = tmp_path / "token"
    file.write_text("good")
    tokens = TokenFile(file)
    file.unlink()
    if content is not None:
        file.write_text(content)
    assert tokens.accepts("Bearer good")
    file.write_text("better")
    assert tokens.accepts("Bearer better")
    assert not tokens.accepts("Bearer good")


def test_a_missing_or_empty_file_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(TokenError, match="can't be read"):
        TokenFile(tmp_path / "nothing")
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(TokenError, match="is empty"):
        TokenFile(tmp_path / "empty")
