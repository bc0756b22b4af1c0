"""A policy server in its own process, random adapters, and the plain-torch policy to compare."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import psutil
import torch
from prometheus_client.parser import text_string_to_metric_families

from vlarl.clients.policy import Action
from vlarl.images import decode_image, encode_jpeg, prepare_image
from vlarl.models.network import pad_prompts
from vlarl.models.openvla.config import OpenVLAConfig
from vlarl.models.openvla.lora import lora_layers
from vlarl.models.openvla.network import OpenVLA, load_model
from vlarl.models.openvla.pixels import PixelNormalizer
from vlarl.models.openvla.prompt import PromptBuilder
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
        self.model: OpenVLA = load_model(checkpoint)
        self.config = self.model.config
        self.merged_digest = ""
        self.checksums: dict[str, int] = {}
        if adapter and adapter.factors:
            merged = dict(
                merged_tensors(
                    checkpoint,
                    lora_layers(OpenVLAConfig.from_directory(checkpoint)),
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

    def action_logits(
        self,
        images: Sequence[bytes],
        instructions: Sequence[str],
        token_ids: npt.NDArray[np.int64],
        center_crop: bool | None = None,
    ) -> torch.Tensor:
        """float32 [B, 7, 256], teacher-forced."""
        crop = self.config.spec.center_crop if center_crop is None else center_crop
        pixels = np.stack(
            [prepare_image(decode_image(one), self.config.spec.image_size, crop) for one in images]
        )
        prompts, lengths = pad_prompts(
            [self._prompts.token_ids(one) for one in instructions], self.config.pad_token_id
        )
        with torch.inference_mode():
            return self.model(
                torch.from_numpy(self._normalizer(pixels)),
                prompts,
                lengths,
                torch.from_numpy(token_ids),
            ).logits

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
        index = torch.from_numpy(token_ids - self.config.spec.action_ids.start)
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
    config = OpenVLAConfig.from_directory(checkpoint)
    generator = torch.Generator().manual_seed(version if seed is None else seed)
    factors = {
        layer: (
            torch.randn(rank, into, generator=generator) / into**0.5,
            torch.randn(out, rank, generator=generator) * 0.2,
        )
        for layer, (out, into) in lora_layers(config).items()
    }
    return Adapter(run, version, base_digest(checkpoint), 0.5, factors)
