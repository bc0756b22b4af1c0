"""A policy server in a process of its own, started in other ways until it starts."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import grpc
import psutil

from benchmarks.gpu_check.check import Check, log_tail
from benchmarks.gpu_check.results import now, say
from vlarl.rpc.channel import open_channel, wait_until_serving

SERVICE = "vlarl.policy.v1.PolicyService"

_RUNNER_V1 = MappingProxyType({"VLLM_USE_V2_MODEL_RUNNER": "0"})
_USUAL = MappingProxyType[str, str]({})
_TRITON = {"enforce_eager": True, "attention_backend": "TRITON_ATTN"}
RUNGS: tuple[tuple[str, Mapping[str, object], Mapping[str, str]], ...] = (
    ("as it is", {}, _USUAL),
    ("Triton's attention", {"attention_backend": "TRITON_ATTN"}, _USUAL),
    ("eager", {"enforce_eager": True}, _USUAL),
    ("runner V1", {}, _RUNNER_V1),
    ("eager, Triton's attention", _TRITON, _USUAL),
    ("eager, Triton's attention, runner V1", _TRITON, _RUNNER_V1),
)
"""What is tried in turn: its name, the engine's arguments that differ, environment."""

_FACTS = (
    "Using V2 Model Runner",
    "attention backend",
    "FlashAttention version",
    "Model loading took",
    "torch.compile",
    "Graph capturing finished",
    "init engine",
    "WARNING",
)
"""Lines of vLLM's log that say what it chose."""


class Server:
    """`vlarl serve policy`, which begins to start when this is made."""

    def __init__(
        self, check: Check, name: str, checkpoint: Path, dtype: str, settings: Sequence[str] = ()
    ) -> None:
        """Starts it.

        Args:
            check: the run.
            name: of its rows and logs.
            checkpoint: what it serves.
            dtype: its policy.dtype.
            settings: further KEY=VALUE.
        """
        self.name, self.checkpoint, self.dtype = name, checkpoint, dtype
        self._check, self._settings = check, [f"policy.dtype={dtype}", *settings]
        self._rung = 0
        self._start()

    @property
    def log(self) -> Path:
        """Its output."""
        return self._file("log")

    def _file(self, ending: str) -> Path:
        return self._check.work / f"{self.name.replace(' ', '-')}-{self._rung}.{ending}"

    def _start(self) -> None:
        label, changes, environment = RUNGS[self._rung]
        # Untouched, as a user runs it, unless the engine is to be told something else.
        program = ["benchmarks.gpu_check.told", json.dumps(changes)] if changes else ["vlarl"]
        command = [sys.executable, "-m", *program, "serve", "policy"]
        command += ["--checkpoint", str(self.checkpoint), "--listen", "127.0.0.1:0"]
        command += ["--address-file", str(self._file("address"))]
        command += [part for setting in self._settings for part in ("--set", setting)]
        variables = {"TORCHINDUCTOR_COMPILE_THREADS": "4", **os.environ, **environment}
        variables["VLLM_LOGGING_LEVEL"] = "INFO"
        if self._check.cuda:  # Without, nothing is compiled, and a start is nobody's figure.
            variables["VLLM_CACHE_ROOT"] = str(self._file("cache"))
            variables["TORCHINDUCTOR_CACHE_DIR"] = str(self._file("inductor"))
        self._began = time.perf_counter()
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env=variables, start_new_session=True
            )
        say(f"{self.name}: starting, {label}")

    async def serving(self, seconds: float) -> str:
        """Its address, once it serves.

        Raises:
            RuntimeError: it starts in no way.
            TimeoutError: it doesn't serve within `seconds`.
        """
        stop = now() + min(seconds, self._check.left)
        while now() < stop:
            if self._process.poll() is not None:
                self._try_otherwise()
            elif self._file("address").exists():
                address = self._file("address").read_text(encoding="utf-8").strip()
                with contextlib.suppress(grpc.aio.AioRpcError, TimeoutError):
                    async with open_channel(address) as channel:
                        await wait_until_serving(channel, SERVICE, 2)
                    self._add_start()
                    return address
            await asyncio.sleep(0.3)
        raise TimeoutError(f"{self.name} doesn't serve after {seconds:.0f} s: {log_tail(self.log)}")

    def _try_otherwise(self) -> None:
        say(f"{self.name}: ended: {log_tail(self.log)}")
        self.kill()
        if self._rung + 1 == len(RUNGS):
            raise RuntimeError(f"{self.name} starts in no way, see its logs")
        self._rung += 1
        self._start()

    def _add_start(self) -> None:
        took, label = time.perf_counter() - self._began, RUNGS[self._rung][0]
        self._check.results.add(f"{self.name}: serves after", took, "s", label, ok=self._rung == 0)
        lines = self.log.read_text(errors="replace", encoding="utf-8").splitlines()
        for wanted in _FACTS:
            for line in [line for line in lines if wanted in line][:3]:
                say(f"   {self.name}: {line[-230:]}")

    async def add_orphans(self) -> None:
        """Kills the server's own process, as the kernel would, and counts what outlives it."""
        server = psutil.Process(self._process.pid)
        family = server.children(recursive=True)
        server.kill()
        _, alive = await asyncio.to_thread(psutil.wait_procs, family, 15)
        self._check.results.add(
            f"{self.name}: processes that outlive a killed server",
            len(alive),
            f"of {len(family)}",
            ", ".join(one.name() for one in alive),
            ok=not alive,
        )

    def stop(self) -> None:
        """Ends it as a user would, and kills what is left."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(20)
        self.kill()

    def kill(self) -> None:
        """Ends it at once, with all it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
