"""Checkpoints for the originals' numbers: one for each convention and each kind of input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

GOLDEN = Path(__file__).parents[2] / "golden/openvla-oft-tiny"
CAMERAS = ["agentview", "robot0_eye_in_hand"]
INPUTS = {
    "img1": {},
    "img2": {"cameras": CAMERAS},
    "img2_proprio": {"cameras": CAMERAS, "proprio": 8},
}
CONVENTIONS = {"stop": "stop", "nostop": "no_stop"}


def write_settings(directory: Path, **family: object) -> Path:
    """The golden checkpoint's files without weights; None removes a key of ``family.json``."""
    for path in GOLDEN.glob("*.json"):
        shutil.copy(path, directory)
    table = {"family": "openvla_oft", "chunk": 8, "convention": "stop"} | family
    kept = {key: value for key, value in table.items() if value is not None}
    (directory / "family.json").write_text(json.dumps(kept))
    return directory


def make_checkpoint(directory: Path, name: str) -> Path:
    """The one that has the golden numbers of this name, such as "stop_img2"."""
    from safetensors.torch import load_file

    from vlarl.weights.checkpoint import CheckpointReader, save_tensors

    convention, _, given = name.partition("_")
    write_settings(directory, convention=CONVENTIONS[convention], **INPUTS[given])
    reader = CheckpointReader(GOLDEN)
    tensors = {key: reader.tensor(key) for key in reader}
    if "proprio" in given:
        tensors |= load_file(GOLDEN / "proprio_projector.safetensors")
    save_tensors(directory, tensors.items())
    return directory
