"""What a run takes of a GPU, by arithmetic: no device needed.

    python -m benchmarks.sizing [configs/libero-7b.toml]

The sizes are the checkpoint's where its folder is here, else OpenVLA-7B's. docs/sizing.md says
where each line comes from and how it compares with what was measured. A last table has the policy
servers of both families, at 7B.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

from rich.table import Table

from vlarl.config import RunConfig, TrainerConfig, load_config
from vlarl.models.openvla.config import OpenVLAConfig
from vlarl.models.openvla.limits import (
    kv_cache_bytes,
    longest_sequence,
    most_tokens_of_a_pass,
)
from vlarl.models.openvla.oft import OPENVLA_OFT
from vlarl.models.openvla.tiny import make_tiny_checkpoint
from vlarl.models.openvla_oft.config import OFTConfig
from vlarl.models.openvla_oft.family import OFTFamily
from vlarl.models.registry import policy_family
from vlarl.models.statistics import ActionStats
from vlarl.terminal import show
from vlarl_trainer.memory import ASIDE_BYTES, GIB, Budget, parameter_counts, place, tensors

GPU_BYTES = 80 * 10**9
"""What an 80 GB GPU has at least."""
CONTEXT_BYTES = GIB
"""Allowance for a process's CUDA context and the libraries' workspaces. Not derived."""
GRAPHS_BYTES = 2 * GIB
"""Allowance for the engine's CUDA graphs and compiled kernels. Not derived."""
SERVER_PARTS = ("weights", "KV cache", "activations of a pass", "allowances", "sum")
"""Columns of the table of policy servers."""
SIMULATOR_BYTES = 300 << 20
"""Allowance for a simulator that draws with EGL. Not measured."""


Model = OpenVLAConfig | OFTConfig
"""A checkpoint's configuration, of either family."""


def sizes(model: Model) -> OpenVLAConfig:
    """Of towers, projector and language model, and what is shown and answered."""
    return model.base if isinstance(model, OFTConfig) else model


def longest_request(model: Model) -> int:
    """Tokens of the engine's longest request."""
    return model.longest_sequence if isinstance(model, OFTConfig) else longest_sequence(model)


def policy_budget(config: RunConfig, model: Model) -> Budget:
    """The policy server's process, in 16 bits."""
    text = sizes(model).text
    tokens = most_tokens_of_a_pass(config.policy, longest_request(model))
    cache = {}
    if isinstance(model, OpenVLAConfig):  # vLLM's pooling runner has none, as nothing is read twice
        cache["KV cache"] = kv_cache_bytes(config.policy, model, itemsize=2)
    # The residual, the attention's inputs and outputs, and the MLP's, at one time in one layer.
    widths = 6 * text.hidden_size + 3 * text.intermediate_size
    return {
        "weights": 2 * sum(parameter_counts(sizes(model)).values()),
        **cache,
        "activations of a pass": 2 * tokens * widths,
        # Merged weights wait where there is room, else in the host's memory: no part of this.
        "CUDA graphs": GRAPHS_BYTES,
        "CUDA context": CONTEXT_BYTES,
    }


