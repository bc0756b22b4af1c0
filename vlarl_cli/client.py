"""`vlarl act`, `vlarl queue`, `vlarl health`: look at a running stack from outside."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from vlarl.invocation import invocation
from vlarl.terminal import complain, say, show
from vlarl_cli.options import ConfigFile, Overrides, one_sentence_errors, read_config

if TYPE_CHECKING:
    from vlarl.rpc.errors import PolicyError

Token = Annotated[Path | None, typer.Option("--token-file", help="File with the bearer token.")]
TlsCa = Annotated[Path | None, typer.Option("--tls-ca", help="Certificates (PEM) to trust.")]
TlsCertificate = Annotated[
    Path | None,
    typer.Option("--tls-certificate", help="The client's own certificate, for mutual TLS."),
]
TlsKey = Annotated[Path | None, typer.Option("--tls-key", help="The client's own key.")]


def act(
    image: Annotated[Path, typer.Option(help="JPEG or PNG file.", exists=True, dir_okay=False)],
    instruction: Annotated[str, typer.Option(help="The task in words.")],
    address: Annotated[str, typer.Option(help="Policy server.")] = "127.0.0.1:50051",
    camera: Annotated[
        list[str] | None, typer.Option(help="NAME=FILE of a further camera; may be repeated.")
    ] = None,
    proprio: Annotated[
        str, typer.Option(help="Proprioception: numbers with commas between them.")
    ] = "",
    temperature: Annotated[float, typer.Option(help="0 takes the most probable tokens.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Seed of the sampling.")] = None,
    unnorm_key: Annotated[str, typer.Option(help="Dataset whose units are wanted.")] = "",
    timeout_seconds: Annotated[
        float, typer.Option(help="Time to wait for an answer, retries included.", min=0.001)
    ] = 30.0,
    token_file: Token = None,
    tls_ca: TlsCa = None,
    tls_certificate: TlsCertificate = None,
    tls_key: TlsKey = None,
) -> None:
    """Ask a policy server for one answer."""
    from vlarl.clients.policy import PolicyClient, PolicyError

    try:
        with PolicyClient(
            address,
            token_file=token_file,
            tls_ca=tls_ca,
            tls_certificate=tls_certificate,
            tls_key=tls_key,
            timeout_seconds=timeout_seconds,
        ) as policy:
            action = policy.predict(
                image.read_bytes(),
                instruction,
                images=_images(camera or []),
                proprio=_numbers(proprio),
                temperature=temperature,
                seed=seed,
                unnorm_key=unnorm_key or None,
            )
    except (PolicyError, ValueError) as error:  # ConfigError is a ValueError
        hint = _hint(error) if isinstance(error, PolicyError) else ""
        complain(f"{error}{hint}")
        raise typer.Exit(1) from error
    say(f"version   {action.policy_version}")
    say(f"tokens    {' '.join(str(token) for token in action.token_ids)}")
    say(f"log-prob  {action.logprobs.sum():.4f}")
    for step, values in enumerate(action.values.reshape(action.horizon, -1)):
        numbers = " ".join(f"{value:+.4f}" for value in values)
        say(f"{'' if step else 'action':10}{numbers}")


def _images(cameras: list[str]) -> dict[str, bytes]:
    """Of further cameras, by their names.

    Raises:
        ValueError: one isn't NAME=FILE, or the file can't be read.
    """
    images = {}
    for given in cameras:
        name, found, file = given.partition("=")
        if not name or not found:
            raise ValueError(f"--camera {given!r} must be NAME=FILE")
        try:
            images[name] = Path(file).read_bytes()
        except OSError as error:
            raise ValueError(f"--camera {given!r}: {error.strerror}") from error
    return images


def _numbers(text: str) -> list[float] | None:
    """The numbers of "1,2.5,-3"; none where there is nothing.

    Raises:
        ValueError: one of them is none.
    """
    try:
        return [float(one) for one in text.split(",")] if text else None
    except ValueError as error:
        raise ValueError(f"--proprio {text!r} must be numbers with commas between them") from error


def _hint(error: PolicyError) -> str:
    """What to do about it."""
    from grpc import StatusCode

    if error.reason in ("TOKEN_MISSING", "TOKEN_WRONG"):
        return "; --token-file names a file with one of the server's tokens"
    # A server that gives a reason is there.
    if error.code is StatusCode.UNAVAILABLE and not error.reason:
        start = f"{invocation()} serve policy --checkpoint DIR"
        return f"; start a server with `{start}`, or name another one with --address"
    return ""


def queue(config: ConfigFile = None, overrides: Overrides = None) -> None:
    """Show the rollout queue: streams, lag, and what was given up and why."""
    from vlarl.queue.rollout_queue import DeadLetter, RolloutQueue, StreamState

    async def look() -> tuple[list[StreamState], list[DeadLetter]]:
        async with RolloutQueue(read_config(config, overrides).queue, retries=0) as opened:
            return await opened.states(), await opened.dead_letters()

    with one_sentence_errors():
        states, letters = asyncio.run(look())
    table = Table("stream", "entries", "pending", "lag", "consumers")
    for state in states:
        lag = "?" if state.lag is None else str(state.lag)
        counts = (str(state.length), str(state.pending), lag, str(state.consumers))
        table.add_row(state.stream, *counts)
    show(table)
    for letter in letters:
        say(f"dead: {letter.spec.episode_id} at {letter.stage}: {letter.cause}")


def health(
    address: Annotated[str, typer.Argument(help="HOST:PORT of a server.")],
    timeout_seconds: Annotated[float, typer.Option(help="Time to wait for an answer.")] = 5.0,
    tls_ca: TlsCa = None,
    tls_certificate: TlsCertificate = None,
    tls_key: TlsKey = None,
) -> None:
    """Exit 0 if the server is ready, 1 if not: for container health checks."""
    from vlarl.config import ChannelConfig
    from vlarl.rpc.channel import server_health

    channel = ChannelConfig(
        tls_ca=tls_ca,
        tls_certificate=tls_certificate,
        tls_key=tls_key,
        timeout_seconds=timeout_seconds,
    )
    with one_sentence_errors():
        state = server_health(address, channel)
    say(state)
    raise typer.Exit(0 if state == "SERVING" else 1)
