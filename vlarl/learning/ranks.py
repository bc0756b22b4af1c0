"""The ranks: the processes that learn together, and the few things they say to each other.

PPO's rank 0 talks to queue and policy servers. Each batch's frames are shared with the other ranks
(node.py), every rank computes on its share of the samples, and rows are gathered everywhere. Only
tensors travel.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, distribute_tensor

from vlarl.parent_death import end_with_parent

Indices = NDArray[np.int64]

# Ranks wait for rank 0 while it collects episodes; a dead rank is noticed by its launcher.
PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class MicroBatch:
    """What one rank computes at once: a part of a mini-batch."""

    samples: Indices
    """[B], at least one."""
    places: Indices
    """[B], where in the mini-batch they are."""
    counted: int
    """How many of them count; 0 where this rank's samples ran out."""
    size: int
    """Samples of the mini-batch, on all ranks."""
    last: bool
    """Whether this rank's share is complete with it."""


@dataclass(frozen=True)
class Ranks:
    """The processes that learn together, as one of them sees them."""

    rank: int
    size: int
    device: torch.device
    mesh: DeviceMesh | None
    """The ranks that a model is sharded over; None: one process on a CPU, nothing is sharded."""

    @classmethod
    def from_environment(cls) -> Ranks:
        """Joins the ranks that torchrun's RANK, WORLD_SIZE and LOCAL_RANK describe; without them
        this process is alone.
        """
        rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        if size > 1:
            # torchrun gives each rank a session of its own: a killed one would leave them behind.
            end_with_parent(signal.SIGTERM)
        cuda = torch.cuda.is_available()
        device = torch.device("cpu")
        if cuda:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            torch.cuda.set_device(device)
        if size == 1 and not cuda:
            return cls(rank, size, device, None)
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        if size == 1:
            store = dist.HashStore()  # type: ignore[attr-defined]
            dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=PATIENCE)
        else:
            dist.init_process_group(backend, timeout=PATIENCE)
        return cls(rank, size, device, init_device_mesh(device.type, (size,)))

    @classmethod
    @contextlib.contextmanager
    def joined(cls, threads: int | None) -> Iterator[Ranks]:
        """The ranks of `from_environment`, until the block ends.

        threads: of torch on a CPU; none: all cores.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        ranks = cls.from_environment()
        try:
            yield ranks
        finally:
            ranks.leave()

    @classmethod
    def alone(cls, device: torch.device) -> Ranks:
        """A process by itself: what rank 0 learns without the others."""
        return cls(rank=0, size=1, device=device, mesh=None)

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes files and, in PPO, talks to the other services."""
        return self.rank == 0

    def memory(self) -> dict[str, float]:
        """A metric: the most memory that tensors took on this rank's GPU; {} on a CPU."""
        if self.device.type != "cuda":
            return {}
        return {"gpu_memory_bytes": float(torch.cuda.max_memory_allocated(self.device))}

    def leave(self) -> None:
        """Parts from the other ranks."""
        if self.mesh is not None:
            dist.destroy_process_group()

    def broadcast_bytes(self, payload: bytes = b"") -> bytes:
        """Rank 0's payload, on every rank."""
        if self.size == 1:
            return payload
        length = torch.tensor([len(payload)])
        dist.broadcast(length, src=0)
        if not length:
            return b""
        if self.first:
            dist.broadcast(torch.frombuffer(bytearray(payload), dtype=torch.uint8), src=0)
            return payload
        buffer = torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(buffer, src=0)
        return buffer.numpy().tobytes()

    def wait_for_first(self) -> None:
        """Until rank 0 is here, too, and what it wrote is there."""
        self.broadcast_bytes(b"here")

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Rank 0's tensor (on the CPU), on every rank; shape and data type must agree."""
        if self.size > 1:
            dist.broadcast(tensor, src=0)
        return tensor

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks of a small tensor, on the CPU in float64."""
        total = tensor.detach().to("cpu", torch.float64)
        if self.size > 1:
            dist.all_reduce(total)
        return total

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Adds up over the ranks the gradients of parameters that each rank holds whole. Those of a
        sharded model have been added up by the backward pass.
        """
        if self.size == 1:
            return
        gradients = [each.grad for each in parameters if not isinstance(each, DTensor)]
        adding = [dist.all_reduce(each, async_op=True) for each in gradients if each is not None]
        for each in adding:
            each.wait()

    def share(
        self,
        samples: Indices,
        micro_batch: int,
        *,
        lengths: Indices | None = None,
        most_tokens: int | None = None,
    ) -> Iterator[MicroBatch]:
        """The rank's share of a mini-batch, every size-th sample, in micro-batches.

        Every rank gets equally many, as a sharded model's passes must go in step. A rank whose
        samples ran out gets the first sample, and it counts for nothing.

        Args:
            samples: the mini-batch.
            micro_batch: most samples at once.
            lengths: each one's tokens; the longest go first, so that a micro-batch is of samples
                of like length, on all ranks. None: in the order given.
            most_tokens: most tokens at once, padding included, but at least one sample; None:
                as many as there are. Needs `lengths`.
        """
        order = _longest_first(lengths, len(samples))
        places = order[self.rank :: self.size]
        most = math.ceil(len(samples) / self.size)
        start = 0
        while start < most:
            rows = micro_batch
            if lengths is not None and most_tokens is not None:
                # The longest of all ranks', so that all cut at the same places.
                rows = min(rows, max(1, most_tokens // int(lengths[order[start * self.size]])))
            own = places[start : start + rows]
            counted = len(own)
            own = own if counted else order[:1]
            start += rows
            yield MicroBatch(samples[own], own, counted, len(samples), start >= most)

    def gather(self, mine: Tensor, total: int, *, lengths: Indices | None = None) -> Tensor:
        """Puts the rows that ranks computed on `share(arange(total), ...)` back in order.

        Args:
            mine: [this rank's samples, ...] on the CPU.
            total: samples of all ranks.
            lengths: what was given to `share`.

        Returns:
            [total, ...], on every rank.
        """
        dealt = mine
        if self.size > 1:
            most = math.ceil(total / self.size)
            padded = mine.new_zeros((most, *mine.shape[1:]))
            padded[: len(mine)] = mine
            parts = [torch.empty_like(padded) for _ in range(self.size)]
            dist.all_gather(parts, padded)
            dealt = torch.stack(parts, dim=1).flatten(0, 1)[:total]
        if lengths is None:
            return dealt
        rows = torch.empty_like(dealt)
        rows[torch.from_numpy(_longest_first(lengths, total))] = dealt
        return rows


def _longest_first(lengths: Indices | None, count: int) -> Indices:
    """The places 0 .. count - 1, by falling length; equal ones stay in order."""
    if lengths is None:
        return np.arange(count)
    return np.argsort(-lengths, kind="stable")


def whole(tensor: Tensor) -> Tensor:
    """A copy on the CPU of a tensor that may be sharded. Every rank must call it."""
    full = tensor.detach()
    return (full.full_tensor() if isinstance(full, DTensor) else full).to("cpu", copy=True)


def like(value: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor that every rank holds, in float32, placed and sharded as `parameter` is."""
    value = value.to(parameter.device, torch.float32)
    if isinstance(parameter, DTensor):
        mesh, placements = parameter.device_mesh, parameter.placements
        return distribute_tensor(value, mesh, placements, src_data_rank=None)
    return value
