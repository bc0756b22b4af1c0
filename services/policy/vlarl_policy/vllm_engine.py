"""vLLM's engine, set up so that an action's log-probs are those that the trainer computes.

One answer is one engine request, which the policy's `Serving` makes. The engine batches whatever
requests are there. Weights change while it is paused; answers that are half done begin again.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import multiprocessing
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from vllm import AsyncEngineArgs, PoolingParams, SamplingParams
from vllm.outputs import PoolingRequestOutput, RequestOutput
from vllm.utils.torch_utils import available_cpu_count
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.executor.uniproc_executor import UniProcExecutor

from vlarl.config import PolicyConfig
from vlarl.models.base import Serving
from vlarl.models.serving import Encoded, SampledAction
from vlarl.weights.folder import INDEX, read_json, weight_files
from vlarl_policy.merge_answer import read_answer
from vlarl_policy.metrics import PolicyMetrics

_SHUTDOWN_SECONDS = 1.0
_POLL_SECONDS = 0.02
_SOCKETS = "VLLM_RPC_BASE_PATH"
"""The variable that says in which folder vLLM's sockets lie."""

_EXACT_FLOAT32 = {
    "TRITON_F32_DEFAULT": "ieee",  # products in Triton's kernels: attention
    "NVIDIA_TF32_OVERRIDE": "0",  # cuDNN's, which convolves the patches, and cuBLAS's
    "VLLM_FLOAT32_MATMUL_PRECISION": "highest",  # torch's own
}
"""Each is read when its library is loaded, so the engine's process has to start with them."""

__all__ = [
    "EngineDeadError",
    "PolicyEngine",
    "engine_args",
    "merge_threads",
    "set_engine_environment",
]


def engine_args(config: PolicyConfig, serving: Serving) -> AsyncEngineArgs:
    """The engine's arguments for a checkpoint; docs/decisions/0002 says why each is what it is."""
    on_gpu = torch.cuda.is_available()
    dtype = config.dtype
    if dtype == "auto":
        dtype = "float16" if on_gpu else "float32"
    return AsyncEngineArgs(
        model=str(config.checkpoint),
        load_format="safetensors",
        dtype=dtype,
        skip_tokenizer_init=True,
        generation_config="vllm",
        seed=0,
        max_num_seqs=config.max_batch,
        # Not used beside that, and yet the engine asks for so much free memory when it starts.
        gpu_memory_utilization=0.01,
        enforce_eager=not on_gpu,
        # Nothing computed with old weights may outlive a swap.
        enable_prefix_caching=False,
        mm_processor_cache_gb=0,
        worker_extension_cls="vlarl_policy.vllm_worker.MergeWorker",
        # On a CPU vLLM would put its one worker into a third process.
        distributed_executor_backend=UniProcExecutor,
        disable_log_stats=True,
        **serving.engine_args(config, itemsize=4 if dtype == "float32" else 2),
    )


def set_engine_environment(config: PolicyConfig, *, on_gpu: bool) -> None:
    """Sets what the engine's process takes from this one's environment, before it is started."""
    # A forked engine, vLLM's default on CUDA, takes over that the plugin was called here, and with
    # it neither model nor end: it would outlive a killed server. The caller's wish doesn't count.
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    # Pinned threads of replicas and simulators on one machine would share a core.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    if not on_gpu:
        # vLLM compiles a piece of its sampler even in eager mode, with a C++ compiler that a server
        # without a GPU has no other use for.
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    if config.cpu_threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(config.cpu_threads)
    if config.exact_float32:
        os.environ |= _EXACT_FLOAT32


def merge_threads(config: PolicyConfig) -> int:
    """Threads that merging an adapter may use: the configured number, else OMP_NUM_THREADS, which
    vLLM respects, too, else as many as this process has processors.
    """
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return config.cpu_threads or (int(limit) if limit.isdigit() else 0) or available_cpu_count()


async def _construct(args: AsyncEngineArgs) -> AsyncLLM:
    # The constructor blocks until the engine's process has loaded the model. It can't be
    # interrupted, but fails at once when that process is killed.
    constructing = asyncio.ensure_future(asyncio.to_thread(AsyncLLM.from_engine_args, args))
    try:
        return await asyncio.shield(constructing)
    except asyncio.CancelledError:
        while not constructing.done():
            for process in multiprocessing.active_children():
                process.kill()
            await asyncio.wait({constructing}, timeout=0.1)
        if constructing.exception() is None:
            constructing.result().shutdown(timeout=0.0)
        raise


def _plain_view(checkpoint: Path, settings: Iterable[str], folder: Path) -> Path:
    """A folder with a checkpoint's weights, as links, and its settings, without byte-order marks
    and code of its own: vLLM reads each several times, and also what lies beside them.
    """
    folder.mkdir()
    for name in settings:
        if (checkpoint / name).exists():
            content = read_json(checkpoint / name)
            content.pop("auto_map", None)
            (folder / name).write_text(json.dumps(content), encoding="utf-8")
    for path in (*weight_files(checkpoint), checkpoint / INDEX):
        if path.exists():
            (folder / path.name).symlink_to(path.absolute())
    return folder


def _interrupted(answer: RequestOutput | PoolingRequestOutput) -> bool:
    """Whether the engine gave an answer up half-way."""
    if isinstance(answer, PoolingRequestOutput):
        return bool(answer.outputs.data.numel() == 0)
    return bool(answer.outputs[0].finish_reason == "abort")


