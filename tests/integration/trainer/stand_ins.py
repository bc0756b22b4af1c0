"""Small stand-ins for the trainer's neighbours: a policy server that merges what it is sent into a
plain model, and a worker that runs made-up episodes with it. No engine, no simulator."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import numpy as np
import torch

from tests.integration.trainer.trainer_samples import INSTRUCTIONS
from vlarl.images import encode_jpeg
from vlarl.models.openvla.config import OpenVLAConfig
from vlarl.models.openvla.lora import lora_layers
from vlarl.models.openvla.network import generate_actions, load_model
from vlarl.models.openvla.processor import Processor
from vlarl.policy.v1 import policy_pb2, policy_pb2_grpc
from vlarl.queue.rollout_queue import RolloutQueue
from vlarl.rollout.v1 import rollout_pb2
from vlarl.weights.adapter import AdapterReceiver, merged_digest
from vlarl.weights.checkpoint import base_digest
from vlarl.weights.merge import checksum, merged_tensors
from vlarl_reward.models.outcome import OutcomeReward


class StandInPolicy(policy_pb2_grpc.PolicyServiceServicer):
    """Merges adapters into its own copy of the model."""

    def __init__(self, checkpoint: Path) -> None:
        self.config = OpenVLAConfig.from_directory(checkpoint)
        self.version = 0
        self.updates: list[int] = []
        self.wrong_digest = False
        self.wrong_weights = False
        self.wrong_logprobs = False
        self._checkpoint = checkpoint
        self._model = load_model(checkpoint)
        self._processor = Processor(checkpoint, self.config, center_crop=False)
        self._digest = ""

    async def GetPolicy(self, request, context) -> policy_pb2.GetPolicyResponse:  # noqa: ANN001
        return policy_pb2.GetPolicyResponse(
            policy_version=self.version,
            action_dim=self.config.spec.action_dim,
            dtype="float32",
            base_digest=base_digest(self._checkpoint),
            center_crop=self.config.spec.center_crop,
        )

    async def UpdateWeights(self, requests, context) -> policy_pb2.UpdateWeightsResponse:  # noqa: ANN001
        header = (await anext(requests)).header
        receiver = AdapterReceiver(
            header, lora_layers(self.config), base_digest(self._checkpoint), 2**30
        )
        async for request in requests:
            receiver.add(request.chunk)
        adapter = receiver.finish()
        merged = dict(
            merged_tensors(
                self._checkpoint,
                lora_layers(OpenVLAConfig.from_directory(self._checkpoint)),
                adapter.factors,
                adapter.scaling,
                torch.float32,
            )
        )
        self._digest = merged_digest(header, "float32")
        checked = {layer: checksum(merged[f"{layer}.weight"]) for layer in header.checked_layers}
        if self.wrong_weights:
            checked = {layer: one ^ 1 for layer, one in checked.items()}
        self._model.load_state_dict(merged, strict=False)
        self.version = adapter.version
        self.updates.append(adapter.version)
        return policy_pb2.UpdateWeightsResponse(
            policy_version=self.version,
            merged_digest="0" * 64 if self.wrong_digest else self._digest,
            checksums=checked,
            bytes=receiver.received_bytes,
            pause_seconds=0.001,
        )

    def episode(self, spec: rollout_pb2.EpisodeSpec) -> rollout_pb2.Trajectory:
        """A made-up episode that is a function of its order and the weights."""
        generator = np.random.default_rng([spec.placement_seed, spec.init_state])
        steps = int(generator.integers(3, 8))
        success = bool(generator.integers(2))
        if spec.group_id:  # Of one placement, they would all end alike.
            success = bool(np.random.default_rng(spec.sampling_seed).integers(2))
        size = self.config.spec.image_size
        frames = [
            encode_jpeg(generator.integers(256, size=(size, size, 3), dtype=np.uint8))
            for _ in range(steps + 1)
        ]
        instruction = INSTRUCTIONS[spec.task.index % len(INSTRUCTIONS)]
        observations = self._processor.batch(
            np.stack([self._processor.frame(frame) for frame in frames[:-1]]),
            [self._processor.prompt(instruction)] * steps,
            torch.device("cpu"),
        )
        drawn = generate_actions(
            self._model,
            observations.pixel_values,
            observations.prompt_ids,
            spec.temperature,
            torch.Generator().manual_seed(spec.sampling_seed),
        )
        actions = [
            policy_pb2.Action(
                token_ids=tokens,
                logprobs=logprobs,
                values=[0.0] * self.config.spec.action_dim,
                policy_version=self.version,
            )
            for tokens, logprobs in zip(
                drawn.token_ids.tolist(), drawn.logprobs.tolist(), strict=True
            )
        ]
        if self.wrong_logprobs:
            actions[-1].logprobs[2] -= 0.5
        return rollout_pb2.Trajectory(
            spec=spec,
            instruction=instruction,
            steps=[
                rollout_pb2.Step(image=frame, action=action)
                for frame, action in zip(frames[:-1], actions, strict=True)
            ],
            final_image=frames[-1],
            outcome=rollout_pb2.OUTCOME_SUCCESS if success else rollout_pb2.OUTCOME_TIME_LIMIT,
        )


@asynccontextmanager
async def serving(policy: StandInPolicy, address: str = "127.0.0.1:0") -> AsyncIterator[str]:
    """The policy behind a gRPC port."""
    server = grpc.aio.server()
    policy_pb2_grpc.add_PolicyServiceServicer_to_server(policy, server)
    port = server.add_insecure_port(address)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


@asynccontextmanager
async def working(
    queue: RolloutQueue, policy: StandInPolicy, give_up: frozenset[str] = frozenset()
) -> AsyncIterator[list[str]]:
    """An env worker and a reward server in one; yields the ids of the episodes it has run."""
    ran: list[str] = []
    model = OutcomeReward(success_reward=1.0)
    ended = asyncio.Event()

    async def work() -> None:
        while not ended.is_set():
            order = await queue.next_episode("worker", block_seconds=0.05)
            if order is not None and order.message.episode_id in give_up:
                await queue.fail_episode(order, "the simulator broke", final=True)
            elif order is not None:
                ran.append(order.message.episode_id)
                await queue.finish_episode(order, policy.episode(order.message))
            for trajectory in await queue.next_trajectories("worker", 4, block_seconds=0.01):
                (scores,) = model.score([trajectory.message])
                await queue.finish_scoring(trajectory, scores)

    task = asyncio.create_task(work())
    try:
        yield ran
    finally:
        # Not cancelled: the queue's client now and then loses a cancellation.
        ended.set()
        await task
