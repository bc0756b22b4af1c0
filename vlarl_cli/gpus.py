"""`vlarl gpus`: whether a run fits on this machine's GPUs, asked before anything is loaded."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlarl.config import ConfigError, RunConfig
from vlarl.config.checkpoints import with_checkpoints
from vlarl.terminal import say
from vlarl_cli.options import one_sentence_errors, read_section
from vlarl_cli.runs import saved_config

if TYPE_CHECKING:
    from vlarl.launch.gpus import Gpu


def gpus(
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
    policy: Annotated[
        str, typer.Option("--policy", metavar="NUMBER", help="The policy server's GPU.")
    ] = "0",
    trainer: Annotated[
        str, typer.Option("--trainer", metavar="NUMBER", help="The trainer's GPU, or: last.")
    ] = "last",
) -> None:
    """Look whether a run fits on this machine's GPUs: exit 1 and a sentence where it doesn't.

    Weights are counted, which is the least that policy server and trainer take.
    """
    with one_sentence_errors():
        from vlarl.launch.gpus import check_room, chosen_gpu
        from vlarl.weights.hub import folder_of
        from vlarl.weights.wholeness import check_weights

        settings = read_section(RunConfig, saved_config(run), [])
        found = _gpus()
        numbers = {
            "policy server": chosen_gpu(found, policy, "policy server"),
            "trainer": chosen_gpu(found, trainer, "trainer"),
        }
        settings = with_checkpoints(settings, folder_of, ["policy.checkpoint"])
        stored = check_weights(settings.policy.checkpoint).values()
        count = sum(prod(tensor.shape) for tensor in stored)
        dtypes = {"policy server": settings.policy.dtype, "trainer": settings.trainer.dtype}
        weights = {
            who: (number, count * (4 if dtypes[who] == "float32" else 2))
            for who, number in numbers.items()
        }
        check_room(found, weights)
        for who, number in numbers.items():
            say(f"{who}: GPU {number}, {found[number].name}")


def _gpus() -> list[Gpu]:
    """All GPUs that CUDA sees.

    Raises:
        ConfigError: CUDA can't be used.
    """
    import torch

    from vlarl.launch.gpus import Gpu

    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        told = str(error).splitlines()[0]
        raise ConfigError(
            f"CUDA can't be used here ({told}): it takes a GPU, NVIDIA's driver for CUDA 13 (580 "
            "or later) and, in containers, NVIDIA's container toolkit"
        ) from error
    described = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return [Gpu(one.name, one.total_memory) for one in described]
