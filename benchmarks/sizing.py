"""What a run takes of a GPU, by arithmetic: no device needed.

    python -m benchmarks.sizing [configs/libero-7b.toml]

The sizes are the checkpoint's where there is one, else OpenVLA-7B's. docs/sizing.md says where each
line comes from and how it compares with what was measured.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path

import torch
from rich.table import Table

from vlarl.config import RunConfig, TrainerConfig, load_config
from vlarl.models.openvla.config import OpenVLAConfig
from vlarl.models.openvla.limits import MAX_BATCHED_TOKENS, kv_cache_bytes
from vlarl.models.openvla.lora import lora_layers
from vlarl.models.openvla.network import OpenVLA
from vlarl.models.openvla.tiny import make_tiny_checkpoint
from vlarl.terminal import show

GIB = 2**30
GPU_BYTES = 80 * 10**9
"""What an 80 GB GPU has at least."""
PROMPT_TOKENS = 64
"""An instruction's prompt in training, and the action's tokens; LIBERO's are shorter."""
CONTEXT_BYTES = GIB
"""Allowance for a process's CUDA context and the libraries' workspaces. Not derived."""
GRAPHS_BYTES = 2 * GIB
"""Allowance for the engine's CUDA graphs and compiled kernels. Not derived."""
FRAGMENTS_BYTES = 2 * GIB
"""Allowance for what the trainer's allocator holds and can't give out. Not derived."""
SIMULATOR_BYTES = 300 << 20
"""Allowance for a simulator that draws with EGL. Not measured."""

Budget = dict[str, int]
"""Bytes of each part."""


def parameter_counts(model: OpenVLAConfig) -> dict[str, int]:
    """Parameters of the checkpoint's parts."""
    names = {
        "vision_backbone.featurizer": "first tower",
        "vision_backbone.fused_featurizer": "second tower",
        "projector": "projector",
        "language_model": "language model",
    }
    counts: Counter[str] = Counter()
    with torch.device("meta"):
        tensors = OpenVLA(model).state_dict()
    for key, tensor in tensors.items():
        (part,) = (name for prefix, name in names.items() if key.startswith(prefix + "."))
        counts[part] += tensor.numel()
    return dict(counts)


def factor_count(model: OpenVLAConfig, rank: int) -> int:
    """Parameters of LoRA's factors on all layers."""
    return sum(rank * (out + into) for out, into in lora_layers(model).values())


def policy_budget(config: RunConfig, model: OpenVLAConfig) -> Budget:
    """The policy server's process, in bfloat16."""
    text = model.text
    # The residual, the attention's inputs and outputs, and the MLP's, at one time in one layer.
    widths = 6 * text.hidden_size + 3 * text.intermediate_size
    return {
        "weights": 2 * sum(parameter_counts(model).values()),
        "KV cache": kv_cache_bytes(config.policy, model, itemsize=2),
        "activations of a pass": 2 * MAX_BATCHED_TOKENS * widths,
        # A swap builds one fused layer anew at a time.
        "largest layer, anew": 2 * 2 * text.hidden_size * text.intermediate_size,
        "CUDA graphs": GRAPHS_BYTES,
        "CUDA context": CONTEXT_BYTES,
    }


def trainer_tensors(config: TrainerConfig, model: OpenVLAConfig) -> Budget:
    """Tensors of a trainer that is one process, computing in bfloat16, while it learns."""
    parameters, factors = parameter_counts(model), factor_count(model, config.lora.rank)
    rows = config.ppo.micro_batch
    tokens = rows * (model.num_patches + PROMPT_TOKENS)
    dim, hidden = model.text.hidden_size, model.text.intermediate_size
    layers = model.text.num_hidden_layers
    inputs = 2 * tokens * dim * layers
    block = tokens * (36 * dim + 10 * hidden)
    for tower in model.towers:
        patches = rows * (tower.num_patches + tower.class_token + tower.reg_tokens)
        inputs += 2 * patches * tower.embed_dim * (tower.depth - 1)
    vision = sum(tower.embed_dim for tower in model.towers)
    # What FSDP puts together for use: the part outside all blocks (embedding, head, projector), and
    # two language blocks, one of them ahead of time.
    language = 4 * dim * dim + 3 * dim * hidden
    outside = 2 * model.text.vocab_size * dim + parameters["projector"]
    return {
        "weights": 2 * sum(parameters.values()),
        "LoRA factors, float32": 4 * factors,
        "their gradients and Adam's moments": 12 * factors,
        "critic, its gradients and moments": 16 * _critic_count(config, model),
        "layers gathered for use": 2 * (outside + 2 * language),
        "inputs of blocks": inputs,
        "projector's activations": 2 * rows * model.num_patches * (9 * vision + 3 * dim),
        "activations of blocks": block * (1 if config.activation_checkpointing else layers),
        "gradients in a block": tokens * (6 * dim + 6 * hidden),
    }


def trainer_budget(config: TrainerConfig, model: OpenVLAConfig) -> Budget:
    """The trainer's process: its tensors and what isn't tensors."""
    rest = {"held by the allocator": FRAGMENTS_BYTES, "CUDA context": CONTEXT_BYTES}
    return trainer_tensors(config, model) | rest


def simulators_budget(config: RunConfig) -> Budget:
    """The env server's simulators, if they draw on the GPU."""
    return {f"{config.env.processes} simulators": config.env.processes * SIMULATOR_BYTES}


def _critic_count(config: TrainerConfig, model: OpenVLAConfig) -> int:
    widths = [model.text.hidden_size + model.num_patches * config.critic.patch_channels]
    widths += [*config.critic.hidden, 1]
    return sum((a + 1) * b for a, b in pairwise(widths))


def layouts(config: RunConfig, model: OpenVLAConfig) -> dict[str, dict[str, Budget]]:
    """What lies on each GPU: docker-compose.yml's profiles."""
    policy, trainer = policy_budget(config, model), trainer_budget(config.trainer, model)
    acting = {"policy": policy, "env": simulators_budget(config)}
    return {
        "gpu: all on one": acting | {"trainer": trainer},
        "gpu2: GPU 0": acting,
        "gpu2: GPU 1": {"trainer": trainer},
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
