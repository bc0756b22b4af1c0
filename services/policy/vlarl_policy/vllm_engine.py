"""vLLM's engine, set up so that an action's log-probs are those that the trainer computes.

One action is one engine request of `action_dim` tokens, sampled among the action ids alone. The
engine batches whatever requests are there. Weights change while it is paused, that is, when no
action is half done.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import multiprocessing
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from vllm import AsyncEngineArgs, SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.utils.torch_utils import available_cpu_count
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.executor.uniproc_executor import UniProcExecutor

from vlarl.config import PolicyConfig
from vlarl.models.openvla.config import STATISTICS, OpenVLAConfig
from vlarl.models.openvla.limits import MAX_BATCHED_TOKENS, kv_cache_bytes, longest_sequence
from vlarl.models.openvla.tokens import ActionTokenizer
from vlarl.models.openvla.vllm_inputs import engine_input
from vlarl.weights.folder import INDEX, read_json, weight_files
from vlarl_policy.metrics import PolicyMetrics

_SHUTDOWN_SECONDS = 1.0

_EXACT_FLOAT32 = {
    "TRITON_F32_DEFAULT": "ieee",  # products in Triton's kernels: attention
    "NVIDIA_TF32_OVERRIDE": "0",  # cuDNN's, which convolves the patches, and cuBLAS's
    "VLLM_FLOAT32_MATMUL_PRECISION": "highest",  # torch's own
}
"""Each is read when its library is loaded, so the engine's process has to start with them."""

__all__ = [
    "EngineDeadError",
    "PolicyEngine",
    "SampledAction",
    "engine_args",
    "merge_threads",
    "set_engine_environment",
]


@dataclass(frozen=True)
class SampledAction:
    """Tokens of one action.

    Attributes:
        token_ids: vocabulary ids, one for each action dimension.
        logprobs: natural log of each token's probability over the action ids, at the sampling
            temperature (greedy: at temperature 1).
        policy_version: version of the weights that produced all of them.
    """

    token_ids: list[int]
    logprobs: list[float]
    policy_version: int


