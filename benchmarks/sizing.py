"""What a run takes of a GPU, by arithmetic: no device needed.

    python -m benchmarks.sizing [configs/libero-7b.toml]

The sizes are the checkpoint's where there is one, else OpenVLA-7B's. docs/sizing.md says where each
line comes from and how it compares with what was measured.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from rich.table import Table

from vlarl.config import RunConfig, TrainerConfig, load_config
from vlarl.models.openvla.config import OpenVLAConfig
from vlarl.models.openvla.limits import kv_cache_bytes, max_batched_tokens
from vlarl.models.openvla.tiny import make_tiny_checkpoint
from vlarl.terminal import show
from vlarl_trainer.memory import ASIDE_BYTES, GIB, Budget, parameter_counts, place, tensors

GPU_BYTES = 80 * 10**9
"""What an 80 GB GPU has at least."""
CONTEXT_BYTES = GIB
"""Allowance for a process's CUDA context and the libraries' workspaces. Not derived."""
GRAPHS_BYTES = 2 * GIB
"""Allowance for the engine's CUDA graphs and compiled kernels. Not derived."""
SIMULATOR_BYTES = 300 << 20
"""Allowance for a simulator that draws with EGL. Not measured."""


def policy_budget(config: RunConfig, model: OpenVLAConfig) -> Budget:
    """The policy server's process, in 16 bits."""
    text = model.text
    # The residual, the attention's inputs and outputs, and the MLP's, at one time in one layer.
    widths = 6 * text.hidden_size + 3 * text.intermediate_size
    return {
        "weights": 2 * sum(parameter_counts(model).values()),
        "KV cache": kv_cache_bytes(config.policy, model, itemsize=2),
        "activations of a pass": 2 * max_batched_tokens(config.policy, model) * widths,
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


def layouts(config: RunConfig, model: OpenVLAConfig) -> dict[str, dict[str, Budget]]:
    """What lies on each GPU of docker-compose.yml's stack."""
    policy, trainer = policy_budget(config, model), trainer_budget(config.trainer, model)
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


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path, nargs="?", default=Path("configs/libero-7b.toml"))
    config = load_config(parser.parse_args().config)
    there = config.policy.checkpoint.is_dir()
    model = OpenVLAConfig.from_directory(config.policy.checkpoint) if there else openvla_7b()
    for layout, budgets in layouts(config, model).items():
        table = Table("service", "part", "GiB", title=layout)
        for service, budget in budgets.items():
            for part, size in budget.items():
                table.add_row(service, part, f"{size / GIB:.2f}")
        total = sum(sum(budget.values()) for budget in budgets.values())
        table.add_row("", f"sum, of {GPU_BYTES / GIB:.1f}", f"{total / GIB:.2f}")
        show(table)


if __name__ == "__main__":
    main()
