"""A tiny OpenVLA-OFT checkpoint: main and wrist camera, proprioception, chunks of eight steps."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from vlarl.models.openvla.tiny import make_tiny_checkpoint
from vlarl.models.openvla_oft.config import OFTConfig
from vlarl.models.openvla_oft.tensors import stored_tensors
from vlarl.weights.checkpoint import CheckpointReader, save_tensors

CAMERAS = ["agentview", "robot0_eye_in_hand"]
PROPRIO = 8


def make_tiny_oft(directory: Path, seed: int = 0, *, image_size: int = 56) -> None:
    """OpenVLA's tiny checkpoint, with what makes it OpenVLA-OFT."""
    make_tiny_checkpoint(directory, seed=seed, image_size=image_size)
    path = directory / "config.json"
    config = json.loads(path.read_text())
    for number, stats in enumerate(config["norm_stats"].values()):
        width = [0.1 * (place + 1) + 0.01 * number for place in range(PROPRIO)]
        stats["proprio"] = {"q01": [-one for one in width], "q99": width}
    path.write_text(json.dumps(config))
    family = {"family": "openvla_oft", "chunk": 8, "convention": "stop", "cameras": CAMERAS}
    (directory / "family.json").write_text(json.dumps(family | {"proprio": PROPRIO}))
    reader, generator = CheckpointReader(directory), torch.Generator().manual_seed(seed)
    tensors = {key: reader.tensor(key).clone() for key in reader}
    for key, shape in stored_tensors(OFTConfig.from_directory(directory)).items():
        if key.startswith("proprio_projector."):
            tensors[key] = torch.randn(shape, generator=generator) / shape[-1] ** 0.5
    save_tensors(directory, tensors.items())