def engine_args(config: PolicyConfig, model: OpenVLAConfig) -> AsyncEngineArgs:
    """The engine's arguments for a checkpoint; docs/decisions/0002 says why each is what it is."""
    on_gpu = torch.cuda.is_available()
    dtype = config.dtype
    if dtype == "auto":
        dtype = "bfloat16" if on_gpu else "float32"
    return AsyncEngineArgs(
        model=str(config.checkpoint),
        load_format="safetensors",
        dtype=dtype,
        skip_tokenizer_init=True,
        generation_config="vllm",
        seed=0,
        max_model_len=longest_sequence(model),
        max_num_seqs=config.max_batch,
        kv_cache_memory_bytes=kv_cache_bytes(config, model, 4 if dtype == "float32" else 2),
        # Not used beside that, and yet the engine asks for so much free memory when it starts.
        gpu_memory_utilization=0.01,
        enforce_eager=not on_gpu,
        # A request's own seed together with chunked prefill kills the engine on a CPU.
        enable_chunked_prefill=False,
        max_num_batched_tokens=MAX_BATCHED_TOKENS,
        # Nothing computed with old weights may outlive a swap.
        enable_prefix_caching=False,
        mm_processor_cache_gb=0,
        limit_mm_per_prompt={"image": 1},
        # The default, raw_logprobs, is taken before temperature and allowed ids.
        logprobs_mode="processed_logprobs",
        worker_extension_cls="vlarl_policy.vllm_worker.MergeWorker",
        # On a CPU vLLM would put its one worker into a third process.
        distributed_executor_backend=UniProcExecutor,
        disable_log_stats=True,
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


def _plain_view(checkpoint: Path, folder: Path) -> Path:
    """A folder with a checkpoint's weights, as links, and its settings, without byte-order marks
    and code of its own: vLLM reads each several times, and also what lies beside them.
    """
    folder.mkdir()
    for name in ("config.json", "preprocessor_config.json", STATISTICS):
        if (checkpoint / name).exists():
            content = read_json(checkpoint / name)
            content.pop("auto_map", None)
            (folder / name).write_text(json.dumps(content), encoding="utf-8")
    for path in (*weight_files(checkpoint), checkpoint / INDEX):
        if path.exists():
            (folder / path.name).symlink_to(path.absolute())
    return folder


class PolicyEngine:
    """The running engine of one checkpoint."""

    def __init__(
        self,
        engine: AsyncLLM,
        sockets: tempfile.TemporaryDirectory[str],
        model: OpenVLAConfig,
        config: PolicyConfig,
        metrics: PolicyMetrics,
    ) -> None:
        """Use `start`."""
        self._engine = engine
        self._sockets = sockets
        self._max_batch = config.max_batch
        self._merge_threads = merge_threads(config)
        self._paused = False
        self._batch_size = metrics.batch_size
        metrics.running.set_function(lambda: self._running)
        metrics.waiting.set_function(lambda: self._in_progress - self._running)
        self._image_token_id = model.pad_token_id
        self._image_tokens = model.num_patches
        self._action_dim = model.action_dim
        self._action_ids = ActionTokenizer(model.action_vocab_size).action_ids
        self._ids = itertools.count()
        self.dtype = str(engine.model_config.dtype).removeprefix("torch.")

    @classmethod
    async def start(
        cls, config: PolicyConfig, model: OpenVLAConfig, metrics: PolicyMetrics
    ) -> PolicyEngine:
        """Loads the checkpoint; about 15 s.

        Raises:
            RuntimeError: the engine didn't start; its log says why.
        """
        arguments = engine_args(config, model)
        set_engine_environment(config, on_gpu=not arguments.enforce_eager)
        # vLLM leaves its sockets behind.
        sockets = tempfile.TemporaryDirectory(prefix="vlarl-")
        os.environ["VLLM_RPC_BASE_PATH"] = sockets.name
        view = _plain_view(config.checkpoint, Path(sockets.name) / model.name)
        arguments = replace(arguments, model=str(view))
        try:
            engine = await _construct(arguments)
        except BaseException:
            sockets.cleanup()
            raise
        await engine.update_weight_version("0")
        return cls(engine, sockets, model, config, metrics)

    async def act(
        self,
        prompt_ids: list[int],
        pixels: npt.NDArray[np.uint8],
        temperature: float,
        seed: int | None,
    ) -> SampledAction:
        """Samples one action.

        Args:
            prompt_ids: the instruction's prompt, BOS first.
            pixels: uint8 [S, S, 3], prepared for the model.
            temperature: 0 takes the most probable token, else at least 0.01.
            seed: makes the sampling repeatable; none: the engine's own stream.

        Raises:
            EngineDeadError: the engine is gone, and this process has to be replaced.
        """
        request_id = str(next(self._ids))
        params = SamplingParams(
            temperature=temperature,
            seed=seed,
            max_tokens=self._action_dim,
            ignore_eos=True,
            allowed_token_ids=self._action_ids,
            logprobs=0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            # A deep copy of the 256 ids took a tenth of the server's time.
            skip_clone=True,
        )
        prompt = engine_input(
            prompt_ids, pixels, self._image_token_id, self._image_tokens, request_id
        )
        async for output in self._engine.generate(prompt, params, request_id):
            completion = output.outputs[0]
        self._batch_size.observe(min(self._in_progress + 1, self._max_batch))
        token_ids = list(completion.token_ids)
        (span,) = completion.weight_versions
        return SampledAction(
            token_ids=token_ids,
            logprobs=[
                position[token_id].logprob
                for token_id, position in zip(token_ids, completion.logprobs, strict=True)
            ],
            policy_version=int(span.version),
        )

    async def pause(self) -> None:
        """Lets the actions in progress end and holds new ones back; forgets cached features."""
        self._paused = True
        await self._engine.pause_generation(mode="wait", clear_cache=True)

    async def resume(self) -> None:
        """Starts what was held back."""
        await self._engine.resume_generation()
        self._paused = False

    async def merge(self, adapter_path: str | None, version: int) -> str:
        """Replaces the weights while paused. See `MergeWorker.merge_adapter`.

        Returns:
            SHA-256 (hex) of the merged tensors.
        """
        arguments = (adapter_path, self._merge_threads)
        digests = await self._engine.collective_rpc("merge_adapter", args=arguments)
        await self._engine.update_weight_version(str(version))
        return str(digests[0])

    @property
    def alive(self) -> bool:
        """False once the engine's process has died."""
        return not self._engine.errored

    @property
    def _in_progress(self) -> int:
        return int(self._engine.get_num_unfinished_requests())

    @property
    def _running(self) -> int:
        return 0 if self._paused else min(self._in_progress, self._max_batch)

    def shutdown(self) -> None:
        """Ends the engine's processes."""
        # All calls are answered by now, and the engine keeps nothing worth a longer farewell.
        self._engine.shutdown(timeout=_SHUTDOWN_SECONDS)
        self._sockets.cleanup()