class PolicyEngine:
    """The running engine of one checkpoint."""

    def __init__(
        self,
        engine: AsyncLLM,
        sockets: tempfile.TemporaryDirectory[str],
        serving: Serving,
        config: PolicyConfig,
        metrics: PolicyMetrics,
    ) -> None:
        """Use `start`."""
        self._engine = engine
        self._sockets = sockets
        self._max_batch = config.max_batch
        self._merge_threads = merge_threads(config)
        self._open = asyncio.Event()
        self._open.set()
        self._batch_size = metrics.batch_size
        self._interruptions = metrics.interrupted
        metrics.running.set_function(lambda: self._running)
        metrics.waiting.set_function(lambda: self._in_progress - self._running)
        self._serving = serving
        self._ids = itertools.count()
        self._asked: set[str] = set()
        self._pauses = 0
        self.dtype = str(engine.model_config.dtype).removeprefix("torch.")

    @classmethod
    async def start(
        cls, config: PolicyConfig, name: str, serving: Serving, metrics: PolicyMetrics
    ) -> PolicyEngine:
        """Loads the checkpoint; about 15 s.

        Args:
            config: the checkpoint and the engine.
            name: the model's.
            serving: how vLLM runs it.
            metrics: of the server.

        Raises:
            RuntimeError: the engine didn't start; its log says why.
        """
        arguments = engine_args(config, serving)
        set_engine_environment(config, on_gpu=not arguments.enforce_eager)
        # vLLM leaves its sockets behind.
        sockets = tempfile.TemporaryDirectory(prefix="vlarl-")
        view = _plain_view(config.checkpoint, serving.settings, Path(sockets.name) / name)
        arguments = replace(arguments, model=str(view))
        before = os.environ.get(_SOCKETS)
        os.environ[_SOCKETS] = sockets.name
        try:
            engine = await _construct(arguments)
        except BaseException:
            sockets.cleanup()
            raise
        finally:
            # Another engine of this process would look for a folder that goes with this one.
            if before is None:
                del os.environ[_SOCKETS]
            else:
                os.environ[_SOCKETS] = before
        await engine.update_weight_version("0")
        return cls(engine, sockets, serving, config, metrics)

    async def act(self, encoded: Encoded, temperature: float, seed: int | None) -> SampledAction:
        """Samples one action.

        Args:
            encoded: the observation, prepared for the model.
            temperature: 0 takes the most probable token, else at least 0.01.
            seed: makes the sampling repeatable; none: the engine's own stream.

        Raises:
            EngineDeadError: the engine is gone, and this process has to be replaced.
        """
        parameters = self._serving.parameters(temperature, seed)
        pauses = self._pauses
        while _interrupted(answer := await self._ask(encoded, parameters)):
            if pauses == self._pauses:
                raise EngineDeadError
            pauses = self._pauses
            self._interruptions.inc()
        self._batch_size.observe(min(self._in_progress + 1, self._max_batch))
        return self._serving.sampled(answer)

    async def _ask(
        self, encoded: Encoded, parameters: SamplingParams | PoolingParams
    ) -> RequestOutput | PoolingRequestOutput:
        await self._open.wait()
        request_id = str(next(self._ids))
        pooling = self._serving.runner == "pooling"
        ask = self._engine.encode if pooling else self._engine.generate
        self._asked.add(request_id)
        try:
            async for output in ask(
                self._serving.prompt(encoded, request_id), parameters, request_id
            ):
                answer = output
        finally:
            self._asked.discard(request_id)
        return answer

    async def pause(self) -> None:
        """Interrupts the actions in progress, which begin again after the pause, and holds new ones
        back; forgets cached features.
        """
        self._open.clear()
        self._pauses += 1
        with self._opened_by_death():
            await self._engine.abort(self._asked.copy())
            await self._engine.pause_generation(mode="wait", clear_cache=True)

    async def resume(self) -> None:
        """Starts what was interrupted or held back."""
        await self._engine.resume_generation()
        self._open.set()

    async def prepare(
        self, adapter_path: str | None, checked_layers: Sequence[str]
    ) -> dict[str, int]:
        """Merges an adapter beside the actions that go on; see `MergeWorker.prepare_adapter`.

        Returns:
            Checksums of the merged weights of these layers.

        Raises:
            MergeError: what stopped it. Nothing has changed.
            EngineDeadError: the engine is gone.
        """
        answer = Path(self._sockets.name) / f"prepared-{next(self._ids)}.json"
        arguments = (adapter_path, list(checked_layers), self._merge_threads, str(answer))
        await self._engine.collective_rpc("prepare_adapter", args=arguments)
        while (checksums := read_answer(answer)) is None:
            if not self.alive:
                raise EngineDeadError
            await asyncio.sleep(_POLL_SECONDS)
        return checksums

    async def exchange(self, version: int) -> None:
        """Puts what was prepared in the place of what serves, while paused."""
        with self._opened_by_death():
            await self._engine.collective_rpc("exchange_weights")
            if self._serving.runner == "pooling":
                # vLLM names no version in a pooling request's output.
                await self._engine.collective_rpc("stamp_answers", args=(version,))
            await self._engine.update_weight_version(str(version))

    @contextlib.contextmanager
    def _opened_by_death(self) -> Iterator[None]:
        # What waits for the pause to end is told by the engine that it is gone.
        try:
            yield
        except EngineDeadError:
            self._open.set()
            raise

    @property
    def alive(self) -> bool:
        """False once the engine's process has died."""
        return not self._engine.errored

    @property
    def _in_progress(self) -> int:
        return int(self._engine.get_num_unfinished_requests())

    @property
    def _running(self) -> int:
        return min(self._in_progress, self._max_batch)

    def shutdown(self) -> None:
        """Ends the engine's processes."""
        # All calls are answered by now, and the engine keeps nothing worth a longer farewell.
        self._engine.shutdown(timeout=_SHUTDOWN_SECONDS)
        self._sockets.cleanup()
