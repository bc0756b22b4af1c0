"""Frames of an iteration's trajectories, apart from the rest of them: once in the node's memory.

A trajectory's frames are all but a hundredth of its bytes. They go into a file in memory as soon as
it arrives, and every rank of the node maps that file.

A trajectory of T steps has T + 1 states, the final one last, and one frame of each of its I cameras
in each state: (T + 1) * I frames, state by state. One that is missing is empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from vlarl.learning.memory_file import Bytes, MemoryFile
from vlarl.queue.entries import Delivery
from vlarl.queue.rollout_queue import clear_frames
from vlarl.rollout.v1 import rollout_pb2

Places = NDArray[np.int64]
"""[F, 2]: where each frame begins in a file, and how many bytes it has."""


def camera_count(trajectory: rollout_pb2.Trajectory) -> int:
    """I, the frames of each of its states."""
    return max(1, len(trajectory.cameras))


def carried_frames(trajectory: rollout_pb2.Trajectory) -> list[bytes]:
    """The frames [(T + 1) * I] that a trajectory carries itself."""
    further = camera_count(trajectory) - 1
    states = [(step.image, step.images) for step in trajectory.steps]
    states.append((trajectory.final_image, trajectory.final_images))
    frames: list[bytes] = []
    for main, others in states:
        frames += [main, *others[:further], *[b""] * (further - len(others))]
    return frames


class SharedFrames(Sequence[bytes]):
    """F encoded frames that lie in memory that ranks share. One is copied when it is read."""

    def __init__(self, shared: Bytes, places: Places, file: MemoryFile | None = None) -> None:
        """file: has the bytes, where it is this process's own."""
        self.shared = shared
        self.places = places
        self.file = file

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> SharedFrames: ...
    def __getitem__(self, index: int | slice) -> bytes | SharedFrames:
        if isinstance(index, slice):
            return SharedFrames(self.shared, self.places[index], self.file)
        start, length = self.places[index].tolist()
        return self.shared[start : start + length].tobytes()

    def chosen(self, indices: Sequence[int]) -> SharedFrames:
        """These frames, in this order."""
        return SharedFrames(self.shared, self.places[np.asarray(indices, np.int64)], self.file)


class FrameFile:
    """The frames of one iteration's trajectories."""

    def __init__(self) -> None:
        self._file = MemoryFile()
        self._places: dict[str, Places] = {}

    def move(self, delivery: Delivery[rollout_pb2.Trajectory]) -> Delivery[rollout_pb2.Trajectory]:
        """Takes the frames in; the delivery with what is left of its trajectory."""
        whole = delivery.message
        frames = carried_frames(whole)
        lengths = np.array([len(frame) for frame in frames], np.int64)
        starts = self._file.append(frames) + np.cumsum(lengths) - lengths
        self._places[delivery.entry_id] = np.stack([starts, lengths], axis=1)
        clear_frames(whole)
        # A message keeps the memory of what was cleared for as long as it lives.
        rest = rollout_pb2.Trajectory()
        rest.CopyFrom(whole)
        return delivery.carrying(rest)

    def frames(self, deliveries: Sequence[Delivery[rollout_pb2.Trajectory]]) -> SharedFrames:
        """Those of these deliveries, one trajectory's after another's."""
        found = [self._places[delivery.entry_id] for delivery in deliveries]
        places = np.concatenate(found) if found else np.zeros((0, 2), np.int64)
        return SharedFrames(self._file.mapped(), places, self._file)

    def whole(self, delivery: Delivery[rollout_pb2.Trajectory]) -> rollout_pb2.Trajectory:
        """A copy of its trajectory that has its frames."""
        trajectory = rollout_pb2.Trajectory()
        trajectory.CopyFrom(delivery.message)
        frames, cameras = list(self.frames([delivery])), camera_count(trajectory)
        for number, step in enumerate(trajectory.steps):
            step.image, *further = frames[number * cameras : (number + 1) * cameras]
            step.images.extend(further)
        trajectory.final_image, *further = frames[-cameras:]
        trajectory.final_images.extend(further)
        return trajectory

    def close(self) -> None:
        """Gives the memory back, but for what is mapped. May be repeated."""
        self._file.close()
