"""Options that several subcommands share, and the one place where errors become exit codes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from vlarl.config import ConfigError, RunConfig, Section, ServerConfig, load_saved, load_section
from vlarl.disk import explained
from vlarl.errors import FatalError
from vlarl.terminal import complain, say

S = TypeVar("S", bound=Section)

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="The run's TOML file; see docs/configuration.md."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-s",
        metavar="SECTION.KEY=VALUE",
        help="Overrides one key of the configuration; may be repeated.",
    ),
]


def _host_and_port(address: str | None) -> str | None:
    """Refuses a malformed address before a server loads anything, which takes a while."""
    from vlarl.rpc.address import ListenError, split_address

    try:
        if address is not None:
            split_address(address)
    except ListenError as error:
        raise typer.BadParameter(str(error)) from error
    return address


Listen = Annotated[
    str,
    typer.Option(
        "--listen",
        callback=_host_and_port,
        help="HOST:PORT to serve on; port 0 takes a free one.",
    ),
]
Metrics = Annotated[
    str | None,
    typer.Option(
        "--metrics-listen",
        callback=_host_and_port,
        help="HOST:PORT of the Prometheus endpoint; default: none.",
    ),
]
AddressFile = Annotated[
    Path | None, typer.Option("--address-file", help="File that receives the bound HOST:PORT.")
]
Reflection = Annotated[
    bool, typer.Option("--reflection", help="Serve gRPC reflection, for `buf curl` and grpcurl.")
]
Drain = Annotated[
    float, typer.Option("--drain-seconds", help="Time that calls in progress have after SIGTERM.")
]
OwnSuites = Annotated[
    list[str] | None,
    typer.Option("--bddl", metavar="NAME=FOLDER", help="A suite of your own; may be repeated."),
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log every detail.")]


def read_config(path: Path | None, overrides: list[str] | None) -> RunConfig:
    """The run's configuration, as `read_section` reads it."""
    return read_section(RunConfig, path, overrides)


def read_section(root: type[S], path: Path | None, overrides: list[str] | None) -> S:
    """The configuration of a command; a mistake in it ends the command with one sentence."""
    try:
        return load_section(root, path, overrides or [])
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from error


def read_saved(path: Path, overrides: list[str] | None) -> RunConfig:
    """The configuration of a run to look at, whatever version has saved it; see `load_saved`."""
    try:
        return load_saved(RunConfig, path, overrides or [])
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from error


def own_suites(texts: list[str] | None) -> dict[str, Path]:
    """The folders that --bddl names.

    Raises:
        ConfigError: one is not NAME=FOLDER.
    """
    folders = {}
    for text in texts or []:
        name, _, folder = text.partition("=")
        if not name or not folder:
            raise ConfigError(f"--bddl is NAME=FOLDER, not {text!r}")
        folders[name] = Path(folder).resolve()
    return folders


def server_config(
    config: RunConfig,
    listen: str,
    metrics_listen: str | None,
    address_file: Path | None,
    reflection: bool,
    drain_seconds: float,
) -> ServerConfig:
    """A server with the run's credentials."""
    return config.security.secured(
        ServerConfig(
            listen=listen,
            metrics_listen=metrics_listen,
            address_file=address_file,
            reflection=reflection,
            drain_seconds=drain_seconds,
        )
    )


@contextlib.contextmanager
def one_sentence_errors() -> Iterator[None]:
    """Turns a fatal error, or that of a full disk, into its sentence and exit code 1."""
    try:
        with explained():
            yield
    except FatalError as error:
        complain(error)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as interrupt:
        say(("interrupted", "yellow"), stderr=True)
        raise typer.Exit(130) from interrupt
    except asyncio.CancelledError as cancelled:  # a signal unwound a server's start
        say(("stopped while starting", "yellow"), stderr=True)
        raise typer.Exit(143) from cancelled
