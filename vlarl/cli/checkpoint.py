"""`vlarl checkpoint`: make and inspect OpenVLA checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlarl.cli.groups import command_group
from vlarl.cli.options import one_sentence_errors
from vlarl.terminal import say

app = command_group("Make and inspect OpenVLA checkpoints.")


@app.command()
def tiny(
    directory: Annotated[Path, typer.Argument(help="Folder to create.")],
    seed: Annotated[int, typer.Option(help="Seed of the random weights.")] = 7,
) -> None:
    """Make a tiny untrained checkpoint: OpenVLA's format and code path, about a million weights."""
    from vlarl.openvla.tiny import make_tiny_checkpoint

    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise typer.BadParameter(f"{directory} exists and is no empty folder")
    with one_sentence_errors():
        make_tiny_checkpoint(directory, seed=seed)
    say(f"{directory}: an untrained OpenVLA of {_size(directory):,} parameters")


@app.command()
def show(
    directory: Annotated[Path, typer.Argument(help="Checkpoint folder.")],
) -> None:
    """Show what a checkpoint holds, as the policy server reads it."""
    with one_sentence_errors():
        from vlarl.openvla.wholeness import check_openvla

        config = check_openvla(directory)
        say(f"parameters    {_size(directory):,}")
        say(f"image size    {config.image_size}")
        say(f"centre crop   {config.center_crop}")
        say(f"un-norm keys  {', '.join(config.norm_stats)}")
        say(f"usage         {config.usage()}")
        from vlarl.openvla.checkpoint import base_digest

        say(f"digest        {base_digest(directory)}")


def _size(directory: Path) -> int:
    from math import prod

    from vlarl.openvla.wholeness import check_weights

    return sum(prod(tensor.shape) for tensor in check_weights(directory).values())