def trainer_tensors(config: TrainerConfig, model: OpenVLAConfig) -> Budget:
    """Tensors of a trainer that is one process, computing in 16 bits, while it learns; where the
    configuration leaves something open, as an 80 GB GPU decides it.
    """
    placement = place(config, model, ranks=1, itemsize=2, memory_bytes=GPU_BYTES // 2)
    return tensors(config, model, placement)


def trainer_budget(config: TrainerConfig, model: OpenVLAConfig) -> Budget:
    """The trainer's process: its tensors and what isn't tensors."""
    return trainer_tensors(config, model) | {"allocator, CUDA context": ASIDE_BYTES}


def simulators_budget(config: RunConfig) -> Budget:
    """The env server's simulators, if they draw on the GPU."""
    return {f"{config.env.processes} simulators": config.env.processes * SIMULATOR_BYTES}


def layouts(config: RunConfig, model: Model) -> dict[str, dict[str, Budget]]:
    """What lies on each GPU of docker-compose.yml's stack."""
    policy, trainer = policy_budget(config, model), trainer_budget(config.trainer, sizes(model))
    acting = {"policy": policy, "env": simulators_budget(config)}
    return {
        "one GPU": acting | {"trainer": trainer},
        "two GPUs: the first": acting,
        "two GPUs: the second": {"trainer": trainer},
    }


def original_sizes(directory: Path) -> OpenVLAConfig:
    """Gives a tiny checkpoint's configuration OpenVLA-7B's sizes; its weights stay as they are."""
    path = directory / "config.json"
    raw = json.loads(path.read_text(encoding="utf-8"))
    del raw["timm_model_kwargs"]
    raw["pad_token_id"] = 32000
    raw["text_config"] = {"model_type": "llama", "vocab_size": 32064, "pad_token_id": 32000}
    path.write_text(json.dumps(raw), encoding="utf-8")
    return OpenVLAConfig.from_directory(directory)


def openvla_7b() -> OpenVLAConfig:
    """OpenVLA-7B's configuration, without its checkpoint."""
    with tempfile.TemporaryDirectory(prefix="vlarl-sizing-") as directory:
        make_tiny_checkpoint(directory, image_size=224)
        return original_sizes(Path(directory))


def openvla_oft_7b(cameras: tuple[str, ...] = ("agentview",), proprio: int = 0) -> OFTConfig:
    """The configuration of an OpenVLA-OFT of that size that answers chunks of 8, as on LIBERO."""
    base, stats = openvla_7b(), {}
    if proprio:
        bounds = {"q01": [-1.0] * proprio, "q99": [1.0] * proprio}
        stats["libero"] = ActionStats.from_json(bounds)
    spec = replace(base.spec, family=OPENVLA_OFT, chunk=8, cameras=cameras, proprio_stats=stats)
    return OFTConfig(replace(base, spec=spec), "stop")


def models_7b() -> dict[str, Model]:
    """Those that docs/sizing.md compares, by what it calls them."""
    return {
        "OpenVLA": openvla_7b(),
        "OpenVLA-OFT, one camera": openvla_oft_7b(),
        "OpenVLA-OFT, two cameras, proprioception": openvla_oft_7b(
            ("agentview", "robot0_eye_in_hand"), proprio=8
        ),
    }


def checkpoint_model(folder: Path) -> Model:
    """The configuration of a checkpoint.

    Raises:
        ConfigError: a file is missing or can't be used; the message names it.
    """
    family = policy_family(folder)
    return family.config if isinstance(family, OFTFamily) else family.sizes


def server_row(config: RunConfig, model: Model) -> list[str]:
    """A policy server's memory in GiB, and the longest request that it has room for, in tokens."""
    budget = policy_budget(config, model)
    parts = [budget.get(part) for part in ("weights", "KV cache", "activations of a pass")]
    allowed = budget["CUDA graphs"] + budget["CUDA context"]
    amounts = [*parts, allowed, sum(budget.values())]
    shown = ["none" if size is None else f"{size / GIB:.2f}" for size in amounts]
    return [str(longest_request(model)), *shown]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path, nargs="?", default=Path("configs/libero-7b.toml"))
    config = load_config(parser.parse_args().config)
    there = config.policy.checkpoint.is_dir()
    model = checkpoint_model(config.policy.checkpoint) if there else openvla_7b()
    name = str(config.policy.checkpoint) if there else "OpenVLA-7B"
    for layout, budgets in layouts(config, model).items():
        table = Table("service", "part", "GiB", title=f"{name}, {layout}")
        for service, budget in budgets.items():
            for part, size in budget.items():
                table.add_row(service, part, f"{size / GIB:.2f}")
        total = sum(sum(budget.values()) for budget in budgets.values())
        table.add_row("", f"sum, of {GPU_BYTES / GIB:.1f}", f"{total / GIB:.2f}")
        show(table)
    table = Table("7B", "longest request", *SERVER_PARTS, title="policy servers, GiB")
    for one, its in models_7b().items():
        table.add_row(one, *server_row(config, its))
    show(table)


if __name__ == "__main__":
    main()
