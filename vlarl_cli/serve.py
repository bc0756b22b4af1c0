"""`vlarl serve`: one service in this process, until SIGTERM."""

from __future__ import annotations

import asyncio
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from vlarl.config import ConfigError, ProcessRewardConfig, RunConfig
from vlarl.config.checkpoints import with_checkpoints
from vlarl.weights.hub import folder_of
from vlarl_cli.groups import command_group
from vlarl_cli.logs import configure_logging
from vlarl_cli.options import (
    AddressFile,
    ConfigFile,
    Drain,
    Listen,
    Metrics,
    Overrides,
    Reflection,
    Verbose,
    one_sentence_errors,
    read_config,
    server_config,
)
from vlarl_cli.runs import check_reward

app = command_group("Serve one service in this process, until SIGTERM.")


@app.command()
def policy(
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="Checkpoint of OpenVLA or OpenVLA-OFT: a folder, or OWNER/NAME[@REVISION] on the "
            "Hugging Face hub; default: the configuration's."
        ),
    ] = None,
    center_crop: Annotated[
        bool | None,
        typer.Option(
            "--center-crop/--no-center-crop",
            help="Centre-crop images; default: as the checkpoint says.",
        ),
    ] = None,
    trainer: Annotated[
        str | None,
        typer.Option(help="Trainer to fetch the latest adapter from before reporting ready."),
    ] = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    listen: Listen = "127.0.0.1:50051",
    metrics_listen: Metrics = None,
    address_file: AddressFile = None,
    reflection: Reflection = False,
    drain_seconds: Drain = 30.0,
    verbose: Verbose = False,
) -> None:
    """The policy server: images and instructions in, action tokens out.

    Runs the checkpoint in vLLM and swaps merged LoRA weights in between two actions.
    """
    run = read_config(config, overrides)
    chosen = {
        "checkpoint": checkpoint,
        "center_crop": center_crop,
        "trainer_address": trainer,
    }
    section = run.policy.model_copy(update={k: v for k, v in chosen.items() if v is not None})
    configure_logging(verbose)
    server = server_config(run, listen, metrics_listen, address_file, reflection, drain_seconds)
    with one_sentence_errors():
        from vlarl.models.registry import check_policy_checkpoint

        section = with_checkpoints(section, folder_of)
        check_policy_checkpoint(section.checkpoint)  # before vLLM is loaded, which takes a while
        from vlarl_policy.server import serve

        asyncio.run(serve(section, server, run.security.channel()))


@app.command()
def env(
    config: ConfigFile = None,
    overrides: Overrides = None,
    listen: Listen = "127.0.0.1:50052",
    metrics_listen: Metrics = None,
    address_file: AddressFile = None,
    reflection: Reflection = False,
    drain_seconds: Drain = 30.0,
    queue: Annotated[
        bool, typer.Option(help="Also work for the rollout queue (--no-queue: gRPC only).")
    ] = True,
    verbose: Verbose = False,
) -> None:
    """The env server: LIBERO simulators for the rollout queue and for external clients."""
    run = read_config(config, overrides)
    configure_logging(verbose)
    from vlarl_env.server import serve

    server = server_config(run, listen, metrics_listen, address_file, reflection, drain_seconds)
    with one_sentence_errors():
        asyncio.run(serve(run, server, with_queue=queue))


@app.command()
def reward(
    config: ConfigFile = None,
    overrides: Overrides = None,
    listen: Listen = "127.0.0.1:50053",
    metrics_listen: Metrics = None,
    address_file: AddressFile = None,
    reflection: Reflection = False,
    drain_seconds: Drain = 30.0,
    verbose: Verbose = False,
) -> None:
    """The reward server: scores trajectories on their way to the trainer."""
    run = read_config(config, overrides)
    configure_logging(verbose)
    server = server_config(run, listen, metrics_listen, address_file, reflection, drain_seconds)
    with one_sentence_errors():
        _check_torch(run)
        run = with_checkpoints(run, folder_of, ["reward.checkpoint"])
        check_reward(run)
        from vlarl_reward.server import serve

        asyncio.run(serve(run.reward, run.trainer.chosen, run.queue, server))


def _check_torch(run: RunConfig) -> None:
    """A process reward model needs torch, which the smaller of the reward server's images lacks.

    Raises:
        ConfigError: it isn't here.
    """
    if isinstance(run.reward, ProcessRewardConfig) and find_spec("torch") is None:
        raise ConfigError(
            f'reward.model = "{run.reward.model}" needs torch, which isn\'t installed here: with '
            "docker compose, REWARD_LOCK=torch-cuda (without a GPU torch-cpu) builds an image that "
            "has it; elsewhere, `pip install 'vlarl[reward]'`"
        )
