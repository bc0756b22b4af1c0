"""`vlarl checkpoint`: make and inspect checkpoints of OpenVLA and OpenVLA-OFT."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from vlarl.config import ConfigError
from vlarl.config.checkpoints import with_checkpoints
from vlarl.terminal import PlainConsole, say, text_column
from vlarl_cli.evaluate import Best, check_best
from vlarl_cli.families import Cameras, Chunk, ConventionOption, Proprio, stated_use
from vlarl_cli.groups import command_group
from vlarl_cli.options import one_sentence_errors, read_saved
from vlarl_cli.runs import config_of_policy

app = command_group("Make and inspect checkpoints of OpenVLA and OpenVLA-OFT.")


@app.command()
def tiny(
    directory: Annotated[Path, typer.Argument(help="Folder to create.")],
    seed: Annotated[int, typer.Option(help="Seed of the random weights.")] = 7,
    family: Annotated[
        Literal["openvla", "openvla_oft"], typer.Option(help="What the policy is.")
    ] = "openvla",
    chunk: Annotated[
        int | None, typer.Option(min=1, help="OpenVLA-OFT: actions of an answer; default: 8.")
    ] = None,
    convention: Annotated[
        Literal["stop", "no_stop"] | None,
        typer.Option(help="OpenVLA-OFT: what follows the placeholders; default: stop."),
    ] = None,
    camera: Annotated[
        list[str] | None,
        typer.Option(
            help="OpenVLA-OFT: a camera that it sees; repeat it for several, the main one first. "
            "Default: agentview."
        ),
    ] = None,
    proprio: Annotated[
        int | None,
        typer.Option(
            min=0, help="OpenVLA-OFT: numbers of proprioception, 8 on LIBERO; default: 0."
        ),
    ] = None,
) -> None:
    """Make a tiny untrained checkpoint, about a million weights, in its family's format."""
    _check_vacant(directory)
    with one_sentence_errors():
        from vlarl.files import durable_folder
        from vlarl.models.openvla.tiny import make_tiny_checkpoint
        from vlarl.models.openvla_oft.starting import make_tiny_oft_checkpoint

        options = {"chunk": chunk, "convention": convention, "cameras": camera, "proprio": proprio}
        given: dict[str, Any] = {key: one for key, one in options.items() if one is not None}
        if family == "openvla" and given:
            raise ConfigError(
                "--chunk, --convention, --camera and --proprio are for --family openvla_oft"
            )
        with durable_folder(directory) as folder:
            if family == "openvla":
                make_tiny_checkpoint(folder, seed=seed)
            else:
                make_tiny_oft_checkpoint(folder, seed=seed, **given)
    name = {"openvla": "OpenVLA", "openvla_oft": "OpenVLA-OFT"}[family]
    say(f"{directory}: an untrained {name} of {_size(directory):,} parameters")


@app.command()
def show(
    directory: Annotated[
        Path, typer.Argument(help="Checkpoint folder, or OWNER/NAME[@REVISION] on the hub.")
    ],
) -> None:
    """Show what a checkpoint holds, as the policy server reads it."""
    with one_sentence_errors():
        from vlarl.models.registry import check_policy_checkpoint
        from vlarl.weights.hub import folder_of

        directory = folder_of(directory)
        config = check_policy_checkpoint(directory)
        say(f"family        {', '.join([config.family, *stated_use(directory)])}")
        say(f"parameters    {_size(directory):,}")
        say(f"image size    {config.image_size}")
        say(f"centre crop   {config.center_crop}")
        say(f"un-norm keys  {', '.join(config.norm_stats)}")
        say(f"usage         {config.usage()}")
        from vlarl.weights.checkpoint import base_digest

        say(f"digest        {base_digest(directory)}")


