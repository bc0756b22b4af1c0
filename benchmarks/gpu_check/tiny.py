"""Stage `tiny`: parity, repeatability, a swap under load and the end of small servers."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_check.check import Check
from benchmarks.gpu_check.plain import PlainPolicy, dataset_key
from benchmarks.gpu_check.server import Server
from benchmarks.gpu_check.swapping import swap_under_load
from benchmarks.policy_load import observations, random_adapter
from vlarl.clients.policy import Action, AsyncPolicyClient
from vlarl.models.openvla.config import OpenVLAConfig
from vlarl.models.openvla.lora import lora_layers
from vlarl.weights.merge import checksums, merged_tensors

BOUNDS = MappingProxyType(
    {"float32": 2e-2, "exact float32": 1e-3, "float16": 0.05, "bfloat16": 0.3}
)
"""Largest difference of a log-prob, in nats: attention in TF32; sums in another order; eleven bits
of mantissa, and eight."""

CHECKPOINTS = MappingProxyType(
    {"golden": Path("tests/golden/openvla-tiny"), "reach": Path("policies/reach")}
)
KINDS = ("golden-float32", "golden-exact", "golden-float16", "golden-bfloat16", "reach-float16")
"""CHECKPOINT-PRECISION of the servers."""

_PAIRS = 16
_RANK = 4
_SWAP_SECONDS = 120.0
_CPU = torch.device("cpu")


class SmallServer:
    """A server of this stage, and what is expected of it."""

    def __init__(self, check: Check, kind: str) -> None:
        """Begins to start it; `kind` is one of KINDS."""
        checkpoint, _, precision = kind.partition("-")
        self.exact = precision == "exact"
        dtype = "float32" if self.exact else precision
        settings = ["policy.max_batch=32"]
        if self.exact:
            settings.append("policy.exact_float32=true")
        if not check.cuda:
            settings += ["policy.cpu_threads=1", "policy.kv_cache_mib=64"]
        self.precision = "exact float32" if self.exact else dtype
        name = f"{checkpoint} {self.precision}"
        self.server = Server(check, name, CHECKPOINTS[checkpoint], dtype, settings)
        self._check = check

    @property
    def bound(self) -> float:
        """Of a log-prob's difference."""
        return BOUNDS[self.precision]

    async def measure(self, seconds: float) -> None:
        """All of the stage; `seconds` for the start."""
        server, check = self.server, self._check
        address = await server.serving(seconds)
        key = dataset_key(server.checkpoint)
        async with AsyncPolicyClient(address, timeout_seconds=60) as client:
            if (server.checkpoint / "golden.npz").exists():
                await self._add_golden(client)
            plain = await asyncio.to_thread(PlainPolicy, server.checkpoint, torch.float32, _CPU)
            await self._add_parity(client, plain, key)
            await self._add_seed(client, key)
            await self._add_swap(client, plain, address, key)
        await server.add_orphans()
        check.results.add(f"{server.name}: done", True)

    def _add(self, name: str, *row: Any) -> None:  # noqa: ANN401 - a row's own fields
        self._check.results.add(f"{self.server.name}: {name}", *row)

    async def _add_golden(self, client: AsyncPolicyClient) -> None:
        """Tokens, log-probs and values of the original code."""
        numbers = np.load(self.server.checkpoint / "golden.npz")
        described = json.loads((self.server.checkpoint / "golden.json").read_text(encoding="utf-8"))
        pairs = list(zip(numbers["images"], described["instructions"], strict=True))
        key = described["unnorm_key"]
        actions = await client.predict_batch(pairs, unnorm_key=key, center_crop=False)
        tokens = np.array([action.token_ids for action in actions])
        same = float((tokens == numbers["tokens"]).mean())
        wanted = same > 0.9 if self.server.dtype == "float32" else None
        self._add("greedy tokens that are the original's", same, "of 42", "", wanted)
        rows = [index for index in range(len(tokens)) if (tokens == numbers["tokens"])[index].all()]
        if not rows:
            return
        index = torch.from_numpy(tokens[rows] - 768)[..., None]
        logits = torch.from_numpy(numbers["logits"][rows, :, 768:1024])
        expected = torch.log_softmax(logits, -1).gather(-1, index)[..., 0].numpy()
        gap = float(np.abs(expected - np.array([actions[row].logprobs for row in rows])).max())
        note = f"{len(rows)} of {len(tokens)} actions"
        name = "greedy log-probs, largest difference from the original's"
        self._add(name, gap, "nats", note, gap < self.bound)
        values = np.array([actions[row].values for row in rows])
        gap = float(np.abs(values - numbers["actions"][rows]).max())
        self._add("values, largest difference from the original's", gap, "", note, gap < 1e-5)

    async def _add_parity(self, client: AsyncPolicyClient, plain: PlainPolicy, key: str) -> None:
        """Log-probs against plain torch's in float32."""
        pairs = observations(_PAIRS)
        for temperature in (0.0, 1.0, 1.5):
            actions = await client.predict_batch(pairs, temperature=temperature, unnorm_key=key)
            found = await asyncio.to_thread(plain.compare, pairs, actions, temperature)
            note = f"mean {found.mean:.2g}; torch on the CPU in float32"
            name = f"T={temperature:g}, largest difference of a log-prob"
            self._add(name, found.worst, "nats", note, found.worst < self.bound)
            if not temperature:
                note = f"others at most {found.shortest:.2g} less probable"
                wanted = found.most_probable > 0.9 if self.server.dtype == "float32" else None
                self._add("greedy tokens that are torch's", found.most_probable, "", note, wanted)

    async def _add_seed(self, client: AsyncPolicyClient, key: str) -> None:
        """Whether a seed repeats an action."""
        pair = observations(1)[0]
        drawn: list[Action] = [
            await client.predict(*pair, temperature=1.0, seed=5, unnorm_key=key) for _ in range(2)
        ]
        same = drawn[0].token_ids.tolist() == drawn[1].token_ids.tolist()
        self._add("a seed repeats an action", same, "", "", same)

    async def _add_swap(
        self, client: AsyncPolicyClient, plain: PlainPolicy, address: str, key: str
    ) -> None:
        """A swap under load, the digest of what it merged, and parity after it."""
        checkpoint = self.server.checkpoint
        adapter = await asyncio.to_thread(random_adapter, checkpoint, 1, _RANK, size=0.2)
        adapter = replace(adapter, checked_layers=list(adapter.factors))
        merged = merged_tensors(
            checkpoint,
            lora_layers(OpenVLAConfig.from_directory(checkpoint)),
            adapter.factors,
            adapter.scaling,
            getattr(torch, self.server.dtype),
            device="cuda" if self._check.cuda else "cpu",
        )
        own = checksums(merged)
        swap = await swap_under_load(client, address, adapter, key, _SWAP_SECONDS)
        swap.add_to(self._check, f"{self.server.name}: swap")
        same = sum(swap.answer.checksums[layer] == one for layer, one in own.items())
        note = f"of {len(own)}"
        self._add("layers merged as the trainer does", same, "layers", note, same == len(own))
        pairs = observations(_PAIRS)
        actions = await client.predict_batch(pairs, temperature=1.0, unnorm_key=key)
        before = await asyncio.to_thread(plain.compare, pairs, actions, 1.0)
        plain.merge(adapter)
        after = await asyncio.to_thread(plain.compare, pairs, actions, 1.0)
        note = f"mean {after.mean:.2g}; from the weights before: {before.worst:.2g}"
        name = "after the swap, largest difference of a log-prob"
        self._add(name, after.worst, "nats", note, after.worst < min(self.bound, before.worst))
