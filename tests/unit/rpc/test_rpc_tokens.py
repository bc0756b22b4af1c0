"""The token file: what it accepts, and what happens while it is replaced."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlarl.clients.policy import PolicyClient
from vlarl.config import ConfigError, QueueConfig
from vlarl.queue.connection import open_redis
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


def test_a_byte_order_mark_is_no_part_of_a_token(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("secret\n", encoding="utf-8-sig")
    assert TokenFile(file).authorization() == "Bearer secret"


NO_TOKENS = ["caf\u00e9\n", "good\nm\u00fcller\n", "a\x07b", "\ufeff\ufeffsecret"]


@pytest.mark.parametrize("content", NO_TOKENS)
def test_a_token_that_no_header_carries_is_refused_with_its_file(
    tmp_path: Path, content: str
) -> None:
    """A server's file is refused as a client's is: nobody could send such a token."""
    file = tmp_path / "token"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(TokenError) as refused:
        TokenFile(file)
    assert str(refused.value) == (
        f"token file {file} can't be read: a token is one line of printable ASCII characters"
    )
    with pytest.raises(TokenError, match="printable ASCII"):
        PolicyClient("127.0.0.1:1", token_file=file)


def test_nor_does_it_take_the_place_of_the_last_good_one(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("good")
    tokens = TokenFile(file)
    file.write_text("caf\u00e9")
    assert tokens.authorization() == "Bearer good"
    file.write_text("better")
    assert tokens.authorization() == "Bearer better"


def test_the_queues_password_is_read_alike(tmp_path: Path) -> None:
    file = tmp_path / "password"
    config = QueueConfig(url="redis://127.0.0.1:1", password_file=file)
    with pytest.raises(ConfigError, match=r"password can't be read \(No such file"):
        open_redis(config, retries=0)
    file.write_bytes(b"m\xfcller")
    with pytest.raises(ConfigError, match="password isn't UTF-8: save it as UTF-8"):
        open_redis(config, retries=0)
    file.write_text("m\u00fcller\n", encoding="utf-8-sig")
    known = open_redis(config, retries=0).connection_pool.connection_kwargs
    assert "m\u00fcller" in known.values()