@app.command()
def adopt(
    source: Annotated[
        Path,
        typer.Argument(
            help="Folder, or OWNER/NAME[@REVISION] on the hub: a LoRA adapter, an OpenVLA-OFT, or "
            "`.bin` weights, which are taken of folders alone."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="Folder to create.")],
    base: Annotated[
        Path | None,
        typer.Option(
            help="The model that the adapter belongs to: a folder, or OWNER/NAME[@REVISION] on the "
            "hub."
        ),
    ] = None,
    chunk: Chunk = None,
    convention: ConventionOption = None,
    camera: Cameras = None,
    proprio: Proprio = None,
) -> None:
    """Make a checkpoint of a folder that is none yet.

    Converts pickled weights (pytorch_model*.bin) to safetensors, of which nothing can run code;
    writes the index that shards have lost; merges a LoRA adapter onto its --base. Names, values
    and data types stay. OUT appears once it is whole; cut short, the same command starts over.

    Of an OpenVLA-OFT with discrete tokens it also writes family.json, without which nobody knows
    that it is one, and puts its projector of proprioception among the weights.
    """
    _check_vacant(out)
    with one_sentence_errors():
        from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

        from vlarl.files import durable_folder
        from vlarl.models.adoption import find_adoption
        from vlarl.models.openvla_oft.adoption import AskedFamily
        from vlarl.weights.hub import folder_of

        asked = AskedFamily(chunk, convention, tuple(camera or ()), proprio)
        found = find_adoption(folder_of(source), base and folder_of(base), asked)
        columns = (text_column("converting"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        console = PlainConsole(stderr=True)
        bar = Progress(*columns, console=console, disable=not console.is_terminal)
        with durable_folder(out, found.size) as folder, bar:
            task = bar.add_task("", total=found.size)
            found.write(folder, lambda size: bar.advance(task, size))
        use = f"; family.json: {', '.join(stated_use(out))}" if found.family is not None else ""
        say(f"{out}: {_size(out):,} parameters{use}")
        if found.family is not None and not camera:
            say(
                f"no --camera was given, so {out} sees one image, agentview: if it was trained on "
                f"several, remove {out} and adopt it again with --camera NAME for each"
            )


@app.command()
def export(
    run: Annotated[
        Path,
        typer.Argument(
            help="Folder of a run, for the policy of its last checkpoint, or RUN/checkpoints/NAME."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="Folder to create.")],
    best: Best = False,
) -> None:
    """Make a checkpoint of the policy that a run has trained, for any server or loader.

    Merges the run's factors into the checkpoint that training began with. Every tensor keeps its
    data type. OUT appears once it is whole.
    """
    _check_vacant(out)
    with one_sentence_errors():
        check_best(best, run)
        settings = read_saved(config_of_policy(run), None)
        from vlarl.weights.hub import folder_of
        from vlarl_jobs.evaluation.evaluated_policy import export_policy

        settings = with_checkpoints(settings, folder_of, ["policy.checkpoint"])
        progress = export_policy(settings, run, out, best=best)
        say(
            f"{out}: the policy of {progress.run_id} after {progress.iteration} iterations, "
            f"version {progress.version}"
        )


@app.command()
def cast(
    source: Annotated[
        Path, typer.Argument(help="Checkpoint folder, or OWNER/NAME[@REVISION] on the hub.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder to create.")],
    dtype: Annotated[
        Literal["float16", "bfloat16", "float32"], typer.Option(help="What the weights become.")
    ] = "float16",
) -> None:
    """Store a policy's weights in another data type: float16 takes half the room of float32.

    Each weight becomes the nearest number of that type. What servers and trainers compute in is
    another matter: policy.dtype and trainer.dtype. OUT appears once it is whole.
    """
    _check_vacant(out)
    with one_sentence_errors():
        from vlarl.learning.export import cast_checkpoint
        from vlarl.models.registry import check_policy_checkpoint
        from vlarl.weights.hub import folder_of

        directory = folder_of(source)
        check_policy_checkpoint(directory)
        cast_checkpoint(directory, out, dtype)
        say(f"{out}: {_size(out):,} parameters of {dtype}")


def _check_vacant(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise typer.BadParameter(f"{out} exists and is no empty folder")


def _size(directory: Path) -> int:
    from math import prod

    from vlarl.weights.wholeness import check_weights

    return sum(prod(tensor.shape) for tensor in check_weights(directory).values())
