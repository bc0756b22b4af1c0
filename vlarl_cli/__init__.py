"""The `vlarl` command. Every subcommand imports what it needs only when it runs."""

from __future__ import annotations

import atexit
import gc
import os
from typing import Annotated

import typer

# gRPC's core writes its own lines to standard error; what matters arrives as an error of ours.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from vlarl.terminal import complain, say, use_lookalikes
from vlarl_cli import (
    ablate,
    checkpoint,
    client,
    demos,
    evaluate,
    gpus,
    report,
    reward,
    run,
    serve,
    settings,
    sft,
    status,
)
from vlarl_cli.extras import missing_package_hint
from vlarl_cli.groups import command_group

PURPOSE = "Fine-tune vision-language-action robot policies by online reinforcement learning."
app = command_group(PURPOSE, "vlarl")


def _print_version(asked: bool) -> None:
    if asked:
        import vlarl

        say(f"vlarl {vlarl.__version__}")
        raise typer.Exit


_VERSION = typer.Option(
    "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
)


@app.callback(help=PURPOSE)
def _options(_: Annotated[bool, _VERSION] = False) -> None:
    pass


app.add_typer(serve.app, name="serve")
app.add_typer(checkpoint.app, name="checkpoint")
app.add_typer(demos.app, name="demos")
app.add_typer(reward.app, name="reward")
app.add_typer(settings.app, name="config")
app.command("train")(run.train)
app.command("begin")(run.begin)
app.command("up")(run.up)
app.command("gpus")(gpus.gpus)
app.command("ablate")(ablate.ablate)
app.command("eval")(evaluate.evaluate)
app.command("report")(report.report)
app.command("sft")(sft.sft)
app.command("act")(client.act)
app.command("status")(status.status)
app.command("queue")(client.queue)
app.command("health")(client.health)


def main() -> None:
    """The console script: `app`, and one sentence where a package of another extra is missing."""
    # torch and vLLM are a million objects. To look through them again and again for garbage is a
    # fifth of what it takes to import them.
    gc.set_threshold(100_000)
    # Nor are they looked through at the end, which frees them one by one: 2 s for a policy server.
    atexit.register(gc.freeze)
    # All processes below this one, of whatever launcher, start where the user is, and what lies
    # there isn't theirs to import: a `queue.py` or `logging.py` would take Python's place.
    os.environ["PYTHONSAFEPATH"] = "1"
    if "PYTHONPATH" in os.environ:
        # An empty entry, as `PYTHONPATH=$PYTHONPATH:/more` leaves, is the working folder, too.
        entries = os.environ["PYTHONPATH"].split(os.pathsep)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, entries))
    use_lookalikes()
    try:
        app()
    except ImportError as error:
        if not (hint := missing_package_hint(error)):
            raise
        complain(hint)
        raise SystemExit(1) from error
