"""What is wrong with a folder that is no checkpoint, and what to do: one sentence each."""

from __future__ import annotations

import fnmatch
import json
import os
import re
from pathlib import Path

from vlarl.invocation import invocation

ADAPTER_CONFIG = "adapter_config.json"
PROPRIO_PROJECTOR = "proprio_projector--*"
_CONTINUOUS = (
    "its actions are numbers, by L1 regression or diffusion, so they have no log-probs: take a "
    "checkpoint that was fine-tuned to discrete tokens (use_l1_regression and use_diffusion False)"
)
_USELESS_HEADS = {
    "noisy_action_projector--*": _CONTINUOUS,
    "action_head--*": _CONTINUOUS,
    "vision_backbone--*": (
        "its towers are changed by the words (FiLM), which isn't supported: take a checkpoint that "
        "was fine-tuned without it (use_film False)"
    ),
}
"""Patterns of files, and why a checkpoint that has one can't be used."""
OFT_HEADS = (*_USELESS_HEADS, PROPRIO_PROJECTOR)
"""What OpenVLA-OFT's fine-tuning writes beside the weights."""
EACH_CAMERA = (
    "--camera NAME for each image that it saw, the main one first (agentview alone where none is "
    "given)"
)
"""What has to be said of an OpenVLA-OFT because nothing in its files tells it."""
BY_NAME = "by the name"
"""How a sign begins that is a name alone."""
_POINTER = b"version https://git-lfs.github.com/"
_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
"""Of what looks like a name on the hub and is a path, as its first part is a folder here."""


def folder_fault(directory: Path) -> str:
    """What keeps a path from being a folder whose files can be looked for; empty: nothing."""
    try:
        if not directory.is_dir():
            return missing_folder(directory)
    except OSError as error:
        return f"{directory} can't be looked at ({error.strerror})"
    # Without the right to list it, no sign of another kind of model would be found.
    if not os.access(directory, os.R_OK | os.X_OK):
        return f"{directory} may not be entered and listed by this user (`chmod u+rx`)"
    return ""


def missing_folder(directory: Path) -> str:
    """Of a path that is no folder."""
    if directory.is_file():
        return f"{directory} is a file: name the folder that holds the checkpoint's files"
    hub = (
        f"; {directory}@main would be a name on the hub" if _NAME.fullmatch(str(directory)) else ""
    )
    return (
        f"there is no checkpoint folder {directory} (seen from {Path.cwd()}); "
        f"`{invocation()} checkpoint tiny DIR` makes an untrained one{hub}"
    )


def no_configuration(directory: Path) -> str:
    """Of a folder without config.json."""
    if (directory / ADAPTER_CONFIG).exists():
        return adapter_alone(directory)
    snapshots = sorted(directory.glob("snapshots/*/config.json"))
    if snapshots:
        return (
            f"{directory} is the hub's cache of a model, not the model: name {snapshots[-1].parent}"
        )
    told = f"{directory} is no checkpoint: config.json is missing"
    inside = sorted(directory.glob("*/config.json"))
    if (directory / "checkpoint/config.json") in inside:
        inside = [directory / "checkpoint/config.json"]
    return f"{told}; {inside[0].parent} has one" if inside else told


def adapter_alone(directory: Path) -> str:
    """Of a folder with a LoRA adapter and no model."""
    try:
        base = json.loads((directory / ADAPTER_CONFIG).read_bytes())["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        base = None
    onto = base if isinstance(base, str) and base else "the model that it was trained on"
    return (
        f"{directory} holds a LoRA adapter alone ({ADAPTER_CONFIG}), not a model: merge it onto "
        f"{onto} with `{invocation()} checkpoint adopt {directory} OUT --base DIR`, DIR being that "
        "model's folder"
    )


def no_weights(directory: Path) -> str:
    """Of a folder without the weights' single file or index."""
    missing = f"{directory} has neither model.safetensors nor model.safetensors.index.json"
    if (directory / ADAPTER_CONFIG).exists():
        return adapter_alone(directory)
    if shards := sorted(directory.glob("model-*-of-*.safetensors")):
        return (
            f"{directory}: model.safetensors.index.json, which says what is in {len(shards)} files "
            f"such as {shards[0].name}, is missing: download it again, or let `{invocation()} "
            f"checkpoint adopt {directory} OUT` write a checkpoint with one"
        )
    if pickled := pickled_weights(directory):
        return (
            f"{directory}: its weights are pickled ({pickled[0].name}), which no command "
            f"loads: convert them once with `{invocation()} checkpoint adopt {directory} OUT`"
        )
    if (directory / "checkpoints").is_dir() and list(directory.glob("checkpoints/*.pt")):
        return (
            f"{missing}: it is a training run of the original code, whose "
            "vla-scripts/extern/convert_openvla_weights_to_hf.py makes a checkpoint of it"
        )
    return missing


def is_oft(checkpoint: object, sign: str, chunk: int | None = None) -> str:
    """Of OpenVLA-OFT where OpenVLA is wanted.

    Args:
        checkpoint: its folder or its name.
        sign: what shows it.
        chunk: control steps of a pass, where that is known.
    """
    told = f"{checkpoint} is OpenVLA-OFT ({sign})"
    if reason := useless_head(sign):
        return f"{told}, and {reason}"
    plain = sign.startswith(BY_NAME) * '; if it is plain, say {"family": "openvla"} in family.json'
    return (
        f"{told} without family.json, and run as plain OpenVLA, which has the same weights' names, "
        f"it would succeed in about 0 % of its episodes: {adoption(checkpoint, chunk)}, and name "
        f"OUT (docs/openvla-oft.md){plain}"
    )


def useless_head(name: str) -> str:
    """Why a checkpoint that has this file beside its weights can't be used; empty: it can."""
    for pattern, reason in _USELESS_HEADS.items():
        if fnmatch.fnmatchcase(name, pattern):
            return reason
    return ""


def adoption(source: object, chunk: int | None = None) -> str:
    """The command that makes a folder OpenVLA-OFT, with what its user has to know."""
    known = "" if chunk else "with the chunk that it was trained with (LIBERO: 8, Bridge: 5), "
    return (
        f"`{invocation()} checkpoint adopt {source} OUT --chunk {chunk or 8} --convention stop`, "
        f"{known}with {EACH_CAMERA} and `no_stop` if RLinf trained it"
    )


def pickled_weights(directory: Path) -> list[Path]:
    """Files of a model's weights as torch.save writes them, sorted."""
    return sorted(directory.glob("pytorch_model*.bin"))


def pointer_sentence(path: Path) -> str:
    """Of a file that Git LFS hasn't fetched; empty: it is none."""
    try:
        with path.open("rb") as file:
            is_pointer = file.read(len(_POINTER)) == _POINTER
    except OSError:
        return ""
    return is_pointer * (
        f"{path} is a Git LFS pointer, not the file: run `git lfs pull` in {path.parent}"
    )
