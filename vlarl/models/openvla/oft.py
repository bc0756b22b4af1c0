"""Recognises OpenVLA-OFT, whose weights have OpenVLA's names and are used in another way."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlarl.errors import ConfigError
from vlarl.models.openvla.config import model_name
from vlarl.weights.folder import FAMILY_FILE, read_json
from vlarl.weights.whereabouts import BY_NAME, OFT_HEADS

__all__ = [
    "FAMILY_FILE",
    "OPENVLA",
    "OPENVLA_OFT",
    "named_family",
    "oft_heads",
    "oft_sign",
    "oft_sign_of_adapter",
    "stated_chunk",
]

OPENVLA = "openvla"
"""The family of a folder that has no such file."""
OPENVLA_OFT = "openvla_oft"
_CHUNK = re.compile(r"""\bNUM_ACTIONS_CHUNK\b["']?(?:\s*(?::\s*int\s*)?[:=]\s*(\d+))?""")
_COMMENT = re.compile(r"#.*")
_NAME = re.compile(r"openvla(?:.*[-_.])?oft(?:[-_.]|$)", re.IGNORECASE)


def named_family(directory: Path) -> str:
    """The family that a folder's ``family.json`` names, empty where it names none; without such a
    file, plain OpenVLA.

    Raises:
        ConfigError: the file can't be read.
    """
    path = directory / FAMILY_FILE
    # A link to nowhere counts as there: run as OpenVLA, another family would move the arm wrong.
    return str(read_json(path).get("family", "")) if os.path.lexists(path) else OPENVLA


def oft_sign(directory: Path, config: Mapping[str, Any]) -> str:
    """What shows that a folder is OpenVLA-OFT's, in words; empty: it is none.

    Signs are ``family.json``, the files of its heads, a chunk of more than one action in the code
    beside the weights (read, never run) or in ``config.json``, and its name. Proprioceptive
    statistics are none: later scripts write them for plain OpenVLA, too. A ``family.json`` that
    says another family overrules all but heads.

    Raises:
        ConfigError: code beside the weights can't be read, so that nobody knows.
    """
    if heads := oft_heads(directory):
        return heads
    if os.path.lexists(directory / FAMILY_FILE):
        return FAMILY_FILE if named_family(directory) == OPENVLA_OFT else ""
    return _sign_in_code(directory) or _sign_in_config(directory, config)


def oft_heads(directory: Path) -> str:
    """A file of its heads that lies in a folder; empty: there is none. Of several, the one that
    keeps it from being used.
    """
    for pattern in OFT_HEADS:
        if found := sorted(directory.glob(pattern)):
            return found[0].name
    return ""


def oft_sign_of_adapter(directory: Path, config: Mapping[str, Any]) -> str:
    """`oft_sign` of an adapter, which its fine-tuning writes one level below the heads."""
    if sign := oft_sign(directory, config):
        return sign
    above = directory.resolve().parent
    try:
        return oft_sign(above, read_json(above / "config.json"))
    except ConfigError:  # no checkpoint lies there: code of somebody's says nothing of this one
        return oft_heads(above)


def stated_chunk(directory: Path, config: Mapping[str, Any]) -> int | None:
    """The one number of control steps that code or ``config.json`` states; None: none or several.

    Raises:
        ConfigError: code beside the weights can't be read.
    """
    numbers = {int(size) for _, sizes in _chunks_in_code(directory) for size in sizes if size}
    numbers |= set(_chunks_in_config(config).values())
    return numbers.pop() if len(numbers) == 1 else None


def _sign_in_code(directory: Path) -> str:
    for name, sizes in _chunks_in_code(directory):
        if sizes - {None} != {"1"}:
            return f"NUM_ACTIONS_CHUNK in {name}"
    return ""


def _sign_in_config(directory: Path, config: Mapping[str, Any]) -> str:
    for key, value in _chunks_in_config(config).items():
        if value > 1:
            return f"{key} = {value} in config.json"
    for name in (model_name(directory), str(config.get("_name_or_path", ""))):
        if _NAME.search(name):
            return f"{BY_NAME} {name}"
    return ""


def _chunks_in_code(directory: Path) -> list[tuple[str, set[str | None]]]:
    """Of each file that has the name of a chunk's length, the numbers that it gives to it."""
    found = []
    for path in sorted(directory.glob("*.py")):
        if path.is_dir():
            continue
        code = _COMMENT.sub("", _text(path))
        # Imported from another file it has no number; plain code hasn't the name at all.
        if sizes := {match[1] for match in _CHUNK.finditer(code)}:
            found.append((path.name, sizes))
    return found


def _chunks_in_config(config: Mapping[str, Any]) -> dict[str, int]:
    return {
        key: value
        for key, value in config.items()
        if "action" in key.lower() and "chunk" in key.lower() and type(value) is int
    }


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ConfigError(
            f"{path}: can't be read ({error.strerror}), and it may say that this is OpenVLA-OFT: "
            "download it again, or remove it"
        ) from error
