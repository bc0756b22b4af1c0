"""What is wrong with a folder that is no checkpoint, and what to do: one sentence each."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from vlarl.invocation import invocation

ADAPTER_CONFIG = "adapter_config.json"
OFT_HEADS = (
    "action_head--*",
    "proprio_projector--*",
    "noisy_action_projector--*",
    "vision_backbone--*",
)
"""What OpenVLA-OFT's fine-tuning writes beside the weights."""
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


def is_oft(checkpoint: object, sign: str) -> str:
    """Of OpenVLA-OFT.

    Args:
        checkpoint: its folder or its name.
        sign: what shows it.
    """
    return (
        f"{checkpoint} is OpenVLA-OFT ({sign}), which isn't supported yet: it answers whole chunks "
        "of actions in one pass that sees all tokens, and run as plain OpenVLA, which has the same "
        "weights' names, it would succeed in about 0 % of its episodes"
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
