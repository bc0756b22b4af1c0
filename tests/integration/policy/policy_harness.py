"""A policy server in its own process, random adapters, and the plain-torch policy to compare."""

from __future__ import annotations

import functools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import psutil
import torch
from prometheus_client.parser import text_string_to_metric_families

from vlarl.clients.policy import Action, Observation
from vlarl.images import decode_image, encode_jpeg, prepare_image
from vlarl.models.network import ObservationBatch, pad_prompts
from vlarl.models.openvla.pixels import PixelNormalizer
from vlarl.models.openvla.prompt import PromptBuilder
from vlarl.models.registry import lora_layers, policy_family
from vlarl.models.spec import PolicySpec
from vlarl.policy.v1 import policy_pb2 as pb
from vlarl.weights.adapter import Adapter, adapter_header, merged_digest
from vlarl.weights.checkpoint import base_digest
from vlarl.weights.merge import checksum, merged_tensors

KEY = "libero_goal"
INSTRUCTIONS = (
    "put the wine bottle on top of the cabinet",
    "open the middle drawer of the cabinet",
    "turn on the stove",
    "push the plate to the front of the stove and then leave it where it is",
)
START_SECONDS = 280


def frames(count: int, seed: int = 0) -> list[bytes]:
    """JPEG frames of smooth random colours, 256x256 as the simulator's are."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return [encode_jpeg(one.repeat(32, axis=0).repeat(32, axis=1)) for one in small]


@functools.lru_cache(maxsize=64)
def wrist(image: bytes) -> bytes:
    """What another camera sees meanwhile."""
    return encode_jpeg(np.ascontiguousarray(decode_image(image)[::-1, ::-1]))


def proprioception(spec: PolicySpec, image: bytes) -> npt.NDArray[np.float32]:
    """Float32 [P] of an arm that is seen like this, some of it beyond the statistics."""
    statistics = spec.proprio_stats[KEY]
    share = np.random.default_rng(zlib.crc32(image)).uniform(-0.1, 1.1, spec.proprio_dim)
    values = statistics.q01 + share * (statistics.q99 - statistics.q01)
    return values.astype(np.float32)


def observations(
    spec: PolicySpec, images: Sequence[bytes], instructions: Sequence[str]
) -> list[Observation]:
    """All that the policy has to be shown, from what its main camera sees."""
    return [
        Observation(
            image,
            instruction,
            {camera: wrist(image) for camera in spec.cameras[1:]},
            proprioception(spec, image) if spec.proprio_dim else None,
        )
        for image, instruction in zip(images, instructions, strict=True)
    ]


def completed(spec: PolicySpec, request: pb.PredictActionsRequest) -> pb.PredictActionsRequest:
    """A request with what the policy reads beside main images and instructions."""
    (good,) = observations(spec, frames(1), INSTRUCTIONS[:1])
    whole = pb.PredictActionsRequest()
    whole.CopyFrom(request)
    for observation in whole.observations:
        for camera, image in (good.images or {}).items():
            observation.images.add(camera=camera, image=image)
        if good.proprio is not None:
            observation.proprio.extend(good.proprio)
    return whole


class PolicyProcess:
    """`vlarl serve policy` on a checkpoint.

    program: what the interpreter runs in the place of `-m vlarl`.
    environment: variables beside the test's own.
    """

    def __init__(
        self,
        checkpoint: Path,
        directory: Path,
        *options: str,
        program: Sequence[str] = ("-m", "vlarl"),
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._address_file = directory / "address"
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.metrics_address = f"127.0.0.1:{free.getsockname()[1]}"
        self._log = directory / "log"
        command = [
            *(sys.executable, *program, "serve", "policy"),
            *("--checkpoint", str(checkpoint), "--listen", "127.0.0.1:0"),
            *("--address-file", str(self._address_file), "--drain-seconds", "10"),
            *("--metrics-listen", self.metrics_address),
            *("-s", "policy.kv_cache_mib=64", "-s", "policy.cpu_threads=1"),
            *("-s", "policy.max_batch=32", "-s", "policy.max_observations=16", *options),
        ]
        with self._log.open("wb") as log:
            variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=variables)

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def fatal_sentence(self) -> str:
        """The one sentence with which the command line gave up."""
        (line,) = [one for one in self.log.splitlines() if one.startswith("error: ")]
        assert "Traceback" not in self.log.partition(line)[2]
        return line.removeprefix("error: ")

    @property
    def address(self) -> str:
        deadline = time.monotonic() + START_SECONDS
        while not self._address_file.exists():
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            threading.Event().wait(0.05)
        return self._address_file.read_text().strip()

    def metric(self, name: str, **labels: str) -> float:
        """A sample of the Prometheus endpoint, 0 where it isn't there yet."""
        with urllib.request.urlopen(f"http://{self.metrics_address}/metrics") as answer:
            families = text_string_to_metric_families(answer.read().decode())
        samples = [one for family in families for one in family.samples if one.name == name]
        return sum(one.value for one in samples if labels.items() <= one.labels.items())

    def family(self) -> list[psutil.Process]:
        """The server and every process it started."""
        server = psutil.Process(self.process.pid)
        return [server, *server.children(recursive=True)]

    def engine(self) -> psutil.Process:
        """vLLM's process."""
        return next(one for one in self.family() if one.name().startswith("VLLM"))

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Sends the signal and returns the exit code, once the whole family is gone."""
        family = self.family() if self.process.poll() is None else []
        self.process.send_signal(number)
        code = self.process.wait(timeout=60)
        _, alive = psutil.wait_procs(family, timeout=20)
        for one in alive:
            one.kill()
        assert not alive, f"processes left behind: {alive}"
        return code


class Reference:
    """The same policy in plain torch, with an adapter's weights merged in."""

    def __init__(self, checkpoint: Path, adapter: Adapter | None = None) -> None:
        self.checkpoint = checkpoint
        family = policy_family(checkpoint)
        self.spec = family.spec
        self.config = family.sizes
        self.model = family.network(torch.float32, torch.device("cpu"))
        self.merged_digest = ""
        self.checksums: dict[str, int] = {}
        if adapter and adapter.factors:
            merged = dict(
                merged_tensors(
                    checkpoint,
                    family.lora_layers(),
                    adapter.factors,
                    adapter.scaling,
                    torch.float32,
                )
            )
            self.merged_digest = merged_digest(adapter_header(adapter), "float32")
            self.checksums = {
                key.removesuffix(".weight"): checksum(weight) for key, weight in merged.items()
            }
            self.model.load_state_dict({**self.model.state_dict(), **merged}, assign=True)
        self._normalizer = PixelNormalizer.from_directory(checkpoint)
        self._prompts = PromptBuilder(checkpoint)

    def observations(
        self, images: Sequence[bytes], instructions: Sequence[str]
    ) -> list[Observation]:
        """What the policy has to be shown, from what its main camera sees."""
        return observations(self.spec, images, instructions)

    def action_logits(
        self,
        images: Sequence[bytes],
        instructions: Sequence[str],
        token_ids: npt.NDArray[np.int64],
        center_crop: bool | None = None,
    ) -> torch.Tensor:
        """float32 [B, tokens, 256], teacher-forced."""
        crop = self.spec.center_crop if center_crop is None else center_crop
        seen = [[one, *(wrist(one) for _ in self.spec.cameras[1:])] for one in images]
        pixels = np.stack(
            [
                np.concatenate([self._normalizer(self._prepared(one, crop)) for one in each])
                for each in seen
            ]
        )
        prompts, lengths = pad_prompts(
            [self._prompts.token_ids(one) for one in instructions], self.config.pad_token_id
        )
        proprio = self._proprio(images) if self.spec.proprio_dim else None
        batch = ObservationBatch(torch.from_numpy(pixels), prompts, lengths, proprio)
        with torch.inference_mode():
            return self.model.answer(batch, torch.from_numpy(token_ids)).logits

    def _prepared(self, image: bytes, crop: bool) -> npt.NDArray[np.uint8]:
        return prepare_image(decode_image(image), self.spec.image_size, crop)

    def _proprio(self, images: Sequence[bytes]) -> torch.Tensor:
        """By the formula of docs/openvla-oft.md."""
        statistics = self.spec.proprio_stats[KEY]
        values = np.stack([proprioception(self.spec, one) for one in images]).astype(np.float64)
        unit = (values - statistics.q01) / (statistics.q99 - statistics.q01 + 1e-8)
        return torch.from_numpy(np.clip(2 * unit - 1, -1, 1)).float()

    def check(
        self,
        images: Sequence[bytes],
        instructions: Sequence[str],
        actions: Sequence[Action],
        temperature: float,
        center_crop: bool | None = None,
    ) -> float:
        """Largest difference of a token's log-prob; greedy tokens must be the most probable."""
        token_ids = np.array([action.token_ids for action in actions])
        logits = self.action_logits(images, instructions, token_ids, center_crop)
        index = torch.from_numpy(token_ids - self.spec.action_ids.start)
        if temperature == 0:
            best = logits.max(dim=-1).values
            chosen = logits.gather(-1, index[..., None])[..., 0]
            assert torch.all(best - chosen < 1e-5)
        logprobs = torch.log_softmax(logits / (temperature or 1.0), dim=-1)
        expected = logprobs.gather(-1, index[..., None])[..., 0].numpy()
        return float(np.abs(expected - np.array([a.logprobs for a in actions])).max())


def random_adapter(
    checkpoint: Path, version: int, *, run: str = "run", seed: int | None = None, rank: int = 4
) -> Adapter:
    """Factors that move every adaptable layer about as far as training would, and more."""
    generator = torch.Generator().manual_seed(version if seed is None else seed)
    factors = {
        layer: (
            torch.randn(rank, into, generator=generator) / into**0.5,
            torch.randn(out, rank, generator=generator) * 0.2,
        )
        for layer, (out, into) in lora_layers(checkpoint).items()
    }
    return Adapter(run, version, base_digest(checkpoint), 0.5, factors)
