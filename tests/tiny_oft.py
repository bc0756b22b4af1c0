"""A tiny OpenVLA-OFT checkpoint: main and wrist camera, proprioception, chunks of eight steps."""

from __future__ import annotations

import json
from pathlib import Path

from vlarl.models.openvla_oft.starting import make_tiny_oft_checkpoint

CAMERAS = ["agentview", "robot0_eye_in_hand"]
PROPRIO = 8


def make_tiny_oft(directory: Path, seed: int = 0, **sizes: int) -> Path:
    """OpenVLA's tiny checkpoint of 56 px, or these sizes, with what makes it OpenVLA-OFT.

    Statistics of proprioception differ by suite, so that it matters which normalise a state.
    """
    chosen = sizes or {"image_size": 56}
    make_tiny_oft_checkpoint(directory, seed, cameras=CAMERAS, proprio=PROPRIO, **chosen)
    path = directory / "config.json"
    config = json.loads(path.read_text())
    for number, suite in enumerate(sorted(config["norm_stats"])):
        width = [(1 + number) * (1 + 0.1 * place) for place in range(PROPRIO)]
        config["norm_stats"][suite]["proprio"] = {"q01": [-one for one in width], "q99": width}
    path.write_text(json.dumps(config))
    return directory
