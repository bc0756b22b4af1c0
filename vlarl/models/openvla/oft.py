"""Recognises OpenVLA-OFT, whose weights have OpenVLA's names and are used in another way."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlarl.errors import ConfigError
from vlarl.weights.folder import read_json
from vlarl.weights.whereabouts import OFT_HEADS

FAMILY_FILE = "family.json"
"""What makes a checkpoint one that `vlarl.models.openvla_oft` loads."""
_CHUNK = re.compile(r"""\bNUM_ACTIONS_CHUNK\b["']?(?:\s*(?::\s*int\s*)?[:=]\s*(\d+))?""")
_COMMENT = re.compile(r"#.*")


def oft_sign(directory: Path, config: Mapping[str, Any]) -> str:
    """What shows that a folder is OpenVLA-OFT's, in words; empty: it is none.

    Signs are ``family.json``, the files of its heads, and a chunk of more than one action in the
    code beside the weights (read, never run) or in ``config.json``. Proprioceptive statistics are
    none: later scripts write them for plain OpenVLA, too.

    Raises:
        ConfigError: code beside the weights can't be read, so that nobody knows.
    """
    if os.path.lexists(directory / FAMILY_FILE):
        return FAMILY_FILE
    if heads := oft_heads(directory):
        return heads
    for path in sorted(directory.glob("*.py")):
        if path.is_dir():
            continue
        code = _COMMENT.sub("", _text(path))
        # Imported from another file it has no number; plain code hasn't the name at all.
        sizes = {match[1] for match in _CHUNK.finditer(code)}
        if sizes and sizes - {None} != {"1"}:
            return f"NUM_ACTIONS_CHUNK in {path.name}"
    for key, value in config.items():
        name = key.lower()
        if "action" in name and "chunk" in name and isinstance(value, int) and value > 1:
            return f"{key} = {value} in config.json"
    return ""


def oft_heads(directory: Path) -> str:
    """A file of its heads that lies in a folder; empty: there is none."""
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


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ConfigError(
            f"{path}: can't be read ({error.strerror}), and it may say that this is OpenVLA-OFT: "
            "download it again, or remove it"
        ) from error
