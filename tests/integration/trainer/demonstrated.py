"""Small datasets of demonstrations: a square on a grey table, and the action that reaches it."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from vlarl.config import SftConfig
from vlarl.data.dataset import Capture, Frames, TaskSamples, write_task
from vlarl.images import decode_image, encode_jpeg

CAPTURE = Capture("agentview", 128, None, "fast", 4)
SIDE = 8


def square_frame(place: np.ndarray, size: int = 28) -> np.ndarray:
    """A square whose centre lies at `place`, in shares of the frame."""
    frame = np.full((size, size, 3), 90, np.uint8)
    row, column = (place * (size - SIDE)).astype(int)
    frame[row : row + SIDE, column : column + SIDE] = (230, 60, 20)
    return frame


def task_samples(
    suite: str = "squares",
    index: int = 0,
    episodes: int = 4,
    length: int = 3,
    size: int = 28,
    levels: int = 4,
) -> TaskSamples:
    """Episodes whose squares lie on a grid; the action is where, the gripper closes on the left."""
    rng = np.random.default_rng([episodes, length, index])
    count = episodes * length
    # Every place once before any comes twice.
    cells = np.concatenate([rng.permutation(levels**2) for _ in range(-(-count // levels**2))])
    places = np.stack(np.divmod(cells[:count], levels), axis=1) / (levels - 1)
    actions = np.zeros((count, 7), np.float32)
    actions[:, :2] = 2 * places - 1
    actions[:, 6] = places[:, 1] > 0.5
    return TaskSamples(
        suite=suite,
        index=index,
        instruction=f"reach square {index}",
        frames=Frames.of([encode_jpeg(square_frame(place, size)) for place in places]),
        actions=actions,
        episodes=np.repeat(np.arange(episodes, dtype=np.int32), length),
        poses=(0.3 * places).astype(np.float32),
        pose_names=("square_x", "square_y"),
    )


def two_cameras(task: TaskSamples) -> TaskSamples:
    """The same task with a second camera, to which all is turned round, and proprioception: where
    the square is, and six numbers that say nothing.
    """
    turned = [encode_jpeg(decode_image(frame)[::-1, ::-1]) for frame in task.frames]
    noise = np.random.default_rng(len(turned)).normal(size=(len(turned), 6))
    state = np.concatenate([task.actions[:, :2], noise], axis=1).astype(np.float32)
    return replace(task, further_frames=(Frames.of(turned),), proprio=state)


def write_dataset(folder: Path, *tasks: TaskSamples, capture: Capture = CAPTURE) -> Path:
    for task in tasks or (task_samples(),):
        write_task(folder, capture, task)
    return folder


def sft_config(dataset: Path, **changes: object) -> SftConfig:
    """A run of seconds on a CPU, in float32."""
    values: dict[str, object] = {
        "name": "run",
        "seed": 3,
        "threads": 1,
        "data": {"datasets": [dataset], "held_out": 0.25},
        "model": {
            "image_size": 28,
            "tower_dim": 32,
            "tower_depth": 2,
            "text_dim": 64,
            "text_layers": 1,
        },
        "augmentation": {"random_crop": True},
        "training": {
            "steps": 6,
            "mini_batch": 5,
            "micro_batch": 2,
            "learning_rate": 1e-3,
            "evaluate_every": 2,
            "log_every": 1,
        },
    }
    return SftConfig.model_validate(merged(values, changes))


def merged(values: dict[str, object], changes: dict[str, object]) -> dict[str, object]:
    """Keys of a configuration, tables key by key."""
    found = dict(values)
    for name, value in changes.items():
        before = values.get(name)
        merges = isinstance(before, dict) and isinstance(value, dict)
        found[name] = {**before, **value} if merges else value
    return found
