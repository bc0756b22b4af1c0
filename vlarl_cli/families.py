"""How an OpenVLA-OFT is used: options of `vlarl checkpoint adopt`, and `family.json` in words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer

from vlarl.weights.folder import FAMILY_FILE, read_json

Chunk = Annotated[
    int | None,
    typer.Option(
        "--chunk", min=1, help="OpenVLA-OFT: control steps of a pass (LIBERO: 8, Bridge: 5)."
    ),
]
ConventionOption = Annotated[
    Literal["stop", "no_stop"] | None,
    typer.Option(
        "--convention",
        help="OpenVLA-OFT: stop for what openvla-oft or SimpleVLA-RL trained, no_stop for RLinf's "
        "default.",
    ),
]
Cameras = Annotated[
    list[str] | None,
    typer.Option(
        "--camera",
        help="OpenVLA-OFT: a camera that it sees; repeat it for several, the main one first. "
        "Default: agentview alone.",
    ),
]
Proprio = Annotated[
    int | None,
    typer.Option(
        "--proprio",
        min=0,
        help="OpenVLA-OFT: numbers of proprioception; default: as its projector takes.",
    ),
]


def stated_use(directory: Path) -> list[str]:
    """What a checkpoint's `family.json` says beside the family, a key each; nothing without one."""
    stated = directory / FAMILY_FILE
    table: Mapping[str, object] = read_json(stated) if stated.exists() else {}
    return [
        f"{key} {' and '.join(map(str, value)) if isinstance(value, list) else value}"
        for key, value in table.items()
        if key != "family"
    ]
